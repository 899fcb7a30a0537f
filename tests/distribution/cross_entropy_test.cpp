#include "rlhf/distribution/cross_entropy.hpp"

#include <doctest/doctest.h>

#include "rlhf/backend/host.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/logits.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::cross_entropy_loss;

namespace {

/// The loss of one token by the textbook.
long double reference_loss(const std::vector<long double>& x, std::size_t label,
                           const rlhf::cross_entropy_config& c) {
  const auto r = reference_row(x.data(), x.size(), label, static_cast<long double>(c.temperature));
  const auto s = static_cast<long double>(c.label_smoothing);
  return -(1 - s) * r.log_prob - s * r.mean_log_prob +
         static_cast<long double>(c.z_loss) * r.log_sum_exp * r.log_sum_exp;
}

}  // namespace

TEST_CASE("cross_entropy_loss: values by hand") {
  // softmax of (0, ln 3) is (1, 3) / 4; labels 0 and 1, one ignored row between them
  const std::vector<double> x{0, std::log(3.0), 5, 5, 0, std::log(3.0)};
  const std::vector<int> y{0, -100, 1};
  std::vector<double> d(6, 7), token_loss(3, 7);
  const auto r = cross_entropy_loss<double>({.logits = {x, {3, 2}}, .label = y},
                                            {.d_logits = {d, {3, 2}}, .token_loss = token_loss},
                                            {.over = aggregation::token_mean(rlhf::local)});
  CHECK(r.loss == doctest::Approx((std::log(4.0) + std::log(4.0 / 3)) / 2));
  CHECK(r.nll.mean() == doctest::Approx(r.loss));
  CHECK(r.accuracy.mean() == 0.5);
  CHECK(r.tokens == 2);
  CHECK(r.positions == 2);
  CHECK(r.perplexity() == doctest::Approx(std::exp(r.loss)));
  CHECK(token_loss[0] == doctest::Approx(std::log(4.0)));
  CHECK(token_loss[1] == 0);
  CHECK(d[0] == doctest::Approx((0.25 - 1) / 2));
  CHECK(d[1] == doctest::Approx(0.75 / 2));
  CHECK(d[2] == 0);
  CHECK(d[3] == 0);
  CHECK(d[4] == doctest::Approx(0.25 / 2));
  CHECK(d[5] == doctest::Approx(-0.25 / 2));
  // smoothing 0.4 on two classes: 0.8 on the label, 0.2 on the other
  const auto smooth =
      cross_entropy_loss<double>({.logits = {x, {3, 2}}, .label = y}, {.d_logits = {d, {3, 2}}},
                                 {.label_smoothing = 0.4, .over = aggregation::token_sum()});
  CHECK(smooth.loss == doctest::Approx(0.8 * std::log(4.0) + 0.2 * std::log(4.0 / 3) +
                                       0.8 * std::log(4.0 / 3) + 0.2 * std::log(4.0)));
  CHECK(d[0] == doctest::Approx(0.25 - 0.8));
  // z-loss 0.1: (ln 4)², slope 0.2 ln 4 p
  const auto z =
      cross_entropy_loss<double>({.logits = {x, {3, 2}}, .label = y}, {.d_logits = {d, {3, 2}}},
                                 {.z_loss = 0.1, .over = aggregation::token_sum()});
  CHECK(z.loss ==
        doctest::Approx(std::log(4.0) + std::log(4.0 / 3) + 0.2 * std::log(4.0) * std::log(4.0)));
  CHECK(d[0] == doctest::Approx(0.25 * (1 + 0.2 * std::log(4.0)) - 1));
}

