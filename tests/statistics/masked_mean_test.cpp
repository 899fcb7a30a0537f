#include "rlhf/statistics/masked_mean.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"

using namespace rlhf_test;
using rlhf::masked_mean;
using rlhf::masked_moments;
using rlhf::masked_variance;
using numbers = std::vector<double>;

TEST_CASE_TEMPLATE("masked_mean: values by hand", B, RLHF_TEST_BACKENDS) {
  const auto value = rows<B>({{1, not_a_number, 3}, {8, infinite, 0}});
  const auto mask = flags<B>({{1, 0, 1}, {1, 0, 0}});
  auto d = rows<B>({{7, 7, 7}, {7, 7, 7}});
  const auto r = masked_mean<double>({.value = value.tensor(), .mask = mask.tensor()},
                                     {.d_value = d.tensor(), .upstream = 6});
  CHECK(r.mean == 4);
  CHECK(r.value.sum == 12);
  CHECK(r.tokens == 3);
  CHECK(r.nonfinite == 0);
  CHECK(d(0, 0) == 2);
  CHECK(d(0, 1) == 0);
  CHECK(d(1, 2) == 0);
}

TEST_CASE("masked_mean: weights, a given count, and rank-1 tensors") {
  const numbers value{1, 2, 4}, weight{1, 0, 3};
  numbers d(3, 7);
  const auto r = masked_mean<double>({.value = value, .mask = weight}, {.d_value = d});
  CHECK(r.mean == 13.0 / 4);
  CHECK(d == numbers{0.25, 0, 0.75});
  CHECK(r.positions == 2);
  CHECK(masked_mean<double>({.value = value}, {.d_value = d}, {.over = 14}).mean == 0.5);
  CHECK(d == numbers{1.0 / 14, 1.0 / 14, 1.0 / 14});
  const auto sum =
      masked_mean<double>({.value = value, .mask = weight}) + masked_mean<double>({.value = value});
  CHECK(sum.mean == (13.0 + 7) / 7);
}

TEST_CASE("masked_mean: nothing has mean 0") {
  const numbers x{not_a_number}, none;
  const std::vector<std::uint8_t> off{0};
  numbers d(1, 7);
  const auto r = masked_mean<double>({.value = x, .mask = off}, {.d_value = d});
  CHECK(r.mean == 0);
  CHECK(r.tokens == 0);
  CHECK(d[0] == 0);
  CHECK(masked_mean<double>({.value = none}).mean == 0);
  CHECK(masked_moments<double>({.value = none}).moments.count == 0);
  CHECK(masked_variance<double>({.value = none}).variance == 0);
}

TEST_CASE("masked_mean: a dropped NaN leaves the mean of the others") {
  const numbers value{1, not_a_number, 5};
  numbers d(3, 7);
  CHECK(std::isnan(masked_mean<double>({.value = value}).mean));
  const auto r = masked_mean<double>({.value = value}, {.d_value = d},
                                     {.nonfinite = rlhf::nonfinite_policy::drop_token});
  CHECK(r.mean == 3);
  CHECK(r.tokens == 2);
  CHECK(r.nonfinite == 1);
  CHECK(d == numbers{0.5, 0, 0.5});
}

TEST_CASE_TEMPLATE("masked_moments: values by hand", B, RLHF_TEST_BACKENDS) {
  // 1 3 8: mean 4, m2 = 9 + 1 + 16
  const auto value = rows<B>({{1, not_a_number, 3}, {8, infinite, 0}});
  const auto mask = flags<B>({{1, 0, 1}, {1, 0, 0}});
  const auto r = masked_moments<double>({.value = value.tensor(), .mask = mask.tensor()});
  CHECK(r.moments.count == 3);
  CHECK(r.moments.mean == 4);
  CHECK(r.moments.m2 == doctest::Approx(26));
  CHECK(r.min == 1);
  CHECK(r.max == 8);
}

TEST_CASE("masked_moments: a mean of 1e6 costs no digit in float; shards merge in any order") {
  random_numbers random(1);
  const std::size_t n = 10000;
  std::vector<float> x(n);
  long double mean = 0, m2 = 0;
  for (float& v : x)
    mean += static_cast<long double>(v = static_cast<float>(1e6 + random.uniform(-1.7, 1.7)));
  mean /= n;
  for (const float v : x)
    m2 += (static_cast<long double>(v) - mean) * (static_cast<long double>(v) - mean);
  const auto whole = masked_moments<float>({.value = x});
  CHECK(whole.moments.mean == doctest::Approx(static_cast<double>(mean)).epsilon(1e-12));
  CHECK(whole.moments.m2 == doctest::Approx(static_cast<double>(m2)).epsilon(1e-6));
  const auto part = [&](rlhf::index from, rlhf::index count) {
    return masked_moments<float>({.value = {x.data() + from, count}});
  };
  const auto merged = (part(9000, 1000) + part(5, 0)) + (part(0, 1) + part(1, 8999));
  CHECK(merged.moments.count == 10000);
  CHECK(merged.moments.mean == doctest::Approx(whole.moments.mean).epsilon(1e-12));
  CHECK(merged.moments.m2 == doctest::Approx(whole.moments.m2).epsilon(1e-6));
  CHECK(merged.min == whole.min);
}

