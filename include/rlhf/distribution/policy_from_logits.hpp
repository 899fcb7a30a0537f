#pragma once

#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/distribution/token_log_prob.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

namespace rlhf::inline v1 {

/// The inputs of a policy loss that begins at the logits: policy_batch, with the logits of the
/// current policy in the place of its log-probabilities and entropies.
template <storage L, class Space = host_space>
struct policy_logits_batch {
  named_only use_designators = named_only();
  view<const L, Space> logits = {};  ///< [batch, time, classes] or [tokens, classes]
  index_view<Space> label = {};      ///< the sampled tokens
  view<const compute_of<L>, Space> old_log_prob = {};        ///< the ratio is taken against it
  view<const compute_of<L>, Space> behaviour_log_prob = {};  ///< the policy that sampled
  view<const compute_of<L>, Space> ref_log_prob = {};        ///< reference of the KL term
  signal<const compute_of<L>, Space> advantage = {};         ///< per token or per sequence
  signal<const compute_of<L>, Space> coefficient = {};       ///< weight of the policy term alone
  index_view<Space> group_id = {};  ///< for aggregation::group_mean_token_mean
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <storage L, class Space = host_space>
struct policy_logits_output {
  named_only use_designators = named_only();
  output<L, Space> d_logits = {};  ///< the logits themselves, memory of its own, or add_to(it)
  output<compute_of<L>, Space> log_prob = {};    ///< of the labels
  output<compute_of<L>, Space> entropy = {};     ///< of each row
  output<compute_of<L>, Space> token_loss = {};  ///< the policy term of each token, unweighted
  output<compute_of<L>, Space> ratio = {};       ///< exp(log_prob − old_log_prob)
  upstream_scale<compute_of<L>, Space> upstream = {};
};

struct policy_from_logits_config {
  aggregation over;           ///< no default: the caller says what divides the loss
  kl_term kl = {};            ///< + coefficient · aggregate(KL estimate against ref_log_prob)
  entropy_term entropy = {};  ///< − coefficient · aggregate(entropy), through all logits
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
  double temperature = 1;     ///< logits are divided by it, > 0
  index ignore_index = -100;  ///< a token with this label counts as masked
};

struct clipped_surrogate_from_logits_config {
  double clip_low = 0.2;      ///< ratio floor is 1 − clip_low; >= 1 means no floor
  double clip_high = 0.2;     ///< ratio ceiling is 1 + clip_high, clip_high >= 0
  double dual_clip = 0;       ///< 0: none; > 1: the loss of A < 0 is at most −dual_clip·A
  aggregation over;           ///< no default: the caller says what divides the loss
  kl_term kl = {};            ///< + coefficient · aggregate(KL estimate against ref_log_prob)
  entropy_term entropy = {};  ///< − coefficient · aggregate(entropy), through all logits
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
  double temperature = 1;     ///< logits are divided by it, > 0
  index ignore_index = -100;  ///< a token with this label counts as masked
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// Runs the kernel of the token-level losses on each row, between its statistics and its gradient.
template <class K, class Space>
struct policy_rows {
  using T = typename K::scalar_type;
  static constexpr int sums = K::sums, ranges = K::ranges;

  K kernel;
  token_arguments<K, Space> tokens;
  bool old_given = true;
  token_output<T> to_log_prob = {}, to_entropy = {};

