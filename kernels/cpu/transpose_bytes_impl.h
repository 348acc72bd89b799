// Transposes a matrix of bytes; for the tables of kernels. Internal linkage, as all that is
// compiled once for each instruction set.

// IWYU pragma: private

#include <cstddef>
#include <cstdint>

namespace ringmaster {
namespace {

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint8_t UnalignedBytes16 __attribute__((vector_size(16), aligned(1), may_alias));

inline Bytes16 InterleaveLow(Bytes16 a, Bytes16 b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Bytes16 InterleaveHigh(Bytes16 a, Bytes16 b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}

// Four rounds of a perfect shuffle of the rows transpose a 16 x 16 block.
inline void TransposeBlock(const uint8_t* in, ptrdiff_t in_stride, uint8_t* out,
                           ptrdiff_t out_stride) {
  Bytes16 rows[16];
  for (int i = 0; i < 16; ++i) {
    rows[i] = *reinterpret_cast<const UnalignedBytes16*>(in + i * in_stride);
  }
  for (int round = 0; round < 4; ++round) {
    Bytes16 next[16];
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = InterleaveLow(rows[i], rows[i + 8]);
      next[2 * i + 1] = InterleaveHigh(rows[i], rows[i + 8]);
    }
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < 16; ++i) {
    *reinterpret_cast<UnalignedBytes16*>(out + i * out_stride) = rows[i];
  }
}

void TransposeBytes(const uint8_t* in, ptrdiff_t in_stride, int rows, int columns, uint8_t* out,
                    ptrdiff_t out_stride) {
  for (int c = 0; c < columns; c += 16) {
    for (int r = 0; r < rows; r += 16) {
      TransposeBlock(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride);
    }
  }
}

}  // namespace
}  // namespace ringmaster
