#pragma once

#include "rlhf/kl/kl_estimator.hpp"
#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"

namespace rlhf::inline v1 {

template <scalar T, class Space = host_space>
struct kl_estimate_batch {
  named_only use_designators = named_only();
  view<const T, Space> log_prob = {};  ///< current policy, differentiable
  view<const T, Space> old_log_prob =
      {};  ///< the policy that sampled, exactly with ratio weighting
  view<const T, Space> ref_log_prob = {};
  index_view<Space> group_id = {};  ///< for aggregation::group_mean_token_mean
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <scalar T, class Space = host_space>
struct kl_estimate_output {
  named_only use_designators = named_only();
  output<T, Space> kl = {};          ///< the estimate of each token, nats
  output<T, Space> d_log_prob = {};  ///< gradient of the loss
  upstream_scale<T, Space> upstream = {};
};

struct kl_estimate_config {
  kl_estimator estimator = kl_estimator::k3;
  kl_weighting weighting = kl_weighting::plain;
  double input_clamp = 0;  ///< |log_prob − ref_log_prob| is cut here, gradient 0 beyond; 0 = none
  double output_clamp = 0;  ///< |k| is cut here, gradient 0 beyond; 0 = none
  aggregation over;         ///< no default: the caller says what divides the loss
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

struct kl_estimate_result {
  double loss = 0;         ///< aggregate of the estimate: the scalar whose gradient is written
  metric kl;               ///< nats per token
  metric kl_per_sequence;  ///< mean over sequences of the sum over counted tokens, unweighted
  double kl_min = __builtin_inf();
  double kl_max = -__builtin_inf();
  double tokens = 0;
  double positions = 0;
  double sequences = 0;
  double nonfinite = 0;
  double saturated = 0;  ///< counted tokens whose exponent was bounded at 80

