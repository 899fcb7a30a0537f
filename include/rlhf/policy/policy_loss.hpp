#pragma once

#include "rlhf/kl/kl_estimator.hpp"
#include "rlhf/math/dual.hpp"
#include "rlhf/math/exp.hpp"
#include "rlhf/math/kl.hpp"
#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"
#include "rlhf/statistics/nonfinite.hpp"

namespace rlhf::inline v1 {

/// The inputs of every policy loss: log-probabilities of the sampled tokens, in nats, and what
/// weighs them. All but the current policy's are constants for differentiation.
template <scalar T, class Space = host_space>
struct policy_batch {
  named_only use_designators = named_only();
  view<const T, Space> log_prob = {};            ///< current policy, differentiable
  view<const T, Space> old_log_prob = {};        ///< the policy the ratio is taken against
  view<const T, Space> behaviour_log_prob = {};  ///< the policy that sampled
  view<const T, Space> ref_log_prob = {};        ///< reference of the KL term
  view<const T, Space> entropy = {};             ///< per token, from the log-prob layer
  signal<const T, Space> advantage = {};         ///< per token or per sequence
  signal<const T, Space> coefficient = {};       ///< weight of the policy term alone, stop-gradient
  index_view<Space> group_id = {};               ///< for aggregation::group_mean_token_mean
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

/// What a policy loss writes, where given.
template <scalar T, class Space = host_space>
struct policy_output {
  named_only use_designators = named_only();
  output<T, Space> d_log_prob = {};     ///< gradient of the loss
  output<T, Space> d_entropy = {};      ///< gradient of the loss with respect to `entropy`
  output<T, Space> token_loss = {};     ///< the policy term of each token, unweighted
  output<T, Space> ratio = {};          ///< exp(log_prob − old_log_prob)
  output<T, Space> sequence_loss = {};  ///< [batch], sequence-level losses only
  upstream_scale<T, Space> upstream = {};
};

/// An aggregation that may be left out: the term then has that of the policy term.
class own_aggregation {
  aggregation over_ = aggregation::none();
  bool given_ = false;

 public:
  constexpr own_aggregation() = default;
  constexpr own_aggregation(const aggregation& over) : over_(over), given_(true) {}
  constexpr const aggregation& or_else(const aggregation& other) const {
    return given_ ? over_ : other;
  }
};

/// loss += coefficient · aggregate(k(log_prob − ref_log_prob)), in the same pass.
struct kl_term {
  rlhf::coefficient coefficient = 0;  ///< beta, >= 0
  kl_estimator estimator = kl_estimator::k3;
  kl_weighting weighting = kl_weighting::ratio;  ///< ratio · k3 has the gradient of the KL
  own_aggregation over = {};                     ///< left out: that of the policy term
  double input_clamp = 0;   ///< |delta| is cut here, the estimator's slope is 0 beyond; 0 = none
  double output_clamp = 0;  ///< |k| is cut here, the estimator's slope is 0 beyond; 0 = none
};

/// loss −= coefficient · aggregate(entropy), in the same pass.
struct entropy_term {
  rlhf::coefficient coefficient = 0;
  own_aggregation over = {};
};

/// What every policy loss returns. Results of micro-batches and ranks add up.
struct policy_result {
  double loss = 0;            ///< the scalar whose gradient d_log_prob holds
  double policy_loss = 0;     ///< its policy term alone
  metric kl = {};             ///< the KL term's estimator, nats per token; 0 without a KL term
  metric entropy = {};        ///< of the input `entropy`, nats per token; 0 where not given
  metric clip_fraction = {};  ///< share of counted tokens whose clip decides
  metric clip_fraction_low = {};
  metric clip_fraction_high = {};
  metric dual_clip_fraction = {};
  metric approx_kl_k1 = {};  ///< −log ratio
  metric approx_kl_k2 = {};  ///< (log ratio)² / 2
  metric approx_kl_k3 = {};  ///< ratio − 1 − log ratio, >= 0
  metric ratio = {};
  double ratio_min = __builtin_inf();
  double ratio_max = -__builtin_inf();
  double tokens = 0;     ///< sum of the mask's weights
  double positions = 0;  ///< tokens whose weight is > 0
  double sequences = 0;  ///< sequences with such a token
  double nonfinite = 0;  ///< counted tokens with a NaN or an infinity among their inputs
  double saturated = 0;  ///< counted tokens with a log-ratio beyond 80, where exp is bounded

