#include "rlhf/value/clipped_value_loss.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "rlhf/math/dual.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::clipped_value_loss;
using numbers = std::vector<double>;

TEST_CASE_TEMPLATE("clipped_value_loss: values by hand", B, RLHF_TEST_BACKENDS) {
  // clip 0.5
  // v 1.0, old 0.0, R 2: bounded 0.5, errors -1 and -1.5: the clip decides, 2.25 / 2, slope 0
  // v 1.0, old 0.0, R 0: bounded 0.5, errors 1 and 0.5: plain, 1 / 2, slope 1
  // v 0.2, old 0.0, R 1: inside, errors -0.8 twice: plain, 0.64 / 2, slope -0.8
  // masked NaN
  const auto value = rows<B>({{1, 1}, {0.2, not_a_number}});
  const auto old_value = rows<B>({{0, 0}, {0, not_a_number}});
  const auto returns = rows<B>({{2, 0}, {1, not_a_number}});
  const auto mask = flags<B>({{1, 1}, {1, 0}});
  auto d_value = rows<B>({{7, 7}, {7, 7}});
  auto token_loss = rows<B>({{7, 7}, {7, 7}});
  const auto r =
      clipped_value_loss<double>({.value = value.tensor(),
                                  .old_value = old_value.tensor(),
                                  .returns = returns.tensor(),
                                  .mask = mask.tensor()},
                                 {.d_value = d_value.tensor(), .token_loss = token_loss.tensor()},
                                 {.clip = 0.5, .over = aggregation::token_mean(rlhf::local)});
  CHECK(r.loss == doctest::Approx((1.125 + 0.5 + 0.32) / 3).epsilon(1e-14));
  CHECK(d_value(0, 0) == 0);
  CHECK(d_value(0, 1) == doctest::Approx(1.0 / 3));
  CHECK(d_value(1, 0) == doctest::Approx(-0.8 / 3));
  CHECK(d_value(1, 1) == 0);
  CHECK(token_loss(0, 0) == 1.125);
  CHECK(token_loss(1, 1) == 0);
  CHECK(r.clip_fraction.mean() == doctest::Approx(1.0 / 3));
  CHECK(r.clip_distance_fraction.mean() == doctest::Approx(2.0 / 3));
  CHECK(r.value.mean() == doctest::Approx(2.2 / 3));
  CHECK(r.returns.mean() == 1);
  CHECK(r.error.mean() == doctest::Approx((1 + 1 + 0.8) / 3));
  CHECK(r.squared_error.mean() == doctest::Approx((1 + 1 + 0.64) / 3));
  CHECK(r.returns_squared.mean() == doctest::Approx(5.0 / 3));
  CHECK(r.value_min == 0.2);
  CHECK(r.value_max == 1);
  CHECK(r.tokens == 3);
  CHECK(r.sequences == 2);
  CHECK(r.nonfinite == 0);
}

TEST_CASE(
    "clipped_value_loss: without half loss and slope are twice as large, without a clip it is "
    "the squared error") {
  const numbers value{1, -2, 3}, old_value{0, 0, 2.9}, returns{2, 1, 3.5};
  const auto run = [&](double clip, bool half, numbers& d) {
    rlhf::value_batch<double> batch{.value = {value, {1, 3}}, .returns = {returns, {1, 3}}};
    if (clip > 0) batch.old_value = {old_value, {1, 3}};
    return clipped_value_loss<double>(
        batch, {.d_value = {d, {1, 3}}},
        {.clip = clip, .half = half, .over = aggregation::token_sum()});
  };
  numbers with(3), without(3), plain(3), wide(3);
  CHECK(run(0.2, false, without).loss == 2 * run(0.2, true, with).loss);
  for (std::size_t i = 0; i < 3; ++i) CHECK(without[i] == 2 * with[i]);
  const auto p = run(0, true, plain);
  CHECK(p.loss == 0.5 * (1 + 9 + 0.25));
  CHECK(plain == numbers{-1, -3, -0.5});
  CHECK(p.clip_fraction.mean() == 0);
  CHECK(run(10, true, wide).loss == p.loss);
  CHECK(wide == plain);
}

