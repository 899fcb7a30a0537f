#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/value/clipped_value_loss.hpp"
#include "tests/golden/peers.hpp"

namespace golden {
namespace {

using rlhf::aggregation;

struct value_inputs {
  array value, old_value, returns, mask;
  double clip;  // 0: none
};

template <class T>
rlhf::clipped_value_result value_loss(place<T>& on, const value_inputs& x,
                                      const rlhf::mask_view<>& mask, const aggregation& over,
                                      const rlhf::value_output<T>& output) {
  const auto none = rlhf::raw_view<const T, rlhf::host_space>{};
  return rlhf::clipped_value_loss<T>({.value = on.in(x.value),
                                      .old_value = x.clip > 0 ? on.in(x.old_value) : none,
                                      .returns = on.in(x.returns),
                                      .mask = mask},
                                     output, {.clip = x.clip, .over = over});
}

/// A peer's value loss under its own aggregation. Means of rows that divide by (n + 1e-8) become
/// weights of tokens.
template <class T>
double aggregated(place<T>& on, const value_inputs& x, const peer_aggregation& agg,
                  const std::string& name, answer& out) {
  const auto d = on.out(x.value.shape);
  aggregation over = agg.over;
  rlhf::mask_view<> mask = on.mask(x.mask);
  if (agg.row_factor) {
    const array share = map([](double n, double f) { return n > 0 ? f / n : 0; }, row_sums(x.mask),
                            *agg.row_factor);
    mask = on.weights(spread(share, x.mask.columns()) * x.mask);
    over = aggregation::sequence_mean_token_sum(agg.over.by());
  }
  const auto r =
      value_loss<T>(on, x, mask, over, {.d_value = d.view, .upstream = above<T>(agg.scale)});
  out.grad(name, d.read());
  return agg.scale * r.loss;
}

template <class T>
void verl_value(const request& c, place<T>& on, answer& out) {
  const value_inputs x{c.input("vpreds"), c.input("values"), c.input("returns"),
                       c.input("response_mask"), c.number("cliprange_value")};
  const auto agg =
      verl_aggregation(c.text("loss_agg_mode", "token-mean"), verl_batch_info(c), x.mask);
  out.put("loss", aggregated(on, x, agg, "vpreds", out));
  const auto plain = value_loss<T>(on, x, on.mask(x.mask), aggregation::token_sum(), {});
  out.put("vf_clipfrac", mean_with_epsilon(plain.clip_fraction));
}

template <class T>
void openrlhf_value(const request& c, place<T>& on, answer& out) {
  const value_inputs x{c.input("values"), c.input("old_values"), c.input("returns"),
                       c.input("action_mask"), c.maybe("clip_eps").value_or(0)};
  const auto agg = openrlhf_aggregation(c, c.flag("token_level_loss", true), x.mask);
  out.put("loss", aggregated(on, x, agg, "values", out));
}

template <class T>
void nemo_value(const request& c, place<T>& on, answer& out) {
  const array& sample = c.input("sample_mask");
  const array& token = c.input("token_mask");
  const value_inputs x{c.input("values"), c.input("old_values"), c.input("returns"),
                       token * spread(sample, token.columns()), c.maybe("cliprange").value_or(0)};
  const double scale = c.number("scale", 1), n = c.number("global_valid_toks") + small_count;
  const auto d = on.out(x.value.shape);
  const auto r = value_loss<T>(on, x, on.mask(x.mask), aggregation::token_mean(n),
                               {.d_value = d.view, .upstream = above<T>(scale)});
  out.put("loss", scale * r.loss);
  out.grad("values", d.read());
  out.log("loss", scale * r.loss);
  out.log("vf_clipfrac", r.clip_fraction.sum / n);
  out.log("returns_mean", r.returns.sum / n);
  out.log("values_mean", r.value.sum / n);
  out.log("values_min", r.value_min);
  out.log("values_max", r.value_max);
  out.log("returns_sq_mean", r.returns_squared.sum / n);
  out.log("residual_sq_mean", r.squared_error.sum / n);
  out.log("num_valid_samples", static_cast<double>(sample.size()));  // the peer counts all rows
}

struct ppo_inputs {
  array log_prob, old_log_prob, advantage, mask;
  double clip;
  value_inputs value;
  double value_coefficient;
  double epsilon, value_epsilon;  // what the peer adds to the counts
};

struct ppo_figures {
  rlhf::policy_result policy;
  rlhf::clipped_value_result value;
  double loss;
};

/// PPO's two losses, added.
template <class T>
ppo_figures ppo(place<T>& on, const ppo_inputs& x, const char* log_prob_name,
                const char* value_name, answer& out) {
  const auto d_log_prob = on.out(x.log_prob.shape), d_value = on.out(x.value.value.shape);
  const auto policy =
      rlhf::clipped_surrogate_loss<T>({.log_prob = on.in(x.log_prob),
                                       .old_log_prob = on.in(x.old_log_prob),
                                       .advantage = on.in(x.advantage),
                                       .mask = on.mask(x.mask)},
                                      {.d_log_prob = d_log_prob.view},
                                      {.clip_low = x.clip,
                                       .clip_high = x.clip,
                                       .over = aggregation::token_mean(sum(x.mask) + x.epsilon)});
  const auto value =
      value_loss<T>(on, x.value, on.mask(x.value.mask),
                    aggregation::token_mean(sum(x.value.mask) + x.value_epsilon),
                    {.d_value = d_value.view, .upstream = above<T>(x.value_coefficient)});
  out.grad(log_prob_name, d_log_prob.read());
  out.grad(value_name, d_value.read());
  const double loss = policy.loss + x.value_coefficient * value.loss;
  out.put("loss", loss);
  return {policy, value, loss};
}

template <class T>
void trl_ppo(const request& c, place<T>& on, answer& out) {
  const auto r =
      ppo(on,
          ppo_inputs{.log_prob = c.input("new_logprobs"),
                     .old_log_prob = c.input("old_logprobs"),
                     .advantage = c.input("advantages"),
                     .mask = complement(c.input("padding_mask")),
                     .clip = c.number("cliprange"),
                     .value = {c.input("values"), c.input("old_values"), c.input("returns"),
                               complement(c.input("padding_mask_p1")), c.number("cliprange_value")},
                     .value_coefficient = c.number("vf_coef"),
                     .epsilon = 0,
                     .value_epsilon = 0},
          "new_logprobs", "values", out);
  out.put("pg_loss", r.policy.loss);
  out.put("vf_loss", r.value.loss);
  out.put("vf_clipfrac", r.value.clip_fraction.mean());
}

/// torchtune's padding masks are 1 where a token counts. Without them its means have no epsilon,
/// and its mean ratio counts every token in any case.
template <class T>
void torchtune_ppo(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("pi_logprobs");
  const array& old = c.input("pi_old_logprobs");
  const array& value = c.input("phi_values");
  const bool masked = c.has("padding_masks"), value_masked = c.has("value_padding_masks");
  const array mask = c.input("padding_masks", ones_like(log_prob));
  const double more = masked ? small_count : 0;
  const auto r = ppo(on,
                     ppo_inputs{.log_prob = log_prob,
                                .old_log_prob = old,
                                .advantage = c.input("advantages"),
                                .mask = mask,
                                .clip = c.number("epsilon"),
                                .value = {value, c.input("phi_old_values"), c.input("returns"),
                                          c.input("value_padding_masks", ones_like(value)),
                                          c.number("value_clip_range")},
                                .value_coefficient = c.number("value_coeff"),
                                .epsilon = more,
                                .value_epsilon = value_masked ? small_count : 0},
                     "pi_logprobs", "phi_values", out);
  out.put("policy_loss", r.policy.loss);
  out.put("value_loss", r.value.loss);
  out.put("clipfrac", r.policy.clip_fraction.sum / (r.policy.clip_fraction.count + more));
  const auto all = rlhf::clipped_surrogate_loss<T>({.log_prob = on.in(log_prob),
                                                    .old_log_prob = on.in(old),
                                                    .advantage = on.in(c.input("advantages"))},
                                                   {}, {.over = aggregation::token_sum()});
  out.put("ratios", all.ratio.mean());
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("verl.compute_value_loss", verl_value),
    GOLDEN_ADAPTER("openrlhf.ValueLoss", openrlhf_value),
    GOLDEN_ADAPTER("nemo_rl.MseValueLossFn", nemo_value),
    GOLDEN_ADAPTER("trl.ppo_loss", trl_ppo),
    GOLDEN_ADAPTER("torchtune.PPOLoss", torchtune_ppo),
};

}  // namespace

std::span<const adapter> value_adapters() { return adapters; }

}  // namespace golden
