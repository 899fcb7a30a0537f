#pragma once

// Rows of logits and what long double says of them.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "rlhf/math/storage.hpp"

namespace rlhf_test {

struct row_reference {
  long double log_prob = 0, entropy = 0, log_sum_exp = 0, mean_log_prob = 0, sum_p_squared = 0;
  std::vector<long double> p, log_p;
};

/// Textbook softmax of one row in long double; -inf is p = 0.
template <class X>
row_reference reference_row(const X* x, std::size_t classes, std::size_t label,
                            long double temperature = 1) {
  const auto at = [&](std::size_t v) {
    if constexpr (std::is_same_v<X, long double>)
      return x[v];
    else
      return static_cast<long double>(rlhf::math::widen(x + v));
  };
  long double most = -std::numeric_limits<long double>::infinity();
  for (std::size_t v = 0; v < classes; ++v) most = std::max(most, at(v));
  // All but the first maximum, so that log sum exp keeps its digits near 0.
  long double rest = 0;
  bool seen = false;
  for (std::size_t v = 0; v < classes; ++v) {
    if (!seen && at(v) == most) {
      seen = true;
      continue;
    }
    rest += std::exp((at(v) - most) / temperature);
  }
  const long double log_sum = std::log1p(rest);
  row_reference r;
  long double count = 0;
  for (std::size_t v = 0; v < classes; ++v) {
    const long double d = (at(v) - most) / temperature;
    const long double p = std::exp(d) / (1 + rest);
    r.p.push_back(p);
    r.log_p.push_back(d - log_sum);
    if (p == 0 && !std::isfinite(d)) continue;
    r.entropy -= p * (d - log_sum);
    r.sum_p_squared += p * p;
    r.mean_log_prob += d - log_sum;
    count += 1;
  }
  r.mean_log_prob /= count;
  r.log_prob = r.log_p[label];
  r.log_sum_exp = most / temperature + log_sum;
  return r;
}

/// |a − b| in units of the last place of T at b.
template <class T>
double ulps(T a, long double b) {
  if (static_cast<long double>(a) == b) return 0;
  const long double size =
      std::max(std::abs(b), static_cast<long double>(std::numeric_limits<T>::min()));
  const long double unit =
      std::ldexp(static_cast<long double>(std::numeric_limits<T>::epsilon()), std::ilogb(size));
  return static_cast<double>(std::abs(static_cast<long double>(a) - b) / unit);
}

template <class X>
bool same_bits(const std::vector<X>& a, const std::vector<X>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(X)) == 0;
}

/// n numbers of a normal distribution, always the same.
template <class X>
std::vector<X> normal(std::size_t n, double spread, unsigned seed = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<double> draw(0, spread);
  std::vector<X> x;
  x.reserve(n);
  for (std::size_t k = 0; k < n; ++k)
    x.push_back(X(static_cast<rlhf::compute_of<X>>(draw(random))));
  return x;
}

}  // namespace rlhf_test
