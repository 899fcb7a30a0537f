#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include "rlhf/core/scalar.hpp"
#include "rlhf/math/pack.hpp"

/// Types that logits are stored in but never computed in: 16 bits in memory, float in registers.
/// Reading is exact; writing rounds to nearest, ties to even.

namespace rlhf::inline v1 {

/// The upper half of a float: 8 bits of exponent, 7 of mantissa.
///
/// Edges     NaN stays NaN and becomes quiet, its sign kept; values that round past the largest
///           finite one become infinite; denormals are kept
struct bfloat16_format {
  using compute = float;

  RLHF_HOST_DEVICE static constexpr float widen(std::uint16_t bits) {
    return __builtin_bit_cast(float, static_cast<std::uint32_t>(bits) << 16);
  }
  RLHF_HOST_DEVICE static constexpr std::uint16_t narrow(float x) {
    const auto word = __builtin_bit_cast(std::uint32_t, x);
    if ((word & 0x7fff'ffffu) > 0x7f80'0000u) return static_cast<std::uint16_t>(word >> 16 | 0x40u);
    return static_cast<std::uint16_t>((word + 0x7fffu + (word >> 16 & 1u)) >> 16);
  }
};

/// IEEE binary16: 5 bits of exponent, 10 of mantissa; the largest value is 65504.
///
/// Edges     as bfloat16_format
struct half_format {
  using compute = float;

