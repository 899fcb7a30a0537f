#include "rlhf/policy/clipped_surrogate.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::clipped_surrogate_loss;

TEST_CASE_TEMPLATE("clipped_surrogate_loss: values by hand", B, RLHF_TEST_BACKENDS) {
  // ratio 1.5, A +1: cut to 1.2 | ratio 0.5, A -1: cut to 0.8 | ratio 0.5, A +1: kept | masked NaN
  const auto log_prob = rows<B>({{std::log(1.5), std::log(0.5)}, {std::log(0.5), not_a_number}});
  const auto old_log_prob = rows<B>({{0, 0}, {0, not_a_number}});
  const auto advantage = rows<B>({{1, -1}, {1, not_a_number}});
  const auto mask = flags<B>({{1, 1}, {1, 0}});
  auto gradient = rows<B>({{7, 7}, {7, 7}});
  auto ratio = rows<B>({{7, 7}, {7, 7}});
  auto token_loss = rows<B>({{7, 7}, {7, 7}});
  const auto r = clipped_surrogate_loss<double>(
      {.log_prob = log_prob.tensor(),
       .old_log_prob = old_log_prob.tensor(),
       .advantage = advantage.tensor(),
       .mask = mask.tensor()},
      {.d_log_prob = gradient.tensor(), .token_loss = token_loss.tensor(), .ratio = ratio.tensor()},
      {.over = aggregation::token_mean(rlhf::local)});
  CHECK(r.loss == doctest::Approx((-1.2 + 0.8 - 0.5) / 3));
  CHECK(gradient(0, 0) == 0);
  CHECK(gradient(0, 1) == 0);
  CHECK(gradient(1, 0) == doctest::Approx(-0.5 / 3));
  CHECK(gradient(1, 1) == 0);
  CHECK(token_loss(0, 0) == doctest::Approx(-1.2));
  CHECK(token_loss(0, 1) == doctest::Approx(0.8));
  CHECK(token_loss(1, 0) == doctest::Approx(-0.5));
  CHECK(token_loss(1, 1) == 0);
  CHECK(ratio(0, 0) == doctest::Approx(1.5));
  CHECK(ratio(1, 1) == 0);
  CHECK(r.clip_fraction.mean() == doctest::Approx(2.0 / 3));
  CHECK(r.clip_fraction_low.mean() == doctest::Approx(1.0 / 3));
  CHECK(r.clip_fraction_high.mean() == doctest::Approx(1.0 / 3));
  CHECK(r.dual_clip_fraction.mean() == 0);
  // k1 = -ln r: -(ln 1.5 + 2 ln 0.5) / 3; k3 = r - 1 - ln r: (2.5 - 3 - ln 0.375) / 3
  CHECK(r.approx_kl_k1.mean() == doctest::Approx(-std::log(0.375) / 3));
  CHECK(r.approx_kl_k3.mean() == doctest::Approx((2.5 - 3 - std::log(0.375)) / 3));
  CHECK(r.ratio.mean() == doctest::Approx(2.5 / 3));
  CHECK(r.ratio_min == doctest::Approx(0.5));
  CHECK(r.ratio_max == doctest::Approx(1.5));
  CHECK(r.tokens == 3);
  CHECK(r.positions == 3);
  CHECK(r.sequences == 2);
  CHECK(r.nonfinite == 0);
  CHECK(r.saturated == 0);
}

