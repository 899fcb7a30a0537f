#pragma once

#include "rlhf/core/config.hpp"

namespace rlhf::inline v1 {

namespace detail {

/// a·b, rounded, and not fused with what it is added to: moments are the same on every machine.
RLHF_HOST_DEVICE constexpr double separate_product(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  double product = a * b;
#if defined(__GNUC__) && defined(__x86_64__)
  if (!__builtin_is_constant_evaluated()) asm("" : "+x"(product));
#elif defined(__GNUC__) && defined(__aarch64__)
  if (!__builtin_is_constant_evaluated()) asm("" : "+w"(product));
#endif
  return product;
#endif
}

}  // namespace detail

/// Count, mean and sum of squared distances from the mean of some numbers. Moments of micro-batches
/// and ranks merge with `+` in any order; nothing at all is the identity, to the bit.
///
///     variance(1) = m2 / (count − 1), the unbiased one; variance(0) = m2 / count
///
/// Edges     fewer numbers than ddof + 1: variance 0; no number: mean 0; NaN and inf stay visible
/// Numerics  double; no difference of squares: mean 1e6 with standard deviation 1 loses nothing
/// Source    Chan, Golub, LeVeque 1983, doi:10.1080/00031305.1983.10483115
struct moments {
  double count = 0;
  double mean = 0;
  double m2 = 0;

  /// m2 / (count − ddof)
  RLHF_HOST_DEVICE constexpr double variance(double ddof = 1) const {
    return count > ddof ? m2 / (count - ddof) : 0;
  }

  RLHF_HOST_DEVICE constexpr void add(double x) {
    count += 1;
    const double from_old = x - mean;
    mean += from_old / count;
    m2 += detail::separate_product(from_old, x - mean);
  }

  RLHF_HOST_DEVICE friend constexpr moments operator+(const moments& a, const moments& b) {
    if (!(a.count > 0)) return b;
    if (!(b.count > 0)) return a;
    const double n = a.count + b.count;
    const double apart = b.mean - a.mean;
    const double share = b.count / n;
    const double between = detail::separate_product(apart * apart, a.count * share);
    return {n, a.mean + detail::separate_product(apart, share), a.m2 + b.m2 + between};
  }
  RLHF_HOST_DEVICE constexpr moments& operator+=(const moments& b) { return *this = *this + b; }
};

}  // namespace rlhf::inline v1