TEST_CASE("clipped_value_loss: 27 places of value, return and bound, the larger error decides") {
  // old 0, clip 1: values below, on and above each bound against returns likewise
  for (const double v : {-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, -3.0})
    for (const double target : {-4.0, 0.25, 4.0}) {
      numbers value{v}, old_value{0}, returns{target}, d(1, 7);
      const auto r = clipped_value_loss<double>({.value = {value, {1, 1}},
                                                 .old_value = {old_value, {1, 1}},
                                                 .returns = {returns, {1, 1}}},
                                                {.d_value = {d, {1, 1}}},
                                                {.clip = 1, .over = aggregation::token_sum()});
      const double bounded = v < -1 ? -1 : v > 1 ? 1 : v;
      const double plain = (v - target) * (v - target) / 2;
      const double cut = (bounded - target) * (bounded - target) / 2;
      CHECK(r.loss == (cut > plain ? cut : plain));
      CHECK(d[0] == (cut > plain ? 0 : v - target));
      CHECK(r.clip_fraction.sum == (cut > plain ? 1 : 0));
      CHECK(r.clip_distance_fraction.sum == (v < -1 || v > 1 ? 1 : 0));
    }
}

TEST_CASE("clipped_squared_error: the slope written out is that of dual numbers") {
  using dual = rlhf::math::dual<double>;
  random_numbers random(23);
  for (int i = 0; i < 500; ++i) {
    const double v = random.uniform(-2, 2), o = random.uniform(-2, 2), R = random.uniform(-2, 2);
    const auto plain = rlhf::formula::clipped_squared_error(v, o, R, 0.4);
    const auto lifted =
        rlhf::formula::clipped_squared_error(dual{v, 1}, dual{o, 0}, dual{R, 0}, dual{0.4, 0});
    CHECK(plain.loss == lifted.loss.value);
    CHECK(plain.d_value == doctest::Approx(lifted.loss.tangent).epsilon(1e-15));
  }
}

TEST_CASE("clipped_value_loss: inside the bounds rounding never takes the gradient away") {
  random_numbers random(4);
  const rlhf::index n = 2000;
  std::vector<float> value(n), old_value(n), returns(n), d(n);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    old_value[i] = static_cast<float>(random.uniform(-1, 1) * 1000);
    value[i] = old_value[i] + static_cast<float>(random.uniform(-0.19, 0.19));
    returns[i] = value[i] + static_cast<float>(random.uniform(-2, 2));
  }
  const auto r = clipped_value_loss<float>(
      {.value = {value, {1, n}}, .old_value = {old_value, {1, n}}, .returns = {returns, {1, n}}},
      {.d_value = {d, {1, n}}}, {.over = aggregation::token_sum()});
  CHECK(r.clip_fraction.sum == 0);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i)
    CHECK(d[i] == value[i] - returns[i]);
}

TEST_CASE("clipped_value_loss: float is within 4 roundings of the squares of the two errors") {
  random_numbers random(41);
  const rlhf::index n = 4000;
  const auto at = [](rlhf::index i) { return static_cast<std::size_t>(i); };
  std::vector<float> value(at(n)), old_value(at(n)), returns(at(n)), loss(at(n)), d(at(n));
  int clips = 0;
  for (const double scale : {1.0, 1000.0})
    for (const bool half : {true, false}) {
      for (std::size_t i = 0; i < at(n); ++i) {
        value[i] = static_cast<float>(random.uniform(-1, 1) * scale);
        old_value[i] = value[i] + static_cast<float>(random.uniform(-0.5, 0.5));
        returns[i] = static_cast<float>(random.uniform(-2, 2) * scale);
      }
      clipped_value_loss<float>({.value = {value, {1, n}},
                                 .old_value = {old_value, {1, n}},
                                 .returns = {returns, {1, n}}},
                                {.d_value = {d, {1, n}}, .token_loss = {loss, {1, n}}},
                                {.clip = 0.2, .half = half, .over = aggregation::token_sum()});
      for (std::size_t i = 0; i < at(n); ++i) {
        const float low = old_value[i] - 0.2f, high = old_value[i] + 0.2f;
        const float bounded = value[i] < low ? low : value[i] > high ? high : value[i];
        const float error = value[i] - returns[i], bounded_error = bounded - returns[i];
        const bool clip = std::abs(bounded_error) > std::abs(error);
        const auto larger = static_cast<double>(clip ? bounded_error : error);
        const double front = half ? 0.5 : 1;
        const double expected = front * larger * larger;
        CHECK(std::abs(static_cast<double>(loss[i]) - expected) <= 4 * 0x1p-24 * expected);
        const double slope = clip ? 0 : 2 * front * larger;
        CHECK(std::abs(static_cast<double>(d[i]) - slope) <= 4 * 0x1p-24 * std::abs(slope));
        clips += clip ? 1 : 0;
      }
    }
  CHECK(clips > n);
}

