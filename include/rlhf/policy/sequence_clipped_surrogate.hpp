#pragma once

#include "rlhf/policy/clipped_surrogate.hpp"

namespace rlhf::inline v1 {

/// The log-ratio u of a sequence: the mean of its tokens' log-ratios (GSPO), or their sum, which is
/// the log-ratio of the whole answer (RLOO).
enum class sequence_ratio : unsigned char { mean, sum };

/// Where the slope of the sequence's ratio goes: through u to every token of the sequence, or to
/// the token whose loss it is (GSPO-token: the ratio's value is the sequence's, its slope the
/// token's own). Both are the same for one advantage per sequence and
/// aggregation::sequence_mean_token_mean with sequence_ratio::mean.
enum class sequence_form : unsigned char { sequence, token };

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

struct sequence_clipped_surrogate_config {
  double clip_low = 3e-4;   ///< ratio floor is 1 − clip_low; >= 1 means no floor
  double clip_high = 4e-4;  ///< ratio ceiling is 1 + clip_high, clip_high >= 0
  double dual_clip = 0;     ///< 0: none; > 1: the loss of A < 0 is at most −dual_clip·A
  sequence_ratio ratio = sequence_ratio::mean;
  sequence_form form = sequence_form::sequence;
  aggregation over;           ///< no default; GSPO: sequence_mean_token_mean(sequences)
  kl_term kl = {};            ///< + coefficient · aggregate(KL estimate against ref_log_prob)
  entropy_term entropy = {};  ///< − coefficient · aggregate(entropy)
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

using sequence_clipped_surrogate_result = policy_result;

namespace detail {

/// Sums log_prob − old_log_prob over a row.
template <scalar T>
struct log_ratio_sum {
  using scalar_type = T;
  static constexpr int inputs = 2, outputs = 0, sums = 1, ranges = 0, scales = 0;
  static constexpr int observed = 0, scaled_sums = 0;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    t.sum[0] = t.in[0] - t.in[1];
  }
};

/// The mean or the sum of a row, and its exponential.
template <scalar T>
struct row_ratio_of {
  using V = math::scalar_lane<T>;
  const double* sum;
  const double* weight;  // null: the sum
  T* log_ratio;
  T* ratio;
  RLHF_HOST_DEVICE void operator()(index i) const {
    const double n = weight == nullptr ? 1 : weight[i];
    log_ratio[i] = n > 0 ? static_cast<T>(sum[i] / n) : T(0);
    ratio[i] = math::first(math::exp(math::bounded(math::constant<V>(log_ratio[i]))));
  }
};

/// The terms of a token that has the ratio of its sequence.
template <class V, class Term>
RLHF_HOST_DEVICE RLHF_INLINE policy_terms<V> sequence_terms(const Term& term, const V& log_ratio,
                                                            const V& ratio, const V& advantage) {
  const V zero = math::constant<V>(0);
  return evaluate(term,
                  policy_token<V>{zero, zero, zero, advantage, math::bounded(log_ratio), ratio});
}

/// Sums the slopes of a row's losses in u, and the losses themselves.
template <scalar T, class Term>
struct row_slope_sum {
  using scalar_type = T;
  enum input { log_ratio, ratio, advantage, coefficient_in, upstream };
  static constexpr int inputs = 5, outputs = 0, sums = 2, ranges = 0, scales = 1;
  static constexpr int observed = 0, scaled_sums = 1;
  Term term;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    const auto terms = sequence_terms(term, t.in[log_ratio], t.in[ratio], t.in[advantage]);
    t.sum[0] = terms.d_log_prob * t.in[coefficient_in] * t.in[upstream] * t.scale[0];
    t.sum[1] = terms.loss;
  }
};

/// What the tokens of a row share: the slope of their losses in u, times ∂u/∂log_prob, and the mean
/// loss.
template <scalar T>
struct row_gradient {
  T* slope;
  T* loss;
  bool mean;  // of the log-ratios; else u is their sum

  RLHF_HOST_DEVICE void put(index i, double slopes, double losses, double weight) const {
    const bool counts = weight > 0;
    slope[i] = counts ? static_cast<T>(mean ? slopes / weight : slopes) : T(0);
    loss[i] = counts ? static_cast<T>(losses / weight) : T(0);
  }
};

/// From the sums of row_slope_sum.
template <scalar T>
struct gather_row_gradient {
  const double* sum;
  const double* weight;
  row_gradient<T> to;
  RLHF_HOST_DEVICE void operator()(index i) const {
    to.put(i, sum[2 * i], sum[2 * i + 1], weight[i]);
  }
};

/// Without a pass, where all tokens of a row have one advantage, coefficient and upstream.
template <scalar T, class Term>
struct uniform_row_gradient {
  using V = math::scalar_lane<T>;
  Term term;
  const T* log_ratio;
  const T* ratio;
  const double* weight;
  token_input<T> advantage, coefficient, upstream;
  row_scale scale;
  row_gradient<T> to;

