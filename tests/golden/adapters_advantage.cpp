#include "rlhf/advantage/discounted_returns.hpp"
#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/backend/host.hpp"
#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "tests/golden/whitening.hpp"

namespace golden {
namespace {

using rlhf::hole_mode;

struct advantages {
  array advantage, returns;
};

template <class T>
advantages gae(place<T>& on, answer& out, const array& reward, const array& value,
               const std::optional<array>& mask,
               const rlhf::generalized_advantage_estimation_config& config) {
  out.magnitude(std::max(largest(reward), largest(value)));
  const auto advantage = on.out(reward.shape), returns = on.out(reward.shape);
  rlhf::generalized_advantage_estimation<T>({.reward = on.in(reward),
                                             .value = on.in(value),
                                             .mask = mask ? on.mask(*mask) : rlhf::mask_view<>{}},
                                            {.advantage = advantage.view, .returns = returns.view},
                                            config);
  return {advantage.read(), returns.read()};
}

template <class T>
array returns_to_go(place<T>& on, answer& out, const array& reward, double gamma,
                    const std::optional<array>& mask = std::nullopt,
                    hole_mode holes = hole_mode::skip) {
  out.magnitude(largest(reward));
  const auto returns = on.out(reward.shape);
  rlhf::discounted_returns<T>(
      {.reward = on.in(reward), .mask = mask ? on.mask(*mask) : rlhf::mask_view<>{}},
      {.returns = returns.view}, {.gamma = gamma, .holes = holes});
  return returns.read();
}

/// The score of each row on its last counted token.
template <class T>
array placed(place<T>& on, const array& score, const array& mask) {
  const auto reward = on.out(mask.shape);
  rlhf::kl_penalty<T>({.log_prob = on.in(zeros_like(mask)),
                       .ref_log_prob = on.in(zeros_like(mask)),
                       .score = on.in(score),
                       .mask = on.mask(mask)},
                      {.reward = reward.view}, {.coefficient = 0});
  return reward.read();
}

/// verl carries values over holes into masked slots, where the library writes 0: they are compared
/// where tokens count, and so are the returns.
template <class T>
void verl_gae(const request& c, place<T>& on, answer& out) {
  const array& mask = c.input("response_mask");
  c.ignore({"mask_kind"});
  const auto r = gae(on, out, c.input("token_level_rewards"), c.input("values"), mask,
                     {.gamma = c.number("gamma"), .lambda = c.number("lam")});
  out.put("returns", r.returns).where = mask;
  out.put("advantages", whitened(on, out, r.advantage, mask, whitening::verl)).where = mask;
}

template <class T>
void openrlhf_gae(const request& c, place<T>& on, answer& out) {
  const array& mask = c.input("action_mask");
  const auto r =
      gae(on, out, c.input("rewards"), c.input("values"), mask,
          {.gamma = c.number("gamma"), .lambda = c.number("lambd"), .holes = hole_mode::zero});
  out.put("advantages", r.advantage).where = mask;
  out.put("returns", r.returns).where = mask;
}

template <class T>
void openrlhf_returns(const request& c, place<T>& on, answer& out) {
  const array& mask = c.input("action_mask");
  out.put("returns",
          returns_to_go(on, out, c.input("rewards"), c.number("gamma"), mask, hole_mode::zero))
      .where = mask;
}

template <class T>
void slime_gae(const request& c, place<T>& on, answer& out) {
  c.ignore({"chunk_size"});
  const auto r = gae(on, out, c.input("rewards"), c.input("values"), {},
                     {.gamma = c.number("gamma"), .lambda = c.number("lambd")});
  out.put("advantages", r.advantage);
  out.put("returns", r.returns);
}

template <class T>
void slime_returns(const request& c, place<T>& on, answer& out) {
  c.ignore({"chunk_size"});
  out.put("returns", returns_to_go(on, out, c.input("rewards"), c.number("discount")));
}

/// Ragged rows one after the other; every column is a step, and the score is on the last counted
/// one.
template <class T>
void slime_reinforce_returns(const request& c, place<T>& on, answer& out) {
  const array& kl = c.input("kl");
  const double coefficient = c.number("kl_coef");
  array returns = kl;
  index first = 0, i = 0;
  for (const double length : c.numbers("lengths", {})) {
    const index last = first + static_cast<index>(length);
    const auto row = [&](const array& a) {
      return a.rows_of(first, last).reshaped({1, last - first});
    };
    const auto reward = on.out({1, last - first});
    rlhf::kl_penalty<T>({.log_prob = on.in(row(kl)),
                         .ref_log_prob = on.in(array::filled({1, last - first}, 0)),
                         .score = on.in(c.input("rewards").rows_of(i, i + 1)),
                         .mask = on.mask(row(c.input("loss_masks")))},
                        {.reward = reward.view}, {.coefficient = coefficient});
    const array g = returns_to_go(on, out, reward.read(), c.number("gamma"));
    for (index j = first; j < last; ++j) returns[j] = g[j - first];
    first = last;
    ++i;
  }
  out.put("returns", returns);
}

/// The score in every token, less the token's own KL.
template <class T>
void slime_reinforce_baseline(const request& c, place<T>& on, answer& out) {
  const array& kl = c.input("kl");
  array score = kl;
  index first = 0, i = 0;
  for (const double length : c.numbers("lengths", {})) {
    const index last = first + static_cast<index>(length);
    for (index j = first; j < last; ++j) score[j] = c.input("rewards")[i];
    first = last;
    ++i;
  }
  const index n = kl.size();
  const auto reward = on.out({1, n});
  rlhf::kl_penalty<T>({.log_prob = on.in(kl.reshaped({1, n})),
                       .ref_log_prob = on.in(array::filled({1, n}, 0)),
                       .score = on.in(score.reshaped({1, n}))},
                      {.reward = reward.view}, {.coefficient = c.number("kl_coef")});
  out.put("advantages", reward.read());
}

/// torchrl's tensors end in an extent of 1. Its vectorised forms cut their series at 1e-7.
array without_last(const array& a) { return a.reshaped({a.shape[0], a.shape[1]}); }

template <class T>
void torchrl_gae(const request& c, place<T>& on, answer& out) {
  c.ignore({"done_kind"});
  const array done = without_last(c.input("done"));
  const array terminated = without_last(c.input("terminated"));
  const array truncated =
      map([](double d, double t) { return d != 0 && t == 0 ? 1.0 : 0.0; }, done, terminated);
  const auto advantage = on.out(done.shape), returns = on.out(done.shape);
  out.magnitude(std::max(largest(c.input("reward")), largest(c.input("next_state_value"))));
  rlhf::generalized_advantage_estimation<T>(
      {.reward = on.in(without_last(c.input("reward"))),
       .value = on.in(without_last(c.input("state_value"))),
       .next_value = on.in(without_last(c.input("next_state_value"))),
       .terminated = on.mask(terminated),
       .truncated = on.mask(truncated)},
      {.advantage = advantage.view, .returns = returns.view},
      {.gamma = c.number("gamma"), .lambda = c.number("lmbda")});
  if (c.function().find("vec_") != std::string::npos) out.loosen(1e-5, 1e-5);
  out.put("advantage", advantage.read());
  out.put("value_target", returns.read());
}

template <class T>
void torchrl_reward_to_go(const request& c, place<T>& on, answer& out) {
  c.ignore({"done_kind", "lmbda"});
  const array reward = without_last(c.input("reward"));
  const auto returns = on.out(reward.shape);
  rlhf::discounted_returns<T>(
      {.reward = on.in(reward), .terminated = on.mask(without_last(c.input("done")))},
      {.returns = returns.view}, {.gamma = c.number("gamma")});
  out.loosen(1e-5, 1e-5);
  out.put("returns", returns.read());
}

/// Lambda returns are generalised advantages plus the value they start from, and that cancels: the
/// value of a step is the next value of the step before, whatever it is at the first.
template <class T>
array lambda_returns(place<T>& on, answer& out, const array& reward, const array& next_value,
                     const array& terminated, const array& truncated, double gamma, double lambda) {
  out.magnitude(std::max(largest(reward), largest(next_value)));
  array value = zeros_like(reward);
  for (index i = 0; i < reward.rows(); ++i)
    for (index t = 1; t < reward.columns(); ++t) value(i, t) = next_value(i, t - 1);
  const auto returns = on.out(reward.shape);
  rlhf::generalized_advantage_estimation<T>({.reward = on.in(reward),
                                             .value = on.in(value),
                                             .next_value = on.in(next_value),
                                             .terminated = on.mask(terminated),
                                             .truncated = on.mask(truncated)},
                                            {.returns = returns.view},
                                            {.gamma = gamma, .lambda = lambda});
  return returns.read();
}

template <class T>
void torchrl_td(const request& c, place<T>& on, answer& out) {
  c.ignore({"done_kind"});
  const std::string& name = c.function();
  const double own = c.number("lmbda");
  const double lambda = name.find("td0") != std::string::npos   ? 0
                        : name.find("td1") != std::string::npos ? 1
                                                                : own;
  const array terminated = without_last(c.input("terminated"));
  const array done = without_last(c.input("done", c.input("terminated")));
  const array truncated =
      map([](double d, double t) { return d != 0 && t == 0 ? 1.0 : 0.0; }, done, terminated);
  const array returns = lambda_returns(on, out, without_last(c.input("reward")),
                                       without_last(c.input("next_state_value")), terminated,
                                       truncated, c.number("gamma"), lambda);
  if (name.find("vec_") != std::string::npos) out.loosen(1e-5, 1e-5);
  out.put("returns", returns);
  if (c.has("state_value")) out.put("advantage", returns - without_last(c.input("state_value")));
}

/// rlax has a discount for each step: gamma, and 0 where an episode ends.
struct discounts {
  double gamma = 1;
  array terminated;
};

discounts read_discounts(const array& discount) {
  discounts d{1, array::filled({1, discount.size()}, 0)};
  const auto most = std::max_element(discount.data.begin(), discount.data.end());
  if (most != discount.data.end() && *most > 0) d.gamma = *most;
  for (index t = 0; t < discount.size(); ++t) {
    if (discount[t] != 0 && discount[t] != d.gamma)
      throw unfit("discount_t is neither 0 nor one gamma");
    d.terminated[t] = discount[t] == 0 ? 1 : 0;
  }
  return d;
}

template <class T>
void rlax_returns(const request& c, place<T>& on, answer& out) {
  const index n = c.input("r_t").size();
  const array reward = c.input("r_t").reshaped({1, n});
  const auto d = read_discounts(c.input("discount_t"));
  const auto returns = on.out(reward.shape);
  rlhf::discounted_returns<T>({.reward = on.in(reward),
                               .bootstrap_value = on.in(c.input("v_t").rows_of(n - 1, n)),
                               .terminated = on.mask(d.terminated)},
                              {.returns = returns.view}, {.gamma = d.gamma});
  out.put("returns", returns.read());
}

template <class T>
void rlax_lambda_returns(const request& c, place<T>& on, answer& out) {
  const index n = c.input("r_t").size();
  const auto d = read_discounts(c.input("discount_t"));
  out.put("returns",
          lambda_returns(on, out, c.input("r_t").reshaped({1, n}), c.input("v_t").reshaped({1, n}),
                         d.terminated, zeros_like(d.terminated), d.gamma, c.number("lambda")));
}

template <class T>
void rlax_gae(const request& c, place<T>& on, answer& out) {
  const index n = c.input("r_t").size();
  const auto d = read_discounts(c.input("discount_t"));
  const array& values = c.input("values");
  const auto advantage = on.out({1, n});
  out.magnitude(std::max(largest(values), largest(c.input("r_t"))));
  rlhf::generalized_advantage_estimation<T>({.reward = on.in(c.input("r_t").reshaped({1, n})),
                                             .value = on.in(values.rows_of(0, n).reshaped({1, n})),
                                             .bootstrap_value = on.in(values.rows_of(n, n + 1)),
                                             .terminated = on.mask(d.terminated)},
                                            {.advantage = advantage.view},
                                            {.gamma = d.gamma, .lambda = c.number("lambda")});
  if (const auto tolerance = c.maybe("tolerance")) out.loosen(0, *tolerance);
  out.put("advantages", advantage.read());
}

/// NeMo-RL: two lambdas are two scans, and a lambda for each row is a scan for each row.
template <class T>
void nemo_gae(const request& c, place<T>& on, answer& out) {
  const array& mask = c.input("mask");
  const array& value = c.input("values");
  const double gamma = c.number("gae_gamma"), lambda = c.number("gae_lambda");
  const double for_value = c.maybe("gae_lambda_value").value_or(lambda);
  const array n = row_sums(mask);
  array for_policy = array::filled({mask.rows()}, c.maybe("gae_lambda_policy").value_or(lambda));
  if (const double alpha = c.number("length_adaptive_alpha", 0); alpha > 0)
    for_policy = map(
        [alpha](double length) {
          return length > 0 ? std::clamp(1 - 1 / std::max(alpha * length, 1.0), 0.0, 1.0) : 0.0;
        },
        n);
  c.ignore({"reference_logprobs", "logprobs"});
  array kl = zeros_like(mask);
  const double coefficient = c.number("reference_policy_kl_penalty", 0);
  const auto type = c.text("reference_policy_kl_type", "k3");
  if (c.flag("use_kl_in_reward", false)) {
    if (type != "k1" && type != "k2" && type != "k3")
      unknown_value("reference_policy_kl_type", type);
    const auto to = on.out(mask.shape);
    rlhf::kl_estimate<T>({.log_prob = on.in(c.input("logprobs")),
                          .ref_log_prob = on.in(c.input("reference_logprobs")),
                          .mask = on.mask(mask)},
                         {.kl = to.view},
                         {.estimator = type == "k1"   ? rlhf::kl_estimator::k1
                                       : type == "k2" ? rlhf::kl_estimator::k2
                                                      : rlhf::kl_estimator::k3,
                          .input_clamp = 20,
                          .output_clamp = 10,
                          .over = rlhf::aggregation::none()});
    kl = to.read() * coefficient;
  }
  const array reward = placed(on, c.input("rewards"), mask) - kl;
  array advantage = mask;
  for (index i = 0; i < mask.rows(); ++i)
    advantage.set_row(i, gae(on, out, reward.row(i), value.row(i), mask.row(i),
                             {.gamma = gamma, .lambda = for_policy[i]})
                             .advantage);
  const array returns =
      gae(on, out, reward, value, mask, {.gamma = gamma, .lambda = for_value}).returns;
  out.put("lambda_policy", for_policy);
  out.put("returns", returns).where = mask;
  if (c.flag("normalize_advantages", true))
    advantage = kept(whitened(on, out, advantage, mask, whitening::verl), mask);
  out.put("advantages", advantage);
}

/// One slot more than tokens has a value, and the score stands in it. Log-probs after the last
/// token are both 1 in TRL, so that their KL is 0; here they are masked.
template <class T>
void trl_rewards_gae(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("logprobs");
  const array& last = c.input("sequence_lengths");
  const index columns = log_prob.columns();
  array token = zeros_like(log_prob), valued = zeros_like(log_prob);
  for (index i = 0; i < token.rows(); ++i)
    for (index j = 0; j < columns; ++j) {
      const double end = last[i];
      token(i, j) = static_cast<double>(j) <= end ? 1 : 0;
      valued(i, j) = static_cast<double>(j) <= end + 1 ? 1 : 0;
    }
  const auto name = c.text("kl_estimator", "k1");
  if (name != "k1" && name != "k3") unknown_value("kl_estimator", name);
  const auto to = on.out(log_prob.shape);
  rlhf::kl_penalty<T>({.log_prob = on.in(log_prob),
                       .ref_log_prob = on.in(c.input("ref_logprobs")),
                       .score = on.in(c.input("scores")),
                       .mask = on.mask(token)},
                      {.reward = to.view},
                      {.coefficient = c.number("kl_coef"),
                       .estimator = name == "k1" ? rlhf::kl_estimator::k1 : rlhf::kl_estimator::k3,
                       .score_at = rlhf::score_position::after_last});
  array reward = to.read();
  if (c.flag("whiten_rewards", false))
    reward = kept(whitened(on, out, reward, valued, whitening::exact, false), valued);
  const auto r = gae(on, out, reward, kept(c.input("values"), valued), {},
                     {.gamma = c.number("gamma"), .lambda = c.number("lam")});
  out.put("rewards", reward);
  out.put("returns", r.returns);
  out.put("advantages", kept(whitened(on, out, r.advantage, token, whitening::exact), token));
}

/// Scaled but not centred: torchtune's shift_mean adds the mean back.
template <class T>
void torchtune_advantages(const request& c, place<T>& on, answer& out) {
  const array& value = c.input("values");
  const auto r = gae(on, out, c.input("rewards"), value, {},
                     {.gamma = c.number("gamma"), .lambda = c.number("lmbda")});
  const bool masked = c.has("masks");
  const array mask = c.input("masks", ones_like(value));
  out.put("returns", r.returns);
  out.put("advantages", kept(whitened(on, out, r.advantage, mask,
                                      masked ? whitening::torchtune : whitening::exact, false),
                             mask));
}

/// REINFORCE++: returns to go over the valid tokens, whitened over all of them.
template <class T>
void verl_reinforce_plus_plus(const request& c, place<T>& on, answer& out) {
  const array& mask = c.input("response_mask");
  c.ignore({"mask_kind", "group_kind", "index"});
  const array returns =
      returns_to_go(on, out, c.input("token_level_rewards"), c.number("gamma"), mask);
  out.put("returns", returns);
  out.put("advantages", kept(whitened(on, out, returns, mask, whitening::verl), mask)).atol = 1e-8;
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("verl.compute_gae_advantage_return", verl_gae),
    GOLDEN_ADAPTER("verl.compute_reinforce_plus_plus_outcome_advantage", verl_reinforce_plus_plus),
    GOLDEN_ADAPTER("openrlhf.get_advantages_and_returns", openrlhf_gae),
    GOLDEN_ADAPTER("openrlhf.get_cumulative_returns", openrlhf_returns),
    GOLDEN_ADAPTER("slime.vanilla_gae", slime_gae),
    GOLDEN_ADAPTER("slime.chunked_gae", slime_gae),
    GOLDEN_ADAPTER("slime.chunked_discounted_returns", slime_returns),
    GOLDEN_ADAPTER("slime.get_reinforce_plus_plus_returns", slime_reinforce_returns),
    GOLDEN_ADAPTER("slime.get_reinforce_plus_plus_baseline_advantages", slime_reinforce_baseline),
    GOLDEN_ADAPTER("torchrl.generalized_advantage_estimate", torchrl_gae),
    GOLDEN_ADAPTER("torchrl.vec_generalized_advantage_estimate", torchrl_gae),
    GOLDEN_ADAPTER("torchrl.reward2go", torchrl_reward_to_go),
    GOLDEN_ADAPTER("torchrl.td0_return_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.td0_advantage_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.td1_return_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.td1_advantage_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.vec_td1_return_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.vec_td1_advantage_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.td_lambda_return_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.td_lambda_advantage_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.vec_td_lambda_return_estimate", torchrl_td),
    GOLDEN_ADAPTER("torchrl.vec_td_lambda_advantage_estimate", torchrl_td),
    GOLDEN_ADAPTER("rlax.discounted_returns", rlax_returns),
    GOLDEN_ADAPTER("rlax.lambda_returns", rlax_lambda_returns),
    GOLDEN_ADAPTER("rlax.truncated_gae", rlax_gae),
    GOLDEN_ADAPTER("rlax.test_truncated_gae", rlax_gae),
    GOLDEN_ADAPTER("nemo_rl.GeneralizedAdvantageEstimator", nemo_gae),
    GOLDEN_ADAPTER("trl.ppo_rewards_gae", trl_rewards_gae),
    GOLDEN_ADAPTER("torchtune.estimate_advantages", torchtune_advantages),
};

}  // namespace

std::span<const adapter> advantage_adapters() { return adapters; }

}  // namespace golden
