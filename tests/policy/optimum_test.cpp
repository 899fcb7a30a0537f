// Training with our losses ends where the mathematics says: a tabular policy at
// ref · exp(reward / beta), a reward model at the rewards that made the preferences. Every expectation
// is an exact sum over all answers, so what is left is the loss.

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "rlhf/backend/host.hpp"
#include "rlhf/distribution/policy_from_logits.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/preference/dpo.hpp"
#include "rlhf/reward/bradley_terry.hpp"

namespace {

using rlhf::aggregation;
constexpr std::size_t answers = 5;
using row = std::array<double, answers>;

constexpr row reward = {1.0, -0.5, 0.25, 0.0, 0.75};
constexpr row ref_logit = {0.0, 0.5, -0.5, 1.0, -1.0};
constexpr double beta = 0.5;

row log_softmax(const row& logit) {
  double sum = 0;
  for (const double z : logit) sum += std::exp(z);
  row x;
  for (std::size_t v = 0; v < answers; ++v) x[v] = logit[v] - std::log(sum);
  return x;
}
row exp(const row& x) {
  row y;
  for (std::size_t v = 0; v < answers; ++v) y[v] = std::exp(x[v]);
  return y;
}
/// From d loss / d log_prob of each answer to d loss / d logit.
row to_logits(const row& d_log_prob, const row& log_prob) {
  double sum = 0;
  for (const double d : d_log_prob) sum += d;
  row d;
  for (std::size_t v = 0; v < answers; ++v) d[v] = d_log_prob[v] - std::exp(log_prob[v]) * sum;
  return d;
}

/// Half the sum of |policy − ref · exp(reward / beta) / Z|.
double distance_from_optimum(const row& logit) {
  row best;
  for (std::size_t v = 0; v < answers; ++v) best[v] = ref_logit[v] + reward[v] / beta;
  const row p = exp(log_softmax(logit)), q = exp(log_softmax(best));
  double sum = 0;
  for (std::size_t v = 0; v < answers; ++v) sum += std::abs(p[v] - q[v]) / 2;
  return sum;
}

/// Descends from uniform. gradient(log_prob, old_log_prob) is d loss / d log_prob where each answer
/// weighs its probability under the old policy, which is renewed after `epochs` steps.
template <class Gradient>
row train(int epochs, const Gradient& gradient) {
  row logit = {};
  row old = log_softmax(logit);
  for (int step = 0; step < 6000; ++step) {
    const row log_prob = log_softmax(logit);
    if (step % epochs == 0) old = log_prob;
    const row d = to_logits(gradient(log_prob, old), log_prob);
    for (std::size_t v = 0; v < answers; ++v) logit[v] -= 1.0 * d[v];
  }
  return logit;
}

constexpr rlhf::shape one_row(1, answers);

template <class X>
rlhf::view<const double> as_row(const X& x) {
  return {x.data(), one_row};
}

}  // namespace

TEST_CASE("clipped_surrogate_loss with ratio-weighted k3 ends at ref · exp(reward / beta)") {
  const row ref = log_softmax(ref_logit);
  for (const int epochs : {1, 4}) {
    CAPTURE(epochs);
    const row logit = train(epochs, [&](const row& log_prob, const row& old) {
      const row weight = exp(old);
      row d;
      rlhf::clipped_surrogate_loss<double>(
          {.log_prob = as_row(log_prob),
           .old_log_prob = as_row(old),
           .ref_log_prob = as_row(ref),
           .advantage = as_row(reward),
           .mask = {weight.data(), one_row}},
          {.d_log_prob = {d.data(), one_row}},
          {.over = aggregation::token_sum(), .kl = {.coefficient = beta}});
      return d;
    });
    CHECK(distance_from_optimum(logit) <= 1e-4);
  }
}