TEST_CASE("cross_entropy_loss: value and slope against the textbook in long double") {
  const std::size_t n = 4, classes = 11;
  const auto x = normal<double>(n * classes, 2);
  const std::vector<int> y{3, 0, 10, 5};
  const std::vector<double> w{1, 0.5, 0, 2};
  const rlhf::cross_entropy_config configs[] = {
      {.over = aggregation::token_mean(7)},
      {.label_smoothing = 0.1, .over = aggregation::token_sum()},
      {.z_loss = 1e-2, .temperature = 0.7, .over = aggregation::token_mean(rlhf::local)},
      {.label_smoothing = 1, .z_loss = 0.3, .temperature = 3, .over = aggregation::token_sum()}};
  for (const auto& config : configs) {
    const bool local = config.over.by().is_local();
    const long double count = local ? 3.5L : static_cast<long double>(config.over.by().value());
    std::vector<double> d(n * classes);
    const auto r =
        cross_entropy_loss<double>({.logits = {x, {n, classes}}, .label = y, .mask = w},
                                   {.d_logits = {d, {n, classes}}, .upstream = 2}, config);
    long double expected = 0;
    for (std::size_t i = 0; i < n; ++i) {
      std::vector<long double> row(x.begin() + static_cast<std::ptrdiff_t>(i * classes),
                                   x.begin() + static_cast<std::ptrdiff_t>((i + 1) * classes));
      const auto label = static_cast<std::size_t>(y[i]);
      const auto weight = static_cast<long double>(w[i]) / count;
      expected += weight * reference_loss(row, label, config);
      for (std::size_t v = 0; v < classes; ++v) {
        const auto loss = [&](long double h) {
          auto z = row;
          z[v] += h;
          return reference_loss(z, label, config);
        };
        const long double h = 1e-5L;
        const long double slope =
            2 * weight * (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h);
        CHECK(std::abs(static_cast<long double>(d[i * classes + v]) - slope) <= 1e-12L);
      }
    }
    CHECK(std::abs(static_cast<long double>(r.loss) - expected) <= 1e-13L);
  }
}

TEST_CASE("cross_entropy_loss: aggregations over sequences") {
  // Two sequences of 3 slots; the first has 2 tokens, the second 1. All logits 0: loss ln 4 each.
  const std::vector<float> x(6 * 4, 0);
  const std::vector<int> y{0, 1, -100, 2, -100, -100};
  std::vector<float> d(24);
  const auto loss = [&](const aggregation& over) {
    return cross_entropy_loss<float>({.logits = {x, {2, 3, 4}}, .label = {y, {2, 3}}},
                                     {.d_logits = {d, {2, 3, 4}}}, {.over = over});
  };
  const double l = std::log(4.0);
  CHECK(loss(aggregation::token_mean(rlhf::local)).loss == doctest::Approx(l));
  CHECK(loss(aggregation::sequence_mean_token_sum(rlhf::local)).loss == doctest::Approx(1.5 * l));
  const auto r = loss(aggregation::sequence_mean_token_mean(rlhf::local));
  CHECK(r.loss == doctest::Approx(l));
  CHECK(r.sequences == 2);
  CHECK(d[0] == doctest::Approx(-0.75 / 4));  // (p − 1) / (2 sequences · 2 tokens)
  CHECK(d[12 + 2] == doctest::Approx(-0.75 / 2));
  CHECK(loss(aggregation::turn_mean(rlhf::local)).loss == doctest::Approx(l));
  CHECK(d[12 + 2] == doctest::Approx(-0.75 / 2));
  const int offsets[] = {0, 2, 3};
  const std::vector<int> packed_label{0, 1, 2};
  const auto p = cross_entropy_loss<float>(
      {.logits = {x.data(), {3, 4}}, .label = packed_label, .layout = rlhf::packed(offsets)}, {},
      {.over = aggregation::sequence_mean_token_mean(rlhf::local)});
  CHECK(p.loss == r.loss);
  CHECK(p.sequences == 2);
}

TEST_CASE("cross_entropy_loss: nothing counted is silence") {
  std::vector<float> x(12, static_cast<float>(not_a_number));
  const std::vector<int> y{-100, -100, -100};
  const auto r =
      cross_entropy_loss<float>({.logits = {x, {3, 4}}, .label = y}, {.d_logits = {x, {3, 4}}},
                                {.over = aggregation::token_mean(rlhf::local)});
  CHECK(r.loss == 0);
  CHECK(r.tokens == 0);
  CHECK(r.nonfinite == 0);
  CHECK(same_bits(x, std::vector<float>(12, 0)));
}

