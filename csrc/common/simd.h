// One function body, compiled for several instruction sets and chosen at run time.
//
// A body is a struct with `template <Isa isa> static SOLO_ATTN_INLINE R run(Args...)`; `call<Body>(args...)`
// runs it on the best instruction set of this processor. Explicit targets instead of GCC's target_clones,
// which choose when the library is loaded, so that tests could not run the other sets.
#pragma once

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)
#define SOLO_ATTN_X86 1
#include <immintrin.h>
#endif

#if defined(__GNUC__)
#define SOLO_ATTN_INLINE inline __attribute__((always_inline))
#else
#define SOLO_ATTN_INLINE inline
#endif

// Before a loop: no iteration reads what another one writes. Otherwise GCC checks for overlap at run time,
// and runs the scalar loop where a result is written in place.
#if defined(__clang__)
#define SOLO_ATTN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define SOLO_ATTN_INDEPENDENT _Pragma("GCC ivdep")
#else
#define SOLO_ATTN_INDEPENDENT
#endif

#if defined(SOLO_ATTN_X86)
// Lists of features instead of arch=...: GCC does not inline a body across two values of arch.
#define SOLO_ATTN_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt")))
#if defined(__clang__)
#define SOLO_ATTN_WIDE ""
#else
#define SOLO_ATTN_WIDE ",prefer-vector-width=512"
#endif
#define SOLO_ATTN_AVX512                                                               \
  __attribute__((                                                                      \
      target("avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl," \
             "avx512vpopcntdq" SOLO_ATTN_WIDE)))
#endif

namespace solo_attn {

enum class Isa : int { plain, avx2, avx512 };

// The instruction set in use: the best of this processor, or what the test hook in simd.cpp has set.
Isa isa();

#if defined(SOLO_ATTN_X86)
template <class Body, class... Args>
SOLO_ATTN_AVX2 auto call_avx2(Args... args) {
  return Body::template run<Isa::avx2>(args...);
}

template <class Body, class... Args>
SOLO_ATTN_AVX512 auto call_avx512(Args... args) {
  return Body::template run<Isa::avx512>(args...);
}
#endif

// Arguments are passed by value: use pointers and numbers.
template <class Body, class... Args>
auto call(Args... args) {
#if defined(SOLO_ATTN_X86)
  switch (isa()) {
    case Isa::avx512:
      return call_avx512<Body>(args...);
    case Isa::avx2:
      return call_avx2<Body>(args...);
    case Isa::plain:
      break;
  }
#endif
  return Body::template run<Isa::plain>(args...);
}

}  // namespace solo_attn
