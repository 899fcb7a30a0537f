#include "rlhf/preference/dpo.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::dpo_loss;
using rlhf::dpo_variant;
using rlhf::reduction;

namespace {
double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
}  // namespace

TEST_CASE("dpo_loss: values by hand, every variant") {
  // a = -5 - -6 = 1, b = -8 - -6 = -2, z = 0.5 (1 + 2) = 1.5 | a = -1, b = 1, z = -1
  const double chosen[2] = {-5, -7}, rejected[2] = {-8, -5};
  const double ref_chosen[2] = {-6, -6}, ref_rejected[2] = {-6, -6};
  double d_chosen[2], d_rejected[2], pair[2];
  const auto call = [&](dpo_variant variant, double e) {
    return dpo_loss<double>(
        {.chosen_log_prob = chosen,
         .rejected_log_prob = rejected,
         .ref_chosen_log_prob = ref_chosen,
         .ref_rejected_log_prob = ref_rejected},
        {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected, .pair_loss = pair},
        {.beta = 0.5, .variant = variant, .label_smoothing = e, .over = reduction::mean(2)});
  };
  auto r = call(dpo_variant::sigmoid, 0);
  CHECK(r.loss == doctest::Approx((softplus(-1.5) + softplus(1)) / 2));
  CHECK(pair[0] == doctest::Approx(softplus(-1.5)));
  CHECK(d_chosen[0] == doctest::Approx(-0.5 * sigmoid(-1.5) / 2));
  CHECK(d_rejected[1] == doctest::Approx(0.5 * sigmoid(1) / 2));
  CHECK(d_chosen[0] == -d_rejected[0]);
  CHECK(r.accuracy.mean() == 0.5);
  CHECK(r.margin.mean() == doctest::Approx((1.5 - 1) / 2));
  CHECK(r.chosen_reward.mean() == doctest::Approx((0.5 - 0.5) / 2));
  CHECK(r.rejected_reward.mean() == doctest::Approx((-1 + 0.5) / 2));
  CHECK(r.chosen_score.mean() == -6);
  CHECK(r.rejected_score.mean() == -6.5);
  CHECK(r.pairs == 2);
  r = call(dpo_variant::conservative, 0.1);
  CHECK(r.loss == doctest::Approx((0.9 * softplus(-1.5) + 0.1 * softplus(1.5) + 0.9 * softplus(1) +
                                   0.1 * softplus(-1)) /
                                  2));
  CHECK(d_chosen[0] == doctest::Approx(0.5 * (sigmoid(1.5) - 0.9) / 2));
  r = call(dpo_variant::robust, 0.1);
  CHECK(r.loss == doctest::Approx((0.9 * softplus(-1.5) - 0.1 * softplus(1.5) + 0.9 * softplus(1) -
                                   0.1 * softplus(-1)) /
                                  0.8 / 2));
  CHECK(d_chosen[0] == doctest::Approx(0.5 * (sigmoid(1.5) - 0.9 / 0.8) / 2));
}

TEST_CASE("dpo_loss: conservative with labels that say nothing is symmetric") {
  const double chosen[1] = {-5}, rejected[1] = {-8};
  const rlhf::dpo_config config{.beta = 0.5,
                                .variant = dpo_variant::conservative,
                                .label_smoothing = 0.5,
                                .reference_free = true,
                                .over = reduction::sum()};
  const auto a =
      dpo_loss<double>({.chosen_log_prob = chosen, .rejected_log_prob = rejected}, {}, config);
  const auto b =
      dpo_loss<double>({.chosen_log_prob = rejected, .rejected_log_prob = chosen}, {}, config);
  CHECK(a.loss == doctest::Approx(b.loss).epsilon(1e-15));
}

