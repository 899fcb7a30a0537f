#pragma once

/// What the compiler was told, in the library's own words. Nothing but macros lives here.
///
///     RLHF_HOST_DEVICE    a function that runs on the host and, under nvcc, in a CUDA thread
///     RLHF_INLINE         always inlined, at -O0 too: packs never cross a call
///     RLHF_NOINLINE       kept out of line: once per call, so size and compile time come first
///     RLHF_RARE           the same for what few calls come to: small code is all that counts
///     RLHF_PACK_BYTES     bytes of a math::pack: 32 with AVX2, 16 with SSE2 or NEON, 0 = no packs
///     RLHF_HAS_FMA        1 where a*b + c is one instruction with one rounding; 0 in strict mode
///     RLHF_COMPUTE        the inline namespace of all code that computes: ISA and strictness, so
///                         that units built with different flags never share such a function
///     RLHF_CHECKS         the same for checks of arguments, with and without exceptions
///
/// Set by the user, before the first include or on the command line:
///
///     RLHF_STRICT            the same bits from every compiler, -march and device: a*b + c is
///                            never fused
///     RLHF_NO_SIMD           scalar lanes only
///     RLHF_PORTABLE_PACKS    packs without compiler intrinsics; slower, for new machines and tests
///     RLHF_ALLOW_FAST_MATH   accept -ffast-math, and with it NaN that may go unseen

#if defined(RLHF_SINGLE_HEADER)
#error "Include rlhf's single header or headers of its folder include/, not both in one unit."
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "rlhf reads the flags of a mask eight at a time and counts on a little-endian machine."
#endif

#if defined(__FAST_MATH__) || defined(_M_FP_FAST) || defined(__ASSOCIATIVE_MATH__) || \
    (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0)
#if defined(RLHF_ALLOW_FAST_MATH)
#define RLHF_FAST_MATH 1
#else
#error \
    "rlhf counts and reports NaN, which -ffast-math lets a compiler ignore. Build without \
-ffast-math (and -ffinite-math-only), or define RLHF_ALLOW_FAST_MATH to accept wrong NaN handling."
#endif
#endif

#if defined(__CUDACC__)
#define RLHF_HOST_DEVICE __host__ __device__
#define RLHF_INLINE __forceinline__
#else
#define RLHF_HOST_DEVICE
#if defined(__GNUC__)
#define RLHF_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define RLHF_INLINE __forceinline
#else
#define RLHF_INLINE inline
#endif
#endif

#if defined(__GNUC__)
#define RLHF_NOINLINE __attribute__((noinline))
#elif defined(_MSC_VER)
#define RLHF_NOINLINE __declspec(noinline)
#else
#define RLHF_NOINLINE
#endif

#if defined(__CUDACC__)
#define RLHF_RARE
#elif defined(__GNUC__)
#define RLHF_RARE __attribute__((noinline, cold))
#else
#define RLHF_RARE RLHF_NOINLINE
#endif

// A pack is a compiler vector of one register. Wider than 32 bytes is never used: the clock of many
// machines drops under 64-byte code. AVX without AVX2 has no 32-byte integers, so it takes 16.
#if defined(__CUDACC__)
#define RLHF_PACK_BYTES 0
#define RLHF_DETAIL_ISA cuda
#elif defined(RLHF_NO_SIMD) || !defined(__GNUC__)
#define RLHF_PACK_BYTES 0
#define RLHF_DETAIL_ISA scalar
#elif defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define RLHF_PACK_BYTES 32
#define RLHF_DETAIL_ISA avx512
#elif defined(__AVX2__)
#define RLHF_PACK_BYTES 32
#define RLHF_DETAIL_ISA avx2
#elif defined(__AVX__)
#define RLHF_PACK_BYTES 16
#define RLHF_DETAIL_ISA avx
#elif defined(__SSE4_1__)
#define RLHF_PACK_BYTES 16
#define RLHF_DETAIL_ISA sse41
#elif defined(__SSE2__)
#define RLHF_PACK_BYTES 16
#define RLHF_DETAIL_ISA sse2
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define RLHF_PACK_BYTES 16
#define RLHF_DETAIL_ISA neon
#else
#define RLHF_PACK_BYTES 0
#define RLHF_DETAIL_ISA scalar
#endif

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define RLHF_DETAIL_MACHINE_HAS_FMA 1
#else
#define RLHF_DETAIL_MACHINE_HAS_FMA 0
#endif

#if defined(RLHF_STRICT)
#define RLHF_HAS_FMA 0
#elif defined(__CUDA_ARCH__)
#define RLHF_HAS_FMA 1
#else
#define RLHF_HAS_FMA RLHF_DETAIL_MACHINE_HAS_FMA
#endif

// AVX2 and AVX-512 machines come with FMA, every other level is named with it.
#if RLHF_PACK_BYTES == 32 && !RLHF_DETAIL_MACHINE_HAS_FMA
#define RLHF_DETAIL_FMA _nofma
#elif RLHF_PACK_BYTES != 32 && RLHF_DETAIL_MACHINE_HAS_FMA && !defined(__aarch64__)
#define RLHF_DETAIL_FMA _fma
#else
#define RLHF_DETAIL_FMA
#endif

#if defined(RLHF_STRICT)
#define RLHF_DETAIL_STRICT _strict
#else
#define RLHF_DETAIL_STRICT
#endif

#if defined(RLHF_PORTABLE_PACKS)
#define RLHF_DETAIL_PORTABLE _portable
#else
#define RLHF_DETAIL_PORTABLE
#endif

#if defined(RLHF_FAST_MATH)
#define RLHF_DETAIL_FAST _fast
#else
#define RLHF_DETAIL_FAST
#endif

// isa_avx2, isa_avx2_strict, isa_sse2, isa_scalar_fma, ...
#define RLHF_DETAIL_JOIN(isa, fma, strict, portable, fast) isa_##isa##fma##strict##portable##fast
#define RLHF_DETAIL_COMPUTE(isa, fma, strict, portable, fast) \
  RLHF_DETAIL_JOIN(isa, fma, strict, portable, fast)
// A throw and an abort are two programs: they are part of the name too.
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
#define RLHF_DETAIL_CHECKS(compute) checks_##compute
#else
#define RLHF_DETAIL_CHECKS(compute) aborting_checks_##compute
#endif
#define RLHF_DETAIL_CHECKS_OF(compute) RLHF_DETAIL_CHECKS(compute)
#define RLHF_CHECKS RLHF_DETAIL_CHECKS_OF(RLHF_COMPUTE)

#define RLHF_COMPUTE                                                                              \
  RLHF_DETAIL_COMPUTE(RLHF_DETAIL_ISA, RLHF_DETAIL_FMA, RLHF_DETAIL_STRICT, RLHF_DETAIL_PORTABLE, \
                      RLHF_DETAIL_FAST)
