// Losses of other trainers, and losses for graph engines.

#include <rlhf/backend/host.hpp>
#include <rlhf/presets.hpp>

#include <cmath>
#include <cstdio>
#include <vector>

namespace {

const std::vector<double> feature = {0.5, -1.0, 2.0, 0.25, -0.75, 1.5};

// A policy with one parameter: log_prob = −log(1 + exp(−theta · x)).
std::vector<double> log_probs(double theta) {
  std::vector<double> y;
  for (const double x : feature) y.push_back(-std::log1p(std::exp(-theta * x)));
  return y;
}

const std::vector<double> advantage = {1.0, -0.5};

double loss(double theta, std::vector<double>& d_log_prob) {
  const auto old_log_prob = log_probs(0.8), log_prob = log_probs(theta);
  const rlhf::shape tokens(2, 3);
  //! [preset]
  // TRL's GRPO with loss_type "dapo", but with the higher clip of that paper.
  auto config = rlhf::presets::trl::grpo(rlhf::aggregation::token_mean(6));
  config.clip_high = 0.28;
  const auto r = rlhf::clipped_surrogate_loss<double>({.log_prob = {log_prob, tokens},
                                                       .old_log_prob = {old_log_prob, tokens},
                                                       .advantage = advantage},
                                                      {.d_log_prob = {d_log_prob, tokens}}, config);
  //! [preset]
  return r.loss;
}

}  // namespace

int main() {
  std::vector<double> d_log_prob(6), unused(6);
  const double theta = 0.9;
  std::printf("loss %.6f\n", loss(theta, d_log_prob));

  //! [linearised]
  // What a graph engine is given: sum of constant · log_prob, the constants being d_log_prob.
  const auto surrogate = [&](double parameter) {
    const auto log_prob = log_probs(parameter);
    double sum = 0;
    for (std::size_t t = 0; t < log_prob.size(); ++t) sum += d_log_prob[t] * log_prob[t];
    return sum;
  };
  //! [linearised]
  const double h = 1e-5;
  const double slope = (loss(theta + h, unused) - loss(theta - h, unused)) / (2 * h);
  const double linear = (surrogate(theta + h) - surrogate(theta - h)) / (2 * h);
  std::printf("slope of the loss %.6f, of the linearised surrogate %.6f\n", slope, linear);
}
