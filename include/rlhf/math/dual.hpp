#pragma once

#include <cstdint>

#include "rlhf/math/exp.hpp"
#include "rlhf/math/kl.hpp"
#include "rlhf/math/lane.hpp"
#include "rlhf/math/log.hpp"
#include "rlhf/math/pack.hpp"
#include "rlhf/math/sigmoid.hpp"

/// Forward-mode differentiation: run a formula with V = dual<double> and its result carries its own
/// derivative. Tests hold every hand-written gradient against it.

namespace rlhf::inline RLHF_COMPUTE::math {

/// A value and its derivative along one direction. Comparisons look at the value.
///
/// Edges     where a formula chooses (select, clamp, min, max, abs), the derivative is the one of
///           the side taken; at a tie, of the first argument
template <lane V>
struct dual {
  V value;
  V tangent;

  template <std::same_as<double> Number>
  operator Number() const noexcept(detail::is_no_number<Number>());

  RLHF_HOST_DEVICE friend RLHF_INLINE dual operator+(const dual& a, const dual& b) {
    return {a.value + b.value, a.tangent + b.tangent};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE dual operator-(const dual& a, const dual& b) {
    return {a.value - b.value, a.tangent - b.tangent};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE dual operator*(const dual& a, const dual& b) {
    return {a.value * b.value, a.value * b.tangent + a.tangent * b.value};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE dual operator/(const dual& a, const dual& b) {
    const V quotient = a.value / b.value;
    return {quotient, (a.tangent - quotient * b.tangent) / b.value};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE dual operator-(const dual& a) {
    return {-a.value, -a.tangent};
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE dual operator+(const dual& a) { return a; }

  RLHF_HOST_DEVICE RLHF_INLINE dual& operator+=(const dual& b) { return *this = *this + b; }
  RLHF_HOST_DEVICE RLHF_INLINE dual& operator-=(const dual& b) { return *this = *this - b; }
  RLHF_HOST_DEVICE RLHF_INLINE dual& operator*=(const dual& b) { return *this = *this * b; }
  RLHF_HOST_DEVICE RLHF_INLINE dual& operator/=(const dual& b) { return *this = *this / b; }

  RLHF_HOST_DEVICE friend RLHF_INLINE mask_of<V> operator<(const dual& a, const dual& b) {
    return a.value < b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE mask_of<V> operator<=(const dual& a, const dual& b) {
    return a.value <= b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE mask_of<V> operator>(const dual& a, const dual& b) {
    return a.value > b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE mask_of<V> operator>=(const dual& a, const dual& b) {
    return a.value >= b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE mask_of<V> operator==(const dual& a, const dual& b) {
    return a.value == b.value;
  }
  RLHF_HOST_DEVICE friend RLHF_INLINE mask_of<V> operator!=(const dual& a, const dual& b) {
    return a.value != b.value;
  }
};

/// x as the variable to differentiate by: its derivative is 1.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE dual<V> variable(const V& x) {
  return {x, constant<V>(1)};
}

/// The value of x as a constant: its derivative is 0.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE dual<V> stop_gradient(const dual<V>& x) {
  return {x.value, constant<V>(0)};
}

namespace detail {

/// Whether a formula has returned what it should, a lane or the terms of its loss.
template <class Terms, class Returned>
RLHF_HOST_DEVICE constexpr bool is_returned() {
  static_assert(std::is_convertible_v<Returned, Terms>,
                "rlhf: a formula returns the loss as a lane, or policy_terms<V> or pair_terms<V>: "
                "write rlhf::math::constant<V>(x) for a number x");
  return std::is_convertible_v<Returned, Terms>;
}

}  // namespace detail

template <lane V>
struct lane_traits<dual<V>> {
  using D = dual<V>;
  using scalar = scalar_of<V>;
  using mask = mask_of<V>;
  static constexpr int width = math::width<V>;

  /// slope * tangent; 0 where the tangent is 0, even if the slope is infinite.
  RLHF_HOST_DEVICE RLHF_INLINE static V chain(const V& slope, const V& tangent) {
    const V zero = math::constant<V>(0);
    return math::select(tangent == zero, zero, slope * tangent);
  }

  RLHF_HOST_DEVICE RLHF_INLINE static constexpr D constant(scalar c) {
    return {math::constant<V>(c), math::constant<V>(0)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D select(const mask& m, const D& a, const D& b) {
    return {math::select(m, a.value, b.value), math::select(m, a.tangent, b.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D smaller(const D& a, const D& b) {
    return select(b.value < a.value, b, a);
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D larger(const D& a, const D& b) {
    return select(b.value > a.value, b, a);
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D abs(const D& x) {
    const mask negative = x.value < math::constant<V>(0);
    return {math::abs(x.value), math::select(negative, -x.tangent, x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D copysign(const D& x, const D& sign) {
    const V one = math::constant<V>(1);
    const V flip = math::copysign(one, x.value) * math::copysign(one, sign.value);
    return {math::copysign(x.value, sign.value), flip * x.tangent};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D sqrt(const D& x) {
    const V root = math::sqrt(x.value);
    return {root, chain(math::constant<V>(0.5) / root, x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D fma(const D& a, const D& b, const D& c) {
    return {math::fma(a.value, b.value, c.value),
            math::fma(a.value, b.tangent, math::fma(a.tangent, b.value, c.tangent))};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static mask is_nan(const D& x) { return math::is_nan(x.value); }
  RLHF_HOST_DEVICE RLHF_INLINE static mask is_finite(const D& x) {
    return math::is_finite(x.value);
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D load(const scalar* p) {
    return {math::load<V>(p), math::constant<V>(0)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static void store(scalar* p, const D& x) {
    math::store<V>(p, x.value);
  }
  RLHF_HOST_DEVICE RLHF_INLINE static mask load_flags(const std::uint8_t* p) {
    return math::load_flags<V>(p);
  }
  RLHF_HOST_DEVICE RLHF_INLINE static scalar lane_at(const D& x, int i) {
    return math::lane_at(x.value, i);
  }

  RLHF_HOST_DEVICE RLHF_INLINE static D exp(const D& x) {
    const V e = math::exp(x.value);
    return {e, chain(e, x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D expm1(const D& x) {
    return {math::expm1(x.value), chain(math::exp(x.value), x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D log(const D& x) {
    return {math::log(x.value), chain(math::constant<V>(1) / x.value, x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D log1p(const D& x) {
    const V one = math::constant<V>(1);
    return {math::log1p(x.value), chain(one / (one + x.value), x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D log1mexp(const D& x) {
    const V slope = math::constant<V>(-1) / math::expm1(-x.value);
    return {math::log1mexp(x.value), chain(slope, x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D sigmoid(const D& x) {
    return {math::sigmoid(x.value), chain(math::dsigmoid(x.value), x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D dsigmoid(const D& x) {
    const V value = math::dsigmoid(x.value);
    const V slope = value * (math::sigmoid(-x.value) - math::sigmoid(x.value));
    return {value, chain(slope, x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D softplus(const D& x) {
    return {math::softplus(x.value), chain(math::sigmoid(x.value), x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D log_sigmoid(const D& x) {
    return {math::log_sigmoid(x.value), chain(math::sigmoid(-x.value), x.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D logaddexp(const D& a, const D& b) {
    const V zero = math::constant<V>(0);
    const V gap = math::select(a.value == b.value, zero, a.value - b.value);
    const V share = chain(math::sigmoid(gap), a.tangent);
    return {math::logaddexp(a.value, b.value), share + chain(math::sigmoid(-gap), b.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static D k3(const D& d) {
    return {math::k3(d.value), chain(math::k3_slope(d.value), d.tangent)};
  }
  RLHF_HOST_DEVICE RLHF_INLINE static ratio_terms_of<D> ratio_terms(const D& d) {
    const ratio_terms_of<V> terms = math::ratio_terms(d.value);
    const V slope = math::expm1(d.value);
    return {{terms.ratio, chain(terms.ratio, d.tangent)}, {terms.k3, chain(slope, d.tangent)}};
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::math