  RLHF_HOST_DEVICE static bool serves(const token_input<T>& x) {
    return x.data == nullptr || x.stride == 0;
  }
  RLHF_HOST_DEVICE static T at(const token_input<T>& x, index i) {
    return x.data == nullptr ? x.absent : x.data[i * x.per_row];
  }
  RLHF_HOST_DEVICE void operator()(index i) const {
    const double n = weight[i];
    if (!(n > 0)) return to.put(i, 0, 0, 0);
    const auto terms =
        sequence_terms(term, math::constant<V>(log_ratio[i]), math::constant<V>(ratio[i]),
                       math::constant<V>(at(advantage, i)));
    const double slope = static_cast<double>(math::first(terms.d_log_prob)) *
                         static_cast<double>(at(coefficient, i)) *
                         static_cast<double>(at(upstream, i)) * scale.at(i);
    to.slope[i] = static_cast<T>(to.mean ? slope : slope * n);
    to.loss[i] = math::first(terms.loss);
  }
};

/// The mean loss of a row, to the caller's tensor.
template <scalar T>
struct write_row_loss {
  const T* mean;
  const double* weight;
  token_output<T> loss;
  RLHF_HOST_DEVICE void operator()(index i) const {
    T& to = loss.data[i * loss.per_row];
    if (!loss.accumulate)
      to = mean[i];
    else if (weight[i] > 0)
      to += mean[i];
  }
};

}  // namespace detail

