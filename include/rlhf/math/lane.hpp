#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "rlhf/core/config.hpp"

/// A lane is what a formula computes with: a float, a double, a pack of them, a dual number. The
/// text of a formula is written once, for `template <lane V>`, and runs on all of them. Packs and
/// scalars give the same bits from every function here.

namespace rlhf::inline RLHF_COMPUTE::math {

/// What makes V a lane; the one place a new kind of lane plugs in. A specialisation gives
///
///     using scalar, mask;  static constexpr int width;
///     constant(scalar)  select(mask, V, V)  any(mask)  all(mask)  smaller(V, V)  larger(V, V)
///     abs(V)  copysign(V, V)  sqrt(V)  fma(V, V, V)  is_nan(V)  is_finite(V)
///
/// and may bring its own exp, log, ...: a function that is missing there is computed from the bits
/// of the value, which only float, double and packs of them have.
template <class V>
struct lane_traits;

template <class V>
concept lane = requires {
  typename lane_traits<V>::scalar;
  typename lane_traits<V>::mask;
};

/// The type of a < b: bool, or one flag per element of a pack.
template <lane V>
using mask_of = typename lane_traits<V>::mask;

/// The type of one element: float, double.
template <lane V>
using scalar_of = typename lane_traits<V>::scalar;

/// How many elements one V holds.
template <lane V>
inline constexpr int width = lane_traits<V>::width;

namespace detail {

/// The sentences a user reads who treats a lane as one number. They stand in the exception
/// specification, because that is looked at where the conversion is chosen: the first error.
template <class... Wrong>
constexpr bool is_no_number() {
  static_assert(
      sizeof...(Wrong) == 0,
      "rlhf: a lane is no number: in a formula write rlhf::math::exp(x), log, min, ... for "
      "std::exp(x), and rlhf::math::constant<V>(2) for 2, with V the type of the lane");
  return true;
}
template <class... Wrong>
constexpr bool is_no_flag() {
  static_assert(sizeof...(Wrong) == 0,
                "rlhf: a comparison of lanes is no bool: in a formula write "
                "rlhf::math::select(condition, a, b) for if and ?:, and &, | for &&, ||");
  return true;
}

/// IEEE format of T: the constants that code working on bits needs.
template <class T>
struct format;

template <>
struct format<float> {
  using word = std::uint32_t;
  using signed_word = std::int32_t;
  static constexpr int mantissa_bits = 23;
  static constexpr int bias = 127;
  static constexpr word sign = 0x8000'0000u;
  static constexpr word exponent = 0x7f80'0000u;
  static constexpr float smallest_normal = 0x1p-126f;
};

template <>
struct format<double> {
  using word = std::uint64_t;
  using signed_word = std::int64_t;
  static constexpr int mantissa_bits = 52;
  static constexpr int bias = 1023;
  static constexpr word sign = 0x8000'0000'0000'0000u;
  static constexpr word exponent = 0x7ff0'0000'0000'0000u;
  static constexpr double smallest_normal = 0x1p-1022;
};

/// x as it is, but unknown to the optimiser: what is added to it is not fused with what made it,
/// and (x + big) - big is not "simplified". Costs no instruction, on a GPU one: there an empty asm
/// would not last, because instructions are fused again when PTX is assembled.
template <class T>
RLHF_HOST_DEVICE RLHF_INLINE T opaque(T x) {
#if defined(__CUDA_ARCH__)
  T y;
  if constexpr (sizeof(T) == sizeof(float)) {
    asm("add.rn.f32 %0, %1, 0f80000000;" : "=f"(y) : "f"(x));  // x + -0 is x
  } else {
    asm("add.rn.f64 %0, %1, 0d8000000000000000;" : "=d"(y) : "d"(x));
  }
  return y;
#elif defined(__GNUC__) && (defined(__x86_64__) || defined(__SSE2__))
  asm("" : "+x"(x));
  return x;
#elif defined(__GNUC__) && defined(__aarch64__)
  asm("" : "+w"(x));
  return x;
#else
  volatile T kept = x;
  return kept;
#endif
}

/// Hides a value of a lane from -fassociative-math, which would undo a rounding by "x + big - big".
template <class V>
RLHF_HOST_DEVICE RLHF_INLINE void keep_rounding(V& x) {
  if constexpr (requires { x.native; }) {
    x.native = opaque(x.native);
  } else if constexpr (requires { x.value; }) {
    x.value = opaque(x.value);
  } else {
    x = opaque(x);
  }
}

/// sum + x, where x keeps the rounding of what made it, on any machine: a product is not fused with
/// its sum. Costs no instruction.
template <class V>
RLHF_HOST_DEVICE RLHF_INLINE V add_rounded(const V& sum, V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (requires { x.value; }) {
    return {add_rounded(sum.value, x.value)};
  } else if constexpr (sizeof(V) == sizeof(float)) {
    return __fadd_rn(sum, x);
  } else {
    return __dadd_rn(sum, x);
  }
#else
  keep_rounding(x);
  return sum + x;
#endif
}

/// a*b, rounded: never the first half of a fused a*b + c in strict mode.
template <class T>
RLHF_HOST_DEVICE RLHF_INLINE T rounded_product(T a, T b) {
#if defined(RLHF_STRICT) && defined(__CUDA_ARCH__)
  if constexpr (sizeof(T) == sizeof(float)) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#elif defined(RLHF_STRICT) && RLHF_DETAIL_MACHINE_HAS_FMA
  return opaque(a * b);
#else
  return a * b;
#endif
}

/// Float and double, the lanes of one element.
template <class T>
struct scalar_traits {
  using scalar = T;
  using mask = bool;
  using bits = typename format<T>::word;
  static constexpr int width = 1;

