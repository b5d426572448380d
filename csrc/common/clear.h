// Memory of results that is set to 0.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "scratch.h"
#include "simd.h"

namespace solo_attn {

// A result of as many bytes is larger than what most processors' caches keep of it until somebody reads it.
constexpr std::size_t kPastCache = std::size_t{32} << 20;

// Clears memory. `past_cache`: lines that are cleared whole are written past the cache, which otherwise reads
// them from memory before, so that it takes half as long or less; other threads see them after `publish`.
inline void clear(void* memory, int64_t count, bool past_cache) {
#if defined(SOLO_ATTN_X86)
  if (past_cache) {
    auto* to = static_cast<char*>(memory);
    const auto inside = static_cast<int64_t>(reinterpret_cast<std::uintptr_t>(to) % kLine);
    const int64_t first = std::min((kLine - inside) % kLine, count);
    const int64_t last = first + (count - first) / kLine * kLine;
    std::memset(to, 0, first);
    for (int64_t i = first; i < last; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i), _mm_setzero_si128());
    }
    std::memset(to + last, 0, count - last);
    return;
  }
#else
  (void)past_cache;
#endif
  std::memset(memory, 0, count);
}

// After the last `clear` of a thread.
inline void publish() {
#if defined(SOLO_ATTN_X86)
  _mm_sfence();
#endif
}

}  // namespace solo_attn