TEST_CASE("dpo_loss: in float the margin of two answers is within its bound") {
  // Log-probs of whole answers against long double. z is near 0, where the loss shows its error
  // best: |d loss / d z| <= 1, and 3 roundings of the loss itself.
  random_numbers random(51);
  constexpr std::size_t n = 4000;
  std::vector<float> chosen(n), rejected(n), ref_chosen(n), ref_rejected(n), loss(n);
  for (const double beta : {0.05, 0.1, 0.5}) {
    for (std::size_t i = 0; i < n; ++i) {
      const double ratio = random.uniform(-10, 10);
      chosen[i] = static_cast<float>(random.uniform(-400, 0));
      rejected[i] = static_cast<float>(random.uniform(-400, 0));
      ref_chosen[i] = chosen[i] - static_cast<float>(ratio);
      ref_rejected[i] =
          rejected[i] - static_cast<float>((i % 2 == 0 ? ratio : -ratio) + random.uniform(-1, 1));
    }
    dpo_loss<float>({.chosen_log_prob = chosen,
                     .rejected_log_prob = rejected,
                     .ref_chosen_log_prob = ref_chosen,
                     .ref_rejected_log_prob = ref_rejected},
                    {.pair_loss = loss}, {.beta = beta, .over = reduction::sum()});
    for (std::size_t i = 0; i < n; ++i) {
      const auto a = static_cast<double>(chosen[i]) - static_cast<double>(ref_chosen[i]);
      const auto b = static_cast<double>(rejected[i]) - static_cast<double>(ref_rejected[i]);
      const double expected = softplus(-beta * (a - b));
      const double bound = (2 * std::abs(a) + 2 * std::abs(b)) * beta + 3 * expected;
      CHECK(std::abs(static_cast<double>(loss[i]) - expected) <= bound * 0x1p-24);
    }
  }
}

TEST_CASE("dpo_loss: tokens in float sum to 1e-7 of their log-ratios, however many they are") {
  random_numbers random(52);
  const float one[1] = {-1};
  for (const int n : {1, 3, 16, 100, 1024, 1030, 5000, 40000})
    for (const bool one_sign : {false, true}) {
      CAPTURE(n);
      std::vector<float> log_prob, ref;
      double exact = 0, size = 0;
      for (int i = 0; i < n; ++i) {
        log_prob.push_back(static_cast<float>(random.uniform(-8, 0)));
        ref.push_back(log_prob.back() - static_cast<float>(random.uniform(one_sign ? 0 : -2, 2)));
        const double ratio = static_cast<double>(log_prob.back()) - static_cast<double>(ref.back());
        exact += ratio, size += std::abs(ratio);
      }
      const auto r = dpo_loss<float>({.chosen_log_prob = {log_prob, {1, n}},
                                      .rejected_log_prob = {one, {1, 1}},
                                      .ref_chosen_log_prob = {ref, {1, n}},
                                      .ref_rejected_log_prob = {one, {1, 1}}},
                                     {}, {.beta = 1, .over = reduction::sum()});
      CHECK(std::abs(r.margin.sum - exact) <= 1e-7 * size);
    }
}

