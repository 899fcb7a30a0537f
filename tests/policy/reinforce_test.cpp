#include "rlhf/policy/reinforce.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::reinforce_loss;

TEST_CASE_TEMPLATE("reinforce_loss: values by hand", B, RLHF_TEST_BACKENDS) {
  // rows weigh 1/2 each: -(2)(-1 - 3)/2 = 4 and -(-1)(-2)/1 = -2; mean 1
  const auto log_prob = rows<B>({{-1, -3}, {-2, not_a_number}});
  const auto advantage = rows<B>({{2, 2}, {-1, not_a_number}});
  const auto mask = flags<B>({{1, 1}, {1, 0}});
  auto gradient = rows<B>({{7, 7}, {7, 7}});
  const auto r = reinforce_loss<double>(
      {.log_prob = log_prob.tensor(), .advantage = advantage.tensor(), .mask = mask.tensor()},
      {.d_log_prob = gradient.tensor()},
      {.over = aggregation::sequence_mean_token_mean(rlhf::local)});
  CHECK(r.loss == doctest::Approx(1));
  CHECK(gradient(0, 0) == doctest::Approx(-2.0 / 4));
  CHECK(gradient(0, 1) == doctest::Approx(-2.0 / 4));
  CHECK(gradient(1, 0) == doctest::Approx(1.0 / 2));
  CHECK(gradient(1, 1) == 0);
  CHECK(r.ratio.mean() == 1);
  CHECK(r.approx_kl_k3.mean() == 0);
  CHECK(r.clip_fraction.mean() == 0);
}

TEST_CASE("reinforce_loss: a coefficient weighs the policy term alone") {
  const double log_prob[1][2] = {{-1, -2}}, ref[1][2] = {{-2, -2}};
  const double advantage[1] = {1}, coefficient[1][2] = {{0.5, 2}};
  double gradient[1][2];
  const auto r = reinforce_loss<double>({.log_prob = log_prob,
                                         .ref_log_prob = ref,
                                         .advantage = advantage,
                                         .coefficient = coefficient},
                                        {.d_log_prob = gradient},
                                        {.over = aggregation::token_sum(),
                                         .kl = {.coefficient = 0.1,
                                                .estimator = rlhf::kl_estimator::k2,
                                                .weighting = rlhf::kl_weighting::plain}});
  // -(0.5)(-1) - (2)(-2) + 0.1 · (1²/2 + 0)
  CHECK(r.loss == doctest::Approx(0.5 + 4 + 0.05));
  CHECK(gradient[0][0] == doctest::Approx(-0.5 + 0.1));
  CHECK(gradient[0][1] == doctest::Approx(-2));
}

TEST_CASE("reinforce_loss: old_log_prob serves the metrics and nothing else") {
  const double log_prob[1][1] = {{-1}}, old[1][1] = {{-1 - std::log(2.0)}}, advantage[1] = {3};
  double with[1][1], without[1][1];
  const rlhf::reinforce_config config{.over = aggregation::token_sum()};
  const auto a =
      reinforce_loss<double>({.log_prob = log_prob, .old_log_prob = old, .advantage = advantage},
                             {.d_log_prob = with}, config);
  const auto b = reinforce_loss<double>({.log_prob = log_prob, .advantage = advantage},
                                        {.d_log_prob = without}, config);
  CHECK(a.loss == b.loss);
  CHECK(with[0][0] == without[0][0]);
  CHECK(a.ratio.mean() == doctest::Approx(2));
  CHECK(b.ratio.mean() == 1);
}

TEST_CASE("reinforce_loss: a log-probability of minus infinity is counted and seen") {
  const double log_prob[1][2] = {{-infinite, -1}}, advantage[1] = {1};
  double gradient[1][2];
  const auto r =
      reinforce_loss<double>({.log_prob = log_prob, .advantage = advantage},
                             {.d_log_prob = gradient}, {.over = aggregation::token_sum()});
  CHECK(r.nonfinite == 1);
  CHECK(r.loss == infinite);
  CHECK(gradient[0][0] == -1);
}

TEST_CASE("reinforce_loss: contracts") {
  const double x[1][2] = {{-1, -1}};
  double d[1][2] = {{7, 7}};
  CHECK(message_of([&] {
          reinforce_loss<double>({.log_prob = x}, {.d_log_prob = d},
                                 {.over = aggregation::token_sum()});
        }) ==
        "reinforce_loss: advantage: expected a tensor: this input is required, received none");
  CHECK(message_of([&] {
          reinforce_loss<double>({.log_prob = x, .behaviour_log_prob = x, .advantage = x},
                                 {.d_log_prob = d}, {.over = aggregation::token_sum()});
        }) ==
        "reinforce_loss: behaviour_log_prob: expected to be left out: this call does not use it, "
        "received one");
  CHECK(d[0][0] == 7);
}