TEST_CASE("reinforce_loss with the KL in the loss ends at ref · exp(reward / beta)") {
  const row ref = log_softmax(ref_logit);
  using rlhf::kl_estimator;
  using rlhf::kl_weighting;
  const auto trained = [&](kl_estimator estimator, kl_weighting weighting) {
    return train(1, [&](const row& log_prob, const row& old) {
      const row weight = exp(old);
      row d;
      rlhf::reinforce_loss<double>(
          {.log_prob = as_row(log_prob),
           .old_log_prob = as_row(old),
           .ref_log_prob = as_row(ref),
           .advantage = as_row(reward),
           .mask = {weight.data(), one_row}},
          {.d_log_prob = {d.data(), one_row}},
          {.over = aggregation::token_sum(),
           .kl = {.coefficient = beta, .estimator = estimator, .weighting = weighting}});
      return d;
    });
  };
  // Those whose gradient is that of KL(policy || ref):
  CHECK(distance_from_optimum(trained(kl_estimator::k3, kl_weighting::ratio)) <= 1e-4);
  CHECK(distance_from_optimum(trained(kl_estimator::k1, kl_weighting::ratio)) <= 1e-4);
  CHECK(distance_from_optimum(trained(kl_estimator::k2, kl_weighting::plain)) <= 1e-4);
  CHECK(distance_from_optimum(trained(kl_estimator::k3, kl_weighting::straight_through)) <= 1e-4);
  CHECK(distance_from_optimum(trained(kl_estimator::k3, kl_weighting::score)) <= 1e-4);
  // Plain k3 pulls by the forward KL: somewhere else.
  CHECK(distance_from_optimum(trained(kl_estimator::k3, kl_weighting::plain)) > 1e-2);
}

TEST_CASE("the KL in the reward ends at ref · exp(reward / beta) too") {
  const row ref = log_softmax(ref_logit);
  const row logit = train(1, [&](const row& log_prob, const row& old) {
    const row weight = exp(old);
    row penalised, d;
    rlhf::kl_penalty<double>(
        {.log_prob = as_row(old), .ref_log_prob = as_row(ref), .score = as_row(reward)},
        {.reward = {penalised.data(), one_row}}, {.coefficient = beta});
    rlhf::reinforce_loss<double>({.log_prob = as_row(log_prob),
                                  .advantage = as_row(penalised),
                                  .mask = {weight.data(), one_row}},
                                 {.d_log_prob = {d.data(), one_row}},
                                 {.over = aggregation::token_sum()});
    return d;
  });
  CHECK(distance_from_optimum(logit) <= 1e-4);
}

TEST_CASE("from the logits, without a log-prob layer of ours in between, it ends there as well") {
  const row ref = log_softmax(ref_logit);
  row logit = {};
  constexpr auto n = static_cast<rlhf::index>(answers);
  std::vector<double> logits(answers * answers), d_logits(answers * answers);
  std::array<std::int32_t, answers> label;
  for (std::size_t v = 0; v < answers; ++v) label[v] = static_cast<std::int32_t>(v);
  for (int step = 0; step < 6000; ++step) {
    const row old = log_softmax(logit), weight = exp(old);
    for (std::size_t k = 0; k < logits.size(); ++k) logits[k] = logit[k % answers];
    rlhf::clipped_surrogate_from_logits<double>(
        {.logits = {logits.data(), {n, n}},
         .label = {label.data(), {n}},
         .old_log_prob = old,
         .ref_log_prob = ref,
         .advantage = reward,
         .mask = {weight.data(), {n}}},
        {.d_logits = {d_logits.data(), {n, n}}},
        {.over = aggregation::token_sum(), .kl = {.coefficient = beta}});
    for (std::size_t k = 0; k < logits.size(); ++k) logit[k % answers] -= d_logits[k];
  }
  CHECK(distance_from_optimum(logit) <= 1e-4);
}