  RLHF_HOST_DEVICE static constexpr float widen(std::uint16_t bits) {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    const std::uint32_t magnitude = bits & 0x7fffu;
    if (magnitude >= 0x7c00u) {
      const std::uint32_t quiet = magnitude > 0x7c00u ? 0x40'0000u : 0u;
      return __builtin_bit_cast(float, sign | 0x7f80'0000u | quiet | (magnitude & 0x3ffu) << 13);
    }
    // As a float with the bias of half: 2^112 too small, which the product mends, denormals too.
    const float scaled = __builtin_bit_cast(float, magnitude << 13) * 0x1p+112f;
    return __builtin_bit_cast(float, sign | __builtin_bit_cast(std::uint32_t, scaled));
  }
  RLHF_HOST_DEVICE static constexpr std::uint16_t narrow(float x) {
    const auto word = __builtin_bit_cast(std::uint32_t, x);
    const std::uint32_t sign = word >> 16 & 0x8000u;
    const std::uint32_t magnitude = word & 0x7fff'ffffu;
    std::uint32_t result = 0;
    if (magnitude > 0x7f80'0000u) {
      result = 0x7e00u | (magnitude >> 13 & 0x3ffu);
    } else if (magnitude >= 0x477f'f000u) {  // 65520 and more
      result = 0x7c00u;
    } else if (magnitude >= 0x3880'0000u) {  // normal
      result = (magnitude - 0x3800'0000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    } else {
      // Beside 1/2 a float has steps of 2^-24, those of a denormal half: the sum rounds, and its
      // low bits are the result.
      const float rounded = __builtin_bit_cast(float, magnitude) + 0.5f;
      result = __builtin_bit_cast(std::uint32_t, rounded) - 0x3f00'0000u;
    }
    return static_cast<std::uint16_t>(sign | result);
  }
};

/// A number in the upper 16 bits of a float. It converts, and does nothing else: compute in float.
struct bfloat16 {
  std::uint16_t bits = 0;

  constexpr bfloat16() = default;
  RLHF_HOST_DEVICE explicit constexpr bfloat16(float x) : bits(bfloat16_format::narrow(x)) {}
  RLHF_HOST_DEVICE explicit constexpr operator float() const {
    return bfloat16_format::widen(bits);
  }
};

/// A number in IEEE binary16. It converts, and does nothing else: compute in float.
struct half {
  std::uint16_t bits = 0;

  constexpr half() = default;
  RLHF_HOST_DEVICE explicit constexpr half(float x) : bits(half_format::narrow(x)) {}
  RLHF_HOST_DEVICE explicit constexpr operator float() const { return half_format::widen(bits); }
};

/// Says in which format a type stores a number. Another library's 16-bit type takes one line:
///
///     template <> struct rlhf::storage_traits<at::BFloat16> : rlhf::bfloat16_format {};
///     template <> struct rlhf::storage_traits<__half> : rlhf::half_format {};
template <class X>
struct storage_traits;

template <>
struct storage_traits<float> {
  using compute = float;
};
template <>
struct storage_traits<double> {
  using compute = double;
};
template <>
struct storage_traits<bfloat16> : bfloat16_format {};
template <>
struct storage_traits<half> : half_format {};
#if defined(__STDCPP_BFLOAT16_T__)
template <>
struct storage_traits<decltype(0.0bf16)> : bfloat16_format {};
#endif
#if defined(__STDCPP_FLOAT16_T__)
template <>
struct storage_traits<decltype(0.0f16)> : half_format {};
#endif

/// What logits may be stored in: float, double, bfloat16, half, and types with storage_traits.
template <class X>
concept storage = std::is_trivially_copyable_v<X> && requires {
  typename storage_traits<X>::compute;
};

/// What is computed in for logits stored as X: double for double, float for all others.
template <storage X>
using compute_of = typename storage_traits<X>::compute;

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE::math {

/// The number at p. Exact.
template <storage X>
RLHF_HOST_DEVICE RLHF_INLINE compute_of<X> widen(const X* p) {
  if constexpr (scalar<X>) {
    return *p;
  } else {
    static_assert(sizeof(X) == 2);
    std::uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return storage_traits<X>::widen(bits);
  }
}

/// *p = x, rounded to nearest.
template <storage X>
RLHF_HOST_DEVICE RLHF_INLINE void narrow(X* p, compute_of<X> x) {
  if constexpr (scalar<X>) {
    *p = x;
  } else {
    const std::uint16_t bits = storage_traits<X>::narrow(x);
    __builtin_memcpy(static_cast<void*>(p), &bits, 2);
  }
}

#if RLHF_PACK_BYTES > 0

namespace detail {

/// 16-bit words beside one pack of floats.
struct words16 {
  typedef std::uint16_t values __attribute__((vector_size(RLHF_PACK_BYTES / 2)));
  typedef std::int16_t signed_values __attribute__((vector_size(RLHF_PACK_BYTES / 2)));
};

#if defined(__F16C__) && !defined(RLHF_PORTABLE_PACKS) && RLHF_PACK_BYTES == 32
#define RLHF_DETAIL_F16C 1
#else
#define RLHF_DETAIL_F16C 0
#endif
#if defined(__AVX2__) && !defined(RLHF_PORTABLE_PACKS) && RLHF_PACK_BYTES == 32
#define RLHF_DETAIL_PACK_WORDS 1
#else
#define RLHF_DETAIL_PACK_WORDS 0
#endif

template <class Format>
RLHF_INLINE pack<float> widen_words(const words16::values& words) {
  using traits = lane_traits<pack<float>>;
  if constexpr (std::same_as<Format, bfloat16_format>) {
#if RLHF_DETAIL_PACK_WORDS && !defined(__clang__)
    // g++ would convert each half by itself
    const auto signed_words = __builtin_bit_cast(words16::signed_values, words);
    const auto wide =
        __builtin_bit_cast(typename traits::bits, __builtin_ia32_pmovzxwd256(signed_words));
#else
    const auto wide = __builtin_convertvector(words, traits::bits);
#endif
    return traits::from_bits(wide << 16);
  } else {
#if RLHF_DETAIL_F16C
    return {__builtin_ia32_vcvtph2ps256(__builtin_bit_cast(words16::signed_values, words))};
#else
    pack<float> x;
    for (int i = 0; i < traits::width; ++i) x.native[i] = Format::widen(words[i]);
    return x;
#endif
  }
}

template <class Format>
RLHF_INLINE words16::values narrow_words(const pack<float>& x) {
  using traits = lane_traits<pack<float>>;
  if constexpr (std::same_as<Format, bfloat16_format>) {
    const traits::bits word = traits::to_bits(x);
    const traits::bits rounded = word + (0x7fffu + ((word >> 16) & 1u));
    const pack<float> chosen = traits::select(
        traits::is_nan(x), traits::from_bits(word | 0x40'0000u), traits::from_bits(rounded));
    const traits::bits upper = traits::to_bits(chosen) >> 16;
#if RLHF_DETAIL_PACK_WORDS
    typedef std::int32_t eight __attribute__((vector_size(32)));
    typedef std::int64_t four __attribute__((vector_size(32)));
    const auto signed_upper = __builtin_bit_cast(eight, upper);
    const auto both =
        __builtin_bit_cast(four, __builtin_ia32_packusdw256(signed_upper, signed_upper));
    return __builtin_bit_cast(words16::values, __builtin_shufflevector(both, both, 0, 2));
#else
    return __builtin_convertvector(upper, words16::values);
#endif
  } else {
#if RLHF_DETAIL_F16C
    return __builtin_bit_cast(words16::values, __builtin_ia32_vcvtps2ph256(x.native, 0));
#else
    words16::values words = {};
    for (int i = 0; i < traits::width; ++i) words[i] = Format::narrow(x.native[i]);
    return words;
#endif
  }
}

#undef RLHF_DETAIL_F16C
#undef RLHF_DETAIL_PACK_WORDS

template <class X>
using format_of = std::conditional_t<std::derived_from<storage_traits<X>, bfloat16_format>,
                                     bfloat16_format, half_format>;

}  // namespace detail

#endif

/// width<V> consecutive numbers from p, which needs no more alignment than an element. Exact.
template <lane V, storage X>
RLHF_HOST_DEVICE RLHF_INLINE V load_storage(const X* p) {
  if constexpr (scalar<X>) {
    return load<V>(p);
  } else if constexpr (width<V> == 1) {
    return constant<V>(widen(p));
  } else {
#if RLHF_PACK_BYTES > 0
    detail::words16::values words;
    __builtin_memcpy(&words, p, sizeof words);
    return detail::widen_words<detail::format_of<X>>(words);
#endif
  }
}

/// Writes width<V> consecutive numbers to p, rounded to nearest.
template <lane V, storage X>
RLHF_HOST_DEVICE RLHF_INLINE void store_storage(X* p, const V& x) {
  if constexpr (scalar<X>) {
    store<V>(p, x);
  } else if constexpr (width<V> == 1) {
    narrow(p, first(x));
  } else {
#if RLHF_PACK_BYTES > 0
    const detail::words16::values words = detail::narrow_words<detail::format_of<X>>(x);
    __builtin_memcpy(static_cast<void*>(p), &words, sizeof words);
#endif
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::math