TEST_CASE("clipped_surrogate_loss: every branch of sign and range, value, slope and count") {
  // Rows: A = -2, 0, +2. Columns: ratio 0.5 (below), 1 (inside), 1.5 (above), 4 (beyond dual 3).
  const double ratios[] = {0.5, 1.0, 1.5, 4.0};
  const double advantages[] = {-2, 0, 2};
  // -min(r A, clip(r, .8, 1.2) A), for A < 0 not above 3 |A|
  const double losses[3][4] = {{1.6, 2.0, 3.0, 6.0}, {0, 0, 0, 0}, {-1.0, -2.0, -2.4, -2.4}};
  // -r A where no clip decides
  const double slopes[3][4] = {{0, 2.0, 3.0, 0}, {0, 0, 0, 0}, {-1.0, -2.0, 0, 0}};
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 4; ++j) {
      const double log_prob[1][1] = {{std::log(ratios[j])}}, old[1][1] = {{0}};
      const double advantage[1] = {advantages[i]};
      double gradient[1][1] = {{7}};
      const auto r = clipped_surrogate_loss<double>(
          {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage},
          {.d_log_prob = gradient}, {.dual_clip = 3, .over = aggregation::token_sum()});
      CAPTURE(i);
      CAPTURE(j);
      CHECK(r.loss == doctest::Approx(losses[i][j]));
      CHECK(gradient[0][0] == doctest::Approx(slopes[i][j]));
      CHECK(r.clip_fraction_low.sum == (i == 0 && j == 0 ? 1 : 0));
      CHECK(r.clip_fraction_high.sum == (i == 2 && j >= 2 ? 1 : 0));
      CHECK(r.dual_clip_fraction.sum == (i == 0 && j == 3 ? 1 : 0));
    }
}

TEST_CASE("clipped_surrogate_loss: at a bound the gradient flows") {
  // ratio exactly 1 with clip 0 on both sides: inside, for either sign
  const double log_prob[1][2] = {{-1, -1}}, advantage[1][2] = {{1, -1}};
  double gradient[1][2];
  clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = log_prob, .advantage = advantage},
      {.d_log_prob = gradient}, {.clip_low = 0, .clip_high = 0, .over = aggregation::token_sum()});
  CHECK(gradient[0][0] == -1);
  CHECK(gradient[0][1] == 1);
}

TEST_CASE("clipped_surrogate_loss: on the first step the loss is minus the mean advantage") {
  const double log_prob[2][3] = {{-1, -2, -3}, {-0.5, -4, -0.1}};
  const double advantage[2] = {2, -1};
  double gradient[2][3];
  const auto r = clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = log_prob, .advantage = advantage},
      {.d_log_prob = gradient}, {.over = aggregation::token_mean(6)});
  CHECK(r.loss == -0.5);
  CHECK(gradient[0][1] == -2.0 / 6);
  CHECK(gradient[1][2] == 1.0 / 6);
  CHECK(r.clip_fraction.sum == 0);
  CHECK(r.approx_kl_k3.sum == 0);
}

TEST_CASE("clipped_surrogate_loss: clip_low >= 1 is no lower bound") {
  const double log_prob[1][1] = {{-50}}, old[1][1] = {{0}}, advantage[1] = {-1};
  double gradient[1][1];
  const auto r = clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage}, {.d_log_prob = gradient},
      {.clip_low = 1, .over = aggregation::token_sum()});
  CHECK(r.clip_fraction.sum == 0);
  CHECK(gradient[0][0] == doctest::Approx(std::exp(-50)));
}

TEST_CASE("clipped_surrogate_loss: an empty mask is silence") {
  const double log_prob[2][2] = {{not_a_number, not_a_number}, {not_a_number, not_a_number}};
  const std::uint8_t none[2][2] = {{0, 0}, {0, 0}};
  for (const aggregation over :
       {aggregation::token_mean(rlhf::local), aggregation::token_mean(0), aggregation::token_sum(),
        aggregation::sequence_mean_token_mean(rlhf::local),
        aggregation::sequence_mean_token_sum_norm(rlhf::local, 8),
        aggregation::turn_mean(rlhf::local), aggregation::none()}) {
    double gradient[2][2] = {{7, 7}, {7, 7}};
    const auto r = clipped_surrogate_loss<double>(
        {.log_prob = log_prob, .old_log_prob = log_prob, .advantage = log_prob, .mask = none},
        {.d_log_prob = gradient}, {.over = over});
    CHECK(r.loss == 0);
    CHECK(r.tokens == 0);
    CHECK(r.sequences == 0);
    CHECK(r.clip_fraction.mean() == 0);
    for (const auto& row : gradient)
      for (const double g : row) CHECK((g == 0 && !std::signbit(g)));
  }
}

