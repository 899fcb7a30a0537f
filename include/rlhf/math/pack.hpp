#pragma once

#include <cstdint>

#include "rlhf/math/lane.hpp"
#include "rlhf/math/single.hpp"

/// Packs: as many floats or doubles as one register holds, as a lane. Written with the vector types
/// of g++ and clang; compiler intrinsics only where those make poor code, never a header of them.

#if RLHF_PACK_BYTES > 0

#if defined(RLHF_PORTABLE_PACKS) || !(defined(__x86_64__) || defined(__i386__))
#define RLHF_DETAIL_X86 0
#else
#define RLHF_DETAIL_X86 1
#endif

namespace rlhf::inline RLHF_COMPUTE::math {

namespace detail {

/// The compiler's vector types of one register. Kept inside structs: as template arguments they
/// would lose their attributes.
template <class T>
struct vectors;

template <>
struct vectors<float> {
  typedef float values __attribute__((vector_size(RLHF_PACK_BYTES)));
  typedef std::uint32_t bits __attribute__((vector_size(RLHF_PACK_BYTES)));
  typedef std::int32_t flags __attribute__((vector_size(RLHF_PACK_BYTES)));
  typedef std::uint8_t bytes __attribute__((vector_size(RLHF_PACK_BYTES / 4)));
  static constexpr int width = RLHF_PACK_BYTES / 4;
};

template <>
struct vectors<double> {
  typedef double values __attribute__((vector_size(RLHF_PACK_BYTES)));
  typedef std::uint64_t bits __attribute__((vector_size(RLHF_PACK_BYTES)));
  typedef std::int64_t flags __attribute__((vector_size(RLHF_PACK_BYTES)));
  typedef std::uint8_t bytes __attribute__((vector_size(RLHF_PACK_BYTES / 8)));
  static constexpr int width = RLHF_PACK_BYTES / 8;
};

}  // namespace detail

/// One flag per element of a pack<T>: all bits set, or none.
template <class T>
struct pack_mask {
  using flags = typename detail::vectors<T>::flags;
  flags native;

  template <std::same_as<bool> Flag>
  explicit operator Flag() const noexcept(detail::is_no_flag<Flag>());

  friend RLHF_INLINE pack_mask operator&(const pack_mask& a, const pack_mask& b) {
    return {a.native & b.native};
  }
  friend RLHF_INLINE pack_mask operator|(const pack_mask& a, const pack_mask& b) {
    return {a.native | b.native};
  }
  friend RLHF_INLINE pack_mask operator^(const pack_mask& a, const pack_mask& b) {
    return {a.native ^ b.native};
  }
  friend RLHF_INLINE pack_mask operator!(const pack_mask& a) { return {~a.native}; }
};

/// width<pack<T>> numbers of type T that are computed with as one.
template <class T>
struct pack {
  using values = typename detail::vectors<T>::values;
  values native;

  template <std::same_as<double> Number>
  operator Number() const noexcept(detail::is_no_number<Number>());

  friend RLHF_INLINE pack operator+(const pack& a, const pack& b) { return {a.native + b.native}; }
  friend RLHF_INLINE pack operator-(const pack& a, const pack& b) { return {a.native - b.native}; }
  friend RLHF_INLINE pack operator*(const pack& a, const pack& b) {
    return {detail::rounded_product<values>(a.native, b.native)};
  }
  friend RLHF_INLINE pack operator/(const pack& a, const pack& b) { return {a.native / b.native}; }
  friend RLHF_INLINE pack operator-(const pack& a) { return {-a.native}; }
  friend RLHF_INLINE pack operator+(const pack& a) { return a; }

  RLHF_INLINE pack& operator+=(const pack& b) { return *this = *this + b; }
  RLHF_INLINE pack& operator-=(const pack& b) { return *this = *this - b; }
  RLHF_INLINE pack& operator*=(const pack& b) { return *this = *this * b; }
  RLHF_INLINE pack& operator/=(const pack& b) { return *this = *this / b; }

  friend RLHF_INLINE pack_mask<T> operator<(const pack& a, const pack& b) {
    return {a.native < b.native};
  }
  friend RLHF_INLINE pack_mask<T> operator<=(const pack& a, const pack& b) {
    return {a.native <= b.native};
  }
  friend RLHF_INLINE pack_mask<T> operator>(const pack& a, const pack& b) {
    return {a.native > b.native};
  }
  friend RLHF_INLINE pack_mask<T> operator>=(const pack& a, const pack& b) {
    return {a.native >= b.native};
  }
  friend RLHF_INLINE pack_mask<T> operator==(const pack& a, const pack& b) {
    return {a.native == b.native};
  }
  friend RLHF_INLINE pack_mask<T> operator!=(const pack& a, const pack& b) {
    return {a.native != b.native};
  }
};

template <class T>
struct lane_traits<pack<T>> {
  using V = pack<T>;
  using scalar = T;
  using mask = pack_mask<T>;
  using values = typename detail::vectors<T>::values;
  using bits = typename detail::vectors<T>::bits;
  using flags = typename detail::vectors<T>::flags;
  using format = detail::format<T>;
  static constexpr int width = detail::vectors<T>::width;
  static constexpr bool is_float = sizeof(T) == sizeof(float);

