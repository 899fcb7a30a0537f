#pragma once

#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"

namespace rlhf::inline v1 {

/// How the scores of K reward models become one.
enum class ensemble : unsigned char {
  mean,
  worst_case,            ///< the smallest
  median,                ///< of an even number, the mean of the two in the middle
  uncertainty_weighted,  ///< mean − coefficient · variance
  mean_minus_std         ///< mean − coefficient · standard deviation
};

template <scalar T, class Space = host_space>
struct ensemble_batch {
  named_only use_designators = named_only();
  view<const T, Space> reward = {};  ///< [members, batch]; NaN: this member has no score
};

template <scalar T, class Space = host_space>
struct ensemble_output {
  named_only use_designators = named_only();
  output<T, Space> combined = {};      ///< [batch]
  output<T, Space> disagreement = {};  ///< [batch], standard deviation over the members
  output<T, Space> d_reward = {};  ///< [members, batch], d combined[b] / d reward[k, b] · upstream
  upstream_scale<T, Space> upstream = {};  ///< a number, a device_scalar, or [batch]
};

struct ensemble_config {
  ensemble combine = ensemble::mean;
  double coefficient = 0;  ///< of the variance or standard deviation, >= 0; 0 with the other modes
  double ddof = 0;         ///< variance = sum of squares / (members − ddof); 0 or 1
};

struct ensemble_result {
  metric combined;  ///< over sequences with a score
  metric disagreement;
  double unscorable = 0;  ///< sequences no member has scored: their combined reward is NaN
  double missing = 0;     ///< NaN scores that were skipped
  double sequences = 0;