TEST_CASE("clipped_value_loss: the gradient is the slope of the loss, however it is aggregated") {
  random_numbers random(8);
  numbers value(12), old_value(12), returns(12), above(3), d(12), weight(12);
  std::vector<std::int32_t> group{5, 9, 5};
  for (std::size_t i = 0; i < 12; ++i) {
    value[i] = random.uniform(-1, 1), old_value[i] = value[i] + random.uniform(-1, 1);
    returns[i] = random.uniform(-2, 2), weight[i] = i % 5 == 3 ? 0 : random.uniform(0.5, 2);
  }
  for (const aggregation& over :
       {aggregation::token_mean(rlhf::local), aggregation::token_mean(17), aggregation::token_sum(),
        aggregation::sequence_mean_token_mean(4), aggregation::sequence_mean_token_sum(rlhf::local),
        aggregation::sequence_mean_token_sum_norm(3, 7), aggregation::turn_mean(rlhf::local),
        aggregation::group_mean_token_mean(rlhf::local)}) {
    const auto run = [&](const rlhf::value_output<double>& output) {
      rlhf::value_batch<double> batch{.value = {value, {3, 4}},
                                      .old_value = {old_value, {3, 4}},
                                      .returns = {returns, {3, 4}},
                                      .mask = {weight, {3, 4}}};
      if (over.mode() == rlhf::aggregation_mode::group_mean_token_mean) batch.group_id = group;
      return clipped_value_loss<double>(batch, output, {.clip = 0.3, .over = over});
    };
    run({.d_value = {d, {3, 4}}, .upstream = 2.5});
    const auto loss = [&] { return run({}).loss; };
    for (std::size_t i = 0; i < 12; ++i)
      CHECK(d[i] == doctest::Approx(2.5 * slope_of(loss, value[i], 1e-4)).epsilon(1e-7));
  }
}

TEST_CASE("clipped_value_loss: padded, lengths and packed give the same bits") {
  random_numbers random(21);
  const std::vector<std::int64_t> length{5, 0, 18, 33};
  const rlhf::index rows_ = 4, columns = 33;
  const auto slots = static_cast<std::size_t>(rows_ * columns);
  std::vector<float> v(slots, NAN), o(slots, NAN), R(slots, NAN), d(slots), d2(slots);
  std::vector<std::uint8_t> flag(slots, 0);
  std::vector<float> pv, po, pR;
  std::vector<std::int32_t> offset{0};
  for (std::size_t i = 0; i < 4; ++i) {
    for (std::size_t j = 0; j < static_cast<std::size_t>(length[i]); ++j) {
      const std::size_t k = i * 33 + j;
      pv.push_back(v[k] = static_cast<float>(random.uniform(-1, 1)));
      po.push_back(o[k] = static_cast<float>(random.uniform(-1, 1)));
      pR.push_back(R[k] = static_cast<float>(random.uniform(-1, 1)));
      flag[k] = 1;
    }
    offset.push_back(static_cast<std::int32_t>(pv.size()));
  }
  std::vector<float> pd(pv.size());
  const rlhf::clipped_value_config config{.over =
                                              aggregation::sequence_mean_token_mean(rlhf::local)};
  const rlhf::shape s(rows_, columns);
  const auto a = clipped_value_loss<float>(
      {.value = {v, s}, .old_value = {o, s}, .returns = {R, s}, .mask = {flag, s}},
      {.d_value = {d, s}}, config);
  const auto b = clipped_value_loss<float>(
      {.value = {v, s}, .old_value = {o, s}, .returns = {R, s}, .layout = rlhf::lengths(length)},
      {.d_value = {d2, s}}, config);
  const auto c = clipped_value_loss<float>(
      {.value = pv, .old_value = po, .returns = pR, .layout = rlhf::packed(offset)},
      {.d_value = pd}, config);
  CHECK(a.loss == b.loss);
  CHECK(a.loss == c.loss);
  CHECK(d == d2);
  CHECK(a.error.sum == c.error.sum);
  CHECK(a.sequences == 3);
  CHECK(c.sequences == 3);
  std::size_t at = 0;
  for (std::size_t k = 0; k < slots; ++k) CHECK(d[k] == (flag[k] != 0 ? pd[at++] : 0.0f));
}

TEST_CASE("clipped_value_loss: an empty mask is silence") {
  numbers x(4, not_a_number), d(4, 7);
  const std::vector<std::uint8_t> none(4, 0);
  const auto r = clipped_value_loss<double>({.value = {x, {2, 2}},
                                             .old_value = {x, {2, 2}},
                                             .returns = {x, {2, 2}},
                                             .mask = {none, {2, 2}}},
                                            {.d_value = {d, {2, 2}}},
                                            {.over = aggregation::token_mean(rlhf::local)});
  CHECK(r.loss == 0);
  CHECK(r.tokens == 0);
  CHECK(r.value.mean() == 0);
  CHECK(d == numbers(4, 0));
}