  RLHF_INLINE static V constant(T c) {
    if constexpr (width == 8) {
      return {values{c, c, c, c, c, c, c, c}};
    } else if constexpr (width == 4) {
      return {values{c, c, c, c}};
    } else {
      return {values{c, c}};
    }
  }

  RLHF_INLINE static bits to_bits(const V& x) { return __builtin_bit_cast(bits, x.native); }
  RLHF_INLINE static V from_bits(const bits& b) { return {__builtin_bit_cast(values, b)}; }

  RLHF_INLINE static V select(const mask& m, const V& a, const V& b) {
#if RLHF_DETAIL_X86 && defined(__AVX2__)
    if constexpr (is_float) {
      return {__builtin_ia32_blendvps256(b.native, a.native, __builtin_bit_cast(values, m.native))};
    } else {
      return {__builtin_ia32_blendvpd256(b.native, a.native, __builtin_bit_cast(values, m.native))};
    }
#elif RLHF_DETAIL_X86 && defined(__SSE4_1__)
    if constexpr (is_float) {
      return {__builtin_ia32_blendvps(b.native, a.native, __builtin_bit_cast(values, m.native))};
    } else {
      return {__builtin_ia32_blendvpd(b.native, a.native, __builtin_bit_cast(values, m.native))};
    }
#else
    const bits chosen = __builtin_bit_cast(bits, m.native);
    return from_bits((chosen & to_bits(a)) | (~chosen & to_bits(b)));
#endif
  }

  /// One bit per element, bit i for element i.
  RLHF_INLINE static int sign_bits(const mask& m) {
#if RLHF_DETAIL_X86
    const values v = __builtin_bit_cast(values, m.native);
#if RLHF_PACK_BYTES == 32
    if constexpr (is_float) {
      return __builtin_ia32_movmskps256(v);
    } else {
      return __builtin_ia32_movmskpd256(v);
    }
#else
    if constexpr (is_float) {
      return __builtin_ia32_movmskps(v);
    } else {
      return __builtin_ia32_movmskpd(v);
    }
#endif
#else
    int set = 0;
    for (int i = 0; i < width; ++i) set |= m.native[i] != 0 ? 1 << i : 0;
    return set;
#endif
  }
  RLHF_INLINE static bool any(const mask& m) { return sign_bits(m) != 0; }
  RLHF_INLINE static bool all(const mask& m) { return sign_bits(m) == (1 << width) - 1; }

  // minps and maxps give their second operand when one is NaN: the first of ours.
  RLHF_INLINE static V smaller(const V& a, const V& b) {
#if RLHF_DETAIL_X86 && RLHF_PACK_BYTES == 32
    if constexpr (is_float) {
      return {__builtin_ia32_minps256(b.native, a.native)};
    } else {
      return {__builtin_ia32_minpd256(b.native, a.native)};
    }
#elif RLHF_DETAIL_X86
    if constexpr (is_float) {
      return {__builtin_ia32_minps(b.native, a.native)};
    } else {
      return {__builtin_ia32_minpd(b.native, a.native)};
    }
#else
    return select(b < a, b, a);
#endif
  }
  RLHF_INLINE static V larger(const V& a, const V& b) {
#if RLHF_DETAIL_X86 && RLHF_PACK_BYTES == 32
    if constexpr (is_float) {
      return {__builtin_ia32_maxps256(b.native, a.native)};
    } else {
      return {__builtin_ia32_maxpd256(b.native, a.native)};
    }
#elif RLHF_DETAIL_X86
    if constexpr (is_float) {
      return {__builtin_ia32_maxps(b.native, a.native)};
    } else {
      return {__builtin_ia32_maxpd(b.native, a.native)};
    }
#else
    return select(b > a, b, a);
#endif
  }