  friend kl_estimate_result operator+(const kl_estimate_result& a, const kl_estimate_result& b) {
    kl_estimate_result r;
    r.loss = a.loss + b.loss;
    r.kl = a.kl + b.kl;
    r.kl_per_sequence = a.kl_per_sequence + b.kl_per_sequence;
    r.kl_min = a.kl_min < b.kl_min ? a.kl_min : b.kl_min;
    r.kl_max = a.kl_max > b.kl_max ? a.kl_max : b.kl_max;
    r.tokens = a.tokens + b.tokens;
    r.positions = a.positions + b.positions;
    r.sequences = a.sequences + b.sequences;
    r.nonfinite = a.nonfinite + b.nonfinite;
    r.saturated = a.saturated + b.saturated;
    return r;
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

template <scalar T>
struct kl_estimate_kernel {
  using scalar_type = T;
  enum input { log_prob, ref_log_prob, old_log_prob, coefficient, upstream };
  static constexpr int inputs = 5, observed = 3;
  enum out { d_log_prob, kl_out };
  static constexpr int outputs = 2;
  enum factor { loss, gradient };
  static constexpr int scales = 2;
  enum sum { loss_sum, kl_sum, kl, saturated };
  static constexpr int scaled_sums = 2, sums = 4, ranges = 1;

  kl_estimator estimator;
  kl_weighting weighting;
  T input_clamp, output_clamp;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V zero = math::constant<V>(0);
    const V one = math::constant<V>(1);
    const V edge = math::constant<V>(80);
    const V delta = t.in[log_prob] - t.in[ref_log_prob];
    V ratio = one;
    V saturation = zero;
    if (weighting == kl_weighting::ratio) {
      const V raw = t.in[log_prob] - t.in[old_log_prob];
      ratio = math::exp(math::bounded(raw));
      saturation = math::select(math::abs(raw) > edge, one, zero);
    }
    if (estimator == kl_estimator::k3) saturation = math::select(delta < -edge, one, saturation);
    const formula::kl_terms<V> k =
        formula::kl_estimate(delta, ratio, estimator, weighting, input_clamp, output_clamp);
    const V weight = t.in[coefficient];
    t.sum[loss_sum] = k.value * weight * t.scale[loss];
    t.sum[kl_sum] = k.value;
    t.sum[kl] = k.value;
    t.sum[saturated] = saturation;
    t.range[0] = k.value;
    t.out[d_log_prob] = k.d_log_prob * (weight * t.scale[gradient]) * t.in[upstream];
    t.out[kl_out] = k.value;
  }

  static kl_estimate_result read(const double* figures) {
    const double* const s = figures + token_counts::size;
    kl_estimate_result r;
    r.tokens = figures[0];
    r.positions = figures[1];
    r.sequences = figures[2];
    r.loss = s[loss_sum];
    r.kl = {s[kl], r.tokens};
    r.kl_per_sequence = {s[kl_sum], r.sequences};
    r.saturated = s[saturated];
    r.kl_min = s[sums_of<kl_estimate_kernel>::low];
    r.kl_max = s[sums_of<kl_estimate_kernel>::high];
    r.nonfinite = s[sums_of<kl_estimate_kernel>::nonfinite];
    return r;
  }
};

}  // namespace detail

/// KL(policy || reference) estimated from one sample per token, as a loss and as a metric.
///
///     delta = log_prob − ref_log_prob
///     k     = k1 delta | k2 delta² / 2 | k3 exp(−delta) − 1 + delta | absolute |delta|
///     loss  = aggregate(k), weighted as .weighting says
///
/// Whose gradient the loss has, in expectation over samples of the current policy (with `ratio`:
/// of the old policy). Only the rows that say KL(policy || ref) pull the policy to the reference
/// by the KL they report:
///
///                 plain              ratio              score              straight_through
///     k1          0                  KL(policy || ref)  KL(policy || ref)  KL(policy || ref)
///     k2          KL(policy || ref)  of E[delta²/2]     of E[delta²/2]     KL(policy || ref)
///     k3          KL(ref || policy)  KL(policy || ref)  KL(policy || ref)  KL(policy || ref)
///     absolute    2 TV(policy, ref)  of E|delta|        of E|delta|        KL(policy || ref)
///
/// Shapes    log_prob, old_log_prob, ref_log_prob, mask, kl, d_log_prob: [batch, time], padded or
///           packed; upstream: [batch, time] or [batch]; group_id: [batch]
/// Units     log-probabilities of the sampled tokens, in nats; mask: a flag, or a weight >= 0
/// Requires  one shape; clamps >= 0; old_log_prob exactly with kl_weighting::ratio
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  plain: w · (1 | delta | 1 − exp(−delta) | sign delta); ratio: w · r · (k + that), for
///           k3 w · r · delta; score: the same with r = 1; straight_through: w · delta, whatever
///           the clamps; 0 where a clamp cuts; ref_log_prob and old_log_prob are constants
/// Edges     masked positions are not read and get gradient 0; an empty mask gives loss 0; k1 may
///           be negative and keeps its sign; k2, k3 and absolute are >= 0 and 0 at delta = 0; delta
///           below −80 in k3 gives value and slope at −80 and counts in saturated, as does a ratio
///           beyond exp(±80); NaN or inf in a counted token reaches the loss, unless .nonfinite
///           drops it
/// Numerics  k3 <= 4 ULP of delta's k3, no cancellation near 0; sums: fixed tree, in double
/// Cost      mask read once for the weights, then one pass: 2 reads (3 with ratio) and up to 2
///           writes per token; host: no allocation with a workspace
/// Source    Schulman 2020, joschu.net/blog/kl-approx.html; ratio · k3: DeepSeek-AI 2025,
///           arXiv:2512.02556; the table: exact enumeration in the tests
/// Elsewhere verl kl_penalty ("k3+" is straight_through), OpenRLHF compute_approx_kl, slime
///           compute_approx_kl, NeMo-RL calculate_kl (`score`), TRL (plain k3)
template <scalar T, executor Exec = serial>
result_of<Exec, kl_estimate_result> kl_estimate(
    const kl_estimate_batch<T, space_of<Exec>>& batch,
    const kl_estimate_output<T, space_of<Exec>>& output,
    const kl_estimate_config& config = detail::no_config<T, kl_estimate_config>::value,
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using K = detail::kl_estimate_kernel<T>;
  const char* const function = "kl_estimate";
  token_binder<Space> bind(function, "log_prob", batch.log_prob, batch.layout, batch.mask);
  const auto& domain = bind.domain();
  const bool ratio = config.weighting == kl_weighting::ratio;
  const auto log_prob = bind.token("log_prob", batch.log_prob);
  if (!ratio) bind.unused("old_log_prob", bool(batch.old_log_prob));
  const auto old = ratio ? bind.token("old_log_prob", batch.old_log_prob) : token_input<T>{};
  const auto ref = bind.token("ref_log_prob", batch.ref_log_prob);
  const auto above = bind.upstream(output.upstream);
  const auto kl = bind.written("kl", output.kl);
  const auto d_log_prob = bind.written("d_log_prob", output.d_log_prob);
  expects(config.input_clamp >= 0, function, "input_clamp", ">= 0", config.input_clamp);
  expects(config.output_clamp >= 0, function, "output_clamp", ">= 0", config.output_clamp);
  check_over(bind, config.over, batch.group_id);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + sums_of<K>::size);
  double* const row_weight = detail::allocate_row_weight(run, domain.rows, config.over);
  run.count(domain, figures, row_weight);
  detail::check_count(run, config.over, figures);
  const token_input<T> observed[] = {log_prob, ref, old};
  const auto screened = screen_nonfinite<T>(run, domain, observed, config.nonfinite);
  const auto scales =
      plan_loss<T>(run, domain, config.over, figures, row_weight, batch.group_id, output.upstream);
  token_arguments<K, Space> a;
  a.domain = screened.domain;
  a.in[K::log_prob] = log_prob;
  a.in[K::ref_log_prob] = ref;
  a.in[K::old_log_prob] = old;
  a.in[K::coefficient] = scales.value.coefficient;
  a.in[K::upstream] = above;
  a.out[K::d_log_prob] = d_log_prob;
  a.out[K::kl_out] = kl;
  a.scale[K::loss] = scales.value.scale;
  a.scale[K::gradient] = scales.gradient;
  double* const sums = figures + token_counts::size;
  run.map_reduce(K{config.estimator, config.weighting, static_cast<T>(config.input_clamp),
                   static_cast<T>(config.output_clamp)},
                 a, sums);
  if (screened.dropped != nullptr)
    run.for_each(1, detail::add_dropped{screened.dropped, sums + sums_of<K>::nonfinite});
  return run.template finish<kl_estimate_result>(figures, &K::read);
}

}  // namespace rlhf::inline RLHF_COMPUTE