TEST_CASE("clipped_value_loss: NaN reaches the loss, or is dropped and counted") {
  numbers value{1, not_a_number, 3, 4}, returns{0, 0, 0, infinite}, d(4, 7);
  const auto run = [&](rlhf::nonfinite_policy policy) {
    return clipped_value_loss<double>(
        {.value = {value, {2, 2}}, .returns = {returns, {2, 2}}}, {.d_value = {d, {2, 2}}},
        {.clip = 0, .over = aggregation::token_mean(4), .nonfinite = policy});
  };
  CHECK(std::isnan(run(rlhf::nonfinite_policy::propagate).loss));
  const auto r = run(rlhf::nonfinite_policy::drop_token);
  CHECK(r.loss == (0.5 + 4.5) / 4);
  CHECK(r.nonfinite == 2);
  CHECK(d == numbers{0.25, 0, 0.75, 0});
  CHECK(run(rlhf::nonfinite_policy::drop_sequence).loss == 0);
  d.assign(4, 7);
  CHECK_THROWS_AS(run(rlhf::nonfinite_policy::error), rlhf::contract_violation);
  CHECK(d == numbers(4, 7));
}

TEST_CASE("clipped_value_loss: results of micro-batches add up to those of the batch") {
  random_numbers random(31);
  numbers value(60), old_value(60), returns(60);
  for (auto* x : {&value, &old_value, &returns})
    for (double& y : *x) y = random.uniform(-1, 1);
  const auto part = [&](rlhf::index from, rlhf::index n) {
    return clipped_value_loss<double>(
        {.value = {value.data() + from * 6, {n, rlhf::index{6}}},
         .old_value = {old_value.data() + from * 6, {n, rlhf::index{6}}},
         .returns = {returns.data() + from * 6, {n, rlhf::index{6}}}},
        {}, {.over = aggregation::token_mean(60)});
  };
  const auto whole = part(0, 10);
  const auto sum = part(0, 3) + part(3, 5) + part(8, 2);
  CHECK(sum.loss == doctest::Approx(whole.loss).epsilon(1e-14));
  CHECK(sum.clip_fraction.sum == whole.clip_fraction.sum);
  CHECK(sum.clip_distance_fraction.mean() == whole.clip_distance_fraction.mean());
  CHECK(sum.value_min == whole.value_min);
  CHECK(sum.value_max == whole.value_max);
  CHECK(sum.tokens == whole.tokens);
}

TEST_CASE("clipped_value_loss: a broken contract names itself and writes nothing") {
  const numbers x{1, 2}, other{1, 2};
  numbers d(2, 7);
  const auto over = aggregation::token_sum();
  const auto broken = [&](const rlhf::value_batch<double>& batch,
                          const rlhf::clipped_value_config& config) {
    const std::string m = message_of([&] {
      clipped_value_loss<double>(batch, {.d_value = {d, {1, 2}}}, config);
    });
    CHECK(d == numbers(2, 7));
    return m;
  };
  const rlhf::view<const double> v(x.data(), {1, 2});
  CHECK(broken({.value = v, .old_value = v, .returns = v}, {.clip = -0.1, .over = over}) ==
        "clipped_value_loss: clip: expected 0 (none) or > 0, received -0.1");
  CHECK(broken({.value = v, .old_value = v, .returns = v}, {.clip = not_a_number, .over = over})
            .find("clip") != std::string::npos);
  CHECK(broken({.value = v, .returns = v}, {.over = over}) ==
        "clipped_value_loss: old_value: expected a tensor: this input is required, received none");
  CHECK(broken({.value = v, .old_value = v, .returns = v}, {.clip = 0, .over = over}) ==
        "clipped_value_loss: old_value: expected to be left out: this call does not use it, "
        "received one");
  CHECK(broken({.value = v, .old_value = v, .returns = {x.data(), {2, 1}}}, {.over = over}) ==
        "clipped_value_loss: returns: expected shape [1, 2], received [2, 1]");
  CHECK(broken({.value = v, .old_value = v, .returns = v}, {.over = aggregation::token_mean(0)})
            .find("over") != std::string::npos);
  CHECK(broken({.value = x, .old_value = x, .returns = x}, {.over = over}).find("rank 2") !=
        std::string::npos);
}
