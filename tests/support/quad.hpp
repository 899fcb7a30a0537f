#pragma once

#include <cstdint>

#include "rlhf/math/math.hpp"

/// __float128 as a lane: the same formula text at 113 bits, with functions from libquadmath. An
/// oracle for rounding; and steps small enough for central differences to 20 digits.

// quadmath.h is not on clang's path, its library is.
extern "C" {
__float128 expq(__float128) noexcept;
__float128 expm1q(__float128) noexcept;
__float128 logq(__float128) noexcept;
__float128 log1pq(__float128) noexcept;
__float128 sqrtq(__float128) noexcept;
__float128 fmaq(__float128, __float128, __float128) noexcept;
__float128 copysignq(__float128, __float128) noexcept;
}

namespace rlhf_test {
using quad = __float128;
}

namespace rlhf::inline RLHF_COMPUTE::math {

template <>
struct lane_traits<__float128> {
  using Q = __float128;
  using scalar = Q;
  using mask = bool;
  static constexpr int width = 1;

  static constexpr Q constant(Q c) { return c; }
  static Q select(bool m, Q a, Q b) { return m ? a : b; }
  static Q smaller(Q a, Q b) { return b < a ? b : a; }
  static Q larger(Q a, Q b) { return a < b ? b : a; }
  static Q abs(Q x) { return copysignq(x, 1); }
  static Q copysign(Q x, Q sign) { return copysignq(x, sign); }
  static Q sqrt(Q x) { return sqrtq(x); }
  static Q fma(Q a, Q b, Q c) { return fmaq(a, b, c); }
  static bool is_nan(Q x) { return x != x; }
  static bool is_finite(Q x) { return x - x == 0; }
  static Q load(const Q* p) { return *p; }
  static void store(Q* p, Q x) { *p = x; }
  static bool load_flags(const std::uint8_t* p) { return *p != 0; }
  static Q lane_at(Q x, int) { return x; }

  static Q exp(Q x) { return expq(x); }
  static Q expm1(Q x) { return expm1q(x); }
  static Q log(Q x) { return logq(x); }
  static Q log1p(Q x) { return log1pq(x); }
  static Q log1mexp(Q x) {
    return x > static_cast<Q>(-0.6931471805599453) ? logq(-expm1q(x)) : log1pq(-expq(x));
  }
  static Q sigmoid(Q x) { return x < 0 ? expq(x) / (1 + expq(x)) : 1 / (1 + expq(-x)); }
  static Q dsigmoid(Q x) {
    const Q e = expq(-abs(x));
    return e / ((1 + e) * (1 + e));
  }
  static Q softplus(Q x) { return (x <= 0 ? 0 : x) + log1pq(expq(-abs(x))); }
  static Q log_sigmoid(Q x) { return -softplus(-x); }
  static Q logaddexp(Q a, Q b) {
    const Q gap = a == b ? 0 : abs(a - b);
    return (a > b ? a : b) + log1pq(expq(-gap));
  }
  /// e^x - 1 - x. The series is right to 1e-27 where it is taken, the difference to 1e-27 beyond.
  static Q exp_second(Q x) {
    if (x - x != 0) return x * x;  // infinities and NaN
    if (abs(x) > static_cast<Q>(1e-5)) return expm1q(x) - x;
    return x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6))));
  }
  static Q k3(Q d) { return exp_second(-d); }
  static ratio_terms_of<Q> ratio_terms(Q d) { return {expq(d), exp_second(d)}; }
};

}  // namespace rlhf::inline RLHF_COMPUTE::math
