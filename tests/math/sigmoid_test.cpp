#include <doctest/doctest.h>

#include <cstring>

#include "accuracy.hpp"

namespace {

using namespace rlhf_test;  // NOLINT: tests only

const auto sigmoid_of = [](const auto& x) { return math::sigmoid(x); };
const auto dsigmoid_of = [](const auto& x) { return math::dsigmoid(x); };
const auto softplus_of = [](const auto& x) { return math::softplus(x); };
const auto log_sigmoid_of = [](const auto& x) { return math::log_sigmoid(x); };

}  // namespace

TEST_CASE_TEMPLATE("sigmoid and relatives: within their bounds of a 113-bit reference", T, float,
                   double) {
  std::vector<T> inputs = samples<T>(-20, 20, 8000);
  const double range = sizeof(T) == 4 ? 110 : 760;
  for (const T x : samples<T>(-range, range, 4000)) inputs.push_back(x);
  const auto s = worst_ulp<T>(inputs, sigmoid_of, sigmoid_of);
  INFO("sigmoid at " << s.at);
  CHECK(s.error <= 1.3);
  const auto d = worst_ulp<T>(inputs, dsigmoid_of, dsigmoid_of);
  INFO("dsigmoid at " << d.at);
  CHECK(d.error <= 2.2);
  const auto p = worst_ulp<T>(inputs, softplus_of, softplus_of);
  INFO("softplus at " << p.at);
  CHECK(p.error <= 1.3);
  const auto l = worst_ulp<T>(inputs, log_sigmoid_of, log_sigmoid_of);
  INFO("log_sigmoid at " << l.at);
  CHECK(l.error <= 1.3);
}

TEST_CASE_TEMPLATE("sigmoid and relatives: a pack gives the bits of its scalars", T, float,
                   double) {
  const auto inputs = samples<T>(-40, 40, 30000);
  CHECK(lanes_that_differ<T>(inputs, sigmoid_of) == 0);
  CHECK(lanes_that_differ<T>(inputs, dsigmoid_of) == 0);
  CHECK(lanes_that_differ<T>(inputs, softplus_of) == 0);
  CHECK(lanes_that_differ<T>(inputs, log_sigmoid_of) == 0);
  CHECK(lanes_that_differ<T>(inputs, [](const auto& x) { return math::logaddexp(x, x * x); }) == 0);
}

TEST_CASE_TEMPLATE("sigmoid and relatives: edges", T, float, double) {
  using limits = std::numeric_limits<T>;
  const T inf = limits::infinity();
  const T nan = limits::quiet_NaN();
  CHECK(math::sigmoid(T(0)) == T(0.5));
  CHECK(math::sigmoid(-inf) == T(0));
  CHECK(math::sigmoid(inf) == T(1));
  CHECK(math::sigmoid(T(-1e4)) == T(0));
  CHECK(math::sigmoid(T(1e4)) == T(1));
  CHECK(std::isnan(math::sigmoid(nan)));
  CHECK(math::dsigmoid(T(0)) == T(0.25));
  CHECK(math::dsigmoid(-inf) == T(0));
  CHECK(math::dsigmoid(inf) == T(0));
  CHECK(std::isnan(math::dsigmoid(nan)));
  CHECK(math::softplus(T(0)) == doctest::Approx(0.6931471805599453));
  CHECK(math::softplus(-inf) == T(0));
  CHECK(math::softplus(inf) == inf);
  CHECK(math::softplus(T(1e4)) == T(1e4));
  CHECK(math::softplus(T(-1e4)) == T(0));
  CHECK(std::isnan(math::softplus(nan)));
  CHECK(math::log_sigmoid(T(-90)) == T(-90));  // log(sigmoid(x)) would be -inf in float
  CHECK(math::log_sigmoid(T(-1e4)) == T(-1e4));
  CHECK(math::log_sigmoid(T(1e4)) == T(0));
  CHECK(math::log_sigmoid(-inf) == -inf);
  CHECK(math::log_sigmoid(inf) == T(0));
  CHECK(std::isnan(math::log_sigmoid(nan)));
  CHECK(math::sigmoid(sizeof(T) == 4 ? T(-100) : T(-740)) > T(0));  // a denormal, not 0
  CHECK(math::log_sigmoid(sizeof(T) == 4 ? T(100) : T(740)) < T(0));
}