  friend ensemble_result operator+(const ensemble_result& a, const ensemble_result& b) {
    return {a.combined + b.combined, a.disagreement + b.disagreement, a.unscorable + b.unscorable,
            a.missing + b.missing, a.sequences + b.sequences};
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// One sequence: its K scores to one, the slopes, and its share of the figures.
template <scalar T, class Space>
struct combine_members {
  index members;
  token_input<T> reward;  // row b, member k along the row
  token_input<T> upstream;
  double number;
  const double* number_at;
  token_output<T> combined, disagreement, d_reward;
  ensemble combine;
  double coefficient, ddof;
  double* figures;  // [rows, 4]: combined, disagreement, scored, missing

  RLHF_HOST_DEVICE double at(index b, index k) const {
    return static_cast<double>(reward.data[b * reward.per_row + k * reward.stride]);
  }
  RLHF_HOST_DEVICE static void put(const token_output<T>& to, index offset, double x) {
    const T y = static_cast<T>(x) + T(0);
    if (to.accumulate)
      to.data[offset] += y;
    else
      to.data[offset] = y;
  }
  /// How many scored members stand before member k, in order of score, then of index.
  RLHF_HOST_DEVICE index rank(index b, index k) const {
    const double x = at(b, k);
    index before = 0;
    for (index j = 0; j < members; ++j) {
      const double y = at(b, j);
      before += y < x || (y == x && j < k) ? 1 : 0;
    }
    return before;
  }

  RLHF_HOST_DEVICE void operator()(index b) const {
    using math::detail::rounded_product;
    double n = 0, sum = 0;
    for (index k = 0; k < members; ++k) {
      const double x = at(b, k);
      if (x != x) continue;
      n += 1;
      sum += x;
    }
    const double mean = n > 0 ? sum / n : 0;
    double squares = 0, lowest = __builtin_inf(), highest = -__builtin_inf();
    for (index k = 0; k < members; ++k) {
      const double x = at(b, k);
      if (x != x) continue;
      squares += rounded_product(x - mean, x - mean);
      lowest = x < lowest ? x : lowest;
      highest = x > highest ? x : highest;
    }
    if (lowest == highest) squares = 0;  // equal scores: no disagreement, to the bit
    const double freedom = n - ddof;
    const double variance = freedom > 0 ? squares / freedom : 0;
    const double deviation = variance > 0 ? math::sqrt(variance) : variance;
    const double nan = __builtin_nan("");

    // The members that carry an order statistic: one in the middle, or two.
    const auto scored = static_cast<index>(n);
    const bool ordered = combine == ensemble::median || combine == ensemble::worst_case;
    const index first = combine == ensemble::median ? (scored - 1) / 2 : 0;
    const index last = combine == ensemble::median ? scored / 2 : 0;
    const double share = first == last ? 1 : 0.5;
    double picked = 0;
    const double above = upstream.data != nullptr
                             ? static_cast<double>(upstream.data[b * upstream.per_row])
                         : number_at != nullptr ? *number_at
                                                : number;
    for (index k = 0; k < members; ++k) {
      const double x = at(b, k);
      double slope = 0;
      if (x == x) {
        if (ordered) {
          const index place = rank(b, k);
          if (place == first || place == last) {
            slope = share;
            picked += rounded_product(share, x);
          }
        } else {
          slope = 1 / n;
          if (combine == ensemble::uncertainty_weighted && freedom > 0)
            slope -= 2 * coefficient * (x - mean) / freedom;
          if (combine == ensemble::mean_minus_std && deviation > 0)
            slope -= coefficient * (x - mean) / (freedom * deviation);
        }
        slope = rounded_product(slope, above);
      }
      if (d_reward.data != nullptr)
        put(d_reward, b * d_reward.per_row + k * d_reward.stride, slope);
    }
    double value = ordered ? picked : lowest == highest ? lowest : mean;
    if (combine == ensemble::uncertainty_weighted) value -= rounded_product(coefficient, variance);
    if (combine == ensemble::mean_minus_std) value -= rounded_product(coefficient, deviation);
    if (!(n > 0)) value = nan;
    const double spread = n > 0 ? deviation : nan;
    if (combined.data != nullptr) put(combined, b * combined.per_row, value);
    if (disagreement.data != nullptr) put(disagreement, b * disagreement.per_row, spread);
    double* const f = figures + 4 * b;
    f[0] = n > 0 ? value : 0;
    f[1] = n > 0 ? deviation : 0;
    f[2] = n > 0 ? 1 : 0;
    f[3] = static_cast<double>(members) - n;
  }
};

struct add_members {
  const double* x;
  index rows;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    double s[4] = {};  // side by side: one read, and no sum waits for another
    for (index b = 0; b < rows; ++b)
      for (int k = 0; k < 4; ++k) s[k] += x[4 * b + k];
    for (int k = 0; k < 4; ++k) to[k] = s[k];
    to[4] = static_cast<double>(rows);
  }
};

inline ensemble_result read_ensemble(const double* f) {
  ensemble_result r;
  r.combined = {f[0], f[2]};
  r.disagreement = {f[1], f[2]};
  r.missing = f[3];
  r.sequences = f[4];
  r.unscorable = f[4] - f[2];
  return r;
}

/// [members, batch] as [batch, members].
template <class V>
V transposed(const V& v) {
  V t = v;
  if (v.rank() != 2) return t;
  using T = typename V::element;
  using Space = typename V::space;
  static_cast<view<T, Space>&>(t) = view<T, Space>(
      raw_view<T, Space>{v.data(), 2, {v.size(1), v.size(0), 1}, {v.stride(1), v.stride(0), 0}});
  return t;
}

}  // namespace detail

/// One reward from an ensemble of reward models, pessimistic where they disagree.
///
///     mean                  mu
///     worst_case            min over members
///     median                the middle one
///     uncertainty_weighted  mu − coefficient · variance
///     mean_minus_std        mu − coefficient · standard deviation
///
/// Bradley-Terry scores have a free offset: bring the members to one scale first.
///
/// Shapes    reward, d_reward: [members, batch]; combined, disagreement, upstream: [batch]
/// Units     those of the reward
/// Requires  at least one member; coefficient >= 0, and 0 with mean, worst_case and median; ddof 0
///           or 1
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  d_reward = upstream · (1/K | 1 at the smallest | 1, or 1/2 and 1/2, in the middle |
///           1/K − 2c (r − mu)/(K − ddof) | 1/K − c (r − mu)/((K − ddof) std), 1/K where std is 0);
///           ties go to the lowest member
/// Edges     a NaN member is skipped, K is then the number of the others, its gradient is 0; no
///           member left: combined and disagreement are NaN, gradient 0, counted in unscorable;
///           K <= ddof: variance 0; an infinite score is a score
/// Numerics  in double, two passes over the members, rounded once
/// Cost      members² for median and worst_case, members else; host: no allocation with a workspace
/// Source    Coste et al. 2023, arXiv:2310.02743; Eisenstein et al. 2023, arXiv:2312.09244
/// Elsewhere tlc4418/llm_optimization: ddof 0 with coefficient 0.5 for best-of-n, ddof 1 with 0.1
///           for PPO
template <scalar T, executor Exec = serial>
result_of<Exec, ensemble_result> ensemble_reward(
    const ensemble_batch<T, space_of<Exec>>& batch,
    const ensemble_output<T, space_of<Exec>>& output,
    const ensemble_config& config = detail::no_config<T, ensemble_config>::value,
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  const char* const function = "ensemble_reward";
  if (!batch.reward) [[unlikely]]
    detail::fail(function, "reward", "a tensor: this input is required", "none");
  if (batch.reward.rank() != 2) [[unlikely]]
    detail::fail_shape(function, "reward", "rank 2, [members, batch]", batch.reward.shape());
  detail::check_memory(function, "reward", batch.reward);
  if (output.d_reward && !(output.d_reward.shape() == batch.reward.shape())) [[unlikely]]
    detail::fail_shape(function, "d_reward", batch.reward.shape(), output.d_reward.shape());
  if (output.d_reward) detail::check_memory(function, "d_reward", output.d_reward);
  const index members = batch.reward.size(0), rows = batch.reward.size(1);
  expects(members >= 1, function, "reward", "at least one member", members);
  token_binder<Space> bind(function, "reward", detail::transposed(batch.reward), {}, {});
  const bool weighted = config.combine == ensemble::uncertainty_weighted ||
                        config.combine == ensemble::mean_minus_std;
  if (weighted)
    expects(config.coefficient >= 0 && config.coefficient <= 1.7976931348623157e308, function,
            "coefficient", "a number that is finite and >= 0", config.coefficient);
  else
    expects(config.coefficient == 0, function, "coefficient", "0: this way to combine has none",
            config.coefficient);
  expects(config.ddof == 0 || config.ddof == 1, function, "ddof", "0 or 1", config.ddof);

  detail::combine_members<T, Space> combine{};
  combine.members = members;
  combine.reward = bind.token("reward", detail::transposed(batch.reward));
  if (output.upstream)
    combine.upstream =
        bind.sequence("upstream", static_cast<const view<const T, Space>&>(output.upstream));
  detail::check_address(function, "upstream", output.upstream.device);
  combine.number = output.upstream.number;
  combine.number_at = output.upstream.device;
  combine.combined = bind.written_per_sequence("combined", output.combined);
  combine.disagreement = bind.written_per_sequence("disagreement", output.disagreement);
  combine.d_reward = bind.written("d_reward", detail::transposed(output.d_reward));
  combine.combine = config.combine;
  combine.coefficient = config.coefficient;
  combine.ddof = config.ddof;

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(5);
  combine.figures = run.template allocate<double>(4 * rows);
  run.for_each(rows, combine);
  run.for_each(1, detail::add_members{combine.figures, rows, figures});
  return run.template finish<ensemble_result>(figures, &detail::read_ensemble);
}

}  // namespace rlhf::inline RLHF_COMPUTE
