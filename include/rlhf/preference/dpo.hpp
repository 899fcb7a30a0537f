#pragma once

#include "rlhf/math/sigmoid.hpp"
#include "rlhf/statistics/pair_loss.hpp"

namespace rlhf::inline v1 {

/// What is known of the labels. With e the share that is wrong:
///
///     sigmoid       the paper's loss; label_smoothing must be 0
///     conservative  the labels are soft, 1 − e: a minimum at a finite margin
///     robust        unbiased under flips at rate e; slope always negative, so unbounded below
enum class dpo_variant : unsigned char { sigmoid, conservative, robust };

/// Pairs of answers. Rank 1, [pairs]: log-probabilities of whole answers. Rank 2, [pairs, time], or
/// packed: log-probabilities of tokens, summed by the loss; the two answers may differ in width,
/// mask and layout.
template <scalar T, class Space = host_space>
struct dpo_batch {
  named_only use_designators = named_only();
  view<const T, Space> chosen_log_prob = {};      ///< current policy, differentiable
  view<const T, Space> rejected_log_prob = {};    ///< current policy, differentiable
  view<const T, Space> ref_chosen_log_prob = {};  ///< left out exactly when reference_free
  view<const T, Space> ref_rejected_log_prob = {};
  view<const T, Space> margin = {};   ///< [pairs]; subtracted from z; left out: 0
  mask_view<Space> weight = {};       ///< [pairs]; a flag, or a weight >= 0
  mask_view<Space> chosen_mask = {};  ///< of tokens
  mask_view<Space> rejected_mask = {};
  sequence_layout<Space> chosen_layout = {};
  sequence_layout<Space> rejected_layout = {};
};

template <scalar T, class Space = host_space>
struct dpo_output {
  named_only use_designators = named_only();
  output<T, Space> d_chosen_log_prob = {};  ///< of the shape of its input: per answer or per token
  output<T, Space> d_rejected_log_prob = {};
  output<T, Space> pair_loss = {};         ///< [pairs], unweighted
  upstream_scale<T, Space> upstream = {};  ///< a number, a device_scalar, or one number per pair
};

struct dpo_config {
  double beta = 0.1;  ///< > 0: the KL coefficient of the reward that the loss implies
  dpo_variant variant = dpo_variant::sigmoid;
  double label_smoothing = 0;      ///< e, in [0, 0.5]; robust: < 0.5
  bool reference_free = false;     ///< no reference: its log-probabilities are taken as 0
  bool length_normalised = false;  ///< mean instead of sum over an answer's tokens; per-token only
  reduction over;                  ///< no default: the caller says what divides the loss
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

/// chosen_reward = beta·(log_prob − ref_log_prob) of the answer, chosen_score its log-probability.
using dpo_result = pair_result;

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE::formula {

template <lane V>
struct dpo_terms {
  V loss;
  V d_margin;  ///< ∂loss/∂z
};

/// win·softplus(−z) + lose·softplus(z): every variant is one choice of the two weights.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE dpo_terms<V> dpo(const V& z, const V& win, const V& lose) {
  const auto of = math::logistic(z);
  const V loss = win * of.softplus_of_minus + lose * of.softplus;
  const V slope = lose * of.sigmoid - win * of.sigmoid_of_minus;
  return {.loss = loss, .d_margin = slope};
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula

namespace rlhf::inline RLHF_COMPUTE {

/// The formula with its constants: what pair_loss runs.
template <scalar T>
struct dpo_term {
  static constexpr bool uses_reference = true;
  static constexpr bool uses_target = false;
  T beta, win, lose;

  dpo_term(const char* function, double beta_of_config, dpo_variant variant, double smoothing) {
    expects(beta_of_config > 0 && beta_of_config <= 1.7976931348623157e308, function, "beta",
            "a number that is finite and > 0", beta_of_config);
    if (variant == dpo_variant::sigmoid)
      expects(smoothing == 0, function, "label_smoothing",
              "0: variant sigmoid has none, choose conservative or robust", smoothing);
    expects(smoothing >= 0 && smoothing <= 0.5, function, "label_smoothing", "in [0, 0.5]",
            smoothing);
    if (variant == dpo_variant::robust)
      expects(smoothing < 0.5, function, "label_smoothing", "< 0.5 for variant robust", smoothing);
    const double scale = variant == dpo_variant::robust ? 1 / (1 - 2 * smoothing) : 1;
    const double sign = variant == dpo_variant::robust ? -1 : 1;
    beta = static_cast<T>(beta_of_config);
    win = static_cast<T>((1 - smoothing) * scale);
    lose = static_cast<T>(sign * smoothing * scale);
  }

  template <lane V>
  RLHF_HOST_DEVICE RLHF_INLINE pair_terms<V> operator()(const scored_pair<V>& p) const {
    const V b = math::constant<V>(beta);
    const V chosen = p.chosen - p.ref_chosen;
    const V rejected = p.rejected - p.ref_rejected;
    const V z = b * (chosen - rejected) - p.margin;
    const auto terms = formula::dpo(z, math::constant<V>(win), math::constant<V>(lose));
    const V slope = b * terms.d_margin;
    return {terms.loss, slope, -slope, b * chosen, b * rejected};
  }
};

namespace detail {

/// Sums the tokens of an answer, and their log-ratios to the reference: a sum of differences keeps
/// digits that a difference of sums has lost.
template <scalar T>
struct answer_sum {
  using scalar_type = T;
  static constexpr int inputs = 2, outputs = 0, sums = 2, ranges = 0, scales = 0;
  static constexpr int observed = 0, scaled_sums = 0;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    t.sum[0] = t.in[0];
    t.sum[1] = t.in[0] - t.in[1];
  }
};

/// {log_prob, log-ratio} of an answer to {log_prob, ref_log_prob}, over its length where that is
/// asked for.
struct normalise_answer {
  const double* weight;
  bool by_length;
  double* sum;    // two per answer
  double* share;  // ∂(sum)/∂(token), to be weighed by the mask
  RLHF_HOST_DEVICE void operator()(index i) const {
    share[i] = by_length ? (weight[i] > 0 ? 1 / weight[i] : 0) : 1;
    sum[2 * i] = math::detail::rounded_product(sum[2 * i], share[i]);
    sum[2 * i + 1] = sum[2 * i] - math::detail::rounded_product(sum[2 * i + 1], share[i]);
  }
};

/// One number per pair, as double, from the caller's tensor.
template <scalar T>
struct widen_pairs {
  token_input<T> from;
  double* to;
  RLHF_HOST_DEVICE void operator()(index i) const {
    to[i] = static_cast<double>(from.data == nullptr ? from.absent : from.data[i * from.stride]);
  }
};

/// One number per pair, from double, to the caller's tensor; ignored pairs keep what add_to has.
template <scalar T, class Space>
struct narrow_pairs {
  const double* from;
  token_output<T> to;
  mask_view<Space> weight;  // [1, pairs]
  RLHF_HOST_DEVICE void operator()(index i) const {
    T& place = to.data[i * to.stride];
    if (!to.accumulate)
      place = static_cast<T>(from[i]);
    else if (weight.kind() == mask_kind::none || weight.at(i * weight.stride(1)) > 0)
      place += static_cast<T>(from[i]);
  }
};

/// Hands the slope of an answer to its tokens.
template <scalar T>
struct scatter_answer {
  using scalar_type = T;
  static constexpr int inputs = 0, outputs = 1, sums = 0, ranges = 0, scales = 1;
  static constexpr int observed = 0, scaled_sums = 0;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    t.out[0] = t.scale[0];
  }
};

struct multiply {
  const double* a;
  double* b;
  RLHF_HOST_DEVICE void operator()(index i) const { b[i] *= a[i]; }
};

inline constexpr token_field_names chosen_names{"chosen_mask", "chosen_layout: lengths",
                                                "chosen_layout: packed(cu_seqlens)"};
inline constexpr token_field_names rejected_names{"rejected_mask", "rejected_layout: lengths",
                                                  "rejected_layout: packed(cu_seqlens)"};

/// One side of the pairs, per token: its tensors, and the scratch that holds its sums.
template <scalar T, class Space>
struct answer_side {
  token_domain<Space> domain;
  token_input<T> log_prob, ref_log_prob;
  token_output<T> d_log_prob;
  double* sum = nullptr;  // [pairs][2]
  double* share = nullptr;
  double* slope = nullptr;

  answer_side(const char* function, const char* name, const char* ref_name, const char* d_name,
              const view<const T, Space>& x, const view<const T, Space>& ref,
              const output<T, Space>& d, const sequence_layout<Space>& layout,
              const mask_view<Space>& mask, const token_field_names* names, bool reference_free) {
    token_binder<Space> bind(function, name, x, layout, mask, names);
    domain = bind.domain();
    log_prob = bind.token(name, x);
    if (reference_free)
      bind.unused(ref_name, bool(ref));
    else
      ref_log_prob = bind.token(ref_name, ref);
    d_log_prob = bind.written(d_name, d);
  }

  template <class Run>
  void allocate(Run& run) {
    sum = run.template allocate<double>(2 * domain.rows);
    share = run.template allocate<double>(domain.rows);
    slope = run.template allocate<double>(domain.rows);
  }
  template <class Run>
  void add_up(Run& run, bool by_length) {
    double* const counts = run.template allocate<double>(token_counts::size);
    double* const weight = run.template allocate<double>(domain.rows);
    run.count(domain, counts, weight);
    token_arguments<answer_sum<T>, Space> a;
    a.domain = domain;
    a.in[0] = log_prob;
    a.in[1] = ref_log_prob;
    run.map_reduce_rows(answer_sum<T>{}, a, sum);
    run.for_each(domain.rows, normalise_answer{weight, by_length, sum, share});
  }
  template <class Run>
  void scatter(Run& run, const double* one, double* unused) {
    if (d_log_prob.data == nullptr) return;
    run.for_each(domain.rows, multiply{share, slope});
    token_arguments<scatter_answer<T>, Space> a;
    a.domain = domain;
    a.out[0] = d_log_prob;
    a.scale[0] = {one, slope};
    run.map_reduce(scatter_answer<T>{}, a, unused);
  }
};

}  // namespace detail

/// Direct preference optimisation: the loss of a reward model whose reward is the policy's own
/// log-ratio, its gradient, and the metrics a trainer logs.
///
///     a, b = log_prob − ref_log_prob of the chosen and the rejected answer
///     z    = beta·(a − b) − margin
///     loss = reduce(softplus(−z))                                          sigmoid
///            reduce((1 − e)·softplus(−z) + e·softplus(z))                  conservative
///            reduce(((1 − e)·softplus(−z) − e·softplus(z)) / (1 − 2e))     robust
///
/// An answer's log-probability is the sum of its counted tokens', or, length_normalised, their
/// mean. Per token, the gradient comes back scattered to the tokens.
///
/// Shapes    per answer: every tensor [pairs]; per token: log-probs and their gradients [pairs,
///           time] or packed, chosen and rejected each with its own width, mask and layout; margin,
///           weight, pair_loss, upstream: [pairs]
/// Units     log-probabilities in nats; masks and weight: a flag, or a weight >= 0; 0 = ignored
/// Requires  beta > 0; label_smoothing in [0, 0.5], 0 for sigmoid, < 0.5 for robust; references
///           exactly when not reference_free; masks, layouts and length_normalised only per token
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  with g = w·beta·∂loss/∂z: g for each chosen token, −g for each rejected one, times the
///           mask's weight, over the answer's length if normalised; references, margin and weight
///           are constants
/// Edges     ignored pairs and masked tokens change nothing and get gradient 0; no pair gives loss 0;
///           policy == reference gives ln 2 and gradient ∓beta/2·w; equal rewards are ties, not
///           accurate; an answer without tokens has log-probability 0; NaN or inf in a counted pair
///           reaches the loss, unless .nonfinite drops the pair
/// Numerics  per token: the log-ratio is summed, not a difference of sums, in lanes of T flushed to
///           double every 1,024 tokens (float: about 1e-7 of the sum of |log-ratio|); then double;
///           per answer: in T, (2 |a| + 2 |b|) 2⁻²⁴·beta absolute in z
/// Cost      per answer: one pass, 4 reads and 2 writes per pair; per token: one read of the
///           log-probs and one write of the gradient; host: no allocation with a workspace
/// Source    Rafailov et al. 2023, arXiv:2305.18290, eq. 7; conservative: Mitchell 2023, "A note on
///           DPO with noisy preferences"; robust: Chowdhury et al. 2024, arXiv:2403.00409; margin:
///           Amini et al. 2024, arXiv:2402.10571; length_normalised: Lambert et al. 2024,
///           arXiv:2411.15124
/// Elsewhere TRL DPO "sigmoid" (ignores label_smoothing) and "robust"; OpenRLHF and torchtune
///           DPOLoss (label_smoothing is conservative); NeMo-RL DPOLossFn
/// Example   examples/dpo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, dpo_result> dpo_loss(
    const dpo_batch<T, space_of<Exec>>& batch, const dpo_output<T, space_of<Exec>>& output,
    const dpo_config& config = detail::no_config<T, dpo_config>::value, const Exec& exec = {}) {
  using Space = space_of<Exec>;
  const char* const function = "dpo_loss";
  detail::check_normaliser(function, config.over.by());
  const pair_config pair_settings{.over = config.over, .nonfinite = config.nonfinite};
  const bool tokens =
      batch.chosen_log_prob.rank() == 2 || batch.chosen_layout.kind == arrangement::packed;

  if (!tokens) {
    const dpo_term<T> term(function, config.beta, config.variant, config.label_smoothing);
    pair_binder<Space> bind(function, "chosen_log_prob", batch.chosen_log_prob, batch.weight);
    bind.unused("chosen_mask", bool(batch.chosen_mask));
    bind.unused("rejected_mask", bool(batch.rejected_mask));
    bind.unused("chosen_layout", batch.chosen_layout.kind != arrangement::padded);
    bind.unused("rejected_layout", batch.rejected_layout.kind != arrangement::padded);
    expects(!config.length_normalised, function, "length_normalised",
            "false: whole answers have no length", "true");
    pair_arguments<T, Space> pairs;
    pairs.chosen = bind.pair("chosen_log_prob", batch.chosen_log_prob);
    pairs.rejected = bind.pair("rejected_log_prob", batch.rejected_log_prob);
    if (config.reference_free) {
      bind.unused("ref_chosen_log_prob", bool(batch.ref_chosen_log_prob));
      bind.unused("ref_rejected_log_prob", bool(batch.ref_rejected_log_prob));
    } else {
      pairs.ref_chosen = bind.pair("ref_chosen_log_prob", batch.ref_chosen_log_prob);
      pairs.ref_rejected = bind.pair("ref_rejected_log_prob", batch.ref_rejected_log_prob);
    }
    pairs.margin = bind.pair("margin", batch.margin, T(0));
    bind.upstream(pairs, output.upstream);
    pairs.d_chosen = bind.written("d_chosen_log_prob", output.d_chosen_log_prob);
    pairs.d_rejected = bind.written("d_rejected_log_prob", output.d_rejected_log_prob);
    pairs.pair_loss = bind.written("pair_loss", output.pair_loss);
    pairs.domain = bind.domain();
    auto run = exec.begin(function);
    const double* const figures = reduce_pairs<T>(run, term, pairs, pair_settings);
    return run.template finish<dpo_result>(figures, &read_pairs<T, dpo_term<T>>);
  }

  const dpo_term<double> term(function, config.beta, config.variant, config.label_smoothing);
  detail::answer_side<T, Space> chosen(
      function, "chosen_log_prob", "ref_chosen_log_prob", "d_chosen_log_prob",
      batch.chosen_log_prob, batch.ref_chosen_log_prob, output.d_chosen_log_prob,
      batch.chosen_layout, batch.chosen_mask, &detail::chosen_names, config.reference_free);
  detail::answer_side<T, Space> rejected(
      function, "rejected_log_prob", "ref_rejected_log_prob", "d_rejected_log_prob",
      batch.rejected_log_prob, batch.ref_rejected_log_prob, output.d_rejected_log_prob,
      batch.rejected_layout, batch.rejected_mask, &detail::rejected_names, config.reference_free);
  const index n = chosen.domain.rows;
  expects(rejected.domain.rows == n, function, "rejected_log_prob",
          "as many answers as chosen_log_prob has", rejected.domain.rows);
  // The tensors with one number per pair share the length that the answers set. Nothing is read
  // here: answers may all be empty, and then there is no memory behind them.
  const T unread = 0;
  const view<const T, Space> answers(raw_view<const T, Space>{&unread, 1, {n, 1, 1}, {0, 0, 0}});
  pair_binder<Space> bind(function, "chosen_log_prob", answers, batch.weight);
  // Each side has looked at its own tensors; here they meet each other and those of the pairs.
  const auto occupy = [&](const char* name, const auto& v, bool written) {
    bind.occupy(name, detail::bytes_of(v), written);
  };
  occupy("chosen_log_prob", batch.chosen_log_prob, false);
  occupy("rejected_log_prob", batch.rejected_log_prob, false);
  occupy("ref_chosen_log_prob", batch.ref_chosen_log_prob, false);
  occupy("ref_rejected_log_prob", batch.ref_rejected_log_prob, false);
  occupy("d_chosen_log_prob", static_cast<const view<T, Space>&>(output.d_chosen_log_prob), true);
  occupy("d_rejected_log_prob", static_cast<const view<T, Space>&>(output.d_rejected_log_prob),
         true);
  const auto margin = bind.pair("margin", batch.margin, T(0));
  const auto upstream = bind.upstream(output.upstream);
  const auto pair_loss = bind.written("pair_loss", output.pair_loss);

  auto run = exec.begin(function);
  chosen.allocate(run);
  rejected.allocate(run);
  double* const one = run.template allocate<double>(1);
  double* const unused = run.template allocate<double>(sums_of<detail::scatter_answer<T>>::size);
  run.for_each(1, detail::set_one{one});
  chosen.add_up(run, config.length_normalised);
  rejected.add_up(run, config.length_normalised);
  const auto wide = [&](const token_input<T>& x, double absent) {
    if (x.data == nullptr) return token_input<double>{nullptr, 0, 0, 0, absent};
    double* const to = run.template allocate<double>(n);
    run.for_each(n, detail::widen_pairs<T>{x, to});
    return token_input<double>{to, 0, 0, 1, 0};
  };
  pair_arguments<double, Space> pairs;
  pairs.domain = bind.domain();
  pairs.chosen = {chosen.sum, 0, 0, 2, 0};
  pairs.ref_chosen = {chosen.sum + 1, 0, 0, 2, 0};
  pairs.rejected = {rejected.sum, 0, 0, 2, 0};
  pairs.ref_rejected = {rejected.sum + 1, 0, 0, 2, 0};
  pairs.margin = wide(margin, 0);
  pairs.upstream = wide(upstream, 1);
  pairs.upstream_number =
      output.upstream || output.upstream.device != nullptr ? 1 : output.upstream.number;
  pairs.upstream_at = output.upstream.device;
  pairs.d_chosen = {chosen.slope, 0, 0, 1, false};
  pairs.d_rejected = {rejected.slope, 0, 0, 1, false};
  double* const loss = pair_loss.data == nullptr ? nullptr : run.template allocate<double>(n);
  pairs.pair_loss = {loss, 0, 0, 1, false};
  const double* const figures = reduce_pairs<double>(run, term, pairs, pair_settings);
  chosen.scatter(run, one, unused);
  rejected.scatter(run, one, unused);
  if (loss != nullptr)
    run.for_each(n, detail::narrow_pairs<T, Space>{loss, pair_loss, bind.domain().mask});
  return run.template finish<dpo_result>(figures, &read_pairs<double, dpo_term<double>>);
}

}  // namespace rlhf::inline RLHF_COMPUTE
