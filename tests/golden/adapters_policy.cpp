#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"
#include "tests/golden/peers.hpp"

namespace golden {
namespace {

using rlhf::aggregation;

std::optional<array> optional_input(const request& c, const char* name) {
  if (!c.has(name)) return std::nullopt;
  return c.input(name);
}

/// Mean of old − new over the counted tokens, whatever a peer cuts elsewhere.
template <class T>
rlhf::metric log_ratio_k1(place<T>& on, const array& log_prob, const array& old_log_prob,
                          const array& mask) {
  return rlhf::reinforce_loss<T>({.log_prob = on.in(log_prob),
                                  .old_log_prob = on.in(old_log_prob),
                                  .advantage = on.in(zeros_like(log_prob)),
                                  .mask = on.mask(mask)},
                                 {}, {.over = aggregation::token_sum()})
      .approx_kl_k1;
}

/// Any loss matrix, aggregated: −A·log_prob with A = −1.
template <class T>
void verl_agg_loss(const request& c, place<T>& on, answer& out) {
  const array& loss = c.input("loss_mat");
  const array& mask = c.input("loss_mask");
  const auto agg =
      verl_aggregation(c.text("loss_agg_mode", "token-mean"), verl_batch_info(c), mask);
  const auto d = on.out(loss.shape);
  const auto r = rlhf::reinforce_loss<T>({.log_prob = on.in(loss),
                                          .advantage = on.in(array::filled({loss.rows()}, -1)),
                                          .coefficient = on.in(agg.coefficient({}, loss.columns())),
                                          .mask = on.mask(mask)},
                                         {.d_log_prob = d.view, .upstream = above<T>(agg.scale)},
                                         {.over = agg.over});
  out.put("loss", agg.scale * r.loss);
  out.grad("loss_mat", d.read());
}

template <class T>
void verl_vanilla(const request& c, place<T>& on, answer& out) {
  const array& old = c.input("old_log_prob");
  const array& mask = c.input("response_mask");
  const auto cut = cut_log_ratio(c.input("log_prob"), old, 20);
  const auto agg =
      verl_aggregation(c.text("loss_agg_mode", "token-mean"), c.table("global_batch_info"), mask);
  const double clip = c.number("clip_ratio", 0.2);
  const auto d = on.out(old.shape);
  const auto r = rlhf::clipped_surrogate_loss<T>(
      {.log_prob = on.in(cut.value),
       .old_log_prob = on.in(old),
       .advantage = on.in(c.input("advantages")),
       .coefficient =
           on.in(agg.coefficient(optional_input(c, "rollout_is_weights"), old.columns())),
       .mask = on.mask(mask)},
      {.d_log_prob = d.view, .upstream = above<T>(agg.scale)},
      {.clip_low = c.maybe("clip_ratio_low").value_or(clip),
       .clip_high = c.maybe("clip_ratio_high").value_or(clip),
       .dual_clip = c.number("clip_ratio_c", 3),
       .over = agg.over});
  out.put("loss", agg.scale * r.loss);
  out.grad("log_prob", kept(d.read(), cut.inside));
  out.log("actor/pg_clipfrac", mean_with_epsilon(r.clip_fraction));
  out.log("actor/ppo_kl", mean_with_epsilon(r.approx_kl_k1));
  out.log("actor/pg_clipfrac_lower", mean_with_epsilon(r.dual_clip_fraction));
}

/// verl cuts the sequence's log-ratio at 10 from above, with no gradient beyond.
template <class T>
void verl_gspo(const request& c, place<T>& on, answer& out) {
  const array& old = c.input("old_log_prob");
  const array& mask = c.input("response_mask");
  c.text("loss_agg_mode", "");  // the peer ignores it
  const double clip = c.number("clip_ratio", 0.2);
  const auto agg = verl_aggregation("seq-mean-token-mean", c.table("global_batch_info"), mask);
  array log_prob = c.input("log_prob");
  array passes = ones_like(old);
  const array n = row_sums(mask), total = row_sums(kept(log_prob - old, mask));
  for (index i = 0; i < old.rows(); ++i) {
    if (!(total[i] > 10 * n[i])) continue;
    for (index j = 0; j < old.columns(); ++j) {
      log_prob(i, j) -= total[i] / n[i] - 10;
      passes(i, j) = 0;
    }
  }
  const auto d = on.out(old.shape);
  const auto r = rlhf::sequence_clipped_surrogate_loss<T>(
      {.log_prob = on.in(log_prob),
       .old_log_prob = on.in(old),
       .advantage = on.in(c.input("advantages")),
       .coefficient =
           on.in(agg.coefficient(optional_input(c, "rollout_is_weights"), old.columns())),
       .mask = on.mask(mask)},
      {.d_log_prob = d.view, .upstream = above<T>(agg.scale)},
      {.clip_low = c.maybe("clip_ratio_low").value_or(clip),
       .clip_high = c.maybe("clip_ratio_high").value_or(clip),
       .ratio = rlhf::sequence_ratio::mean,
       .form = rlhf::sequence_form::token,
       .over = agg.over});
  out.put("loss", agg.scale * r.loss);
  out.grad("log_prob", kept(d.read(), passes));
  out.log("actor/pg_clipfrac", mean_with_epsilon(r.clip_fraction));
  out.log("actor/ppo_kl", mean_with_epsilon(log_ratio_k1(on, c.input("log_prob"), old, mask)));
  out.log("actor/pg_clipfrac_lower", mean_with_epsilon(r.dual_clip_fraction));
}

template <class T>
void verl_reinforce(const request& c, place<T>& on, answer& out) {
  const array& old = c.input("old_log_prob");
  const array& mask = c.input("response_mask");
  const auto agg = verl_aggregation(c.text("loss_agg_mode", "seq-mean-token-sum"),
                                    c.table("global_batch_info"), mask);
  const auto d = on.out(old.shape);
  const auto r = rlhf::reinforce_loss<T>(
      {.log_prob = on.in(c.input("log_prob")),
       .old_log_prob = on.in(old),
       .advantage = on.in(c.input("advantages")),
       .coefficient =
           on.in(agg.coefficient(optional_input(c, "rollout_is_weights"), old.columns())),
       .mask = on.mask(mask)},
      {.d_log_prob = d.view, .upstream = above<T>(agg.scale)}, {.over = agg.over});
  out.put("loss", agg.scale * r.loss);
  out.grad("log_prob", d.read());
  out.log("actor/ppo_kl", mean_with_epsilon(r.approx_kl_k1));
}

template <class T>
void openrlhf_policy(const request& c, place<T>& on, answer& out) {
  const array& old = c.input("old_log_probs");
  const array& log_prob = c.input("log_probs");
  const array& mask = c.input("action_mask");
  const auto type = c.text("policy_loss_type", "ppo");
  if (type != "ppo" && type != "gspo") unknown_value("policy_loss_type", type);
  c.flag("enable_vllm_is_correction", false);  // true is excluded by a rule
  c.ignore({"rollout_log_probs"});
  const bool sequence = type == "gspo";
  const auto agg = openrlhf_aggregation(c, c.flag("token_level_loss", true) && !sequence, mask);
  const double low = c.number("clip_eps_low", 0.2), high = c.number("clip_eps_high", 0.2);
  const double dual = c.maybe("dual_clip").value_or(0);
  const auto d = on.out(old.shape);
  const auto cut = cut_log_ratio(log_prob, old, sequence ? infinity : 20);
  const rlhf::policy_batch<T> batch{.log_prob = on.in(cut.value),
                                    .old_log_prob = on.in(old),
                                    .advantage = on.in(c.input("advantages")),
                                    .coefficient = on.in(agg.coefficient({}, old.columns())),
                                    .mask = on.mask(mask)};
  const rlhf::policy_output<T> output{.d_log_prob = d.view, .upstream = above<T>(agg.scale)};
  const auto r =
      sequence ? rlhf::sequence_clipped_surrogate_loss<T>(
                     batch, output,
                     {.clip_low = low, .clip_high = high, .dual_clip = dual, .over = agg.over})
               : rlhf::clipped_surrogate_loss<T>(
                     batch, output,
                     {.clip_low = low, .clip_high = high, .dual_clip = dual, .over = agg.over});
  out.put("loss", agg.scale * r.loss);
  out.grad("log_probs", kept(d.read(), cut.inside));
  out.put("clip_ratio", r.clip_fraction.mean());
  out.put("ppo_kl", log_ratio_k1(on, log_prob, old, mask).mean());
}

/// One row of tokens whose ppo_kl = old − new is given.
template <class T>
void slime_policy(const request& c, place<T>& on, answer& out) {
  const index n = c.input("ppo_kl").size();
  const array log_prob = -c.input("ppo_kl").reshaped({n, 1});
  const array advantage = c.input("advantages").reshaped({n, 1});
  const array old = zeros_like(log_prob);
  out.exponent(largest(log_prob));
  const auto d = on.out({n, 1}), loss = on.out({n, 1});
  const rlhf::clipped_surrogate_config config{.clip_low = c.number("eps_clip"),
                                              .clip_high = c.number("eps_clip_high"),
                                              .dual_clip = c.maybe("eps_clip_c").value_or(0),
                                              .over = aggregation::none()};
  rlhf::clipped_surrogate_loss<T>(
      {.log_prob = on.in(log_prob), .old_log_prob = on.in(old), .advantage = on.in(advantage)},
      {.d_log_prob = d.view,
       .token_loss = loss.view,
       .upstream = on.in(c.cotangent("pg_losses").reshaped({n, 1}))},
      config);
  array clipped = array::filled({n}, 0);
  for (index i = 0; i < n; ++i)
    clipped[i] = rlhf::clipped_surrogate_loss<T>({.log_prob = on.in(log_prob.row(i)),
                                                  .old_log_prob = on.in(old.row(i)),
                                                  .advantage = on.in(advantage.row(i))},
                                                 {}, config)
                     .clip_fraction.mean();
  out.put("pg_losses", loss.read());
  out.put("clipfrac", clipped);
  out.grad("ppo_kl", -d.read());
}

template <class T>
void rlax_clipped_surrogate(const request& c, place<T>& on, answer& out) {
  const array ratio = c.input("prob_ratios_t");
  const double epsilon = c.number("epsilon");
  const auto r = rlhf::clipped_surrogate_loss<T>(
      {.log_prob =
           on.in(map([](double x) { return std::log(x); }, ratio).reshaped({1, ratio.size()})),
       .old_log_prob = on.in(array::filled({1, ratio.size()}, 0)),
       .advantage = on.in(c.input("adv_t").reshaped({1, ratio.size()}))},
      {},
      {.clip_low = epsilon, .clip_high = epsilon, .over = aggregation::token_mean(rlhf::local)});
  out.put("loss", r.loss);
}

/// torchtune's masks say which tokens count, in spite of their names. Its mean ratio counts all.
template <class T>
double mean_ratio(place<T>& on, const array& log_prob, const array& old) {
  return rlhf::reinforce_loss<T>({.log_prob = on.in(log_prob),
                                  .old_log_prob = on.in(old),
                                  .advantage = on.in(zeros_like(old))},
                                 {}, {.over = aggregation::token_sum()})
      .ratio.mean();
}

/// The simple loss has ratio 1 and a mean over rows.
template <class T, bool Simple>
void torchtune_grpo_any(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("pi_logprobs");
  const array mask = c.input("padding_masks", ones_like(log_prob));
  const bool masked = c.has("padding_masks");
  c.ignore({"pi_old_logprobs"});
  const array old = Simple ? log_prob : c.input("pi_old_logprobs");
  const double epsilon = c.number("epsilon"), coefficient = c.number("kl_coeff");
  const double more = masked ? small_count : 0;
  const array row_factor = masked ? with_epsilon(mask) : array::filled({mask.rows()}, 1);
  const rlhf::kl_term kl{.coefficient = coefficient,
                         .estimator = rlhf::kl_estimator::k3,
                         .weighting = rlhf::kl_weighting::plain};
  // A mean of row means with an epsilon in each is a weighted sum of tokens.
  const array share =
      map([](double n, double f) { return n > 0 ? f / n : 0; }, row_sums(mask), row_factor) *
      (1 / static_cast<double>(mask.rows()));
  const auto d = on.out(log_prob.shape);
  const auto r = rlhf::clipped_surrogate_loss<T>(
      {.log_prob = on.in(log_prob),
       .old_log_prob = on.in(old),
       .ref_log_prob = on.in(c.input("ref_logprobs")),
       .advantage = on.in(c.input("advantages")),
       .mask = Simple ? on.weights(spread(share, mask.columns()) * mask) : on.mask(mask)},
      {.d_log_prob = d.view},
      {.clip_low = epsilon,
       .clip_high = epsilon,
       .over = Simple ? aggregation::token_sum() : aggregation::token_mean(sum(mask) + more),
       .kl = kl});
  out.put("loss", r.loss);
  out.put("policy_loss", -r.policy_loss);
  out.put("kl_loss", Simple ? r.kl.sum : r.kl.sum / (r.kl.count + more));
  out.put("ratios", mean_ratio(on, log_prob, old));
  out.put("clipfrac", Simple ? 0 : r.clip_fraction.sum / (r.clip_fraction.count + more));
  out.grad("pi_logprobs", d.read());
}

template <class T>
void torchtune_grpo(const request& c, place<T>& on, answer& out) {
  torchtune_grpo_any<T, false>(c, on, out);
}

template <class T>
void torchtune_grpo_simple(const request& c, place<T>& on, answer& out) {
  torchtune_grpo_any<T, true>(c, on, out);
}

/// A loss on log-probabilities without a ratio: the mean of −log_prob over the counted tokens.
template <class T>
void openrlhf_sft(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("per_token_logps");
  const array& mask = c.input("loss_mask");
  const auto agg = openrlhf_aggregation(c, c.flag("token_level_loss", true), mask);
  const auto d = on.out(log_prob.shape);
  const auto r = rlhf::reinforce_loss<T>(
      {.log_prob = on.in(log_prob),
       .advantage = on.in(array::filled({log_prob.rows()}, 1)),
       .coefficient = on.in(agg.coefficient({}, log_prob.columns())),
       .mask = on.mask(mask)},
      {.d_log_prob = d.view, .upstream = above<T>(agg.scale)}, {.over = agg.over});
  out.put("loss", agg.scale * r.loss);
  out.grad("per_token_logps", d.read());
}

/// Masks of NeMo-RL start at position 0 and its log-probs at position 1.
template <class T>
void nemo_nll(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("next_token_logprobs");
  const array& mask = c.input("token_mask");
  const array valid =
      mask.columns_of(1, mask.columns()) * spread(c.input("sample_mask"), mask.columns() - 1);
  const auto d = on.out(log_prob.shape);
  const auto r = rlhf::reinforce_loss<T>(
      {.log_prob = on.in(log_prob),
       .advantage = on.in(array::filled({log_prob.rows()}, 1)),
       .mask = on.mask(valid)},
      {.d_log_prob = d.view},
      {.over = aggregation::token_mean(c.number("global_valid_toks") + small_count)});
  out.put("loss", r.loss);
  out.grad("next_token_logprobs", d.read());
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("verl.agg_loss", verl_agg_loss),
    GOLDEN_ADAPTER("verl.compute_policy_loss_vanilla", verl_vanilla),
    GOLDEN_ADAPTER("verl.compute_policy_loss_gspo", verl_gspo),
    GOLDEN_ADAPTER("verl.compute_policy_loss_reinforce", verl_reinforce),
    GOLDEN_ADAPTER("openrlhf.PolicyLoss", openrlhf_policy),
    GOLDEN_ADAPTER("openrlhf.SFTLoss", openrlhf_sft),
    GOLDEN_ADAPTER("nemo_rl.NLLLossFn", nemo_nll),
    GOLDEN_ADAPTER("slime.compute_policy_loss", slime_policy),
    GOLDEN_ADAPTER("rlax.clipped_surrogate_pg_loss", rlax_clipped_surrogate),
    GOLDEN_ADAPTER("torchtune.GRPOLoss", torchtune_grpo),
    GOLDEN_ADAPTER("torchtune.GRPOSimpleLoss", torchtune_grpo_simple),
};

}  // namespace

std::span<const adapter> policy_adapters() { return adapters; }

}  // namespace golden
