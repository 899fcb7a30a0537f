#include "rlhf/advantage/discounted_returns.hpp"
#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/advantage/leave_one_out_advantage.hpp"
#include "rlhf/backend/host.hpp"
#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "tests/golden/whitening.hpp"

namespace golden {
namespace {

using rlhf::group_scale;
using rlhf::single_group;

/// Small ids in order of first appearance, from one prompt (a row of numbers) per sample.
array group_ids(const array& prompts) {
  std::map<std::vector<double>, double> seen;
  const index step = prompts.size() / prompts.rows();
  array ids = array::filled({prompts.rows()}, 0);
  for (index i = 0; i < prompts.rows(); ++i) {
    const auto at = prompts.data.begin() + i * step;
    ids[i] = seen.emplace(std::vector<double>(at, at + step), static_cast<double>(seen.size()))
                 .first->second;
  }
  return ids;
}

array consecutive(index samples, double group_size) {
  array ids = array::filled({samples}, 0);
  for (index i = 0; i < samples; ++i) ids[i] = std::floor(static_cast<double>(i) / group_size);
  return ids;
}

/// Scorable samples of each sample's group.
array group_counts(const array& reward, const array& ids) {
  array n = zeros_like(reward);
  for (index i = 0; i < ids.size(); ++i)
    for (index j = 0; j < ids.size(); ++j)
      if (ids[i] == ids[j] && !std::isnan(reward[j])) n[i] += 1;
  return n;
}

/// Peers divide the rounding of an all-equal group by their epsilon; the library gives exactly 0.
double equal_group_noise(const array& reward, double epsilon) {
  return std::max(1e-8, 1e-15 * largest(reward) / epsilon);
}

struct group_answer {
  array advantage, baseline, deviation;
};

template <class T>
group_answer group_relative(place<T>& on, answer& out, const array& reward, const array& ids,
                            const rlhf::group_relative_advantage_config& config) {
  const auto advantage = on.out(reward.shape), baseline = on.out(reward.shape),
             deviation = on.out(reward.shape);
  rlhf::group_relative_advantage<T>(
      {.reward = on.in(reward), .group_id = on.integers(ids)},
      {.advantage = advantage.view, .baseline = baseline.view, .deviation = deviation.view},
      config);
  group_answer r{advantage.read(), baseline.read(), deviation.read()};
  double least = 1;
  if (config.scale != group_scale::none)
    for (const double s : r.deviation.data)
      if (s > 0) least = std::min(least, s);
  out.magnitude(largest(reward) / least);
  return r;
}

template <class T>
array leave_one_out(place<T>& on, answer& out, const array& reward, double group_size,
                    single_group single) {
  out.magnitude(largest(reward));
  const auto advantage = on.out(reward.shape);
  rlhf::leave_one_out_advantage<T>(
      {.reward = on.in(reward)}, {.advantage = advantage.view},
      {.group_size = rlhf::group_size{static_cast<index>(group_size)}, .single = single});
  return advantage.read();
}

/// verl adds up all columns of the rewards, masked or not, and spreads a score over the counted
/// tokens.
struct outcome {
  array score, ids, mask;
};

outcome read_outcome(const request& c) {
  c.ignore({"mask_kind", "group_kind"});
  return {row_sums(c.input("token_level_rewards")), group_ids(c.input("index")),
          c.input("response_mask")};
}

void put_outcome(const outcome& o, const array& advantage, answer& out) {
  const array tokens = spread(advantage, o.mask.columns()) * o.mask;
  out.put("advantages", tokens);
  out.put("returns", tokens);
}

/// A group of one keeps its raw score, over 1 + epsilon where others are normalised.
template <class T>
void verl_grpo(const request& c, place<T>& on, answer& out) {
  const auto o = read_outcome(c);
  const bool normalise = c.flag("norm_adv_by_std_in_grpo", true);
  const double epsilon = c.number("epsilon", 1e-6);
  const auto r = group_relative(on, out, o.score, o.ids,
                                {.scale = normalise ? group_scale::group_std : group_scale::none,
                                 .epsilon = epsilon,
                                 .single = single_group::raw});
  const array advantage =
      map([&](double a, double n) { return n == 1 && normalise ? a / (1 + epsilon) : a; },
          r.advantage, group_counts(o.score, o.ids));
  out.loosen(0, equal_group_noise(o.score, epsilon));
  put_outcome(o, advantage, out);
}

template <class T>
void verl_rloo_any(const request& c, place<T>& on, answer& out, single_group single) {
  const auto o = read_outcome(c);
  const auto advantage = on.out(o.score.shape);
  rlhf::leave_one_out_advantage<T>({.reward = on.in(o.score), .group_id = on.integers(o.ids)},
                                   {.advantage = advantage.view}, {.single = single});
  put_outcome(o, advantage.read(), out);
}

template <class T>
void verl_rloo(const request& c, place<T>& on, answer& out) {
  verl_rloo_any(c, on, out, single_group::raw);
}
template <class T>
void verl_rloo_vectorized(const request& c, place<T>& on, answer& out) {
  verl_rloo_any(c, on, out, single_group::zero);
}

/// REINFORCE++ with a baseline: the centred score in every token, whitened over all of them.
template <class T>
void verl_reinforce_baseline(const request& c, place<T>& on, answer& out) {
  const auto o = read_outcome(c);
  const auto r = group_relative(on, out, o.score, o.ids,
                                {.scale = group_scale::none, .single = single_group::raw});
  const array tokens = spread(r.advantage, o.mask.columns()) * o.mask;
  const array white = kept(whitened(on, out, tokens, o.mask, whitening::verl), o.mask);
  out.loosen(0, equal_group_noise(o.score, 1e-4));
  out.put("advantages", white);
  out.put("returns", white);
}

/// Weighted sum over reward functions; NaN is a function that does not apply, and a sample to which
/// none does has no score.
array weighted_rewards(const array& per_function, const array& weight) {
  array r = array::filled({per_function.rows()}, 0);
  for (index i = 0; i < per_function.rows(); ++i) {
    bool scored = false;
    for (index k = 0; k < per_function.columns(); ++k) {
      if (std::isnan(per_function(i, k))) continue;
      r[i] += weight[k] * per_function(i, k);
      scored = true;
    }
    if (!scored) r[i] = nan;
  }
  return r;
}

/// Bessel's deviation of each sample's group, in every sample; NaN for fewer than two scores.
template <class T>
array deviations(place<T>& on, answer& out, const array& reward, const array& ids) {
  const array own = group_relative(on, out, reward, ids, {}).deviation;
  const array n = group_counts(reward, ids);
  array all = own;
  for (index i = 0; i < ids.size(); ++i)
    for (index j = 0; j < ids.size(); ++j)
      if (ids[i] == ids[j] && !std::isnan(reward[j])) all[i] = own[j];
  for (index i = 0; i < ids.size(); ++i)
    if (n[i] < 2) all[i] = nan;
  return all;
}

template <class T>
void trl_grpo_advantages(const request& c, place<T>& on, answer& out) {
  const array& per_function = c.input("rewards_per_func");
  const array& weight = c.input("reward_weights");
  const double size = c.number("num_generations");
  const auto scale = c.text("scale_rewards", "group");
  const auto order = c.text("multi_objective_aggregation", "sum_then_normalize");
  if (scale != "group" && scale != "batch" && scale != "none")
    unknown_value("scale_rewards", scale);
  if (order != "sum_then_normalize" && order != "normalize_then_sum")
    unknown_value("multi_objective_aggregation", order);
  const index samples = per_function.rows();
  const array ids = consecutive(samples, size), whole = array::filled({samples}, 0);
  const double epsilon = 1e-4;
  out.loosen(0, equal_group_noise(per_function, epsilon));

  array reward, advantage, deviation;
  if (order == "sum_then_normalize") {
    reward = weighted_rewards(per_function, weight);
    const auto by = scale == "group"   ? group_scale::group_std
                    : scale == "batch" ? group_scale::batch_std
                                       : group_scale::none;
    const auto a = on.out({samples});
    rlhf::group_relative_advantage<T>({.reward = on.in(reward)}, {.advantage = a.view},
                                      {.group_size = rlhf::group_size{static_cast<index>(size)},
                                       .scale = by,
                                       .epsilon = epsilon});
    advantage = a.read();
    deviation = deviations(on, out, reward, scale == "batch" ? whole : ids);
  } else {
    array normal = per_function;
    for (index k = 0; k < per_function.columns(); ++k) {
      const array column = per_function.columns_of(k, k + 1).reshaped({samples});
      const array a = group_relative(on, out, column, ids, {.epsilon = epsilon}).advantage;
      for (index i = 0; i < samples; ++i) normal(i, k) = std::isnan(column[i]) ? nan : a[i];
    }
    reward = weighted_rewards(normal, weight);
    advantage = group_relative(on, out, reward, whole, {.epsilon = epsilon}).advantage;
    deviation = deviations(on, out, reward, whole);
  }
  out.put("advantages", advantage);
  out.put("rewards", reward);
  out.put("std_rewards", deviation);
}

template <class T>
void trl_rloo_advantages(const request& c, place<T>& on, answer& out) {
  const array& old = c.input("old_per_token_logps");
  const array& mask = c.input("completion_mask");
  array reward = weighted_rewards(c.input("rewards_per_func"), c.input("reward_weights"));
  if (c.given("reward_clip_range")) {
    const auto range = c.numbers("reward_clip_range", {});
    reward =
        map([&](double x) { return std::isnan(x) ? x : std::clamp(x, range.at(0), range.at(1)); },
            reward);
  }
  const double beta = c.number("beta", 0);
  c.ignore({"ref_per_token_logps"});
  if (beta != 0) {
    const auto to = on.out(old.shape);
    rlhf::kl_penalty<T>({.log_prob = on.in(old),
                         .ref_log_prob = on.in(c.input("ref_per_token_logps")),
                         .mask = on.mask(mask)},
                        {.reward = to.view}, {.coefficient = beta});
    reward = reward + row_sums(to.read());
  }
  array advantage = leave_one_out(on, out, reward, c.number("num_generations"), single_group::raw);
  if (c.flag("normalize_advantages", false)) {
    for (index i = 0; i < reward.size(); ++i)
      if (std::isnan(reward[i])) advantage[i] = nan;
    const array whole = zeros_like(reward);
    advantage = group_relative(on, out, advantage, whole, {.epsilon = 1e-4}).advantage;
  }
  out.loosen(0, equal_group_noise(reward, 1e-4));
  out.put("rewards", reward);
  out.put("advantages", advantage);
}

/// Invalid rows are outside the statistics. Fewer than two valid ones: each row is its own
/// baseline.
template <class T>
void nemo_baseline(const request& c, place<T>& on, answer& out) {
  const array& valid = c.input("valid_mask");
  const array& own = c.input("rewards");
  const array ids = group_ids(c.input("prompts"));
  const array reward = map([](double r, double v) { return v != 0 ? r : nan; }, own, valid);
  const auto r = group_relative(
      on, out, reward, ids,
      {.statistics = c.flag("leave_one_out_baseline", true) ? rlhf::group_statistics::leave_one_out
                                                            : rlhf::group_statistics::all});
  const array n = group_counts(reward, ids);
  array baseline = r.baseline, deviation = r.deviation;
  for (index i = 0; i < own.size(); ++i) {
    if (n[i] < 2) {
      baseline[i] = own[i];
      deviation[i] = 0;
      continue;
    }
    for (index j = 0; valid[i] == 0 && j < own.size(); ++j)
      if (ids[i] == ids[j] && valid[j] != 0)
        baseline[i] = r.baseline[j], deviation[i] = r.deviation[j];
  }
  out.put("baseline", baseline);
  // E[x²] − E[x]² leaves the square root of a rounding where all others agree.
  out.put("std", deviation).atol = 1e-7;
}

template <class T>
void nemo_grpo(const request& c, place<T>& on, answer& out) {
  const array& reward = c.input("rewards");
  const array& mask = c.input("mask");
  const auto r = group_relative(
      on, out, reward, group_ids(c.input("prompt_ids")),
      {.scale = c.flag("normalize_rewards", true) ? group_scale::group_std : group_scale::none,
       .statistics = c.flag("use_leave_one_out_baseline", true)
                         ? rlhf::group_statistics::leave_one_out
                         : rlhf::group_statistics::all});
  out.loosen(0, equal_group_noise(reward, 1e-6));
  out.put("advantages", spread(r.advantage, mask.columns()));
}

/// NeMo-RL takes the same token's KL from the score that stands in every token, then whitens.
template <class T>
void nemo_reinforce(const request& c, place<T>& on, answer& out) {
  const array& mask = c.input("mask");
  array score = c.input("rewards");
  const array ids = group_ids(c.input("prompt_ids"));
  if (c.flag("minus_baseline", true))
    score = group_relative(on, out, score, ids, {.scale = group_scale::none}).advantage;
  array advantage = spread(score, mask.columns());
  const double coefficient = c.number("reference_policy_kl_penalty", 0);
  const auto type = c.text("reference_policy_kl_type", "k3");
  if (type != "k1" && type != "k2" && type != "k3") unknown_value("reference_policy_kl_type", type);
  c.ignore({"logprobs_policy", "logprobs_reference"});
  if (c.flag("use_kl_in_reward", false)) {
    const auto kl = on.out(mask.shape);
    rlhf::kl_estimate<T>({.log_prob = on.in(c.input("logprobs_policy")),
                          .ref_log_prob = on.in(c.input("logprobs_reference"))},
                         {.kl = kl.view},
                         {.estimator = type == "k1"   ? rlhf::kl_estimator::k1
                                       : type == "k2" ? rlhf::kl_estimator::k2
                                                      : rlhf::kl_estimator::k3,
                          .input_clamp = 20,
                          .output_clamp = 10,
                          .over = rlhf::aggregation::none()});
    advantage = advantage - kl.read() * coefficient;
  }
  out.loosen(0, equal_group_noise(score, 1e-4));
  out.put("advantages", whitened_above_floor(on, out, advantage, mask));
}

template <class T>
void nemo_raw(const request& c, place<T>& on, answer& out) {
  const array& mask = c.input("mask");
  c.ignore({"prompt_ids"});
  array advantage = spread(c.input("rewards"), mask.columns());
  if (c.flag("normalize_advantages", true))
    advantage = whitened_above_floor(on, out, advantage, mask);
  out.loosen(0, equal_group_noise(c.input("rewards"), 1e-4));
  out.put("advantages", advantage);
}

/// OpenRLHF's whole step: score against its group, cut at ±10, per-token KL, returns, whitening.
/// Outside the mask its whitening leaves numbers where the library has 0.
template <class T>
void openrlhf_advantages(const request& c, place<T>& on, answer& out) {
  const auto estimator = c.text("estimator", "gae");
  const array& mask = c.input("action_mask");
  const double size = c.number("n_samples_per_prompt"), lambda = c.number("lambd");
  const bool centred = estimator == "reinforce_baseline" || estimator == "dr_grpo";
  const bool grouped = centred || estimator == "rloo" || estimator == "group_norm";
  if (!grouped && estimator != "gae" && estimator != "reinforce")
    unknown_value("estimator", estimator);
  array score = c.input("rewards");
  const array ids = consecutive(score.size(), size);
  out.loosen(0, equal_group_noise(score, estimator == "group_norm" ? 1e-9 : 1e-4));
  if (estimator == "rloo")
    score = leave_one_out(on, out, score, size, single_group::raw);
  else if (centred)
    score = group_relative(on, out, score, ids, {.scale = group_scale::none}).advantage;
  else if (estimator == "group_norm")
    score = group_relative(on, out, score, ids, {.epsilon = 1e-9}).advantage;
  score = map([](double x) { return std::clamp(x, -10.0, 10.0); }, score);

  const auto to = on.out(mask.shape);
  rlhf::kl_penalty<T>({.log_prob = on.in(c.input("kl")),
                       .ref_log_prob = on.in(zeros_like(mask)),
                       .score = on.in(score),
                       .mask = on.mask(mask)},
                      {.reward = to.view}, {.coefficient = std::max(c.number("kl_coef", 0), 0.0)});
  const array reward = to.read();
  c.ignore({"values"});
  const double gamma = grouped ? (c.number("gamma"), 1.0) : c.number("gamma");
  const auto advantage = on.out(mask.shape), returns = on.out(mask.shape);
  if (estimator == "gae")
    rlhf::generalized_advantage_estimation<T>(
        {.reward = on.in(reward), .value = on.in(c.input("values")), .mask = on.mask(mask)},
        {.advantage = advantage.view, .returns = returns.view},
        {.gamma = gamma, .lambda = lambda, .holes = rlhf::hole_mode::zero});
  else
    rlhf::discounted_returns<T>({.reward = on.in(reward), .mask = on.mask(mask)},
                                {.returns = returns.view},
                                {.gamma = gamma, .holes = rlhf::hole_mode::zero});
  array a = estimator == "gae" ? advantage.read() : returns.read();
  const bool unscaled = c.flag("no_std_norm", false);
  if (estimator == "gae" || estimator == "reinforce" || estimator == "reinforce_baseline") {
    const double mean = peer_moments(on, a, mask, whitening::exact).mean;
    a = unscaled ? map([mean](double x) { return x - mean; }, a)
                 : whitened_above_floor(on, out, a, mask);
  }
  out.put("advantages", a).where = mask;
  out.put("returns", returns.read()).where = mask;
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("verl.compute_grpo_outcome_advantage", verl_grpo),
    GOLDEN_ADAPTER("verl.compute_grpo_vectorized_outcome_advantage", verl_grpo),
    GOLDEN_ADAPTER("verl.compute_rloo_outcome_advantage", verl_rloo),
    GOLDEN_ADAPTER("verl.compute_rloo_vectorized_outcome_advantage", verl_rloo_vectorized),
    GOLDEN_ADAPTER("verl.compute_reinforce_plus_plus_baseline_outcome_advantage",
                   verl_reinforce_baseline),
    GOLDEN_ADAPTER("trl.grpo_advantages", trl_grpo_advantages),
    GOLDEN_ADAPTER("trl.rloo_advantages", trl_rloo_advantages),
    GOLDEN_ADAPTER("nemo_rl.calculate_baseline_and_std_per_prompt", nemo_baseline),
    GOLDEN_ADAPTER("nemo_rl.GRPOAdvantageEstimator", nemo_grpo),
    GOLDEN_ADAPTER("nemo_rl.ReinforcePlusPlusAdvantageEstimator", nemo_reinforce),
    GOLDEN_ADAPTER("nemo_rl.RawRewardAdvantageEstimator", nemo_raw),
    GOLDEN_ADAPTER("openrlhf.compute_advantages_and_returns", openrlhf_advantages),
};

}  // namespace

std::span<const adapter> group_adapters() { return adapters; }

}  // namespace golden