  RLHF_HOST_DEVICE void operator()(row_token<policy_rows>& t) const {
    using V = math::scalar_lane<T>;
    token_lanes<V, K> lane = {};
    for (int k = 0; k < K::inputs; ++k)
      lane.in[k] = math::constant<V>(read_token(tokens.in[k], t.place));
    lane.in[K::log_prob] = math::constant<V>(t.of.log_prob);
    lane.in[K::entropy_in] = math::constant<V>(t.of.entropy);
    if (!old_given) lane.in[K::old_log_prob] = lane.in[K::log_prob];
    const V weight = math::constant<V>(t.weight);
    for (int k = 0; k < K::scales; ++k)
      lane.scale[k] = math::constant<V>(tokens.scale[k].at(t.place.sequence)) * weight;
    kernel(lane);

    bool finite = true;
    for (int k = 0; k < K::observed; ++k) finite = finite && math::is_finite(lane.in[k]);
    t.nonfinite = finite ? 0 : 1;
    for (int k = 0; k < K::sums; ++k) {
      const V sum = k < K::scaled_sums ? lane.sum[k] : lane.sum[k] * weight;
      t.sum[k] = static_cast<double>(math::first(sum));
    }
    for (int k = 0; k < K::ranges; ++k)
      t.range[k] = static_cast<double>(math::first(lane.range[k]));
    const auto out = [&](int k) { return static_cast<double>(math::first(lane.out[k])); };
    write_token(to_log_prob, t.place, t.of.log_prob);
    write_token(to_entropy, t.place, t.of.entropy);
    write_token(tokens.out[K::token_loss], t.place, out(K::token_loss));
    write_token(tokens.out[K::ratio_out], t.place, out(K::ratio_out));
    const double label = out(K::d_log_prob);
    t.slope = {.label = label, .p = -label, .p_log_p = -out(K::d_entropy)};
  }
  RLHF_HOST_DEVICE void masked(const row_place& at) const {
    clear_token(to_log_prob, at);
    clear_token(to_entropy, at);
    clear_token(tokens.out[K::token_loss], at);
    clear_token(tokens.out[K::ratio_out], at);
  }
};

/// Log-probabilities of a domain's tokens in scratch memory, for screening what is not finite.
template <storage L, class Run, class Space>
token_input<compute_of<L>> scratch_log_prob(Run& run, row_arguments<L, Space> a) {
  using T = compute_of<L>;
  const bool packed = a.domain.kind == arrangement::packed;
  T* const memory =
      run.template allocate<T>(packed ? a.domain.columns : a.domain.rows * a.domain.columns);
  log_prob_rows<T> kernel;
  kernel.to_log_prob = {memory, packed ? 0 : a.domain.columns, packed ? 1 : 0, 1, false};
  a.gradient = {};
  double* const figures = run.template allocate<double>(sums_of<log_prob_rows<T>>::size);
  run.row_reduce(kernel, a, figures);
  return {memory, packed ? 0 : a.domain.columns, packed ? 1 : 0, 1, T(0)};
}

}  // namespace detail

/// Any policy loss of token level straight from the logits: log-probability, entropy, loss and the
/// gradient of every logit in one read. The formula is that of policy_loss.
///
/// Shapes    logits, d_logits: [batch, time, classes], or [tokens, classes], packed or alone;
///           label, old_log_prob, ref_log_prob, mask and every other output: the same without
///           classes; advantage, coefficient, upstream: those or [batch]; group_id: [batch]
/// Units     as token_log_prob and policy_loss
/// Requires  what token_log_prob and policy_loss require; d_logits: exactly the logits' memory, or
///           memory of its own; tokens without sequences: an aggregation over tokens
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  that of policy_loss, carried through log_prob and entropy as token_log_prob_backward
///           does it
/// Edges     masked and ignored tokens: not counted, their logits not read, gradient row +0, in
///           place too; others as token_log_prob and policy_loss
/// Numerics  per token what token_log_prob, policy_loss and token_log_prob_backward give one after
///           the other; sums: a fixed order, in double
/// Cost      mask and labels read once for the weights; one read and one write of the logits, one
///           exponential per logit; one read more unless .nonfinite is propagate
/// Source    the composition is ours; see the losses built on it
template <storage L, class Term, executor Exec = serial>
result_of<Exec, policy_result> policy_loss_from_logits(
    const Term& term, const policy_logits_batch<L, space_of<Exec>>& batch,
    const policy_logits_output<L, space_of<Exec>>& output,
    const policy_from_logits_config& config =
        detail::no_config<L, policy_from_logits_config>::value,
    const Exec& exec = {}, const char* function = "policy_loss_from_logits") {
  using Space = space_of<Exec>;
  using T = compute_of<L>;
  using K = detail::policy_kernel<T, Term, true>;
  detail::row_binder<L, Space> bind(function, batch.logits, batch.layout, batch.mask);
  bind.temperature(config.temperature);
  bind.labels(batch.label, config.ignore_index);
  row_arguments<L, Space> a = bind.arguments(config.temperature);
  bind.gradient(output.d_logits, a);
  a.plain_slopes = !config.entropy.coefficient.given();
  const policy_config loss{config.over, config.kl, config.entropy, config.nonfinite};
  detail::policy_fields fields = detail::policy_fields::of<Term>();
  fields.from_logits = true;
  auto p = detail::bind_policy(
      bind.tokens(),
      policy_batch<T, Space>{.old_log_prob = batch.old_log_prob,
                             .behaviour_log_prob = batch.behaviour_log_prob,
                             .ref_log_prob = batch.ref_log_prob,
                             .advantage = batch.advantage,
                             .coefficient = batch.coefficient,
                             .group_id = batch.group_id},
      policy_output<T, Space>{
          .token_loss = output.token_loss, .ratio = output.ratio, .upstream = output.upstream},
      loss, fields);
  for (const aggregation& over : {config.over, p.kl_over, p.entropy_over})
    detail::check_loose(function, over, bind.loose());
  detail::policy_rows<K, Space> rows{K{term}, {}, bool(batch.old_log_prob)};
  rows.to_log_prob = bind.tokens().written("log_prob", output.log_prob);
  rows.to_entropy = bind.tokens().written("entropy", output.entropy);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + sums_of<K>::size);
  double* const sums = figures + token_counts::size;
  p.full = true;
  p.domain = a.domain = bind.counted(run);
  if (config.nonfinite != nonfinite_policy::propagate)
    p.log_prob = detail::scratch_log_prob<L>(run, a);
  const auto plan = detail::plan_policy<T>(run, p, loss, batch.group_id, output.upstream, figures);
  detail::arrange_policy(p, plan, loss, rows.kernel, rows.tokens);
  a.domain = plan.screened.domain;
  run.row_reduce(rows, a, sums);
  if (plan.screened.dropped != nullptr)
    run.for_each(1, detail::add_dropped{plan.screened.dropped, sums + sums_of<K>::nonfinite});
  return run.template finish<policy_result>(figures, &K::figures::read);
}

/// Clipped surrogate policy loss of PPO straight from the logits, with KL and entropy terms: the
/// formula of clipped_surrogate_loss, one read of the logits, and the gradient of every logit.
///
/// Shapes    as policy_loss_from_logits
/// Units     as clipped_surrogate_loss
/// Requires  what token_log_prob and clipped_surrogate_loss require
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  ∂loss/∂logits_v = (d_log_prob (1[v = label] − p_v) − d_entropy p_v (log p_v +
///           entropy)) / temperature, d_log_prob and d_entropy those of clipped_surrogate_loss; the
///           entropy bonus has its exact gradient
/// Edges     as policy_loss_from_logits
/// Numerics  as policy_loss_from_logits
/// Cost      as policy_loss_from_logits
/// Source    as clipped_surrogate_loss
template <storage L, executor Exec = serial>
result_of<Exec, clipped_surrogate_result> clipped_surrogate_from_logits(
    const policy_logits_batch<L, space_of<Exec>>& batch,
    const policy_logits_output<L, space_of<Exec>>& output,
    const clipped_surrogate_from_logits_config& config =
        detail::no_config<L, clipped_surrogate_from_logits_config>::value,
    const Exec& exec = {}) {
  const char* const function = "clipped_surrogate_from_logits";
  const clipped_surrogate_term<compute_of<L>> term(function, config.clip_low, config.clip_high,
                                                   config.dual_clip);
  return policy_loss_from_logits<L>(term, batch, output,
                                    {.over = config.over,
                                     .kl = config.kl,
                                     .entropy = config.entropy,
                                     .nonfinite = config.nonfinite,
                                     .temperature = config.temperature,
                                     .ignore_index = config.ignore_index},
                                    exec, function);
}

}  // namespace rlhf::inline RLHF_COMPUTE