  RLHF_INLINE static V abs(const V& x) { return from_bits(to_bits(x) & ~format::sign); }
  RLHF_INLINE static V copysign(const V& x, const V& sign) {
    return from_bits((to_bits(x) & ~format::sign) | (to_bits(sign) & format::sign));
  }
  RLHF_INLINE static mask is_nan(const V& x) {
#if defined(RLHF_FAST_MATH)
    using signed_word = typename format::signed_word;
    const flags magnitude = __builtin_bit_cast(flags, to_bits(x) & ~format::sign);
    return {magnitude > static_cast<signed_word>(format::exponent)};
#else
    return {x.native != x.native};
#endif
  }
  RLHF_INLINE static mask is_finite(const V& x) {
#if defined(RLHF_FAST_MATH)
    using signed_word = typename format::signed_word;
    const flags scale = __builtin_bit_cast(flags, to_bits(x) & format::exponent);
    return {scale < static_cast<signed_word>(format::exponent)};
#else
    return abs(x) < constant(static_cast<T>(__builtin_inf()));
#endif
  }

  RLHF_INLINE static V sqrt(const V& x) {
#if RLHF_DETAIL_X86 && RLHF_PACK_BYTES == 32
    if constexpr (is_float) {
      return {__builtin_ia32_sqrtps256(x.native)};
    } else {
      return {__builtin_ia32_sqrtpd256(x.native)};
    }
#elif RLHF_DETAIL_X86
    if constexpr (is_float) {
      return {__builtin_ia32_sqrtps(x.native)};
    } else {
      return {__builtin_ia32_sqrtpd(x.native)};
    }
#else
    V y = x;
    for (int i = 0; i < width; ++i) y.native[i] = lane_traits<T>::sqrt(x.native[i]);
    return y;
#endif
  }

  RLHF_INLINE static V fma(const V& a, const V& b, const V& c) {
#if !RLHF_HAS_FMA
    return a * b + c;
#elif defined(__has_builtin) && __has_builtin(__builtin_elementwise_fma)
    return {__builtin_elementwise_fma(a.native, b.native, c.native)};
#elif RLHF_DETAIL_X86 && RLHF_PACK_BYTES == 32
    if constexpr (is_float) {
      return {__builtin_ia32_vfmaddps256(a.native, b.native, c.native)};
    } else {
      return {__builtin_ia32_vfmaddpd256(a.native, b.native, c.native)};
    }
#elif RLHF_DETAIL_X86
    if constexpr (is_float) {
      return {__builtin_ia32_vfmaddps(a.native, b.native, c.native)};
    } else {
      return {__builtin_ia32_vfmaddpd(a.native, b.native, c.native)};
    }
#else
    V y = a;
    for (int i = 0; i < width; ++i) {
      y.native[i] = lane_traits<T>::fma(a.native[i], b.native[i], c.native[i]);
    }
    return y;
#endif
  }

  RLHF_INLINE static V load(const T* p) {
    V x;
    __builtin_memcpy(&x.native, p, sizeof(values));
    return x;
  }
  RLHF_INLINE static void store(T* p, const V& x) {
    __builtin_memcpy(p, &x.native, sizeof(values));
  }

  RLHF_INLINE static mask load_flags(const std::uint8_t* p) { return flags_of<true>(p); }
  /// The opposite of load_flags, for the same price.
  RLHF_INLINE static mask load_no_flags(const std::uint8_t* p) { return flags_of<false>(p); }

