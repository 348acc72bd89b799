// Marks a function that the host compiler and nvcc both compile, so that one piece of arithmetic
// serves the CPU, the GPU and the tests.
#pragma once

#ifdef __CUDACC__
#define RM_HOST_DEVICE __host__ __device__
#else
#define RM_HOST_DEVICE
#endif
