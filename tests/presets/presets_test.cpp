#include "rlhf/presets.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using numbers = std::vector<double>;
namespace presets = rlhf::presets;

TEST_CASE("presets: the KL estimators of the peers, by the numbers their own code gives") {
  // golden/verl.kl_penalty.json and golden/openrlhf.compute_approx_kl.json: cut at 10, gradient 0
  const numbers log_prob{-1, -20.9}, ref{-1.5, -1};
  numbers kl(2), d(2);
  const auto run = [&](const rlhf::kl_estimate_config& config) {
    rlhf::kl_estimate<double>({.log_prob = {log_prob, {1, 2}}, .ref_log_prob = {ref, {1, 2}}},
                              {.kl = {kl, {1, 2}}, .d_log_prob = {d, {1, 2}}}, config);
  };
  const auto over = aggregation::token_sum();
  using rlhf::kl_estimator;
  using rlhf::kl_weighting;
  run(presets::verl::kl_estimate(kl_estimator::k3, kl_weighting::plain, over));
  CHECK(kl[0] == doctest::Approx(std::exp(-0.5) - 0.5));
  CHECK(d[0] == doctest::Approx(1 - std::exp(-0.5)));
  CHECK(kl[1] == 10);
  CHECK(d[1] == 0);
  run(presets::verl::kl_estimate(kl_estimator::k3, kl_weighting::straight_through, over));
  CHECK(kl[1] == 10);
  CHECK(d[1] == doctest::Approx(-19.9));
  run(presets::verl::kl_estimate(kl_estimator::k1, kl_weighting::plain, over));
  CHECK(kl[1] == doctest::Approx(-19.9));
  run(presets::openrlhf::kl_estimate(kl_estimator::k1, over));
  CHECK(kl[1] == -10);
  CHECK(d[1] == 0);
  run(presets::slime::low_variance_kl(over));
  CHECK(kl[1] == 10);
  run(presets::nemo_rl::kl_estimate(over));
  CHECK(d[0] == doctest::Approx(std::exp(-0.5) - 0.5 + 1 - std::exp(-0.5)));  // k3 + its slope
  run(presets::trl::kl_estimate(over));
  CHECK(kl[1] == doctest::Approx(std::exp(19.9) - 1 - 19.9));
}

TEST_CASE("presets: torchtune's flag means the opposite, so its default keeps the mean") {
  const numbers value{1, 2, 6};
  numbers y(3);
  rlhf::whiten<double>({.value = value}, {.whitened = y}, presets::torchtune::whiten());
  CHECK((y[0] + y[1] + y[2]) / 3 == doctest::Approx(3));
  rlhf::whiten<double>({.value = value}, {.whitened = y}, presets::trl::whiten());
  CHECK((y[0] + y[1] + y[2]) / 3 == doctest::Approx(0));
  const auto r =
      rlhf::whiten<double>({.value = value}, {.whitened = y}, presets::openrlhf::whiten());
  CHECK(r.variance == doctest::Approx(14.0 / 3));  // 4 + 1 + 9 over 3
}

TEST_CASE("presets: where a score goes") {
  const numbers zero(4, 0), score{3};
  const std::vector<std::uint8_t> mask{1, 1, 0, 0};
  const auto place = [&](const rlhf::kl_penalty_config& config) {
    numbers reward(4);
    rlhf::kl_penalty<double>({.log_prob = {zero, {1, 4}},
                              .ref_log_prob = {zero, {1, 4}},
                              .score = score,
                              .mask = {mask, {1, 4}}},
                             {.reward = {reward, {1, 4}}}, config);
    return reward;
  };
  CHECK(place(presets::trl::kl_penalty()) == numbers{0, 0, 3, 0});
  CHECK(place(presets::verl::kl_penalty()) == numbers{0, 3, 0, 0});
  CHECK(place(presets::openrlhf::kl_penalty()) == numbers{0, 3, 0, 0});
  CHECK(place(presets::torchtune::kl_penalty(0.1)) == numbers{0, 0, 0, 3});
  CHECK(place(presets::slime::kl_penalty(0.1)) == numbers{0, 0, 0, 3});
}

TEST_CASE("presets: value losses, reward models and controllers are what their sources say") {
  const auto over = aggregation::token_mean(rlhf::local);
  CHECK(presets::trl::clipped_value(over).clip == 0.2);
  CHECK(presets::verl::clipped_value(over).clip == 0.5);
  CHECK(presets::openrlhf::clipped_value(over).clip == 0.5);
  CHECK(presets::nemo_rl::clipped_value(over).half);
  CHECK_FALSE(presets::slime::clipped_value(over).half);
  CHECK(presets::torchtune::clipped_value(over).clip == 0.2);
  CHECK(presets::trl::bradley_terry(rlhf::reduction::sum(), 0.01).centering == 0.01);
  CHECK(presets::openrlhf::bradley_terry(rlhf::reduction::sum()).label_smoothing == 0);
  rlhf::adaptive_kl_controller c(presets::verl::adaptive_kl(0.01));
  CHECK(c.config().target == 0.1);
  CHECK(c.config().unit == rlhf::kl_unit::per_token);
  rlhf::adaptive_kl_controller o(presets::openrlhf::adaptive_kl(0.01, 6));
  CHECK(o.coefficient() == 0.01);
  CHECK(presets::nemo_rl::whiten().shift_mean);
  CHECK(presets::slime::whiten(false).shift_mean == false);
  CHECK(presets::verl::whiten().ddof == 1);
}