TEST_CASE("clipped_surrogate_loss: no rows and no columns are a batch too") {
  std::vector<double> none;
  for (const rlhf::shape s : {rlhf::shape(0, 5), rlhf::shape(3, 0), rlhf::shape(0, 0)}) {
    const auto r = clipped_surrogate_loss<double>({.log_prob = {none.data(), s},
                                                   .old_log_prob = {none.data(), s},
                                                   .advantage = {none.data(), s}},
                                                  {.d_log_prob = {none.data(), s}},
                                                  {.over = aggregation::token_mean(rlhf::local)});
    CHECK(r.loss == 0);
    CHECK(r.tokens == 0);
  }
}

TEST_CASE("clipped_surrogate_loss: zero advantage gives zero at any ratio") {
  const double log_prob[1][4] = {{0, 200, 0, -200}}, old[1][4] = {{-200, 0, -1e4, 0}};
  const double advantage[1] = {0};
  double gradient[1][4];
  const auto r = clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage}, {.d_log_prob = gradient},
      {.over = aggregation::token_sum()});
  CHECK(r.loss == 0);
  for (const double g : gradient[0]) CHECK(g == 0);
  CHECK(r.saturated == 4);
}

TEST_CASE("clipped_surrogate_loss: NaN in a counted token is seen, and dropped on request") {
  const double log_prob[2][2] = {{-1, not_a_number}, {-1, -1}}, old[2][2] = {{-1, -1}, {-1, -1}};
  const double advantage[2] = {1, 3};
  using rlhf::nonfinite_policy;
  double gradient[2][2];
  const auto call = [&](nonfinite_policy policy) {
    return clipped_surrogate_loss<double>(
        {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage},
        {.d_log_prob = gradient}, {.over = aggregation::token_mean(4), .nonfinite = policy});
  };
  auto r = call(nonfinite_policy::propagate);
  CHECK(std::isnan(r.loss));
  CHECK(r.nonfinite == 1);
  CHECK(std::isnan(gradient[0][1]));
  CHECK(gradient[0][0] == -0.25);
  r = call(nonfinite_policy::drop_token);  // the denominator stays 4
  CHECK(r.loss == -(1.0 + 3 + 3) / 4);
  CHECK(r.nonfinite == 1);
  CHECK(gradient[0][1] == 0);
  r = call(nonfinite_policy::drop_sequence);
  CHECK(r.loss == -(3.0 + 3) / 4);
  CHECK(r.nonfinite == 1);
  CHECK(gradient[0][0] == 0);
  gradient[0][0] = 7;
  CHECK(message_of([&] { call(nonfinite_policy::error); }) ==
        "clipped_surrogate_loss: inputs: expected finite values in every counted token, "
        "received 1 that is not");
  CHECK(gradient[0][0] == 7);
}