namespace {

/// All ordered pairs of different answers, and how often the first is preferred.
struct preferences {
  std::vector<std::size_t> chosen, rejected;
  std::vector<double> weight;
  preferences() {
    for (std::size_t i = 0; i < answers; ++i)
      for (std::size_t j = 0; j < answers; ++j) {
        if (i == j) continue;
        chosen.push_back(i);
        rejected.push_back(j);
        weight.push_back(1 / (1 + std::exp(reward[j] - reward[i])));
      }
  }
  std::size_t size() const { return weight.size(); }
  std::vector<double> of_chosen(const row& x) const {
    std::vector<double> y;
    for (const std::size_t i : chosen) y.push_back(x[i]);
    return y;
  }
  std::vector<double> of_rejected(const row& x) const {
    std::vector<double> y;
    for (const std::size_t j : rejected) y.push_back(x[j]);
    return y;
  }
  row collect(const std::vector<double>& d_chosen, const std::vector<double>& d_rejected) const {
    row d = {};
    for (std::size_t k = 0; k < size(); ++k)
      d[chosen[k]] += d_chosen[k], d[rejected[k]] += d_rejected[k];
    return d;
  }
};

/// The largest distance of x from the rewards, once both are centred.
double distance_from_rewards(const row& x) {
  double shift = 0, worst = 0;
  for (std::size_t v = 0; v < answers; ++v) shift += (x[v] - reward[v]) / answers;
  for (std::size_t v = 0; v < answers; ++v)
    worst = std::max(worst, std::abs(x[v] - reward[v] - shift));
  return worst;
}

}  // namespace

TEST_CASE("bradley_terry_loss recovers the rewards behind exact preferences") {
  const preferences pairs;
  for (const bool soft : {false, true}) {
    CAPTURE(soft);
    row score = {};
    std::vector<double> d_chosen(pairs.size()), d_rejected(pairs.size());
    for (int step = 0; step < 500; ++step) {
      const auto chosen = pairs.of_chosen(score), rejected = pairs.of_rejected(score);
      // How often a pair is seen, or how sure its label is.
      rlhf::bradley_terry_batch<double> batch{.chosen_reward = chosen, .rejected_reward = rejected};
      if (soft)
        batch.target = pairs.weight;
      else
        batch.weight = pairs.weight;
      rlhf::bradley_terry_loss<double>(
          batch, {.d_chosen_reward = d_chosen, .d_rejected_reward = d_rejected},
          {.over = rlhf::reduction::sum()});
      const row d = pairs.collect(d_chosen, d_rejected);
      for (std::size_t v = 0; v < answers; ++v) score[v] -= 0.3 * d[v];
    }
    CHECK(distance_from_rewards(score) <= 1e-6);
  }
}

TEST_CASE("dpo_loss makes the policy its own reward model, up to a constant") {
  const preferences pairs;
  const row ref = log_softmax(ref_logit);
  const auto ref_chosen = pairs.of_chosen(ref), ref_rejected = pairs.of_rejected(ref);
  row logit = {};
  std::vector<double> d_chosen(pairs.size()), d_rejected(pairs.size());
  for (int step = 0; step < 5000; ++step) {
    const row log_prob = log_softmax(logit);
    const auto chosen = pairs.of_chosen(log_prob), rejected = pairs.of_rejected(log_prob);
    rlhf::dpo_loss<double>({.chosen_log_prob = chosen,
                            .rejected_log_prob = rejected,
                            .ref_chosen_log_prob = ref_chosen,
                            .ref_rejected_log_prob = ref_rejected,
                            .weight = pairs.weight},
                           {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
                           {.beta = beta, .over = rlhf::reduction::sum()});
    const row d = to_logits(pairs.collect(d_chosen, d_rejected), log_prob);
    for (std::size_t v = 0; v < answers; ++v) logit[v] -= 1.0 * d[v];
  }
  row implied;
  const row log_prob = log_softmax(logit);
  for (std::size_t v = 0; v < answers; ++v) implied[v] = beta * (log_prob[v] - ref[v]);
  CHECK(distance_from_rewards(implied) <= 1e-6);
  CHECK(distance_from_optimum(logit) <= 1e-4);
}