  friend policy_result operator+(const policy_result& a, const policy_result& b) {
    policy_result r;
    r.loss = a.loss + b.loss;
    r.policy_loss = a.policy_loss + b.policy_loss;
    r.kl = a.kl + b.kl;
    r.entropy = a.entropy + b.entropy;
    r.clip_fraction = a.clip_fraction + b.clip_fraction;
    r.clip_fraction_low = a.clip_fraction_low + b.clip_fraction_low;
    r.clip_fraction_high = a.clip_fraction_high + b.clip_fraction_high;
    r.dual_clip_fraction = a.dual_clip_fraction + b.dual_clip_fraction;
    r.approx_kl_k1 = a.approx_kl_k1 + b.approx_kl_k1;
    r.approx_kl_k2 = a.approx_kl_k2 + b.approx_kl_k2;
    r.approx_kl_k3 = a.approx_kl_k3 + b.approx_kl_k3;
    r.ratio = a.ratio + b.ratio;
    r.ratio_min = a.ratio_min < b.ratio_min ? a.ratio_min : b.ratio_min;
    r.ratio_max = a.ratio_max > b.ratio_max ? a.ratio_max : b.ratio_max;
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

/// One lane of tokens as a formula sees it. ratio = exp(log_ratio), log_ratio = log_prob −
/// old_log_prob within ±80.
template <lane V>
struct policy_token {
  V log_prob;
  V old_log_prob;
  V behaviour_log_prob;
  V advantage;
  V log_ratio;
  V ratio;
};

/// What a formula says of them. Counts are 1 where a clip decides, else 0.
template <lane V>
struct policy_terms {
  V loss;
  V d_log_prob;
  V clipped_low = math::constant<V>(0);
  V clipped_high = math::constant<V>(0);
  V dual_clipped = math::constant<V>(0);
};

/// The part of a config that every policy loss has.
struct policy_config {
  aggregation over;
  kl_term kl = {};
  entropy_term entropy = {};
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

namespace detail {

/// What policy_loss reads of the config of any loss.
template <class Config>
policy_config shared_part(const Config& c) {
  return {.over = c.over, .kl = c.kl, .entropy = c.entropy, .nonfinite = c.nonfinite};
}

template <class Term>
constexpr bool uses_behaviour() {
  if constexpr (requires { Term::uses_behaviour_log_prob; })
    return Term::uses_behaviour_log_prob;
  else
    return false;
}
/// A formula without old_log_prob takes ratio 1 where it is left out.
template <class Term>
constexpr bool needs_old() {
  if constexpr (requires { Term::needs_old_log_prob; })
    return Term::needs_old_log_prob;
  else
    return true;
}

/// Whether loss, slope and counts are 0 where every input is 0: a term says so by `static constexpr
/// bool silent = true`, and saves the choice between them and 0 under a mask.
template <class Term>
constexpr bool is_silent_term() {
  if constexpr (requires { Term::silent; })
    return Term::silent;
  else
    return false;
}

/// The formula, and its slope: written out, or, when it returns the loss alone, from dual numbers.
template <class Term, lane V>
RLHF_HOST_DEVICE RLHF_INLINE policy_terms<V> evaluate(const Term& term, const policy_token<V>& t) {
  if constexpr (std::same_as<std::remove_cv_t<decltype(term(t))>, V>) {
    using D = math::dual<V>;
    const V one = math::constant<V>(1), zero = math::constant<V>(0);
    const D log_prob{t.log_prob, one};
    const D log_ratio{t.log_ratio, one};
    const policy_token<D> lifted{
        log_prob,  D{t.old_log_prob, zero}, D{t.behaviour_log_prob, zero}, D{t.advantage, zero},
        log_ratio, D{t.ratio, t.ratio}};
    if constexpr (math::detail::is_returned<D, decltype(term(lifted))>()) {
      const D loss = term(lifted);
      return {.loss = loss.value, .d_log_prob = loss.tangent};
    }
  } else if constexpr (math::detail::is_returned<policy_terms<V>, decltype(term(t))>()) {
    return term(t);
  }
}

/// Whose ratio the formula sees, and where its slope goes.
enum class ratio_level {
  token,           ///< each token its own
  sequence_value,  ///< the sequence's, slope to the token itself
  sequence         ///< the sequence's, slope through it to every token of the sequence
};

/// The sums of a policy kernel behind the terms of the loss.
struct policy_metrics {
  enum metric_sum { low, high, dual, k1, k2, k3, ratio, saturated, kl, entropy };
};

/// Where a policy kernel leaves its figures, whatever its formula.
template <bool Full>
struct policy_figures : policy_metrics {
  static constexpr int scaled_sums = Full ? 3 : 1;  // policy, KL and entropy term of the loss
  static constexpr int sums = scaled_sums + (Full ? 10 : 8);
  static constexpr int ranges = 1;

  static policy_result read(const double* figures) {
    const double* const sum = figures + token_counts::size;
    const double* const m = sum + scaled_sums;
    policy_result r;
    r.tokens = figures[0];
    r.positions = figures[1];
    r.sequences = figures[2];
    r.policy_loss = sum[0];
    r.loss = sum[0];
    r.kl.count = r.entropy.count = r.tokens;
    if constexpr (Full) {
      r.loss += sum[1] - sum[2];
      r.kl.sum = m[kl];
      r.entropy.sum = m[entropy];
    }
    r.clip_fraction_low = {m[low], r.tokens};
    r.clip_fraction_high = {m[high], r.tokens};
    r.clip_fraction = r.clip_fraction_low + r.clip_fraction_high;
    r.clip_fraction.count = r.tokens;
    r.dual_clip_fraction = {m[dual], r.tokens};
    r.approx_kl_k1 = {0 - m[k1], r.tokens};  // the sums are of log ratio and its square
    r.approx_kl_k2 = {0.5 * m[k2], r.tokens};
    r.approx_kl_k3 = {m[k3], r.tokens};
    r.ratio = {m[ratio], r.tokens};
    r.saturated = m[saturated];
    r.ratio_min = sum[sums_of<policy_figures>::low];
    r.ratio_max = sum[sums_of<policy_figures>::high];
    r.nonfinite = sum[sums_of<policy_figures>::nonfinite];
    return r;
  }
};

inline constexpr index most_policy_figures =
    token_counts::size + sums_of<policy_figures<true>>::size;

/// The kernel of every policy loss. Lean: the surrogate, its gradient, the metrics. Full: all the
/// optional inputs, terms and outputs as well. On the level of sequences the log-ratio of each, its
/// exponential and, where it goes to every token, the gradient are inputs with a number per row.
template <scalar T, class Term, bool Full, ratio_level Level = ratio_level::token>
struct policy_kernel {
  using scalar_type = T;
  static constexpr bool behaviour = uses_behaviour<Term>();
  static constexpr bool sequences = Level != ratio_level::token;
  static constexpr bool takes_weights = Full;
  static constexpr bool takes_flags = !Full;

  enum input { log_prob, old_log_prob, advantage, behaviour_log_prob };
  static constexpr int coefficient_in = behaviour ? 4 : 3;
  static constexpr int ref_in = coefficient_in + 1;
  static constexpr int entropy_in = coefficient_in + 2;
  static constexpr int upstream_in = coefficient_in + 3;
  static constexpr int row_log_ratio_in = Full ? coefficient_in + 4 : coefficient_in;
  static constexpr int row_ratio_in = row_log_ratio_in + 1;
  static constexpr int row_slope_in = row_log_ratio_in + 2;
  static constexpr int inputs = row_log_ratio_in + (sequences ? 3 : 0);
  static constexpr int observed = Full ? coefficient_in + 3 : coefficient_in;

  enum out { d_log_prob, token_loss, ratio_out, d_entropy };
  static constexpr int outputs = Full ? 4 : 1;

  enum factor {
    policy_loss,
    policy_gradient,  ///< of a slope that goes through the sequence: ∂u/∂log_prob instead
    kl_loss,
    kl_gradient,
    entropy_loss,
    entropy_gradient
  };
  static constexpr int scales = Full ? 6 : 2;

  using figures = policy_figures<Full>;
  using enum policy_metrics::metric_sum;
  static constexpr int scaled_sums = figures::scaled_sums;
  static constexpr int plain_sum = scaled_sums + saturated;  // counts tokens, whatever they weigh
  RLHF_HOST_DEVICE static constexpr bool whole(int k) {      // zeros and ones
    return k >= scaled_sums + low && k <= scaled_sums + dual;
  }
  static constexpr int sums = figures::sums;
  static constexpr int ranges = figures::ranges;

  Term term;
  kl_estimator estimator = kl_estimator::k3;
  kl_weighting weighting = kl_weighting::ratio;
  bool with_kl = false;
  T input_clamp = 0, output_clamp = 0;

  // See primitive/map_reduce.hpp: the exponential and what hangs on it alone, then the formula.
  static constexpr int kept = 1;
  static constexpr int first_inputs = 2;
  static constexpr bool early(int k) { return k >= scaled_sums + k1 && k <= scaled_sums + ratio; }
  static constexpr bool silent(int k) {
    return (sequences || k != scaled_sums + ratio) && (early(k) || is_silent_term<Term>()) && !Full;
  }
  static constexpr bool silent_outputs = !Full && is_silent_term<Term>();
  static constexpr int rare_sum = Full || sequences ? -1 : plain_sum;

  template <class V>
  RLHF_HOST_DEVICE RLHF_INLINE static V is_beyond(const V& log_ratio) {
    return math::select(log_ratio > math::constant<V>(80), math::constant<V>(1),
                        math::constant<V>(0));
  }

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void first(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V log_ratio = math::bounded(t.in[log_prob] - t.in[old_log_prob]);
    const auto own = math::ratio_terms(log_ratio);  // exp and exp − 1 − x from one exp
    t.kept[0] = own.ratio;
    const V seen = sequences ? t.in[sequences ? row_ratio_in : 0] : own.ratio;
    V* const metric = t.sum + scaled_sums;
    metric[k1] = log_ratio;
    metric[k2] = log_ratio * log_ratio;
    metric[k3] = own.k3;
    metric[ratio] = seen;
    t.range[0] = seen;
  }

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void second(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V zero = math::constant<V>(0);
    const V raw = t.in[log_prob] - t.in[old_log_prob];
    const policy_token<V> token{
        t.in[log_prob],
        t.in[old_log_prob],
        behaviour ? t.in[behaviour ? behaviour_log_prob : 0] : zero,
        t.in[advantage],
        math::bounded(sequences ? t.in[sequences ? row_log_ratio_in : 0] : raw),
        sequences ? t.in[sequences ? row_ratio_in : 0] : t.kept[0]};
    const policy_terms<V> terms = evaluate(term, token);
    V* const metric = t.sum + scaled_sums;
    metric[low] = terms.clipped_low;
    metric[high] = terms.clipped_high;
    metric[dual] = terms.dual_clipped;
    V beyond = math::abs(raw);
    if constexpr (sequences) beyond = (math::max)(beyond, math::abs(t.in[row_log_ratio_in]));
    if constexpr (!Full) {
      t.sum[0] = terms.loss * t.scale[policy_loss];
      if constexpr (sequences) metric[saturated] = is_beyond(beyond);
      if constexpr (Level == ratio_level::sequence)
        t.out[d_log_prob] = t.in[row_slope_in];
      else
        t.out[d_log_prob] = terms.d_log_prob * t.scale[policy_gradient];
    } else {
      const V weight = t.in[coefficient_in];
      const V upstream = t.in[upstream_in];
      V slope;
      if constexpr (Level == ratio_level::sequence)
        slope = t.in[row_slope_in] * t.scale[policy_gradient];
      else
        slope = terms.d_log_prob * weight * t.scale[policy_gradient] * upstream;
      V kl_value = zero;
      if (with_kl) {
        const auto k = formula::kl_estimate(t.in[log_prob] - t.in[ref_in], t.kept[0], estimator,
                                            weighting, input_clamp, output_clamp);
        kl_value = k.value;
        if (estimator == kl_estimator::k3)  // exp(−delta) is the one that is bounded
          beyond = (math::max)(beyond, t.in[ref_in] - t.in[log_prob]);
        slope = slope + k.d_log_prob * t.scale[kl_gradient] * upstream;
      }
      t.sum[0] = terms.loss * weight * t.scale[policy_loss];
      t.sum[1] = kl_value * t.scale[kl_loss];
      t.sum[2] = t.in[entropy_in] * t.scale[entropy_loss];
      metric[saturated] = is_beyond(beyond);
      metric[kl] = kl_value;
      metric[entropy] = t.in[entropy_in];
      t.out[d_log_prob] = slope;
      t.out[token_loss] = terms.loss;
      t.out[ratio_out] = token.ratio;
      t.out[d_entropy] = -(t.scale[entropy_gradient] * upstream);
    }
  }

  /// Whether some ratio is so near to exp(±80) that its log-ratio may lie beyond.
  template <class V>
  static RLHF_INLINE mask_of<V> is_extreme(const V* lowest, const V* highest) {
    const V tiny = math::constant<V>(2e-35), huge = math::constant<V>(5e34);
    return (lowest[0] < tiny) | (highest[0] > huge);
  }
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void rare(Token& t) const {
    t.sum[plain_sum] = is_beyond(math::abs(t.in[log_prob] - t.in[old_log_prob]));
  }

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    first(t);
    second(t);
    if constexpr (rare_sum >= 0) rare(t);
  }
};

/// The fields of a policy call, checked and bound to the tokens of one batch.
template <scalar T, class Space>
struct bound_policy {
  token_domain<Space> domain;
  token_input<T> log_prob, old_log_prob, behaviour, advantage, weight, ref, entropy, above;
  token_output<T> d_log_prob, d_entropy, token_loss, ratio, sequence_loss;
  aggregation kl_over = aggregation::none(), entropy_over = aggregation::none();
  bool with_kl = false;
  bool full = false;
};

/// What the fields of a call depend on, beside its config. `from_logits`: log_prob and entropy are no
/// tensors of the batch; the caller's kernel has them.
struct policy_fields {
  bool behaviour, old, sequence_level = false, from_logits = false;
  template <class Term>
  static constexpr policy_fields of() {
    return {.behaviour = uses_behaviour<Term>(), .old = needs_old<Term>()};
  }
};

template <scalar T, class Space>
RLHF_NOINLINE bound_policy<T, Space> bind_policy(token_binder<Space>& bind,
                                                 const policy_batch<T, Space>& batch,
                                                 const policy_output<T, Space>& output,
                                                 const policy_config& config,
                                                 const policy_fields& fields) {
  const char* const function = bind.function();
  bound_policy<T, Space> p;
  p.domain = bind.domain();
  if (!fields.from_logits) p.log_prob = bind.token("log_prob", batch.log_prob);
  p.old_log_prob = !batch.old_log_prob && !fields.old
                       ? p.log_prob
                       : bind.token("old_log_prob", batch.old_log_prob);
  if (fields.behaviour)
    p.behaviour = bind.token("behaviour_log_prob", batch.behaviour_log_prob);
  else
    bind.unused("behaviour_log_prob", bool(batch.behaviour_log_prob));
  p.advantage = bind.either("advantage", batch.advantage);
  p.weight = bind.either("coefficient", batch.coefficient, T(1));
  p.with_kl = config.kl.coefficient.given();
  if (p.with_kl)
    p.ref = bind.token("ref_log_prob", batch.ref_log_prob);
  else
    bind.unused("ref_log_prob", bool(batch.ref_log_prob));
  p.entropy = config.entropy.coefficient.given() && !fields.from_logits
                  ? bind.token("entropy", batch.entropy)
                  : bind.token("entropy", batch.entropy, T(0));
  p.above = bind.upstream(output.upstream);
  p.d_log_prob = bind.written("d_log_prob", output.d_log_prob);
  if (!batch.entropy) bind.unused("d_entropy", bool(output.d_entropy));
  p.d_entropy = bind.written("d_entropy", output.d_entropy);
  p.token_loss = bind.written("token_loss", output.token_loss);
  p.ratio = bind.written("ratio", output.ratio);
  if (fields.sequence_level)
    p.sequence_loss = bind.written_per_sequence("sequence_loss", output.sequence_loss);
  else
    bind.unused("sequence_loss", bool(output.sequence_loss));

  // A term that is off has no aggregation of its own.
  p.kl_over = p.with_kl ? config.kl.over.or_else(config.over) : config.over;
  p.entropy_over =
      config.entropy.coefficient.given() ? config.entropy.over.or_else(config.over) : config.over;
  bool grouped = false, turns = false;
  const aggregation* const modes[] = {&config.over, &p.kl_over, &p.entropy_over};
  for (const aggregation* over : modes) {
    check_aggregation(function, *over);
    grouped = grouped || over->mode() == aggregation_mode::group_mean_token_mean;
    turns = turns || over->mode() == aggregation_mode::turn_mean;
  }
  if (grouped)
    bind.row_ids("group_id", batch.group_id);
  else
    bind.unused("group_id", bool(batch.group_id));
  if (turns)
    expects(!p.with_kl && !config.entropy.coefficient.given(), function, "over",
            "an aggregation other than turn_mean beside a KL or entropy term", "turn_mean");
  check_coefficient(function, "kl.coefficient", config.kl.coefficient);
  expects(config.kl.input_clamp >= 0, function, "kl.input_clamp", ">= 0", config.kl.input_clamp);
  expects(config.kl.output_clamp >= 0, function, "kl.output_clamp", ">= 0", config.kl.output_clamp);
  check_address(function, "entropy.coefficient", config.entropy.coefficient.device);
  const double bonus = config.entropy.coefficient.value;
  expects(bonus - bonus == 0, function, "entropy.coefficient", "a finite number", bonus);
  p.full = p.with_kl || batch.entropy || batch.coefficient || output.upstream ||
           output.token_loss || output.ratio || turns ||
           config.nonfinite != nonfinite_policy::propagate ||
           (batch.mask && batch.mask.kind() != mask_kind::flag);
  return p;
}

template <scalar T, class Space>
bound_policy<T, Space> bind_policy(const char* function, const policy_batch<T, Space>& batch,
                                   const policy_output<T, Space>& output,
                                   const policy_config& config, const policy_fields& fields) {
  token_binder<Space> bind(function, "log_prob", batch.log_prob, batch.layout, batch.mask);
  return bind_policy(bind, batch, output, config, fields);
}

/// What a policy call works out before its pass, whatever the kernel: counts, the tokens that are
/// left, and the factors of each term.
template <scalar T, class Space>
struct planned_policy {
  screened_domain<Space> screened;
  loss_scales<T> policy, kl, entropy;
};

template <scalar T, class Run, class Space>
RLHF_NOINLINE planned_policy<T, Space> plan_policy(Run& run, const bound_policy<T, Space>& p,
                                                   const policy_config& config,
                                                   const index_view<Space>& group_id,
                                                   const upstream_scale<T, Space>& upstream,
                                                   double* counts) {
  planned_policy<T, Space> plan;
  double* const row_weight =
      allocate_row_weight(run, p.domain.rows, config.over, p.kl_over, p.entropy_over);
  run.count(p.domain, counts, row_weight);
  check_count(run, config.over, counts);
  if (p.with_kl) check_count(run, p.kl_over, counts);
  if (config.entropy.coefficient.given()) check_count(run, p.entropy_over, counts);
  const token_input<T> observed[] = {p.log_prob, p.old_log_prob, p.behaviour, p.advantage,
                                     p.weight,   p.ref,          p.entropy};
  plan.screened = screen_nonfinite<T>(run, p.domain, observed, config.nonfinite);
  const auto term = [&](const aggregation& over, const coefficient& factor) {
    return plan_loss<T>(run, p.domain, over, counts, row_weight, group_id, upstream, p.weight,
                        factor);
  };
  plan.policy = term(config.over, 1);
  if (!p.full) return plan;
  plan.kl = term(p.kl_over, config.kl.coefficient);
  plan.entropy = term(p.entropy_over, config.entropy.coefficient);
  return plan;
}

/// Inputs, outputs and factors in the order of any policy kernel's enums.
template <scalar T, class Space>
RLHF_NOINLINE void arrange_tokens(const bound_policy<T, Space>& p,
                                  const planned_policy<T, Space>& plan, bool behaviour, bool full,
                                  token_input<T>* in, token_output<T>* out, row_scale* scale) {
  *in++ = p.log_prob;
  *in++ = p.old_log_prob;
  *in++ = p.advantage;
  if (behaviour) *in++ = p.behaviour;
  *out++ = p.d_log_prob;
  *scale++ = plan.policy.value.scale;
  *scale++ = plan.policy.gradient;
  if (!full) return;
  *in++ = plan.policy.value.coefficient;
  *in++ = p.ref;
  *in++ = p.entropy;
  *in++ = p.above;
  *out++ = p.token_loss;
  *out++ = p.ratio;
  *out++ = p.d_entropy;
  *scale++ = plan.kl.value.scale;
  *scale++ = plan.kl.gradient;
  *scale++ = plan.entropy.value.scale;
  *scale++ = plan.entropy.gradient;
}

/// Hands what a call has bound and planned to the kernel.
template <class K, scalar T, class Space>
void arrange_policy(const bound_policy<T, Space>& p, const planned_policy<T, Space>& plan,
                    const policy_config& config, K& kernel, token_arguments<K, Space>& a) {
  a.domain = plan.screened.domain;
  arrange_tokens(p, plan, K::behaviour, K::outputs > 1, a.in, a.out, a.scale);
  kernel.with_kl = p.with_kl;
  kernel.estimator = config.kl.estimator;
  kernel.weighting = config.kl.weighting;
  kernel.input_clamp = static_cast<T>(config.kl.input_clamp);
  kernel.output_clamp = static_cast<T>(config.kl.output_clamp);
}

/// Runs the kernel and completes its figures.
template <class K, class Run, class Space>
void pass_policy(Run& run, const K& kernel, const token_arguments<K, Space>& a,
                 const double* dropped, double* figures) {
  double* const sums = figures + token_counts::size;
  run.map_reduce(kernel, a, sums);
  if (dropped != nullptr) run.for_each(1, add_dropped{dropped, sums + sums_of<K>::nonfinite});
}

}  // namespace detail

/// A policy loss of your own: a formula and this call. The formula is a copyable struct
///
///     struct square_ratio {
///       template <rlhf::lane V>
///       RLHF_HOST_DEVICE V operator()(const rlhf::policy_token<V>& t) const {
///         return -(t.ratio * t.ratio * t.advantage);
///       }
///     };
///
/// (on the host a generic lambda will do). It returns the loss of one token, and dual numbers give
/// its slope; or policy_terms<V>, with the slope written out. A lane may be a pack or a dual number:
/// a number is math::constant<V>(2), a choice math::select(mask, a, b), a function one of rlhf::math.
/// A formula whose loss, slope and counts are 0 where every input is 0, and the ratio 1, may say
/// `static constexpr bool silent = true`, which saves work under a mask of flags.
/// Masks, layouts, aggregation, the KL and entropy terms and the metrics are those of every policy
/// loss. The config is policy_config, or one of your own that has its four members.
///
/// Shapes    log_prob, old_log_prob, ref_log_prob, entropy, mask, d_log_prob, d_entropy,
///           token_loss, ratio: [batch, time], padded or packed; advantage, coefficient, upstream:
///           [batch, time] or [batch]; group_id: [batch]
/// Units     log-probabilities of the sampled tokens, in nats; mask: a flag, or a weight >= 0
/// Requires  one shape; kl.coefficient >= 0 with ref_log_prob given exactly when it is not 0;
///           entropy.coefficient not 0 only with entropy given
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  d_log_prob = w · (coefficient · d formula + beta · d kl) · upstream; d_entropy =
///           −w · entropy coefficient · upstream; all other inputs are constants
/// Edges     masked positions are not read and get gradient +0; an empty mask gives loss 0; a NaN
///           in a counted token reaches the loss, an infinite log-ratio is taken at its bound; both
///           are counted in nonfinite, and .nonfinite may drop them
/// Numerics  log ratio bounded at 80, beyond it value and slope are those at 80, counted in
///           saturated; sums: fixed tree, in double
/// Cost      the mask is read once for the weights, then one pass; host: no allocation with a
///           workspace
/// Source    the composition is ours; see the losses built on it
template <scalar T, class Term, class Config = policy_config, executor Exec = serial>
result_of<Exec, policy_result> policy_loss(
    const Term& term, const policy_batch<T, space_of<Exec>>& batch,
    const policy_output<T, space_of<Exec>>& output,
    const Config& settings = detail::no_config<T, Config>::value, const Exec& exec = {},
    const char* function = "policy_loss") {
  const policy_config config = detail::shared_part(settings);
  using Space = space_of<Exec>;
  const auto p =
      detail::bind_policy(function, batch, output, config, detail::policy_fields::of<Term>());
  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(detail::most_policy_figures);
  const auto plan =
      detail::plan_policy<T>(run, p, config, batch.group_id, output.upstream, figures);
  const auto execute = [&]<bool Full>() -> result_of<Exec, policy_result> {
    using K = detail::policy_kernel<T, Term, Full>;
    K kernel{term};
    token_arguments<K, Space> a;
    detail::arrange_policy(p, plan, config, kernel, a);
    detail::pass_policy(run, kernel, a, plan.screened.dropped, figures);
    return run.template finish<policy_result>(figures, &K::figures::read);
  };
  return p.full ? execute.template operator()<true>() : execute.template operator()<false>();
}

}  // namespace rlhf::inline RLHF_COMPUTE
