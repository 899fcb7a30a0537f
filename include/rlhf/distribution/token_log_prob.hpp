#pragma once

#include "rlhf/distribution/row_binder.hpp"
#include "rlhf/statistics/metric.hpp"

namespace rlhf::inline v1 {

template <storage L, class Space = host_space>
struct token_log_prob_input {
  named_only use_designators = named_only();
  view<const L, Space> logits = {};  ///< [batch, time, classes] or [tokens, classes]
  index_view<Space> label = {};      ///< the sampled tokens; left out: no log_prob is written
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <storage L, class Space = host_space>
struct token_log_prob_output {
  named_only use_designators = named_only();
  output<compute_of<L>, Space> log_prob = {};       ///< of the label, nats
  output<compute_of<L>, Space> entropy = {};        ///< of the whole distribution, nats
  output<compute_of<L>, Space> log_sum_exp = {};    ///< of logits / temperature
  output<compute_of<L>, Space> sum_p_squared = {};  ///< sum over classes of p²
};

template <storage L, class Space = host_space>
struct token_log_prob_backward_input {
  named_only use_designators = named_only();
  view<const L, Space> logits = {};
  index_view<Space> label = {};                        ///< left out where d_log_prob is
  signal<const compute_of<L>, Space> d_log_prob = {};  ///< d loss / d log_prob
  signal<const compute_of<L>, Space> d_entropy = {};   ///< d loss / d entropy
  signal<const compute_of<L>, Space> d_log_sum_exp = {};
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <storage L, class Space = host_space>
struct token_log_prob_backward_output {
  named_only use_designators = named_only();
  output<L, Space> d_logits = {};  ///< the logits themselves, memory of its own, or add_to(it)
};

struct token_log_prob_config {
  double temperature = 1;     ///< logits are divided by it, > 0
  index ignore_index = -100;  ///< a token with this label counts as masked
};

/// What one read of the logits says. Results of micro-batches and ranks add up.
struct token_log_prob_result {
  metric log_prob;       ///< nats per token
  metric entropy;        ///< nats per token
  metric accuracy;       ///< share of tokens whose label has the largest logit, the first of equals
  double tokens = 0;     ///< sum of the mask's weights, ignored labels left out
  double positions = 0;  ///< tokens whose weight is > 0
  double nonfinite = 0;  ///< counted tokens whose log_prob or entropy is not finite

  /// exp(−mean log_prob)
  double perplexity() const { return __builtin_exp(-log_prob.mean()); }