  template <bool Set, class X>
  RLHF_INLINE static auto compared(const X& wide) {
    if constexpr (Set) {
      return wide > 0;
    } else {
      return wide == 0;
    }
  }
  template <bool Set>
  RLHF_INLINE static mask flags_of(const std::uint8_t* p) {
#if RLHF_DETAIL_X86 && RLHF_PACK_BYTES == 32 && !defined(__clang__)
    // g++ 12 widens bytes one by one; the instruction does all of them.
    typedef char sixteen __attribute__((vector_size(16)));
    typedef std::int64_t two __attribute__((vector_size(16)));
    if constexpr (is_float) {
      std::int64_t packed;
      __builtin_memcpy(&packed, p, 8);
      const two low = {packed, 0};
      const auto wide = __builtin_ia32_pmovzxbd256(__builtin_bit_cast(sixteen, low));
      return {compared<Set>(__builtin_bit_cast(flags, wide))};
    } else {
      std::int32_t packed;
      __builtin_memcpy(&packed, p, 4);
      const two low = {packed, 0};
      const auto wide = __builtin_ia32_pmovzxbq256(__builtin_bit_cast(sixteen, low));
      return {compared<Set>(__builtin_bit_cast(flags, wide))};
    }
#elif RLHF_DETAIL_X86 && RLHF_PACK_BYTES == 16 && !defined(__clang__)
    // Bytes are interleaved with zeros twice. SSE2 compares 32 bits at most: a double takes two.
    typedef std::uint8_t sixteen __attribute__((vector_size(16)));
    typedef std::int32_t four __attribute__((vector_size(16)));
    four low = {};
    if constexpr (is_float) {
      std::int32_t packed;
      __builtin_memcpy(&packed, p, 4);
      low[0] = packed;
    } else {
      low[0] = p[0] | p[0] << 8 | p[1] << 16 | p[1] << 24;
    }
    const sixteen zero = {};
    const sixteen once = __builtin_shufflevector(__builtin_bit_cast(sixteen, low), zero, 0, 16, 1,
                                                 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const sixteen twice =
        __builtin_shufflevector(once, zero, 0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23);
    return {__builtin_bit_cast(flags, compared<Set>(__builtin_bit_cast(four, twice)))};
#elif RLHF_DETAIL_X86
    typename detail::vectors<T>::bytes bytes;
    __builtin_memcpy(&bytes, p, sizeof(bytes));
    return {compared<Set>(__builtin_convertvector(bytes, flags))};
#else
    flags wide;
    for (int i = 0; i < width; ++i) wide[i] = p[i];
    return {compared<Set>(wide)};
#endif
  }

  RLHF_INLINE static T lane_at(const V& x, int i) { return x.native[i]; }
};

template <class T>
RLHF_INLINE bool any(const pack_mask<T>& m) {
  return lane_traits<pack<T>>::any(m);
}
template <class T>
RLHF_INLINE bool all(const pack_mask<T>& m) {
  return lane_traits<pack<T>>::all(m);
}

/// One bit per element of m, bit i for element i.
template <class T>
RLHF_INLINE int to_bit_set(const pack_mask<T>& m) {
  return lane_traits<pack<T>>::sign_bits(m);
}

/// 0, 1, 2, ...
template <lane V>
  requires(width<V> > 1)
RLHF_INLINE V iota() {
  V x = constant<V>(0);
  for (int i = 0; i < width<V>; ++i) x.native[i] = static_cast<scalar_of<V>>(i);
  return x;
}

/// Elements K, K + 1, ... of a, followed by the first K elements of b; 0 <= K <= width.
template <int K, class T>
RLHF_INLINE pack<T> shift_down(const pack<T>& a, const pack<T>& b) {
  constexpr int w = width<pack<T>>;
  static_assert(0 <= K && K <= w, "shift_down moves by at most the width of the pack");
  const auto& x = a.native;
  const auto& y = b.native;
  if constexpr (w == 8) {
    return {__builtin_shufflevector(x, y, K, K + 1, K + 2, K + 3, K + 4, K + 5, K + 6, K + 7)};
  } else if constexpr (w == 4) {
    return {__builtin_shufflevector(x, y, K, K + 1, K + 2, K + 3)};
  } else {
    return {__builtin_shufflevector(x, y, K, K + 1)};
  }
}

/// The elements in opposite order.
template <class T>
RLHF_INLINE pack<T> reverse(const pack<T>& a) {
  constexpr int w = width<pack<T>>;
  const auto& x = a.native;
  if constexpr (w == 8) {
    return {__builtin_shufflevector(x, x, 7, 6, 5, 4, 3, 2, 1, 0)};
  } else if constexpr (w == 4) {
    return {__builtin_shufflevector(x, x, 3, 2, 1, 0)};
  } else {
    return {__builtin_shufflevector(x, x, 1, 0)};
  }
}

/// The first half of the elements, in double. Exact.
RLHF_INLINE pack<double> widen_low(const pack<float>& a) {
#if RLHF_PACK_BYTES == 32
  const auto half = __builtin_shufflevector(a.native, a.native, 0, 1, 2, 3);
#if RLHF_DETAIL_X86 && !defined(__clang__)
  return {__builtin_ia32_cvtps2pd256(half)};  // g++ 12 converts two at a time otherwise
#else
  return {__builtin_convertvector(half, pack<double>::values)};
#endif
#elif RLHF_DETAIL_X86 && !defined(__clang__)
  return {__builtin_ia32_cvtps2pd(a.native)};
#else
  return {__builtin_convertvector(__builtin_shufflevector(a.native, a.native, 0, 1),
                                  pack<double>::values)};
#endif
}

/// The second half of the elements, in double. Exact.
RLHF_INLINE pack<double> widen_high(const pack<float>& a) {
#if RLHF_PACK_BYTES == 32
  return widen_low({__builtin_shufflevector(a.native, a.native, 4, 5, 6, 7, 4, 5, 6, 7)});
#else
  return widen_low({__builtin_shufflevector(a.native, a.native, 2, 3, 2, 3)});
#endif
}

/// The lane a loop over arrays of T runs fastest with: a pack where there are packs.
template <class T>
using native_lane = pack<T>;

}  // namespace rlhf::inline RLHF_COMPUTE::math

#undef RLHF_DETAIL_X86

#else

namespace rlhf::inline RLHF_COMPUTE::math {

/// The lane a loop over arrays of T runs fastest with: a pack where there are packs.
template <class T>
using native_lane = scalar_lane<T>;

}  // namespace rlhf::inline RLHF_COMPUTE::math

#endif