/// Clipped surrogate on the ratio of whole sequences: GSPO, and RLOO's clipped form.
///
///     u_i  = mean (or sum) over counted tokens of log_prob − old_log_prob;  s_i = exp(u_i)
///     loss = aggregate(−min(s_i·A, clip(s_i, 1 − clip_low, 1 + clip_high)·A))
///            + kl.coefficient · aggregate(kl) − entropy.coefficient · aggregate(entropy)
///
/// The aggregation weighs the tokens of a sequence as in every policy loss, so
/// sequence_mean_token_mean(S) is GSPO's mean over sequences and sequence_mean_token_sum(S) weighs
/// a sequence by its length.
///
/// Shapes    log_prob, old_log_prob, ref_log_prob, entropy, mask and every output: [batch, time],
///           padded or packed; advantage, coefficient, upstream: [batch, time] or [batch];
///           sequence_loss: [batch]
/// Units     log-probabilities of the sampled tokens, in nats; mask: a flag, or a weight >= 0
/// Requires  one shape; clip_low >= 0; clip_high >= 0; dual_clip 0 or > 1; ref_log_prob exactly
///           when kl.coefficient is not 0; an aggregation other than turn_mean
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  form sequence: ∂loss/∂log_prob_t = (∂u/∂log_prob_t) · Σ_t' −w_t'·s·A_t', the clipped
///           ones left out; form token: −w_t·s·A_t, 0 where the clip decides; the KL term's ratio
///           is the token's; old_log_prob, ref_log_prob, advantage and coefficient are constants
/// Edges     masked positions are not read and get gradient 0; an empty sequence has s = 1, loss 0;
///           NaN in a counted token reaches the loss, an infinite log-ratio is taken at its
///           bound; both are counted, and .nonfinite may drop them
/// Numerics  u in double from float lanes; u and the tokens' log-ratios are bounded at 80, counted
///           in saturated; metrics weigh tokens: ratio is s, approx_kl_* are the tokens' own
///           An advantage, coefficient or upstream of [batch] agrees with the same number for each
///           token to rounding, not bit by bit
/// Cost      two passes over the tokens; form sequence takes a third where advantage, coefficient
///           or upstream is a number per token
/// Source    Zheng et al. 2025, arXiv:2507.18071 (GSPO, GSPO-token); Ahmadian et al. 2024,
///           arXiv:2402.14740 (RLOO, sum)
/// Elsewhere TRL importance_sampling_level="sequence", slime gspo, OpenRLHF policy_loss_type gspo;
///           verl gspo is form token
template <scalar T, executor Exec = serial>
result_of<Exec, sequence_clipped_surrogate_result> sequence_clipped_surrogate_loss(
    const policy_batch<T, space_of<Exec>>& batch, const policy_output<T, space_of<Exec>>& output,
    const sequence_clipped_surrogate_config& config =
        detail::no_config<T, sequence_clipped_surrogate_config>::value,
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using Term = clipped_surrogate_term<T>;
  const char* const function = "sequence_clipped_surrogate_loss";
  const Term term(function, config.clip_low, config.clip_high, config.dual_clip);
  expects(config.over.mode() != aggregation_mode::turn_mean, function, "over",
          "an aggregation other than turn_mean", "turn_mean");
  const policy_config shared = detail::shared_part(config);
  detail::policy_fields fields = detail::policy_fields::of<Term>();
  fields.sequence_level = true;
  const auto p = detail::bind_policy(function, batch, output, shared, fields);
  const bool whole = config.form == sequence_form::sequence;
  const bool mean = config.ratio == sequence_ratio::mean;
  const index rows = p.domain.rows;
  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(detail::most_policy_figures);
  double* const kept_weight = run.template allocate<double>(rows);
  double* const kept_counts = run.template allocate<double>(token_counts::size);
  double* const row_sum = run.template allocate<double>(2 * rows);
  T* const log_ratio = run.template allocate<T>(rows);
  T* const ratio = run.template allocate<T>(rows);
  T* const slope = run.template allocate<T>(rows);
  T* const loss = run.template allocate<T>(rows);
  const auto plan =
      detail::plan_policy<T>(run, p, shared, batch.group_id, output.upstream, figures);
  const auto& screened = plan.screened;
  run.count(screened.domain, kept_counts, kept_weight);

  token_arguments<detail::log_ratio_sum<T>, Space> ratios;
  ratios.domain = screened.domain;
  ratios.in[0] = p.log_prob;
  ratios.in[1] = p.old_log_prob;
  run.map_reduce_rows(detail::log_ratio_sum<T>{}, ratios, row_sum);
  run.for_each(rows,
               detail::row_ratio_of<T>{row_sum, mean ? kept_weight : nullptr, log_ratio, ratio});

  const token_input<T> row_log_ratio{log_ratio, 1, 0, 0, T(0)};
  const token_input<T> row_ratio{ratio, 1, 0, 0, T(0)};
  if (whole || p.sequence_loss.data != nullptr) {
    using slopes = detail::row_slope_sum<T, Term>;
    using uniform = detail::uniform_row_gradient<T, Term>;
    const detail::row_gradient<T> to{slope, loss, mean};
    const row_scale& scale = plan.policy.gradient;
    if (uniform::serves(p.advantage) && uniform::serves(p.weight) && uniform::serves(p.above)) {
      run.for_each(rows, uniform{term, log_ratio, ratio, kept_weight, p.advantage, p.weight,
                                 p.above, scale, to});
    } else {
      token_arguments<slopes, Space> s;
      s.domain = screened.domain;
      s.in[slopes::log_ratio] = row_log_ratio;
      s.in[slopes::ratio] = row_ratio;
      s.in[slopes::advantage] = p.advantage;
      s.in[slopes::coefficient_in] = p.weight;
      s.in[slopes::upstream] = p.above;
      s.scale[0] = scale;
      run.map_reduce_rows(slopes{term}, s, row_sum);
      run.for_each(rows, detail::gather_row_gradient<T>{row_sum, kept_weight, to});
    }
  }

  const auto execute =
      [&]<bool Full, detail::ratio_level Level>() -> result_of<Exec, policy_result> {
    using K = detail::policy_kernel<T, Term, Full, Level>;
    K kernel{term};
    token_arguments<K, Space> a;
    detail::arrange_policy(p, plan, shared, kernel, a);
    a.in[K::row_log_ratio_in] = row_log_ratio;
    a.in[K::row_ratio_in] = row_ratio;
    if constexpr (Level == detail::ratio_level::sequence) {
      a.in[K::row_slope_in] = {slope, 1, 0, 0, T(0)};
      a.scale[K::policy_gradient] = run.scale({});  // the slope holds all factors
    }
    detail::pass_policy(run, kernel, a, screened.dropped, figures);
    if (p.sequence_loss.data != nullptr)
      run.for_each(rows, detail::write_row_loss<T>{loss, kept_weight, p.sequence_loss});
    return run.template finish<policy_result>(figures, &K::figures::read);
  };
  using enum detail::ratio_level;
  if (p.full)
    return whole ? execute.template operator()<true, sequence>()
                 : execute.template operator()<true, sequence_value>();
  return whole ? execute.template operator()<false, sequence>()
               : execute.template operator()<false, sequence_value>();
}

}  // namespace rlhf::inline RLHF_COMPUTE
