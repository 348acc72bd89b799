// ToDoubles of exact_kernels_impl.h for instruction sets that cannot convert 64-bit integers.
// Included after Doubles and Longs are defined.

// IWYU pragma: private

namespace ringmaster {
namespace {

// Both halves become doubles exactly, by being put into the low bits of a power of two that is then
// subtracted; only the last addition rounds, so the result is that of a conversion. The upper half
// is made positive by flipping its sign bit, which adds 2^63 in all.
inline Doubles ToDoubles(Longs x) {
  typedef uint64_t Words __attribute__((vector_size(sizeof(Longs))));
  constexpr uint64_t kTwoTo52 = 0x4330000000000000u;  // bits of 2^52: units in the last bit
  constexpr uint64_t kTwoTo84 = 0x4530000000000000u;  // bits of 2^84: units of 2^32
  const Words low = ((Words)x & 0xFFFFFFFFu) | kTwoTo52;
  const Words high = (((Words)x >> 32) ^ 0x80000000u) | kTwoTo84;
  return ((Doubles)high - (0x1p84 + 0x1p63)) + ((Doubles)low - 0x1p52);
}

}  // namespace
}  // namespace ringmaster
