#include "rlhf/backend/host.hpp"
#include "rlhf/distribution/policy_from_logits.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"
#include "tests/golden/linear_head.hpp"
#include "tests/golden/peers.hpp"

namespace golden {
namespace {

using rlhf::aggregation;

/// What the GRPO losses of TRL and Liger have in common, under one set of names.
struct grpo {
  array log_prob, old_log_prob, advantage, mask;
  std::optional<array> ref_log_prob = {}, entropy = {}, weight = {};
  double low = 0.2, high = 0.2, dual = 0;
  bool sequence = false;
  rlhf::sequence_form form = rlhf::sequence_form::sequence;
  double beta = 0;
  bool corrected_kl = false;
  double entropy_coefficient = 0;
  aggregation over = aggregation::token_sum();
  double scale = 1;

  grpo row(index i) const {
    grpo r = *this;
    r.log_prob = log_prob.row(i), r.old_log_prob = old_log_prob.row(i), r.mask = mask.row(i);
    r.advantage = advantage.rows_of(i, i + 1);
    for (auto* a : {&r.ref_log_prob, &r.entropy, &r.weight})
      if (*a) *a = (*a)->row(i);
    r.over = aggregation::token_sum();
    return r;
  }
};

template <class T>
rlhf::policy_result run(const grpo& g, place<T>& on, const rlhf::policy_output<T>& output) {
  const double tokens = std::max(sum(g.mask), 1.0);
  const rlhf::policy_batch<T> batch{
      .log_prob = on.in(g.log_prob),
      .old_log_prob = on.in(g.old_log_prob),
      .ref_log_prob = on.in(g.beta != 0 ? g.ref_log_prob : std::nullopt),
      .entropy = on.in(g.entropy),
      .advantage = on.in(g.advantage),
      .coefficient = on.in(g.weight),
      .mask = on.mask(g.mask)};
  const rlhf::kl_term kl{
      .coefficient = g.beta,
      .weighting = g.corrected_kl ? rlhf::kl_weighting::ratio : rlhf::kl_weighting::plain};
  const rlhf::entropy_term entropy{.coefficient = g.entropy_coefficient,
                                   .over = aggregation::token_mean(tokens)};
  if (g.sequence)
    return rlhf::sequence_clipped_surrogate_loss<T>(batch, output,
                                                    {.clip_low = g.low,
                                                     .clip_high = g.high,
                                                     .dual_clip = g.dual,
                                                     .form = g.form,
                                                     .over = g.over,
                                                     .kl = kl,
                                                     .entropy = entropy});
  return rlhf::clipped_surrogate_loss<T>(batch, output,
                                         {.clip_low = g.low,
                                          .clip_high = g.high,
                                          .dual_clip = g.dual,
                                          .over = g.over,
                                          .kl = kl,
                                          .entropy = entropy});
}

/// The figures of clipping that TRL logs: means over tokens (over rows, for ratios of sequences),
/// and the extremes of the rows' means.
template <class T>
void log_clipping(const grpo& g, place<T>& on, const rlhf::policy_result& all, bool rows,
                  answer& out) {
  double low = 0, high = 0, both = 0, low_min = infinity, high_max = -infinity;
  for (index i = 0; i < g.mask.rows(); ++i) {
    const auto r = run(g.row(i), on, {});
    low += r.clip_fraction_low.mean();
    high += r.clip_fraction_high.mean();
    both += r.clip_fraction.mean();
    low_min = std::min(low_min, r.clip_fraction_low.mean());
    high_max = std::max(high_max, r.clip_fraction_high.mean());
  }
  const double n = static_cast<double>(g.mask.rows());
  out.log("clip_ratio/low_mean", rows ? low / n : all.clip_fraction_low.mean());
  out.log("clip_ratio/high_mean", rows ? high / n : all.clip_fraction_high.mean());
  out.log("clip_ratio/region_mean", rows ? both / n : all.clip_fraction.mean());
  out.log("clip_ratio/low_min", low_min);
  out.log("clip_ratio/high_max", high_max);
}

bool is_sequence_level(const std::string& level) {
  if (level != "token" && level != "sequence" && level != "sequence_token")
    unknown_value("importance_sampling_level", level);
  return level != "token";
}

/// Ratios of sequences have their clip figures per row, those of GSPO-token per token.
template <class T>
void trl_grpo(const request& c, place<T>& on, answer& out) {
  const auto type = c.text("loss_type", "grpo");
  const auto level = c.text("importance_sampling_level", "token");
  const array& log_prob = c.input("per_token_logps");
  const array& mask = c.input("completion_mask");
  c.ignore({"ref_per_token_logps"});  // there at beta = 0 too
  grpo g{.log_prob = log_prob,
         .old_log_prob = c.input("old_per_token_logps", log_prob),
         .advantage = c.input("advantages"),
         .mask = mask,
         .entropy = c.input("entropies"),
         .low = c.number("epsilon_low", 0.2),
         .high = c.number("epsilon_high", 0.2),
         .dual = c.maybe("delta").value_or(0),
         .sequence = is_sequence_level(level),
         .form =
             level == "sequence_token" ? rlhf::sequence_form::token : rlhf::sequence_form::sequence,
         .beta = c.number("beta", 0),
         .corrected_kl = c.flag("use_bias_correction_kl", false),
         .entropy_coefficient = c.number("entropy_coef", 0)};
  if (g.beta != 0) g.ref_log_prob = c.input("ref_per_token_logps");
  if (c.has("importance_sampling_ratio")) g.weight = c.input("importance_sampling_ratio");
  // The recorded runs have 12 as the length that Dr. GRPO divides by where it is not a param.
  g.over = trl_aggregation(type, mask, c.number("max_completion_length", 12),
                           c.maybe("num_items_in_batch"));
  const double steps = c.number("gradient_accumulation_steps", 1);
  g.scale = type == "dapo" ? 1 : 1 / steps;

  const auto d = on.out(log_prob.shape), d_entropy = on.out(log_prob.shape);
  const auto r = run(
      g, on, {.d_log_prob = d.view, .d_entropy = d_entropy.view, .upstream = above<T>(g.scale)});
  out.put("loss", g.scale * r.loss);
  out.grad("per_token_logps", d.read());
  out.grad("entropies", d_entropy.read());
  out.log("entropy", r.entropy.mean());
  out.log("kl", r.kl.mean());
  out.log("entropy_coef", g.entropy_coefficient);
  out.log("policy_loss", r.loss + g.entropy_coefficient * r.entropy.mean());
  log_clipping(g, on, r, level == "sequence", out);
}

/// A sequence without a token has the ratio exp(0 − old) in TRL: one token of log-prob 0 stands for
/// it.
template <class T>
void trl_rloo_loss(const request& c, place<T>& on, answer& out) {
  const array& tokens = c.input("per_token_logps");
  const array& mask = c.input("completion_mask");
  const array n = row_sums(mask), own = row_sums(kept(tokens, mask));
  const array old = c.input("old_logps", own);
  grpo g{.log_prob = tokens,
         .old_log_prob = zeros_like(tokens),
         .advantage = c.input("advantages"),
         .mask = mask,
         .entropy = c.input("entropies"),
         .low = c.number("epsilon_low"),
         .high = c.number("epsilon_high"),
         .sequence = true};
  for (index i = 0; i < mask.rows(); ++i) {
    if (n[i] == 0) g.mask(i, 0) = 1, g.log_prob(i, 0) = 0;
    index first = 0;
    while (g.mask(i, first) == 0) ++first;
    g.old_log_prob(i, first) = old[i];
  }
  out.exponent(std::max(largest(own), largest(old)));
  const auto call = [&](const grpo& x, const rlhf::policy_output<T>& output) {
    return rlhf::sequence_clipped_surrogate_loss<T>(
        {.log_prob = on.in(x.log_prob),
         .old_log_prob = on.in(x.old_log_prob),
         .entropy = on.in(x.entropy),
         .advantage = on.in(x.advantage),
         .mask = on.mask(x.mask)},
        output,
        {.clip_low = x.low,
         .clip_high = x.high,
         .ratio = rlhf::sequence_ratio::sum,
         .over = aggregation::sequence_mean_token_mean(static_cast<double>(mask.rows()))});
  };
  const auto d = on.out(tokens.shape);
  const auto r = call(g, {.d_log_prob = d.view});
  out.put("loss", r.loss);
  out.grad("per_token_logps", kept(d.read(), mask));

  double low = 0, high = 0, low_min = 1, high_max = 0;
  for (index i = 0; i < mask.rows(); ++i) {
    const auto row = call(g.row(i), {});
    low += row.clip_fraction_low.mean();
    high += row.clip_fraction_high.mean();
    low_min = std::min(low_min, row.clip_fraction_low.mean());
    high_max = std::max(high_max, row.clip_fraction_high.mean());
  }
  const double rows = static_cast<double>(mask.rows());
  out.log("clip_ratio/low_mean", low / rows);
  out.log("clip_ratio/low_min", low_min);
  out.log("clip_ratio/high_mean", high / rows);
  out.log("clip_ratio/high_max", high_max);
  out.log("clip_ratio/region_mean", (low + high) / rows);
  grpo counted = g;
  counted.mask = mask;
  counted.log_prob = tokens;
  out.log("entropy", call(counted, {}).entropy.mean());
}

template <class T>
void liger_grpo(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("per_token_logps");
  const array& mask = c.input("attention_mask");
  const auto type = c.text("loss_type", "dapo");
  c.ignore({"ref_per_token_logps"});
  grpo g{.log_prob = log_prob,
         .old_log_prob = c.input("old_per_token_logps", log_prob),
         .advantage = c.input("advantages"),
         .mask = mask,
         .low = c.number("epsilon_low", 0.2),
         .high = c.number("epsilon_high", 0.2),
         .dual = c.maybe("delta").value_or(0),
         .sequence = is_sequence_level(c.text("importance_sampling_level", "token")),
         .beta = c.number("beta", 0.04),
         .corrected_kl = c.flag("use_bias_correction_kl", false)};
  if (g.beta != 0) g.ref_log_prob = c.input("ref_per_token_logps");
  if (c.has("vllm_is_ratio")) g.weight = c.input("vllm_is_ratio");
  g.over = trl_aggregation(type, mask,
                           c.number("max_completion_length", static_cast<double>(mask.columns())),
                           c.maybe("num_items_in_batch"));
  const auto d = on.out(log_prob.shape);
  const auto r = run(g, on, {.d_log_prob = d.view});
  out.put("loss", r.loss);
  out.grad("per_token_logps", d.read());
  if (g.beta != 0) out.log("0", r.kl.mean());
  out.log(g.beta != 0 ? "1" : "0", r.clip_fraction.mean());
}

/// From hidden states: a product of matrices, and one call from the logits to their gradient.
/// Without a reference the policy is its own, and the KL and its slope are 0.
template <class T>
void liger_fused_grpo(const request& c, place<T>& on, answer& out) {
  const linear_head head{c.input("_input"), c.input("lin_weight"),
                         c.has("bias") ? std::optional<array>(c.input("bias")) : std::nullopt};
  const array& mask = c.input("attention_mask");
  const array& label = c.input("selected_token_ids");
  const array logits = head.logits();
  const double beta = c.number("beta", 0.04);
  const double temperature = c.number("temperature", 1);
  const bool with_kl = beta != 0 && c.flag("use_ref_model", true);
  c.ignore({"chunk_size", "use_ref_model", "ref_per_token_logps"});
  const auto none = rlhf::raw_view<const T, rlhf::host_space>{};
  const auto log_prob = on.out(mask.shape), d = on.out(logits.shape);
  rlhf::token_log_prob<T>({.logits = on.in(logits), .label = on.integers(label)},
                          {.log_prob = log_prob.view}, {.temperature = temperature});
  const array old = c.input("old_per_token_logps", log_prob.read());
  const auto r = rlhf::clipped_surrogate_from_logits<T>(
      {.logits = on.in(logits),
       .label = on.integers(label),
       .old_log_prob = on.in(old),
       .ref_log_prob = with_kl ? on.in(c.input("ref_per_token_logps")) : none,
       .advantage = on.in(c.input("advantages")),
       .mask = on.mask(mask)},
      {.d_logits = d.view},
      {.clip_low = c.number("epsilon_low", 0.2),
       .clip_high = c.number("epsilon_high", 0.2),
       .over = trl_aggregation(
           c.text("loss_type", "dapo"), mask,
           c.number("max_completion_length", static_cast<double>(mask.columns())), {}),
       .kl = {.coefficient = with_kl ? beta : 0, .weighting = rlhf::kl_weighting::plain},
       .temperature = temperature});
  const auto slopes = head.slopes(d.read());
  out.exponent(largest(log_prob.read() - old) + largest(logits) / temperature);
  if (with_kl) out.exponent(largest(log_prob.read() - c.input("ref_per_token_logps")));
  out.put("loss", r.loss);
  out.grad("_input", slopes.input);
  out.grad("lin_weight", slopes.weight);
  out.grad("bias", slopes.bias);
  if (beta != 0) out.log("0", r.kl.mean());
  out.log(beta != 0 ? "1" : "0", r.clip_fraction.mean());
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("trl.grpo_loss_grpo", trl_grpo),
    GOLDEN_ADAPTER("trl.grpo_loss_bnpo", trl_grpo),
    GOLDEN_ADAPTER("trl.grpo_loss_dapo", trl_grpo),
    GOLDEN_ADAPTER("trl.grpo_loss_dr_grpo", trl_grpo),
    GOLDEN_ADAPTER("trl.gspo_token_loss", trl_grpo),
    GOLDEN_ADAPTER("trl.rloo_loss", trl_rloo_loss),
    GOLDEN_ADAPTER("liger.grpo_loss_fn", liger_grpo),
    GOLDEN_ADAPTER("liger.fused_linear_grpo", liger_fused_grpo),
};

}  // namespace

std::span<const adapter> trl_policy_adapters() { return adapters; }

}  // namespace golden