TEST_CASE("dpo_loss: a policy equal to its reference has loss ln 2 and half the slope") {
  const double x[3] = {-3, -400, -0.5};
  double d_chosen[3], d_rejected[3];
  const auto r =
      dpo_loss<double>({.chosen_log_prob = x,
                        .rejected_log_prob = x,
                        .ref_chosen_log_prob = x,
                        .ref_rejected_log_prob = x},
                       {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
                       {.beta = 0.2, .over = reduction::mean(3)});
  CHECK(r.loss == doctest::Approx(std::log(2.0)).epsilon(1e-15));
  for (int i = 0; i < 3; ++i) {
    CHECK(d_chosen[i] == doctest::Approx(-0.1 / 3).epsilon(1e-15));
    CHECK(d_rejected[i] == -d_chosen[i]);
  }
  CHECK(r.accuracy.mean() == 0);
  CHECK(r.ties.mean() == 1);
}

TEST_CASE_TEMPLATE("dpo_loss: tokens are summed per answer and get its slope back", B,
                   RLHF_TEST_BACKENDS) {
  // chosen: -1 -2 | -1 -1 (masked NaN); rejected, another width: -1 -1 -1 | -2 (one token)
  const auto chosen = rows<B>({{-1, -2}, {-1, not_a_number}});
  const auto ref_chosen = rows<B>({{-2, -2}, {-2, not_a_number}});
  const auto chosen_mask = flags<B>({{1, 1}, {1, 0}});
  const auto rejected = rows<B>({{-1, -1, -1}, {-2, 9, 9}});
  const auto ref_rejected = rows<B>({{-1, -1, -2}, {-1, 9, 9}});
  const std::vector<std::int32_t> length{3, 1};
  auto d_chosen = rows<B>({{7, 7}, {7, 7}});
  auto d_rejected = rows<B>({{7, 7, 7}, {7, 7, 7}});
  // a = 1 | 1;  b = 1 | -1;  z = 0 | 2·0.5 = 1
  for (const bool mean : {false, true}) {
    const auto r = dpo_loss<double>(
        {.chosen_log_prob = chosen.tensor(),
         .rejected_log_prob = rejected.tensor(),
         .ref_chosen_log_prob = ref_chosen.tensor(),
         .ref_rejected_log_prob = ref_rejected.tensor(),
         .chosen_mask = chosen_mask.tensor(),
         .rejected_layout = rlhf::lengths(length)},
        {.d_chosen_log_prob = d_chosen.tensor(), .d_rejected_log_prob = d_rejected.tensor()},
        {.beta = 0.5, .length_normalised = mean, .over = reduction::mean(rlhf::local)});
    // normalised: a = 1/2 | 1, b = 1/3 | -1
    const double z0 = mean ? 0.5 * (0.5 - 1.0 / 3) : 0, z1 = 1;
    CHECK(r.loss == doctest::Approx((softplus(-z0) + softplus(-z1)) / 2));
    const double g0 = 0.5 * sigmoid(-z0) / 2, g1 = 0.5 * sigmoid(-z1) / 2;
    CHECK(d_chosen(0, 0) == doctest::Approx(mean ? -g0 / 2 : -g0));
    CHECK(d_chosen(0, 1) == d_chosen(0, 0));
    CHECK(d_chosen(1, 0) == doctest::Approx(-g1));
    CHECK(d_chosen(1, 1) == 0);
    CHECK(d_rejected(0, 2) == doctest::Approx(mean ? g0 / 3 : g0));
    CHECK(d_rejected(1, 0) == doctest::Approx(g1));
    CHECK(d_rejected(1, 1) == 0);
    CHECK(r.chosen_score.mean() == doctest::Approx(mean ? (-1.5 - 1) / 2 : -2));
  }
}

TEST_CASE("dpo_loss: packed tokens give the bits of padded ones") {
  const double padded[2][3] = {{-1, -2, 0}, {-3, -1, -2}}, ref[2][3] = {{-2, -2, 0}, {-1, -1, -1}};
  const double flat[5] = {-1, -2, -3, -1, -2}, flat_ref[5] = {-2, -2, -1, -1, -1};
  const std::vector<std::int32_t> length{2, 3};
  const std::vector<std::int64_t> offsets{0, 2, 5};
  double d_padded[2][3], d_flat[5];
  const rlhf::dpo_config config{.over = reduction::sum()};
  const auto a = dpo_loss<double>({.chosen_log_prob = padded,
                                   .rejected_log_prob = ref,
                                   .ref_chosen_log_prob = ref,
                                   .ref_rejected_log_prob = padded,
                                   .chosen_layout = rlhf::lengths(length),
                                   .rejected_layout = rlhf::lengths(length)},
                                  {.d_chosen_log_prob = d_padded}, config);
  const auto b = dpo_loss<double>({.chosen_log_prob = flat,
                                   .rejected_log_prob = flat_ref,
                                   .ref_chosen_log_prob = flat_ref,
                                   .ref_rejected_log_prob = flat,
                                   .chosen_layout = rlhf::packed(offsets),
                                   .rejected_layout = rlhf::packed(offsets)},
                                  {.d_chosen_log_prob = d_flat}, config);
  CHECK(a.loss == b.loss);
  CHECK(d_padded[0][1] == d_flat[1]);
  CHECK(d_padded[0][2] == 0);
  CHECK(d_padded[1][2] == d_flat[4]);
}

TEST_CASE("dpo_loss: margin, weight, upstream and a missing reference") {
  const double chosen[2] = {-2, -4}, rejected[2] = {-3, not_a_number};
  const double margin[2] = {0.5, 0}, weight[2] = {2, 0}, upstream[2] = {3, 5};
  double d_chosen[2] = {7, 7}, pair[2] = {7, 7};
  const auto r = dpo_loss<double>(
      {.chosen_log_prob = chosen,
       .rejected_log_prob = rejected,
       .margin = margin,
       .weight = weight},
      {.d_chosen_log_prob = rlhf::add_to(d_chosen), .pair_loss = pair, .upstream = upstream},
      {.beta = 1, .reference_free = true, .over = reduction::mean(rlhf::local)});
  // z = 1 - 0.5; the pair weighs 2 of 2
  CHECK(r.loss == doctest::Approx(softplus(-0.5)));
  CHECK(d_chosen[0] == doctest::Approx(7 - sigmoid(-0.5) * 3));
  CHECK(d_chosen[1] == 7);
  CHECK(pair[0] == doctest::Approx(softplus(-0.5)));
  CHECK(pair[1] == 0);
  CHECK(r.pairs == 2);
  CHECK(r.positions == 1);
}

TEST_CASE("dpo_loss: far margins are finite in value and slope") {
  const float chosen[2] = {-1, -1e6F}, rejected[2] = {-1e6F, -1};
  float d_chosen[2];
  const auto r = dpo_loss<float>({.chosen_log_prob = chosen, .rejected_log_prob = rejected},
                                 {.d_chosen_log_prob = d_chosen},
                                 {.beta = 1, .reference_free = true, .over = reduction::sum()});
  CHECK(r.loss == doctest::Approx(1e6));
  CHECK(d_chosen[0] == 0);
  CHECK(d_chosen[1] == -1);
}

TEST_CASE("dpo_loss: no pair is silence, and NaN is seen or dropped") {
  std::vector<double> none;
  const auto empty =
      dpo_loss<double>({.chosen_log_prob = none, .rejected_log_prob = none}, {},
                       {.reference_free = true, .over = reduction::mean(rlhf::local)});
  CHECK(empty.loss == 0);
  CHECK(empty.pairs == 0);
  const double chosen[2] = {not_a_number, -1}, rejected[2] = {-1, -1};
  double d_chosen[2];
  for (const auto policy :
       {rlhf::nonfinite_policy::propagate, rlhf::nonfinite_policy::drop_token}) {
    const auto r = dpo_loss<double>(
        {.chosen_log_prob = chosen, .rejected_log_prob = rejected}, {.d_chosen_log_prob = d_chosen},
        {.reference_free = true, .over = reduction::mean(2), .nonfinite = policy});
    const bool kept = policy == rlhf::nonfinite_policy::propagate;
    CHECK(std::isnan(r.loss) == kept);
    CHECK(r.nonfinite == 1);
    CHECK(std::isnan(d_chosen[0]) == kept);
    if (!kept) CHECK(r.loss == doctest::Approx(std::log(2.0) / 2));
  }
}

TEST_CASE("dpo_loss: contracts") {
  const double x[2] = {-1, -1}, y[3] = {-1, -1, -1};
  const double tokens[2][2] = {{-1, -1}, {-1, -1}}, more[3][2] = {};
  double d[2] = {7, 7};
  const auto over = reduction::mean(2);
  using batch = rlhf::dpo_batch<double>;
  const auto check = [&](const char* expected, const batch& b, const rlhf::dpo_config& config) {
    CHECK(message_of([&] { dpo_loss<double>(b, {.d_chosen_log_prob = d}, config); }) == expected);
    CHECK((d[0] == 7 && d[1] == 7));
  };
  const batch good{.chosen_log_prob = x,
                   .rejected_log_prob = x,
                   .ref_chosen_log_prob = x,
                   .ref_rejected_log_prob = x};
  check("dpo_loss: beta: expected a number that is finite and > 0, received 0", good,
        {.beta = 0, .over = over});
  check(
      "dpo_loss: label_smoothing: expected 0: variant sigmoid has none, choose conservative or "
      "robust, received 0.1",
      good, {.label_smoothing = 0.1, .over = over});
  check("dpo_loss: label_smoothing: expected < 0.5 for variant robust, received 0.5", good,
        {.variant = dpo_variant::robust, .label_smoothing = 0.5, .over = over});
  check("dpo_loss: label_smoothing: expected in [0, 0.5], received 0.6", good,
        {.variant = dpo_variant::conservative, .label_smoothing = 0.6, .over = over});
  check(
      "dpo_loss: ref_chosen_log_prob: expected to be left out: this call does not use it, received "
      "one",
      good, {.reference_free = true, .over = over});
  check("dpo_loss: ref_chosen_log_prob: expected a tensor: this input is required, received none",
        {.chosen_log_prob = x, .rejected_log_prob = x}, {.over = over});
  check("dpo_loss: rejected_log_prob: expected shape [2], received [3]",
        {.chosen_log_prob = x, .rejected_log_prob = y}, {.reference_free = true, .over = over});
  check("dpo_loss: length_normalised: expected false: whole answers have no length, received true",
        good, {.length_normalised = true, .over = over});
  CHECK(message_of([&] {
          dpo_loss<double>({.chosen_log_prob = tokens, .rejected_log_prob = more}, {},
                           {.reference_free = true, .over = over});
        }) ==
        "dpo_loss: rejected_log_prob: expected as many answers as chosen_log_prob has, received 3");
  check("dpo_loss: d_chosen_log_prob: expected shape [2, 2], received [2]",
        {.chosen_log_prob = tokens, .rejected_log_prob = tokens},
        {.reference_free = true, .over = over});
}
