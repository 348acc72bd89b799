# The GPU architectures a release is built for: every one we support that this nvcc knows, and the
# newest of them as PTX too, so that later GPUs can run it. 90a, not 90: wgmma exists only there.
set(wanted 75 80 86 89 90a 100 120)
execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE known
                OUTPUT_STRIP_TRAILING_WHITESPACE)
set(architectures "")
foreach(arch IN LISTS wanted)
  string(REGEX REPLACE "a$" "" base ${arch})
  if(known MATCHES "sm_${base}([^0-9]|$)")
    list(APPEND architectures ${arch}-real)
    set(newest ${base})
  endif()
endforeach()
list(APPEND architectures ${newest}-virtual)
set(CMAKE_CUDA_ARCHITECTURES "${architectures}" CACHE STRING "GPU architectures")