  RLHF_HOST_DEVICE RLHF_INLINE static constexpr T constant(T c) { return c; }
  RLHF_HOST_DEVICE RLHF_INLINE static T select(bool m, T a, T b) { return m ? a : b; }
  RLHF_HOST_DEVICE RLHF_INLINE static bool any(bool m) { return m; }
  RLHF_HOST_DEVICE RLHF_INLINE static bool all(bool m) { return m; }
  RLHF_HOST_DEVICE RLHF_INLINE static T smaller(T a, T b) { return b < a ? b : a; }
  RLHF_HOST_DEVICE RLHF_INLINE static T larger(T a, T b) { return a < b ? b : a; }

  RLHF_HOST_DEVICE RLHF_INLINE static bits to_bits(T x) { return __builtin_bit_cast(bits, x); }
  RLHF_HOST_DEVICE RLHF_INLINE static T from_bits(bits b) { return __builtin_bit_cast(T, b); }

  RLHF_HOST_DEVICE RLHF_INLINE static T abs(T x) {
    return from_bits(to_bits(x) & ~format<T>::sign);
  }
  RLHF_HOST_DEVICE RLHF_INLINE static T copysign(T x, T sign) {
    return from_bits((to_bits(x) & ~format<T>::sign) | (to_bits(sign) & format<T>::sign));
  }
  RLHF_HOST_DEVICE RLHF_INLINE static bool is_nan(T x) {
    return (to_bits(x) & ~format<T>::sign) > format<T>::exponent;
  }
  RLHF_HOST_DEVICE RLHF_INLINE static bool is_finite(T x) {
    return (to_bits(x) & format<T>::exponent) != format<T>::exponent;
  }
  RLHF_HOST_DEVICE RLHF_INLINE static T sqrt(T x) {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(T) == sizeof(float)) {
      return __fsqrt_rn(x);
    } else {
      return __dsqrt_rn(x);
    }
#else
    if constexpr (sizeof(T) == sizeof(float)) {
      return __builtin_sqrtf(x);
    } else {
      return __builtin_sqrt(x);
    }
#endif
  }
  RLHF_HOST_DEVICE RLHF_INLINE static T fma(T a, T b, T c) {
#if RLHF_HAS_FMA
    if constexpr (sizeof(T) == sizeof(float)) {
      return __builtin_fmaf(a, b, c);
    } else {
      return __builtin_fma(a, b, c);
    }
#else
    return rounded_product(a, b) + c;
#endif
  }
  RLHF_HOST_DEVICE RLHF_INLINE static T load(const T* p) { return *p; }
  RLHF_HOST_DEVICE RLHF_INLINE static void store(T* p, T x) { *p = x; }
  RLHF_HOST_DEVICE RLHF_INLINE static bool load_flags(const std::uint8_t* p) { return *p != 0; }
  RLHF_HOST_DEVICE RLHF_INLINE static T lane_at(T x, int) { return x; }
};

}  // namespace detail

template <>
struct lane_traits<float> : detail::scalar_traits<float> {};
template <>
struct lane_traits<double> : detail::scalar_traits<double> {};

/// The value c in every element. c may be an integer, a float or a double; it is rounded to V.
template <lane V, class C>
RLHF_HOST_DEVICE RLHF_INLINE constexpr V constant(C c) {
  return lane_traits<V>::constant(static_cast<scalar_of<V>>(c));
}

/// a where m is true, else b. Both are computed; the one not taken may be anything, NaN included.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V select(const mask_of<V>& m, const V& a, const V& b) {
  return lane_traits<V>::select(m, a, b);
}

namespace detail {

/// Of two types, one is a lane of the library's own and the other a number.
template <class A, class B>
concept lane_and_number = std::is_arithmetic_v<A>
!= std::is_arithmetic_v<B> && (std::is_arithmetic_v<A> ? lane<B> : lane<A>);
template <class A, class B>
using lane_among = std::conditional_t<std::is_arithmetic_v<A>, B, A>;

}  // namespace detail

// 2 * x and x > 0: declared for the sentence that says what to write instead.
template <class A, class B>
  requires detail::lane_and_number<A, B> detail::lane_among<A, B>
