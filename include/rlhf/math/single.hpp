#pragma once

#include <cstdint>

#include "rlhf/math/lane.hpp"

namespace rlhf::inline RLHF_COMPUTE::math {

/// One float or double as a lane whose operators are ours: in strict mode a product is rounded
/// before it is added to, whatever the compiler may fuse elsewhere. It stands in for a bare scalar
/// where there are no packs, and gives their bits. Outside strict mode it is the bare scalar.
template <class T>
struct single {
  T value;

  RLHF_HOST_DEVICE friend RLHF_INLINE single operator+(const single& a, const single& b) {
    return {a.value + b.value};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE single operator-(const single& a, const single& b) {
    return {a.value - b.value};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE single operator*(const single& a, const single& b) {
    return {detail::rounded_product(a.value, b.value)};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE single operator/(const single& a, const single& b) {
    return {a.value / b.value};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE single operator-(const single& a) { return {-a.value}; }
  RLHF_HOST_DEVICE friend RLHF_INLINE single operator+(const single& a) { return a; }

  RLHF_HOST_DEVICE RLHF_INLINE single& operator+=(const single& b) { return *this = *this + b; }
  RLHF_HOST_DEVICE RLHF_INLINE single& operator-=(const single& b) { return *this = *this - b; }
  RLHF_HOST_DEVICE RLHF_INLINE single& operator*=(const single& b) { return *this = *this * b; }
  RLHF_HOST_DEVICE RLHF_INLINE single& operator/=(const single& b) { return *this = *this / b; }

  RLHF_HOST_DEVICE friend RLHF_INLINE bool operator<(const single& a, const single& b) {
    return a.value < b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE bool operator<=(const single& a, const single& b) {
    return a.value <= b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE bool operator>(const single& a, const single& b) {
    return a.value > b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE bool operator>=(const single& a, const single& b) {
    return a.value >= b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE bool operator==(const single& a, const single& b) {
    return a.value == b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE bool operator!=(const single& a, const single& b) {
    return a.value != b.value;
  }
};

template <class T>
struct lane_traits<single<T>> {
  using V = single<T>;
  using S = lane_traits<T>;
  using scalar = T;
  using mask = bool;
  using bits = typename S::bits;
  static constexpr int width = 1;

  RLHF_HOST_DEVICE RLHF_INLINE static constexpr V constant(T c) { return {c}; }
  RLHF_HOST_DEVICE RLHF_INLINE static V select(bool m, const V& a, const V& b) { return m ? a : b; }
  RLHF_HOST_DEVICE RLHF_INLINE static bool any(bool m) { return m; }
  RLHF_HOST_DEVICE RLHF_INLINE static bool all(bool m) { return m; }
  RLHF_HOST_DEVICE RLHF_INLINE static V smaller(const V& a, const V& b) {
    return {S::smaller(a.value, b.value)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static V larger(const V& a, const V& b) {
    return {S::larger(a.value, b.value)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static bits to_bits(const V& x) { return S::to_bits(x.value); }
  RLHF_HOST_DEVICE RLHF_INLINE static V from_bits(bits b) { return {S::from_bits(b)}; }
  RLHF_HOST_DEVICE RLHF_INLINE static V abs(const V& x) { return {S::abs(x.value)}; }
  RLHF_HOST_DEVICE RLHF_INLINE static V copysign(const V& x, const V& sign) {
    return {S::copysign(x.value, sign.value)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static V sqrt(const V& x) { return {S::sqrt(x.value)}; }
  RLHF_HOST_DEVICE RLHF_INLINE static V fma(const V& a, const V& b, const V& c) {
    return {S::fma(a.value, b.value, c.value)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static bool is_nan(const V& x) { return S::is_nan(x.value); }
  RLHF_HOST_DEVICE RLHF_INLINE static bool is_finite(const V& x) { return S::is_finite(x.value); }
  RLHF_HOST_DEVICE RLHF_INLINE static V load(const T* p) { return {*p}; }
  RLHF_HOST_DEVICE RLHF_INLINE static void store(T* p, const V& x) { *p = x.value; }
  RLHF_HOST_DEVICE RLHF_INLINE static bool load_flags(const std::uint8_t* p) { return *p != 0; }
  RLHF_HOST_DEVICE RLHF_INLINE static T lane_at(const V& x, int) { return x.value; }
};

/// A scalar lane that gives the bits of a pack: the scalar itself, wrapped in strict mode.
#if defined(RLHF_STRICT)
template <class T>
using scalar_lane = single<T>;
#else
template <class T>
using scalar_lane = T;
#endif

}  // namespace rlhf::inline RLHF_COMPUTE::math