TEST_CASE_TEMPLATE("logistic: the bits of softplus and sigmoid, of both signs", T, float, double) {
  using limits = std::numeric_limits<T>;
  std::vector<T> inputs = samples<T>(-40, 40, 8000);
  for (const T x : samples<T>(-1000, 1000, 500)) inputs.push_back(x);
  for (const T x : {T(0), -T(0), limits::infinity(), -limits::infinity(), limits::denorm_min(),
                    limits::quiet_NaN(), T(1e4), T(-1e4)})
    inputs.push_back(x);
  const auto same = [](T a, T b) {
    return std::memcmp(&a, &b, sizeof(T)) == 0 || (a != a && b != b);
  };
  int apart = 0;
  for (const T x : inputs) {
    const auto all = math::logistic(x);
    apart += same(all.softplus, math::softplus(x)) ? 0 : 1;
    apart += same(all.softplus_of_minus, math::softplus(-x)) ? 0 : 1;
    apart += same(all.sigmoid, math::sigmoid(x)) ? 0 : 1;
    apart += same(all.sigmoid_of_minus, math::sigmoid(-x)) ? 0 : 1;
  }
  CHECK(apart == 0);
  const auto finite = samples<T>(-40, 40, 3000);
  CHECK(lanes_that_differ<T>(finite, [](const auto& x) { return math::logistic(x).softplus; }) ==
        0);
  CHECK(lanes_that_differ<T>(
            finite, [](const auto& x) { return math::logistic(x).sigmoid_of_minus; }) == 0);
}

TEST_CASE_TEMPLATE("sigmoid(x) and sigmoid(-x) add up to 1", T, float, double) {
  for (const T x : samples<T>(-30, 30, 3000)) {
    if (std::isnan(x)) continue;
    const T sum = math::sigmoid(x) + math::sigmoid(-x);
    CHECK(std::fabs(sum - T(1)) <= 2 * std::numeric_limits<T>::epsilon());
  }
}

TEST_CASE_TEMPLATE("logaddexp: right within ULPs of its largest term, and at infinities", T, float,
                   double) {
  using limits = std::numeric_limits<T>;
  const T inf = limits::infinity();
  CHECK(math::logaddexp(-inf, -inf) == -inf);
  CHECK(math::logaddexp(inf, inf) == inf);
  CHECK(math::logaddexp(inf, -inf) == inf);
  CHECK(math::logaddexp(-inf, inf) == inf);
  CHECK(math::logaddexp(-inf, T(-3)) == T(-3));
  CHECK(math::logaddexp(T(2), -inf) == T(2));
  CHECK(std::isnan(math::logaddexp(limits::quiet_NaN(), inf)));
  CHECK(std::isnan(math::logaddexp(-inf, limits::quiet_NaN())));
  CHECK(math::logaddexp(T(1e30), T(1e30)) == T(1e30));
  generator random;
  double worst = 0;
  for (int i = 0; i < 20000; ++i) {
    const T a = static_cast<T>(40 * random.unit() - 20);
    const T b = static_cast<T>(40 * random.unit() - 20);
    const quad want = math::logaddexp(static_cast<quad>(a), static_cast<quad>(b));
    const quad error = static_cast<quad>(math::logaddexp(a, b)) - want;
    const double scale =
        std::max({std::fabs(static_cast<double>(a)), static_cast<double>(std::fabs(b)),
                  std::fabs(static_cast<double>(want))});
    worst = std::max(worst, std::fabs(static_cast<double>(error)) / scale);
  }
  CHECK(worst <= 2 * static_cast<double>(limits::epsilon()));
}

TEST_CASE("sigmoid and relatives: every float (RLHF_LONG_TESTS)") {
  if (!long_tests()) {
    MESSAGE("skipped: set RLHF_LONG_TESTS to run over all 2^32 floats");
    return;
  }
  const auto softplus = [](double x) {
    return std::fmax(x, 0.0) + std::log1p(std::exp(-std::fabs(x)));
  };
  const auto s = worst_of_all_floats(sigmoid_of, [](double x) {
    return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
  });
  MESSAGE("sigmoid: " << s.error << " ULP at " << s.at);
  CHECK(s.error <= 1.3);
  const auto d = worst_of_all_floats(dsigmoid_of, [](double x) {
    const double e = std::exp(-std::fabs(x));
    return e / ((1 + e) * (1 + e));
  });
  MESSAGE("dsigmoid: " << d.error << " ULP at " << d.at);
  CHECK(d.error <= 2.2);
  const auto p =
      worst_of_all_floats(softplus_of, [&](double x) { return std::isnan(x) ? x : softplus(x); });
  MESSAGE("softplus: " << p.error << " ULP at " << p.at);
  CHECK(p.error <= 1.3);
  const auto l = worst_of_all_floats(log_sigmoid_of,
                                     [&](double x) { return std::isnan(x) ? x : -softplus(-x); });
  MESSAGE("log_sigmoid: " << l.error << " ULP at " << l.at);
  CHECK(l.error <= 1.3);
}
