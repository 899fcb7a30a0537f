#pragma once

#include "rlhf/statistics/masked_mean.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "tests/golden/peers.hpp"

namespace golden {

/// How a peer divides when it whitens: by the counts; by (count + 1e-8), with Bessel's factor n /
/// (n − 1) beside it (verl, NeMo-RL); or with that epsilon in Bessel's factor as well (torchtune
/// with a mask).
enum class whitening { exact, verl, torchtune };

template <class T>
rlhf::moments peer_moments(place<T>& on, const array& value, const array& mask, whitening how) {
  rlhf::moments m = rlhf::masked_moments<T>({.value = on.in(value), .mask = on.mask(mask)}).moments;
  if (how == whitening::exact || !(m.count > 1)) return m;
  const double mean = m.mean * (m.count / (m.count + small_count));
  const double m2 = m.m2 + m.count * (m.mean - mean) * (m.mean - mean);
  const double factor = how == whitening::verl ? m.count / (m.count + small_count)
                                               : (m.count - 1) / (m.count + small_count - 1);
  return {m.count, mean, m2 * factor};
}

/// Whitened with the moments of the counted tokens, at every token, as the peers do. Equal numbers
/// give 0 here; peers divide what a masked slot holds by sqrt(epsilon), and so does the smallest
/// variance.
template <class T>
array whitened(place<T>& on, answer& out, const array& value, const array& mask, whitening how,
               bool shift_mean = true) {
  auto moments = peer_moments(on, value, mask, how);
  out.magnitude(largest(value) / std::sqrt(moments.variance(1) + 1e-8));
  moments.m2 = std::max(moments.m2, 1e-300);
  const auto to = on.out(value.shape);
  rlhf::whiten<T>({.value = on.in(value)}, {.whitened = to.view},
                  {.shift_mean = shift_mean, .moments = moments});
  return to.read();
}

/// The same as OpenRLHF and NeMo-RL have it for whole batches: population variance, epsilon as its
/// floor.
template <class T>
array whitened_above_floor(place<T>& on, answer& out, const array& value, const array& mask) {
  auto moments = peer_moments(on, value, mask, whitening::exact);
  out.magnitude(largest(value) / std::sqrt(std::max(moments.variance(0), 1e-8)));
  moments.m2 = std::max(moments.m2, 1e-300);
  const auto to = on.out(value.shape);
  rlhf::whiten<T>({.value = on.in(value)}, {.whitened = to.view},
                  {.ddof = 0, .epsilon_mode = rlhf::epsilon_mode::floor, .moments = moments});
  return to.read();
}

/// The gradient of `whitened`, masked slots included, by the chain rule: through the slots
/// themselves, the mean and the variance.
template <class T>
array whitened_slope(place<T>& on, const array& value, const array& mask, whitening how,
                     bool shift_mean, const array& cotangent) {
  const auto moments = peer_moments(on, value, mask, how);
  const double scale = 1 / std::sqrt(moments.variance(1) + 1e-8);
  const array centred = map([&](double v) { return (v - moments.mean) * scale; }, value);
  const double n = moments.count;
  const double counted = how == whitening::exact ? n : n + small_count;
  const double bessel = how == whitening::exact  ? 1
                        : how == whitening::verl ? n / counted
                                                 : (n - 1) / (counted - 1);
  const double d_mean = (shift_mean ? 0 : sum(cotangent)) - scale * sum(cotangent);
  const double d_variance = -0.5 * scale * scale * sum(cotangent * centred);
  const auto through_mean = on.out(value.shape), through_variance = on.out(value.shape);
  rlhf::masked_mean<T>({.value = on.in(value), .mask = on.mask(mask)},
                       {.d_value = through_mean.view, .upstream = above<T>(d_mean)},
                       {.over = counted});
  rlhf::masked_variance<T>(
      {.value = on.in(value), .mask = on.mask(mask)},
      {.d_value = through_variance.view, .upstream = above<T>(d_variance * bessel)});
  return cotangent * scale + through_mean.read() + through_variance.read();
}

}  // namespace golden