TEST_CASE("clipped_surrogate_loss: the KL and entropy terms join in the same pass") {
  // one token: ratio 2 kept (A = +1, clip_high 2), delta = x - f = ln 3, H = 0.7
  const double log_prob[1][1] = {{-1}}, old[1][1] = {{-1 - std::log(2.0)}};
  const double ref[1][1] = {{-1 - std::log(3.0)}}, entropy[1][1] = {{0.7}}, advantage[1] = {1};
  double gradient[1][1], d_entropy[1][1];
  const auto call = [&](rlhf::kl_estimator estimator, rlhf::kl_weighting weighting) {
    return clipped_surrogate_loss<double>(
        {.log_prob = log_prob,
         .old_log_prob = old,
         .ref_log_prob = ref,
         .entropy = entropy,
         .advantage = advantage},
        {.d_log_prob = gradient, .d_entropy = d_entropy},
        {.clip_high = 2,
         .over = aggregation::token_sum(),
         .kl = {.coefficient = 0.5, .estimator = estimator, .weighting = weighting},
         .entropy = {.coefficient = 0.1}});
  };
  const double d = std::log(3.0), k3 = 1.0 / 3 - 1 + d;
  auto r = call(rlhf::kl_estimator::k3, rlhf::kl_weighting::ratio);
  CHECK(r.policy_loss == doctest::Approx(-2));
  CHECK(r.kl.mean() == doctest::Approx(2 * k3));
  CHECK(r.entropy.mean() == doctest::Approx(0.7));
  CHECK(r.loss == doctest::Approx(-2 + 0.5 * 2 * k3 - 0.1 * 0.7));
  CHECK(gradient[0][0] == doctest::Approx(-2 + 0.5 * 2 * d));
  CHECK(d_entropy[0][0] == doctest::Approx(-0.1));
  r = call(rlhf::kl_estimator::k3, rlhf::kl_weighting::plain);
  CHECK(gradient[0][0] == doctest::Approx(-2 + 0.5 * (1 - 1.0 / 3)));
  r = call(rlhf::kl_estimator::k2, rlhf::kl_weighting::plain);
  CHECK(gradient[0][0] == doctest::Approx(-2 + 0.5 * d));
  CHECK(r.kl.mean() == doctest::Approx(d * d / 2));
  r = call(rlhf::kl_estimator::k1, rlhf::kl_weighting::ratio);
  CHECK(gradient[0][0] == doctest::Approx(-2 + 0.5 * 2 * (d + 1)));
  r = call(rlhf::kl_estimator::absolute, rlhf::kl_weighting::plain);
  CHECK(gradient[0][0] == doctest::Approx(-2 + 0.5));
}

TEST_CASE_TEMPLATE("clipped_surrogate_loss: contracts name function, argument and both values", B,
                   RLHF_TEST_BACKENDS) {
  const auto x = rows<B>({{-1, -1, -1}, {-1, -1, -1}});
  const auto narrow = rows<B>({{-1, -1}, {-1, -1}});
  auto gradient = rows<B>({{7, 7, 7}, {7, 7, 7}});
  const auto over = aggregation::token_mean(6);
  const auto check = [&](const char* expected, auto batch, rlhf::clipped_surrogate_config config) {
    CHECK(message_of([&] {
            clipped_surrogate_loss<double>(batch, {.d_log_prob = gradient.tensor()}, config);
          }) == expected);
    for (std::ptrdiff_t i = 0; i < 2; ++i)
      for (std::ptrdiff_t j = 0; j < 3; ++j) CHECK(gradient(i, j) == 7);
  };
  using batch = rlhf::policy_batch<double>;
  check(
      "clipped_surrogate_loss: log_prob: expected a tensor: this input is required, received none",
      batch{.old_log_prob = x.tensor()}, {.over = over});
  check(
      "clipped_surrogate_loss: old_log_prob: expected a tensor: this input is required, received "
      "none",
      batch{.log_prob = x.tensor(), .advantage = x.tensor()}, {.over = over});
  check("clipped_surrogate_loss: advantage: expected shape [2, 3], or shape [2], received [2, 2]",
        batch{.log_prob = x.tensor(), .old_log_prob = x.tensor(), .advantage = narrow.tensor()},
        {.over = over});
  check(
      "clipped_surrogate_loss: ref_log_prob: expected to be left out: this call does not use it, "
      "received one",
      batch{.log_prob = x.tensor(),
            .old_log_prob = x.tensor(),
            .ref_log_prob = x.tensor(),
            .advantage = x.tensor()},
      {.over = over});
  check(
      "clipped_surrogate_loss: ref_log_prob: expected a tensor: this input is required, received "
      "none",
      batch{.log_prob = x.tensor(), .old_log_prob = x.tensor(), .advantage = x.tensor()},
      {.over = over, .kl = {.coefficient = 0.1}});
  const batch good{.log_prob = x.tensor(), .old_log_prob = x.tensor(), .advantage = x.tensor()};
  check("clipped_surrogate_loss: clip_low: expected >= 0, received -0.1", good,
        {.clip_low = -0.1, .over = over});
  check("clipped_surrogate_loss: clip_high: expected >= 0, received nan", good,
        {.clip_high = not_a_number, .over = over});
  check("clipped_surrogate_loss: dual_clip: expected 0 (none) or > 1, received 1", good,
        {.dual_clip = 1, .over = over});
  check("clipped_surrogate_loss: over: expected a count that is finite and > 0, received -6", good,
        {.over = aggregation::token_mean(-6)});
  check("clipped_surrogate_loss: over: expected a count > 0, because tokens count, received 0",
        good, {.over = aggregation::token_mean(0)});
  check(
      "clipped_surrogate_loss: kl.coefficient: expected a number that is finite and >= 0, "
      "received inf",
      batch{.log_prob = x.tensor(),
            .old_log_prob = x.tensor(),
            .ref_log_prob = x.tensor(),
            .advantage = x.tensor()},
      {.over = over, .kl = {.coefficient = infinite}});
}