  friend token_log_prob_result operator+(const token_log_prob_result& a,
                                         const token_log_prob_result& b) {
    token_log_prob_result r;
    r.log_prob = a.log_prob + b.log_prob;
    r.entropy = a.entropy + b.entropy;
    r.accuracy = a.accuracy + b.accuracy;
    r.tokens = a.tokens + b.tokens;
    r.positions = a.positions + b.positions;
    r.nonfinite = a.nonfinite + b.nonfinite;
    return r;
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// Statistics and slopes of the rows of token_log_prob and its backward.
template <scalar T>
struct log_prob_rows {
  enum figure { log_prob, entropy, correct, tokens, positions };
  static constexpr int sums = 5, ranges = 0;

  token_output<T> to_log_prob = {}, to_entropy = {}, to_log_sum_exp = {}, to_sum_p_squared = {};
  token_input<T> d_log_prob = {}, d_entropy = {}, d_log_sum_exp = {};

  RLHF_HOST_DEVICE void operator()(row_token<log_prob_rows>& t) const {
    const row_statistics& row = t.of;
    t.sum[log_prob] = t.weight * row.log_prob;
    t.sum[entropy] = t.weight * row.entropy;
    t.sum[correct] = row.label_is_largest ? t.weight : 0;
    t.sum[tokens] = t.weight;
    t.sum[positions] = 1;
    t.nonfinite = row.finite && math::is_finite(row.log_prob) ? 0 : 1;
    write_token(to_log_prob, t.place, row.log_prob);
    write_token(to_entropy, t.place, row.entropy);
    write_token(to_log_sum_exp, t.place, row.log_sum_exp);
    write_token(to_sum_p_squared, t.place, row.sum_p_squared);
    const auto label = static_cast<double>(read_token(d_log_prob, t.place));
    const auto spread = static_cast<double>(read_token(d_entropy, t.place));
    const auto total = static_cast<double>(read_token(d_log_sum_exp, t.place));
    t.slope = {.label = label, .p = total - label, .p_log_p = -spread};
  }
  RLHF_HOST_DEVICE void masked(const row_place& at) const {
    clear_token(to_log_prob, at);
    clear_token(to_entropy, at);
    clear_token(to_log_sum_exp, at);
    clear_token(to_sum_p_squared, at);
  }

  static token_log_prob_result read(const double* figures) {
    token_log_prob_result r;
    r.tokens = figures[tokens];
    r.positions = figures[positions];
    r.log_prob = {figures[log_prob], r.tokens};
    r.entropy = {figures[entropy], r.tokens};
    r.accuracy = {figures[correct], r.tokens};
    r.nonfinite = figures[sums_of<log_prob_rows>::nonfinite];
    return r;
  }
};

}  // namespace detail

/// Log-probability of each label, entropy and log-sum-exp of each row, in one read of the logits.
///
///     y = logits / temperature
///     log_prob = (y_label − max y) − log sum exp(y − max y)
///     entropy  = log sum exp(y − max y) − sum p (y − max y)
///
/// Labels stand beside the logits that predict them: the causal shift is the caller's.
///
/// Shapes    logits: [batch, time, classes], or [tokens, classes], packed or alone; label, mask and
///           every output: the same without classes
/// Units     nats; label: int32 or int64; mask: a flag, or a weight >= 0; 0 = ignored
/// Requires  at least one class; 0 <= label < classes or label == ignore_index in every counted
///           token; temperature > 0; label given where log_prob is; outputs of their own memory
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  token_log_prob_backward
/// Edges     masked and ignored tokens: the logits are not read, the outputs become 0; a logit of
///           -inf has p = 0 and adds 0 to the entropy; a label with such a logit gives log_prob
///           -inf; a row that holds NaN or +inf, or only -inf, gives NaN; both are counted in
///           nonfinite
/// Numerics  logits of 16 bits are computed with in float; the maximum is subtracted first and sums
///           merge in double, so a common offset costs nothing; of float logits, log_prob within 4
///           and entropy within 8 ULP of the exact values down to 0.1; where they are smaller,
///           within half an ULP of max y − y of the classes that make them; p below e^-87 of a
///           tile's largest (double: e^-708) counts as 0; same bits for any thread count, alone or
///           in a batch
/// Cost      one read, one exponential per logit; host: no allocation with a workspace
/// Source    definition; online log-sum-exp: Milakov, Gimelshein 2018, arXiv:1805.02867
/// Elsewhere TRL selective_log_softmax, entropy_from_logits; verl logprobs_from_logits; OpenRLHF
///           log_probs_from_logits, compute_entropy; slime calculate_log_probs_and_entropy
template <storage L, executor Exec = serial>
result_of<Exec, token_log_prob_result> token_log_prob(
    const token_log_prob_input<L, space_of<Exec>>& input,
    const token_log_prob_output<L, space_of<Exec>>& output,
    const token_log_prob_config& config = {}, const Exec& exec = {}) {
  using K = detail::log_prob_rows<compute_of<L>>;
  const char* const function = "token_log_prob";
  detail::row_binder<L, space_of<Exec>> bind(function, input.logits, input.layout, input.mask);
  bind.temperature(config.temperature);
  if (input.label || output.log_prob) bind.labels(input.label, config.ignore_index);
  row_arguments<L, space_of<Exec>> a = bind.arguments(config.temperature);
  bind.gradient({}, a);
  K kernel;
  kernel.to_log_prob = bind.tokens().written("log_prob", output.log_prob);
  kernel.to_entropy = bind.tokens().written("entropy", output.entropy);
  kernel.to_log_sum_exp = bind.tokens().written("log_sum_exp", output.log_sum_exp);
  kernel.to_sum_p_squared = bind.tokens().written("sum_p_squared", output.sum_p_squared);
  a.squares_wanted = bool(output.sum_p_squared);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(sums_of<K>::size);
  a.domain = bind.counted(run);
  run.row_reduce(kernel, a, figures);
  return run.template finish<token_log_prob_result>(figures, &K::read);
}

/// Carries d loss / d log_prob and d loss / d entropy down to the logits. The statistics are read
/// again, so nothing is kept from the forward call, and its figures are returned once more.
///
///     d_logits_v = (d_log_prob (1[v = label] − p_v) − d_entropy p_v (log p_v + entropy)
///                   + d_log_sum_exp p_v) / temperature
///
/// Shapes    as token_log_prob; d_log_prob, d_entropy, d_log_sum_exp: [batch, time] or [batch]
/// Units     as token_log_prob
/// Requires  as token_log_prob; d_logits: exactly the logits' memory, or memory of its own; label
///           given where d_log_prob is
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  d_logits as above; in place it overwrites the logits; add_to(d_logits) adds
/// Edges     masked and ignored tokens: the row becomes +0, in place too, or keeps its bits under
///           add_to; a logit of -inf has gradient 0, the label's as well; a row that is NaN by
///           token_log_prob has gradient NaN
/// Numerics  1 − p of the label from log_prob, so nothing cancels; 16-bit gradients are the float
///           ones, rounded; in place and out of place give the same bits
/// Cost      one read and one write of the logits, one exponential per logit; scratch: a row of
///           floats per thread, but for float and double logits without d_entropy and add_to whose
///           classes lie side by side
/// Source    definition
/// Elsewhere autograd; Liger fused_linear_scaled_cross_entropy
template <storage L, executor Exec = serial>
result_of<Exec, token_log_prob_result> token_log_prob_backward(
    const token_log_prob_backward_input<L, space_of<Exec>>& input,
    const token_log_prob_backward_output<L, space_of<Exec>>& output,
    const token_log_prob_config& config = {}, const Exec& exec = {}) {
  using T = compute_of<L>;
  using K = detail::log_prob_rows<T>;
  const char* const function = "token_log_prob_backward";
  detail::row_binder<L, space_of<Exec>> bind(function, input.logits, input.layout, input.mask);
  bind.temperature(config.temperature);
  expects(bool(output.d_logits), function, "d_logits", "a tensor: this output is required", "none");
  if (input.label || input.d_log_prob) bind.labels(input.label, config.ignore_index);
  row_arguments<L, space_of<Exec>> a = bind.arguments(config.temperature);
  bind.gradient(output.d_logits, a);
  K kernel;
  kernel.d_log_prob = bind.tokens().either("d_log_prob", input.d_log_prob, T(0));
  kernel.d_entropy = bind.tokens().either("d_entropy", input.d_entropy, T(0));
  kernel.d_log_sum_exp = bind.tokens().either("d_log_sum_exp", input.d_log_sum_exp, T(0));
  a.plain_slopes = !input.d_entropy;

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(sums_of<K>::size);
  a.domain = bind.counted(run);
  run.row_reduce(kernel, a, figures);
  return run.template finish<token_log_prob_result>(figures, &K::read);
}

}  // namespace rlhf::inline RLHF_COMPUTE
