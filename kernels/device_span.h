// A span of what the ranks sum: floats or, in reproducible runs, 64-bit integers, in the memory of
// a backend (device memory for CUDA).
//
// Thread safety: a plain value. Ownership: the memory is borrowed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ringmaster {

enum class Element : int { kFloat32 = 0, kInt64 = 1 };  // int64 sums wrap modulo 2^64

inline constexpr size_t ElementBytes(Element element) {
  return element == Element::kInt64 ? sizeof(int64_t) : sizeof(float);
}

struct DeviceSpan {
  DeviceSpan() = default;
  DeviceSpan(float* floats, size_t size) : data(floats), count(size) {}
  DeviceSpan(int64_t* integers, size_t size)
      : data(integers), count(size), element(Element::kInt64) {}
  // `memory` is aligned for the element.
  DeviceSpan(std::byte* memory, size_t size, Element kind)
      : data(memory), count(size), element(kind) {}

  // Of the right element only.
  float* floats() const { return static_cast<float*>(data); }
  int64_t* integers() const { return static_cast<int64_t*>(data); }
  size_t bytes() const { return count * ElementBytes(element); }
  // The last `size` elements.
  DeviceSpan Last(size_t size) const {
    DeviceSpan part = *this;
    part.data = static_cast<char*>(data) + (count - size) * ElementBytes(element);
    part.count = size;
    return part;
  }

  friend bool operator==(const DeviceSpan&, const DeviceSpan&) = default;

  void* data = nullptr;
  size_t count = 0;
  Element element = Element::kFloat32;
};

}  // namespace ringmaster
