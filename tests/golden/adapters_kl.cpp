#include "rlhf/backend/host.hpp"
#include "rlhf/kl/adaptive_kl_controller.hpp"
#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "tests/golden/peers.hpp"

namespace golden {
namespace {

using rlhf::aggregation;
using rlhf::kl_estimator;
using rlhf::kl_weighting;

kl_estimator estimator_of(const std::string& name, const char* param) {
  if (name == "kl" || name == "k1") return kl_estimator::k1;
  if (name == "mse" || name == "k2") return kl_estimator::k2;
  if (name == "k3" || name == "low_var_kl") return kl_estimator::k3;
  if (name == "abs") return kl_estimator::absolute;
  unknown_value(param, name);
}

/// Estimates per token and their slopes. A weight multiplies the estimate before a clamp of the
/// peer's cuts the product; the weight's own slope is the estimate.
struct kl_question {
  array log_prob, ref_log_prob, cotangent;
  kl_estimator estimator;
  kl_weighting weighting = kl_weighting::plain;
  double input_clamp = 0, output_clamp = 0;
  std::optional<array> weight = std::nullopt;
};

struct kl_reply {
  array kl, d_log_prob, d_weight;
};

template <class T>
kl_reply estimate(place<T>& on, const kl_question& q) {
  const auto kl = on.out(q.log_prob.shape), d = on.out(q.log_prob.shape);
  const auto run = [&](const rlhf::kl_estimate_output<T>& output) {
    rlhf::kl_estimate<T>({.log_prob = on.in(q.log_prob), .ref_log_prob = on.in(q.ref_log_prob)},
                         output,
                         {.estimator = q.estimator,
                          .weighting = q.weighting,
                          .input_clamp = q.input_clamp,
                          .output_clamp = q.weight ? 0 : q.output_clamp,
                          .over = aggregation::none()});
  };
  if (!q.weight) {
    run({.kl = kl.view, .d_log_prob = d.view, .upstream = on.in(q.cotangent)});
    return {kl.read(), d.read(), {}};
  }
  run({.kl = kl.view});
  const double most = q.output_clamp > 0 ? q.output_clamp : infinity;
  const array plain = kl.read(), weighted = plain * *q.weight;
  const array passed = map([most](double v, double c) { return std::abs(v) <= most ? c : 0; },
                           weighted, q.cotangent);
  run({.d_log_prob = d.view, .upstream = on.in(passed * *q.weight)});
  return {map([most](double v) { return std::clamp(v, -most, most); }, weighted), d.read(),
          passed * plain};
}

template <class T>
void verl_kl_penalty(const request& c, place<T>& on, answer& out) {
  std::string name = c.text("kl_penalty", "");
  const bool straight = name.ends_with('+');
  if (straight) name.pop_back();
  const auto estimator = estimator_of(name, "kl_penalty");
  const bool clamped = estimator == kl_estimator::k3;
  const auto r =
      estimate(on, {.log_prob = c.input("logprob"),
                    .ref_log_prob = c.input("ref_logprob"),
                    .cotangent = c.cotangent("kl"),
                    .estimator = estimator,
                    .weighting = straight ? kl_weighting::straight_through : kl_weighting::plain,
                    .input_clamp = clamped ? 20.0 : 0.0,
                    .output_clamp = clamped ? 10.0 : 0.0});
  out.put("kl", r.kl);
  out.grad("logprob", r.d_log_prob);
}

template <class T>
void openrlhf_approx_kl(const request& c, place<T>& on, answer& out) {
  const auto r =
      estimate(on, {.log_prob = c.input("log_probs"),
                    .ref_log_prob = c.input("log_probs_base"),
                    .cotangent = c.cotangent("kl"),
                    .estimator = estimator_of(c.text("kl_estimator", "k1"), "kl_estimator"),
                    .output_clamp = 10});
  out.put("kl", r.kl);
  out.grad("log_probs", r.d_log_prob);
}

std::optional<array> optional_input(const request& c, const char* name) {
  if (!c.has(name)) return std::nullopt;
  return c.input(name);
}

template <class T>
void slime_approx_kl(const request& c, place<T>& on, answer& out) {
  const auto type = c.text("kl_loss_type", "");
  const auto r = estimate(on, {.log_prob = c.input("log_probs"),
                               .ref_log_prob = c.input("log_probs_base"),
                               .cotangent = c.cotangent("kl"),
                               .estimator = estimator_of(type, "kl_loss_type"),
                               .output_clamp = type == "low_var_kl" ? 10.0 : 0.0,
                               .weight = optional_input(c, "importance_ratio")});
  out.put("kl", r.kl);
  out.grad("log_probs", r.d_log_prob);
}

template <class T>
void nemo_kl(const request& c, place<T>& on, answer& out) {
  const auto r = estimate(on, {.log_prob = c.input("logprobs"),
                               .ref_log_prob = c.input("logprobs_reference"),
                               .cotangent = c.cotangent("kl"),
                               .estimator = estimator_of(c.text("kl_type", "k3"), "kl_type"),
                               .input_clamp = c.maybe("input_clamp_value", 20.0).value_or(0),
                               .output_clamp = c.maybe("output_clamp_value", 10.0).value_or(0),
                               .weight = optional_input(c, "importance_sampling_weights")});
  out.put("kl", r.kl);
  out.grad("logprobs", r.d_log_prob);
  if (!r.d_weight.shape.empty()) out.grad("importance_sampling_weights", r.d_weight);
}

/// Ragged rows one after the other; the mean of old − new of each, in each of its tokens.
template <class T>
void slime_gspo_kl(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("log_probs");
  const array cotangent = c.cotangent("ppo_kl");
  array kl = log_prob, d = log_prob;
  index first = 0;
  for (const double length : c.numbers("lengths", {})) {
    const index last = first + static_cast<index>(length);
    const auto row = [&](const array& a) {
      return a.rows_of(first, last).reshaped({1, last - first});
    };
    const auto slope = on.out({1, last - first});
    const auto r = rlhf::kl_estimate<T>(
        {.log_prob = on.in(row(log_prob)),
         .ref_log_prob = on.in(row(c.input("old_log_probs"))),
         .mask = on.mask(row(c.input("loss_masks")))},
        {.d_log_prob = slope.view, .upstream = above<T>(-sum(row(cotangent)))},
        {.estimator = kl_estimator::k1, .over = aggregation::token_mean(rlhf::local)});
    const array written = slope.read();
    for (index j = first; j < last; ++j) {
      kl[j] = -r.loss;
      d[j] = written[j - first];
    }
    first = last;
  }
  out.put("ppo_kl", kl);
  out.grad("log_probs", d);
}

/// The KL of each token is given; it is paid at masked tokens as well. A row without a token has
/// its score in the last column.
template <class T>
void openrlhf_reward(const request& c, place<T>& on, answer& out) {
  const array& kl = c.input("kl");
  const array& mask = c.input("action_mask");
  array score = c.input("r");
  if (c.given("reward_clip_range")) {
    const auto range = c.numbers("reward_clip_range", {});
    score = map([&](double x) { return std::clamp(x, range.at(0), range.at(1)); }, score);
  }
  const double coefficient = std::max(c.number("kl_coef", 0), 0.0);
  const auto counted = on.out(kl.shape), everywhere = on.out(kl.shape);
  const rlhf::kl_penalty_config config{.coefficient = coefficient};
  rlhf::kl_penalty<T>({.log_prob = on.in(kl),
                       .ref_log_prob = on.in(zeros_like(kl)),
                       .score = on.in(score),
                       .mask = on.mask(mask)},
                      {.reward = counted.view}, config);
  rlhf::kl_penalty<T>({.log_prob = on.in(kl), .ref_log_prob = on.in(zeros_like(kl))},
                      {.reward = everywhere.view}, config);
  array reward = counted.read();
  const array paid = everywhere.read(), n = row_sums(mask);
  for (index i = 0; i < reward.size(); ++i)
    if (mask[i] == 0) reward[i] += paid[i];
  for (index i = 0; i < reward.rows(); ++i)
    if (n[i] == 0) reward(i, reward.columns() - 1) += score[i];
  out.put("reward", reward);
}

template <class T>
void verl_rewards(const request& c, place<T>& on, answer& out) {
  const array& score = c.input("token_level_scores");
  const auto reward = on.out(score.shape);
  rlhf::kl_penalty<T>({.log_prob = on.in(c.input("old_log_prob")),
                       .ref_log_prob = on.in(c.input("ref_log_prob")),
                       .score = on.in(score)},
                      {.reward = reward.view}, {.coefficient = c.number("kl_ratio")});
  out.put("rewards", reward.read());
}

template <class T>
void torchtune_rewards(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("logprobs");
  const double coefficient = c.number("kl_coeff");
  const bool placed = c.has("valid_score_idxs");
  const auto reward = on.out(log_prob.shape), kl = on.out(log_prob.shape);
  rlhf::kl_penalty<T>(
      {.log_prob = on.in(log_prob),
       .ref_log_prob = on.in(c.input("ref_logprobs")),
       .score = on.in(c.input("scores")),
       .score_index = placed ? on.integers(c.input("valid_score_idxs")) : rlhf::index_view<>{}},
      {.reward = reward.view, .kl = kl.view},
      {.coefficient = coefficient,
       .score_at = placed ? rlhf::score_position::by_index : rlhf::score_position::last_column});
  out.put("total_reward", reward.read());
  out.put("kl", kl.read());
  out.put("kl_reward", kl.read() * -coefficient);
}

void adapt(const request& c, const char* target, const char* measured, answer& out) {
  rlhf::adaptive_kl_controller controller({.coefficient = c.number("init_kl_coef"),
                                           .target = c.number(target),
                                           .horizon = c.number("horizon")});
  const double steps = c.number("n_steps");
  const array after = map(
      [&](double kl) {
        controller.update(kl, steps);
        return controller.coefficient();
      },
      c.input(measured));
  out.put("value_after_each_update", after);
}

template <class T>
void verl_controller(const request& c, place<T>&, answer& out) {
  adapt(c, "target_kl", "current_kl", out);
}
template <class T>
void openrlhf_controller(const request& c, place<T>&, answer& out) {
  adapt(c, "target", "current", out);
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("verl.kl_penalty", verl_kl_penalty),
    GOLDEN_ADAPTER("openrlhf.compute_approx_kl", openrlhf_approx_kl),
    GOLDEN_ADAPTER("slime.compute_approx_kl", slime_approx_kl),
    GOLDEN_ADAPTER("nemo_rl.calculate_kl", nemo_kl),
    GOLDEN_ADAPTER("slime.compute_gspo_kl", slime_gspo_kl),
    GOLDEN_ADAPTER("openrlhf.compute_reward", openrlhf_reward),
    GOLDEN_ADAPTER("verl.compute_rewards", verl_rewards),
    GOLDEN_ADAPTER("torchtune.get_rewards_ppo", torchtune_rewards),
    GOLDEN_ADAPTER("verl.AdaptiveKLController", verl_controller),
    GOLDEN_ADAPTER("openrlhf.AdaptiveKLController", openrlhf_controller),
};

}  // namespace

std::span<const adapter> kl_adapters() { return adapters; }

}  // namespace golden