operator+(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> detail::lane_among<A, B>
operator-(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> detail::lane_among<A, B>
operator*(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> detail::lane_among<A, B>
operator/(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> mask_of<detail::lane_among<A, B>>
operator<(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> mask_of<detail::lane_among<A, B>>
operator<=(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> mask_of<detail::lane_among<A, B>>
operator>(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> mask_of<detail::lane_among<A, B>>
operator>=(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> mask_of<detail::lane_among<A, B>>
operator==(const A&, const B&) noexcept(detail::is_no_number<A, B>());
template <class A, class B>
  requires detail::lane_and_number<A, B> mask_of<detail::lane_among<A, B>>
operator!=(const A&, const B&) noexcept(detail::is_no_number<A, B>());

/// True where at least one element is. For V = pack, `any<V>(m)` or just `any(m)`.
RLHF_HOST_DEVICE RLHF_INLINE bool any(bool m) { return m; }
/// True where every element is.
RLHF_HOST_DEVICE RLHF_INLINE bool all(bool m) { return m; }

/// The smaller of a and b. Edges: a NaN in a comes through, a NaN in b gives a; min(-0, +0) is a.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V(min)(const V& a, const V& b) {
  return lane_traits<V>::smaller(a, b);
}

/// The larger of a and b. Edges: a NaN in a comes through, a NaN in b gives a; max(-0, +0) is a.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V(max)(const V& a, const V& b) {
  return lane_traits<V>::larger(a, b);
}

/// x, or the bound it is beyond. Edges: NaN stays NaN; low > high gives high.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V clamp(const V& x, const V& low, const V& high) {
  return lane_traits<V>::smaller(lane_traits<V>::larger(x, low), high);
}

/// x kept within ±80, where exp is finite and normal. Edges: NaN stays NaN; ±inf becomes ±80.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V bounded(const V& x) {
  return clamp(x, constant<V>(-80), constant<V>(80));
}

/// |x|. Edges: the sign of a NaN is cleared too.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V abs(const V& x) {
  return lane_traits<V>::abs(x);
}

/// |x| with the sign of `sign`, of a zero as well.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V copysign(const V& x, const V& sign) {
  return lane_traits<V>::copysign(x, sign);
}

/// Square root, correctly rounded.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V sqrt(const V& x) {
  return lane_traits<V>::sqrt(x);
}

/// a*b + c: one rounding where the machine has the instruction (RLHF_HAS_FMA), else two. In strict
/// mode always two, on every machine, so that all of them agree.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V fma(const V& a, const V& b, const V& c) {
  return lane_traits<V>::fma(a, b, c);
}

/// x, taken as a constant for differentiation: a dual number keeps its value and loses its tangent.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V stop_gradient(const V& x) {
  return x;
}

/// True where x is NaN; looks at bits, so it holds under -ffast-math.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE mask_of<V> is_nan(const V& x) {
  return lane_traits<V>::is_nan(x);
}

/// True where x is neither NaN nor infinite; looks at bits, so it holds under -ffast-math.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE mask_of<V> is_finite(const V& x) {
  return lane_traits<V>::is_finite(x);
}

/// width<V> consecutive elements from p, which needs no more alignment than an element.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V load(const scalar_of<V>* p) {
  return lane_traits<V>::load(p);
}

/// Writes width<V> consecutive elements to p, which needs no more alignment than an element.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE void store(scalar_of<V>* p, const V& x) {
  lane_traits<V>::store(p, x);
}

/// width<V> bytes from p; a flag is true where its byte is not 0.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE mask_of<V> load_flags(const std::uint8_t* p) {
  return lane_traits<V>::load_flags(p);
}

/// Element i of x, 0 <= i < width<V>.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE scalar_of<V> lane_at(const V& x, int i) {
  return lane_traits<V>::lane_at(x, i);
}

/// Element 0 of x.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE scalar_of<V> first(const V& x) {
  return lane_traits<V>::lane_at(x, 0);
}

/// The first `count` elements from p, 0 <= count <= width<V>, and `rest` in the others; nothing
/// beyond p[count - 1] is read.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V load_first(const scalar_of<V>* p, int count, scalar_of<V> rest) {
  scalar_of<V> row[static_cast<std::size_t>(width<V>)];
  for (int i = 0; i < width<V>; ++i) row[i] = i < count ? p[i] : rest;
  return load<V>(row);
}

/// Writes the first `count` elements of x to p, 0 <= count <= width<V>, and nothing else.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE void store_first(scalar_of<V>* p, const V& x, int count) {
  scalar_of<V> row[static_cast<std::size_t>(width<V>)];
  store<V>(row, x);
  for (int i = 0; i < width<V>; ++i) {
    if (i < count) p[i] = row[i];
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::math

namespace rlhf::inline RLHF_COMPUTE {
using math::lane;
using math::mask_of;
using math::scalar_of;
}  // namespace rlhf::inline RLHF_COMPUTE