TEST_CASE("cross_entropy_loss: classes of -inf take no part, in smoothing neither") {
  const std::vector<double> dense{1, 3, 2};
  const std::vector<double> sparse{1, -infinite, 3, 2, -infinite};
  std::vector<double> d(3), e(5);
  const rlhf::cross_entropy_config config{
      .label_smoothing = 0.3, .z_loss = 0.1, .over = aggregation::token_sum()};
  const std::vector<int> first{1}, second{2};
  const auto a = cross_entropy_loss<double>({.logits = {dense, {1, 3}}, .label = first},
                                            {.d_logits = {d, {1, 3}}}, config);
  const auto b = cross_entropy_loss<double>({.logits = {sparse, {1, 5}}, .label = second},
                                            {.d_logits = {e, {1, 5}}}, config);
  CHECK(a.loss == doctest::Approx(b.loss).epsilon(1e-14));
  CHECK(e[1] == 0);
  CHECK(e[4] == 0);
  CHECK(d[0] == doctest::Approx(e[0]).epsilon(1e-14));
  CHECK(d[1] == doctest::Approx(e[2]).epsilon(1e-14));
  CHECK(d[2] == doctest::Approx(e[3]).epsilon(1e-14));
}

TEST_CASE("cross_entropy_loss: an infinite loss and a NaN row are seen and counted") {
  const std::vector<double> x{1, -infinite, 2, 0, not_a_number, 2, 0, 0, 0};
  const std::vector<int> y{1, 0, 0};
  std::vector<double> d(9), token_loss(3);
  const auto r = cross_entropy_loss<double>({.logits = {x, {3, 3}}, .label = y},
                                            {.d_logits = {d, {3, 3}}, .token_loss = token_loss},
                                            {.over = aggregation::token_mean(rlhf::local)});
  CHECK(token_loss[0] == infinite);
  CHECK(std::isnan(token_loss[1]));
  CHECK(token_loss[2] == doctest::Approx(std::log(3.0)));
  CHECK(std::isnan(r.loss));
  CHECK(r.nonfinite == 2);
  CHECK(r.tokens == 3);
  CHECK(std::isfinite(d[0]));
  CHECK(d[1] == 0);
  CHECK(std::isnan(d[3]));
  CHECK(d[6] == doctest::Approx((1.0 / 3 - 1) / 3));
}

TEST_CASE_TEMPLATE("cross_entropy_loss: 16-bit storage in place is the float path, rounded", L,
                   rlhf::bfloat16, rlhf::half) {
  const std::size_t n = 5, classes = 1500;
  auto x = normal<L>(n * classes, 2);
  std::vector<float> wide, d(n * classes);
  for (const L v : x) wide.push_back(static_cast<float>(v));
  const std::vector<std::int64_t> y{0, 1499, -100, 700, 1024};
  const rlhf::cross_entropy_config config{
      .label_smoothing = 0.1, .z_loss = 1e-4, .over = aggregation::token_mean(rlhf::local)};
  const auto a = cross_entropy_loss<float>({.logits = {wide, {n, classes}}, .label = y},
                                           {.d_logits = {d, {n, classes}}}, config);
  const auto b = cross_entropy_loss<L>({.logits = {x, {n, classes}}, .label = y},
                                       {.d_logits = {x, {n, classes}}}, config);
  CHECK(a.loss == b.loss);
  CHECK(a.accuracy.sum == b.accuracy.sum);
  std::vector<L> rounded;
  for (const float g : d) rounded.push_back(L(g));
  CHECK(same_bits(x, rounded));
}