TEST_CASE("clipped_surrogate_loss: a bad token is counted wherever it stands in a tile") {
  // 1,500 tokens: more than one tile, and a tail that is not full. One token at a time is bad.
  const std::size_t n = 1500;
  const std::vector<float> old(n, 0), advantage(n, 1);
  const rlhf::shape shape(1, 1500);
  for (const bool masked : {false, true})
    for (const std::size_t at : {0u, 15u, 16u, 511u, 512u, 1023u, 1024u, 1487u, 1488u, 1499u})
      for (const double bad : {81.0, -81.0, 80.0, infinite, -infinite, not_a_number}) {
        std::vector<float> log_prob(n, 0.25f), gradient(n, 7);
        std::vector<std::uint8_t> mask(n, 1);
        if (masked) mask[7] = mask[300] = mask[1200] = 0, log_prob[300] = 100;
        log_prob[at] = static_cast<float>(bad);
        const rlhf::mask_view<> flags(mask, shape);
        const auto r = clipped_surrogate_loss<float>({.log_prob = {log_prob, shape},
                                                      .old_log_prob = {old, shape},
                                                      .advantage = {advantage, shape},
                                                      .mask = masked ? flags : rlhf::mask_view<>()},
                                                     {.d_log_prob = {gradient, shape}},
                                                     {.over = aggregation::token_sum()});
        CAPTURE(at);
        CAPTURE(bad);
        CHECK(r.saturated == (std::fabs(bad) > 80 ? 1 : 0));  // false for NaN
        CHECK(r.nonfinite == (bad - bad == 0 ? 0 : 1));
        CHECK((r.loss == r.loss) == (bad == bad));
        CHECK(std::isnan(gradient[at]) == (bad != bad));
        if (masked) CHECK((gradient[300] == 0 && !std::signbit(gradient[300])));
      }
}

TEST_CASE("clipped_surrogate_loss: no gradient is -0, and sums of nothing are +0") {
  const std::size_t n = 100;
  const rlhf::shape shape(2, 50);
  std::vector<float> log_prob(n), advantage(n), gradient(n, 7);
  const std::vector<float> old(n, 0);
  for (std::size_t k = 0; k < n; ++k) {
    log_prob[k] = k % 2 == 0 ? 1.0f : -1.0f;  // far beyond the clip on either side
    advantage[k] = k % 3 == 0 ? 0.0f : k % 3 == 1 ? -0.0f : k % 2 == 0 ? 1.0f : -1.0f;
  }
  const auto r = clipped_surrogate_loss<float>({.log_prob = {log_prob, shape},
                                                .old_log_prob = {old, shape},
                                                .advantage = {advantage, shape}},
                                               {.d_log_prob = {gradient, shape}},
                                               {.over = aggregation::token_mean(rlhf::local)});
  for (const float g : gradient) CHECK((g == 0 && !std::signbit(g)));
  CHECK(r.clip_fraction.sum == 33);  // A = 0 is cut nowhere
  const auto same = clipped_surrogate_loss<float>(
      {.log_prob = {old, shape}, .old_log_prob = {old, shape}, .advantage = {old, shape}},
      {.d_log_prob = {gradient, shape}}, {.over = aggregation::token_mean(rlhf::local)});
  for (const double sum : {same.approx_kl_k1.sum, same.approx_kl_k2.sum, same.approx_kl_k3.sum})
    CHECK((sum == 0 && !std::signbit(sum)));
}
