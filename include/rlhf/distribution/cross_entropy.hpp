#pragma once

#include "rlhf/distribution/row_binder.hpp"
#include "rlhf/math/single.hpp"
#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"

namespace rlhf::inline v1 {

template <storage L, class Space = host_space>
struct cross_entropy_input {
  named_only use_designators = named_only();
  view<const L, Space> logits = {};  ///< [batch, time, classes] or [tokens, classes]
  index_view<Space> label = {};      ///< the class each row should have
  index_view<Space> group_id = {};   ///< for aggregation::group_mean_token_mean
  mask_view<Space> mask = {};        ///< flags, or one weight per token
  sequence_layout<Space> layout = {};
};

template <storage L, class Space = host_space>
struct cross_entropy_output {
  named_only use_designators = named_only();
  output<L, Space> d_logits = {};  ///< the logits themselves, memory of its own, or add_to(it)
  output<compute_of<L>, Space> token_loss = {};  ///< of each token, unweighted
  upstream_scale<compute_of<L>, Space> upstream = {};
};

struct cross_entropy_config {
  double label_smoothing = 0;  ///< share of the target spread over all classes, in [0, 1]
  double z_loss = 0;           ///< + z_loss · (log sum exp)², >= 0; 1e-4 where it is used
  double temperature = 1;      ///< logits are divided by it, > 0
  index ignore_index = -100;   ///< a token with this label counts as masked
  aggregation over;            ///< no default: the caller says what divides the loss
};

/// Results of micro-batches and ranks add up.
struct cross_entropy_result {
  double loss = 0;       ///< the scalar whose gradient d_logits holds
  metric nll;            ///< −log p of the label, nats per token
  metric entropy;        ///< of the prediction, nats per token
  metric accuracy;       ///< share of tokens whose label has the largest logit, the first of equals
  double tokens = 0;     ///< sum of the mask's weights, ignored labels left out
  double positions = 0;  ///< tokens whose weight is > 0
  double sequences = 0;  ///< sequences with such a token
  double nonfinite = 0;  ///< counted tokens whose loss or entropy is not finite

  /// exp(mean −log p)
  double perplexity() const { return __builtin_exp(nll.mean()); }

