#include "rlhf/kl/adaptive_kl_controller.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>

#include "rlhf/kl/kl_penalty.hpp"
#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::adaptive_kl_controller;

TEST_CASE("adaptive_kl_controller: values by hand") {
  adaptive_kl_controller c({.coefficient = 0.2, .target = 6, .horizon = 1000, .clip = 0.2});
  // kl 6.6: error 0.1, factor 1 + 0.1 · 100 / 1000 = 1.01
  const auto u = c.update(6.6, 100);
  CHECK(u.error == doctest::Approx(0.1));
  CHECK(u.coefficient == doctest::Approx(0.202));
  CHECK(c.coefficient() == u.coefficient);
  CHECK_FALSE(u.at_bound);
  CHECK_FALSE(u.ignored);
  // kl 60: error 9, cut to 0.2, factor 1.02; kl 0: error -1, cut to -0.2, factor 0.98
  CHECK(c.update(60, 100).coefficient == doctest::Approx(0.202 * 1.02));
  CHECK(c.update(0, 100).coefficient == doctest::Approx(0.202 * 1.02 * 0.98));
}

TEST_CASE("adaptive_kl_controller: the target is a fixed point, to the bit") {
  adaptive_kl_controller c({.coefficient = 0.137, .target = 0.1, .horizon = 100});
  for (int i = 0; i < 1000; ++i) c.update(0.1, 64);
  CHECK(c.coefficient() == 0.137);
}

TEST_CASE("adaptive_kl_controller: the next coefficient does not fall as the measured KL rises") {
  double before = 0;
  for (double kl = -5; kl < 30; kl += 0.25) {
    adaptive_kl_controller c({});
    const double next = c.update(kl, 256).coefficient;
    CHECK(next >= before);
    before = next;
  }
}

TEST_CASE(
    "adaptive_kl_controller: NaN, and a mean of nothing, leave it as it is and are reported") {
  adaptive_kl_controller c({.coefficient = 0.3});
  const auto u = c.update(not_a_number, 256);
  CHECK(u.ignored);
  CHECK(u.coefficient == 0.3);
  CHECK(c.coefficient() == 0.3);
  CHECK(c.update(rlhf::kl_penalty_result{}, 256).ignored);
  CHECK(c.coefficient() == 0.3);
}

TEST_CASE("adaptive_kl_controller: infinite and negative KL are large errors") {
  adaptive_kl_controller up({.coefficient = 1, .horizon = 100});
  CHECK(up.update(infinite, 10).coefficient == doctest::Approx(1.02));
  CHECK(up.update(-infinite, 10).coefficient == doctest::Approx(1.02 * 0.98));
  CHECK(up.update(-3, 10).error == -0.2);
}

TEST_CASE("adaptive_kl_controller: it stays within its bounds, finite and above 0, for 1e6 steps") {
  for (const double kl : {1e9, -1e9}) {
    adaptive_kl_controller bounded(
        {.coefficient = 0.5, .target = 1, .horizon = 10, .min = 1e-3, .max = 10});
    adaptive_kl_controller free({.coefficient = 0.5, .target = 1, .horizon = 10});
    for (int i = 0; i < 1000000; ++i) {
      bounded.update(kl, 10);
      free.update(kl, 10);
    }
    CHECK(bounded.coefficient() == (kl > 0 ? 10 : 1e-3));
    CHECK(bounded.update(kl, 10).at_bound);
    CHECK(std::isfinite(free.coefficient()));
    CHECK(free.coefficient() > 0);
  }
}

TEST_CASE("adaptive_kl_controller: at saturation the order of two updates does not matter") {
  adaptive_kl_controller a({}), b({});
  a.update(100, 30);
  a.update(100, 700);
  b.update(100, 700);
  b.update(100, 30);
  CHECK(a.coefficient() == doctest::Approx(b.coefficient()).epsilon(1e-15));
}

TEST_CASE("adaptive_kl_controller: its unit picks the metric of a result") {
  rlhf::kl_penalty_result r;
  r.kl = {2, 20};              // 0.1 per token
  r.kl_per_sequence = {2, 1};  // 2 per sequence
  adaptive_kl_controller tokens(
      {.coefficient = 1, .target = 0.1, .unit = rlhf::kl_unit::per_token});
  adaptive_kl_controller sequences(
      {.coefficient = 1, .target = 2, .unit = rlhf::kl_unit::per_sequence});
  CHECK(tokens.update(r, 100).error == 0);
  CHECK(sequences.update(r, 100).error == 0);
  rlhf::fixed_kl_controller fixed(0.05);
  CHECK(fixed.update(r, 100).coefficient == 0.05);
  CHECK(fixed.update(1e9, 100).coefficient == 0.05);
  CHECK(fixed.coefficient() == 0.05);
}

TEST_CASE("adaptive_kl_controller: a broken contract names itself and changes nothing") {
  const auto broken = [](const rlhf::adaptive_kl_config& config) {
    return message_of([&] { adaptive_kl_controller c(config); });
  };
  CHECK(broken({.target = 0}) ==
        "adaptive_kl_controller: target: expected finite and > 0, received 0");
  CHECK(broken({.horizon = 0}).find("horizon") != std::string::npos);
  CHECK(broken({.horizon = infinite}).find("horizon") != std::string::npos);
  CHECK(broken({.coefficient = 0}).find("coefficient") != std::string::npos);
  CHECK(broken({.coefficient = not_a_number}).find("coefficient") != std::string::npos);
  CHECK(broken({.clip = 0}).find("clip") != std::string::npos);
  CHECK(broken({.min = 0.3}).find("at least min") != std::string::npos);
  CHECK(broken({.max = 0.1}).find("at most max") != std::string::npos);
  CHECK(message_of([] { rlhf::fixed_kl_controller c(-1); }).find("coefficient") !=
        std::string::npos);
  adaptive_kl_controller c({.horizon = 100});
  // with clip 0.2 a step of 500 episodes could make the factor 0
  CHECK(message_of([&] { c.update(1, 500); }) ==
        "adaptive_kl_controller: episodes: expected 0 <= episodes < horizon / clip, received 500");
  CHECK_THROWS_AS(c.update(1, -1), rlhf::contract_violation);
  CHECK_THROWS_AS(c.update(1, not_a_number), rlhf::contract_violation);
  CHECK(c.coefficient() == 0.2);
}
