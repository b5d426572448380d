// Memory that threads compute in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace solo_attn {

// A cache line in bytes, and as wide as the widest vectors: one that lies across two lines takes two
// accesses, and threads that write to the same line wait for each other.
constexpr int64_t kLine = 64;

constexpr int64_t kLanes = 16;  // tables and rows are as long as whole vectors

inline int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// The first element of the vector that element i is in.
inline int64_t vector_begin(int64_t i) { return i / kLanes * kLanes; }

struct ReleaseScratch {
  void operator()(void* memory) const { ::operator delete[](memory, std::align_val_t(kLine)); }
};
template <class T>
using Scratch = std::unique_ptr<T[], ReleaseScratch>;

// Uninitialised; in cache lines of its own, and aligned to them.
template <class T>
Scratch<T> scratch(int64_t count) {
  auto bytes = count * static_cast<int64_t>(sizeof(T));
#if !defined(__SANITIZE_ADDRESS__)  // which shall see what is just past the end
  bytes = (bytes + kLine - 1) / kLine * kLine;
#endif
  return Scratch<T>(static_cast<T*>(::operator new[](bytes, std::align_val_t(kLine))));
}

template <class T>
Scratch<T> zeroed_scratch(int64_t count) {
  Scratch<T> memory = scratch<T>(count);
  std::fill_n(memory.get(), count, T(0));
  return memory;
}

}  // namespace solo_attn
