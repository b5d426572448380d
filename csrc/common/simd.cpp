#include "simd.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "export.h"

namespace solo_attn {
namespace {

constexpr const char* kNames[] = {"plain", "avx2", "avx512"};

Isa best() {
#if defined(SOLO_ATTN_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
                    __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt") &&
                    __builtin_cpu_supports("popcnt");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vpopcntdq");
  return avx2 && avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::plain;
#else
  return Isa::plain;
#endif
}

// An unknown name, or one that this processor does not support, gives the best supported set.
Isa named(const char* name) {
  const int top = static_cast<int>(best());
  for (int level = 0; name != nullptr && level <= top; ++level) {
    if (std::strcmp(name, kNames[level]) == 0) return static_cast<Isa>(level);
  }
  return best();
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> level{named(std::getenv("SOLO_ATTN_SIMD"))};
  return level;
}

}  // namespace

Isa isa() { return current().load(std::memory_order_relaxed); }

}  // namespace solo_attn

// Test hook, called through ctypes: nullptr only queries, a name sets; returns the name in use.
SOLO_ATTN_EXPORT const char* solo_attn_simd(const char* name) {
  if (name != nullptr) solo_attn::current().store(solo_attn::named(name));
  return solo_attn::kNames[static_cast<int>(solo_attn::isa())];
}