TEST_CASE("cross_entropy_loss: same bits on any pool, results of halves add up") {
  const std::size_t n = 23, classes = 1100;
  const auto x = normal<float>(n * classes, 2);
  std::vector<int> y;
  for (std::size_t i = 0; i < n; ++i) y.push_back(i % 5 == 0 ? -100 : static_cast<int>(i));
  std::vector<float> d(n * classes), e(n * classes);
  const rlhf::cross_entropy_config config{.over = aggregation::token_mean(18)};
  const auto r = cross_entropy_loss<float>({.logits = {x, {n, classes}}, .label = y},
                                           {.d_logits = {d, {n, classes}}}, config);
  const thread_pool pool{3};
  const auto s =
      cross_entropy_loss<float>({.logits = {x, {n, classes}}, .label = y},
                                {.d_logits = {e, {n, classes}}}, config, rlhf::parallel{pool});
  CHECK(r.loss == s.loss);
  CHECK(same_bits(d, e));
  const auto part = [&](std::size_t from, std::size_t count) {
    return cross_entropy_loss<float>({.logits = {x.data() + from * classes, {count, classes}},
                                      .label = {y.data() + from, {count}}},
                                     {.d_logits = {e.data() + from * classes, {count, classes}}},
                                     config);
  };
  const auto sum = part(0, 10) + part(10, 13);
  CHECK(sum.loss == doctest::Approx(r.loss));
  CHECK(sum.tokens == r.tokens);
  CHECK(sum.nll.mean() == doctest::Approx(r.nll.mean()));
  CHECK(same_bits(d, e));
}

TEST_CASE("cross_entropy_loss: upstream scales the gradient alone") {
  const auto x = normal<float>(4 * 6, 2);
  const std::vector<int> y{0, 1, 2, 3};
  std::vector<float> d(24), e(24);
  const std::vector<float> per_token{2, 0, -1, 4};
  const auto r =
      cross_entropy_loss<float>({.logits = {x, {4, 6}}, .label = y}, {.d_logits = {d, {4, 6}}},
                                {.over = aggregation::token_sum()});
  const auto s = cross_entropy_loss<float>({.logits = {x, {4, 6}}, .label = y},
                                           {.d_logits = {e, {4, 6}}, .upstream = per_token},
                                           {.over = aggregation::token_sum()});
  CHECK(r.loss == s.loss);
  for (std::size_t k = 0; k < 24; ++k) CHECK(e[k] == d[k] * per_token[k / 6]);
}

TEST_CASE("cross_entropy_loss: contracts, and nothing is written when one is broken") {
  const auto x = normal<float>(4 * 6, 1);
  std::vector<int> y{0, 1, 2, 3};
  std::vector<float> d(24, 7), token_loss(4, 7);
  const auto broken = [&](const rlhf::cross_entropy_config& config) {
    CHECK_THROWS_AS(
        cross_entropy_loss<float>({.logits = {x, {4, 6}}, .label = y},
                                  {.d_logits = {d, {4, 6}}, .token_loss = token_loss}, config),
        rlhf::contract_violation);
    CHECK(d == std::vector<float>(24, 7));
    CHECK(token_loss == std::vector<float>(4, 7));
  };
  const auto over = aggregation::token_sum();
  broken({.label_smoothing = -0.1, .over = over});
  broken({.label_smoothing = 1.1, .over = over});
  broken({.label_smoothing = not_a_number, .over = over});
  broken({.z_loss = -1, .over = over});
  broken({.z_loss = infinite, .over = over});
  broken({.temperature = 0, .over = over});
  broken({.over = aggregation::token_mean(0)});
  broken({.over = aggregation::token_mean(-1)});
  broken({.over = aggregation::sequence_mean_token_mean(1)});  // loose tokens have no sequences
  y[2] = 6;
  broken({.over = over});
  y[2] = -100;
  broken({.ignore_index = -1, .over = over});
  y[2] = 2;
  std::vector<float> small(20, 7);
  CHECK_THROWS_AS(cross_entropy_loss<float>({.logits = {x, {4, 6}}, .label = y},
                                            {.d_logits = {small, {4, 5}}}, {.over = over}),
                  rlhf::contract_violation);
  CHECK_THROWS_AS(
      cross_entropy_loss<float>({.logits = {x, {4, 6}}}, {.d_logits = {d, {4, 6}}}, {.over = over}),
      rlhf::contract_violation);
}