  friend cross_entropy_result operator+(const cross_entropy_result& a,
                                        const cross_entropy_result& b) {
    cross_entropy_result r;
    r.loss = a.loss + b.loss;
    r.nll = a.nll + b.nll;
    r.entropy = a.entropy + b.entropy;
    r.accuracy = a.accuracy + b.accuracy;
    r.tokens = a.tokens + b.tokens;
    r.positions = a.positions + b.positions;
    r.sequences = a.sequences + b.sequences;
    r.nonfinite = a.nonfinite + b.nonfinite;
    return r;
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE::formula {

template <lane V>
struct cross_entropy_terms {
  V loss;
  V d_label;  // the gradient of logit v is d_label 1[v = label] + d_p p_v + d_uniform
  V d_p;
  V d_uniform;
};

/// One token: (1 − s)(−log p_label) + s·mean(−log p) + z·lse², s the smoothing. Where s is 0 the
/// mean, and where it is 1 the label, may be anything.
template <lane V>
RLHF_HOST_DEVICE cross_entropy_terms<V> cross_entropy(const V& log_prob, const V& mean_log_prob,
                                                      const V& log_sum_exp, const V& classes,
                                                      const V& smoothing, const V& z) {
  const V zero = math::constant<V>(0);
  const V one = math::constant<V>(1);
  const mask_of<V> smooth = smoothing > zero;
  const V hit = one - smoothing;
  const V direct = math::select(hit > zero, hit * log_prob, zero);
  const V spread = math::select(smooth, smoothing * mean_log_prob, zero);
  const V square = z * log_sum_exp * log_sum_exp;
  return {.loss = square - (direct + spread),
          .d_label = -hit,
          .d_p = one + (z + z) * log_sum_exp,
          .d_uniform = math::select(smooth, -(smoothing / classes), zero)};
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

template <scalar T>
struct cross_entropy_rows {
  enum figure { loss, nll, entropy, correct };
  static constexpr int sums = 4, ranges = 0;

  double smoothing = 0, z_loss = 0;
  row_scale value = {}, gradient = {};
  token_input<T> coefficient = {};  // of aggregations whose weight varies inside a sequence
  token_input<T> upstream = {};
  token_output<T> token_loss = {};

  RLHF_HOST_DEVICE void operator()(row_token<cross_entropy_rows>& t) const {
    const row_statistics& row = t.of;
    const index i = t.place.sequence;
    using V = math::scalar_lane<double>;
    const auto terms = formula::cross_entropy<V>(
        math::constant<V>(row.log_prob), math::constant<V>(row.mean_log_prob),
        math::constant<V>(row.log_sum_exp), math::constant<V>(row.classes),
        math::constant<V>(smoothing), math::constant<V>(z_loss));
    const double token = math::first(terms.loss);
    const double weight = t.weight * static_cast<double>(read_token(coefficient, t.place));
    t.sum[loss] = token * weight * value.at(i);
    t.sum[nll] = -row.log_prob * t.weight;
    t.sum[entropy] = row.entropy * t.weight;
    t.sum[correct] = row.label_is_largest ? t.weight : 0;
    t.nonfinite = row.finite && math::is_finite(token) ? 0 : 1;
    write_token(token_loss, t.place, token);
    const double scale =
        weight * gradient.at(i) * static_cast<double>(read_token(upstream, t.place));
    t.slope = {.label = math::detail::rounded_product(math::first(terms.d_label), scale),
               .p = math::detail::rounded_product(math::first(terms.d_p), scale),
               .uniform = math::detail::rounded_product(math::first(terms.d_uniform), scale)};
  }
  RLHF_HOST_DEVICE void masked(const row_place& at) const { clear_token(token_loss, at); }

  static cross_entropy_result read(const double* figures) {
    const double* const sum = figures + token_counts::size;
    cross_entropy_result r;
    r.tokens = figures[0];
    r.positions = figures[1];
    r.sequences = figures[2];
    r.loss = sum[loss];
    r.nll = {sum[nll], r.tokens};
    r.entropy = {sum[entropy], r.tokens};
    r.accuracy = {sum[correct], r.tokens};
    r.nonfinite = sum[sums_of<cross_entropy_rows>::nonfinite];
    return r;
  }
};

/// Tokens without sequences know only sums over tokens.
inline void check_loose(const char* function, const aggregation& over, bool loose) {
  const aggregation_mode mode = over.mode();
  if (loose && mode != aggregation_mode::token_mean && mode != aggregation_mode::token_sum &&
      mode != aggregation_mode::none) [[unlikely]]
    fail(function, "over",
         "token_mean, token_sum or none, because logits [tokens, classes] have no sequences "
         "without .layout = packed(offsets)",
         name_of(mode));
}

}  // namespace detail

/// Cross-entropy of logits and labels, its gradient, and the metrics of supervised training, in one
/// read of the logits.
///
///     y    = logits / temperature, s = label_smoothing
///     loss = aggregate((1 − s)(−log p_label) + s·mean over classes(−log p)
///                      + z_loss·(log sum exp y)²)
///
/// Shapes    logits, d_logits: [batch, time, classes], or [tokens, classes], packed or alone;
///           label, mask, token_loss: the same without classes; upstream: those or [batch]
/// Units     nats; label: int32 or int64; mask: a flag, or a weight >= 0; 0 = ignored
/// Requires  at least one class; 0 <= label < classes or label == ignore_index in every counted
///           token; label_smoothing in [0, 1]; z_loss >= 0; temperature > 0; d_logits: exactly the
///           logits' memory, or memory of its own; tokens without sequences: over tokens only
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  w / temperature · (p_v (1 + 2 z lse) − (1 − s) 1[v = label] − s / classes), w: the
///           weight the aggregation gives the token; in place it overwrites the logits; add_to adds
/// Edges     masked and ignored tokens: not counted, their logits not read, gradient row +0, in
///           place too; nothing counted: loss 0; a logit of -inf: p = 0, gradient 0, and it is no
///           class that smoothing spreads over; a label with such a logit: loss +inf; a row that
///           holds NaN or +inf, or only -inf: NaN; both are counted in nonfinite
/// Numerics  as token_log_prob; 16-bit gradients are the float ones, rounded; sums: fixed order, in
///           double
/// Cost      labels and mask read once for the weights; one read and one write of the logits, one
///           exponential per logit; host: no allocation with a workspace
/// Source    definition; label smoothing: Szegedy et al. 2016, arXiv:1512.00567; z-loss: Chowdhery
///           et al. 2022, arXiv:2204.02311
/// Elsewhere torch cross_entropy, Liger cross_entropy, TRL chunked_nll, OpenRLHF GPTLMLoss
/// Example   examples/rlhf_pipeline.cpp
template <storage L, executor Exec = serial>
result_of<Exec, cross_entropy_result> cross_entropy_loss(
    const cross_entropy_input<L, space_of<Exec>>& input,
    const cross_entropy_output<L, space_of<Exec>>& output,
    const cross_entropy_config& config = detail::no_config<L, cross_entropy_config>::value,
    const Exec& exec = {}) {
  using T = compute_of<L>;
  using K = detail::cross_entropy_rows<T>;
  const char* const function = "cross_entropy_loss";
  detail::row_binder<L, space_of<Exec>> bind(function, input.logits, input.layout, input.mask);
  bind.temperature(config.temperature);
  expects(config.label_smoothing >= 0 && config.label_smoothing <= 1, function, "label_smoothing",
          "in [0, 1]", config.label_smoothing);
  expects(config.z_loss >= 0 && config.z_loss <= 1.7976931348623157e308, function, "z_loss",
          "a number that is finite and >= 0", config.z_loss);
  bind.labels(input.label, config.ignore_index);
  row_arguments<L, space_of<Exec>> a = bind.arguments(config.temperature);
  bind.gradient(output.d_logits, a);
  detail::check_loose(function, config.over, bind.loose());
  check_over(bind.tokens(), config.over, input.group_id);
  K kernel;
  kernel.smoothing = config.label_smoothing;
  kernel.z_loss = config.z_loss;
  kernel.upstream = bind.tokens().upstream(output.upstream);
  kernel.token_loss = bind.tokens().written("token_loss", output.token_loss);
  a.mean_wanted = config.label_smoothing > 0;
  a.plain_slopes = !a.mean_wanted;

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + sums_of<K>::size);
  a.domain = bind.counted(run);
  double* const row_weight = run.template allocate<double>(a.domain.rows);
  run.count(a.domain, figures, row_weight);
  detail::check_count(run, config.over, figures);
  const auto scales = plan_loss<T>(run, a.domain, config.over, figures, row_weight, input.group_id,
                                   output.upstream);
  kernel.value = scales.value.scale;
  kernel.gradient = scales.gradient;
  kernel.coefficient = scales.value.coefficient;
  run.row_reduce(kernel, a, figures + token_counts::size);
  return run.template finish<cross_entropy_result>(figures, &K::read);
}

}  // namespace rlhf::inline RLHF_COMPUTE