TEST_CASE("masked_moments: equal numbers have m2 0 and that mean, to the bit") {
  for (const float c : {0.1f, 1e30f, -3.3333333f}) {
    const std::vector<float> x(1001, c);
    const auto r = masked_moments<float>({.value = x});
    CHECK(r.moments.mean == static_cast<double>(c));
    CHECK(r.moments.m2 == 0);
  }
}

TEST_CASE("masked_moments: one NaN among equal numbers is still seen") {
  const numbers x{1, not_a_number, 1};
  const auto r = masked_moments<double>({.value = x});
  CHECK(std::isnan(r.moments.mean));
  CHECK(std::isnan(r.moments.m2));
  CHECK(r.nonfinite == 1);
  const auto dropped =
      masked_moments<double>({.value = x}, {}, {.nonfinite = rlhf::nonfinite_policy::drop_token});
  CHECK(dropped.moments.mean == 1);
  CHECK(dropped.moments.m2 == 0);
  CHECK(dropped.positions == 2);
}

TEST_CASE("masked_variance: value and gradient, with ddof 0 and 1 and with weights") {
  random_numbers random(7);
  numbers value(8), weight{1, 2, 0, 0.5, 1, 1, 3, 1}, d(8);
  for (double& x : value) x = random.uniform(-2, 2);
  for (const double ddof : {0.0, 1.0})
    for (const bool weighted : {false, true}) {
      const auto run = [&](const rlhf::masked_gradient<double>& output) {
        rlhf::masked_values<double> batch{.value = {value, {2, 4}}};
        if (weighted) batch.mask = {weight, {2, 4}};
        return masked_variance<double>(batch, output, {.ddof = ddof});
      };
      const auto r = run({.d_value = {d, {2, 4}}, .upstream = 3});
      double n = 0, mean = 0, m2 = 0;
      for (std::size_t i = 0; i < 8; ++i) n += weighted ? weight[i] : 1;
      for (std::size_t i = 0; i < 8; ++i) mean += (weighted ? weight[i] : 1) * value[i] / n;
      for (std::size_t i = 0; i < 8; ++i)
        m2 += (weighted ? weight[i] : 1) * (value[i] - mean) * (value[i] - mean);
      CHECK(r.variance == doctest::Approx(m2 / (n - ddof)).epsilon(1e-13));
      const auto variance = [&] { return run({}).variance; };
      for (std::size_t i = 0; i < 8; ++i)
        CHECK(d[i] == doctest::Approx(3 * slope_of(variance, value[i])).epsilon(1e-9));
    }
}

TEST_CASE("masked_variance: fewer numbers than ddof + 1 have variance 0 and gradient 0") {
  const numbers one{5};
  numbers d(1, 7);
  CHECK(masked_variance<double>({.value = one}, {.d_value = d}).variance == 0);
  CHECK(d[0] == 0);
}

TEST_CASE("masked_mean: a broken contract names itself and writes nothing") {
  const numbers x{1, 2};
  const std::vector<std::uint8_t> short_mask{1};
  numbers d(2, 7);
  CHECK(message_of([&] { masked_mean<double>({}, {.d_value = d}); }).find("value") !=
        std::string::npos);
  CHECK(message_of([&] {
          masked_mean<double>({.value = x, .mask = short_mask}, {.d_value = d});
        }).find("masked_mean: mask: expected shape") == 0);
  CHECK(message_of([&] {
          masked_mean<double>({.value = x}, {.d_value = d}, {.over = 0});
        }).find("over") != std::string::npos);
  CHECK(message_of([&] {
          masked_mean<double>({.value = x}, {.d_value = d, .upstream = x});
        }).find("upstream") != std::string::npos);
  CHECK(message_of([&] {
          masked_variance<double>({.value = x}, {.d_value = d}, {.ddof = -1});
        }).find("ddof") != std::string::npos);
  CHECK(d == numbers(2, 7));
}
