#include <doctest/doctest.h>

#include "accuracy.hpp"

namespace {

using namespace rlhf_test;  // NOLINT: tests only

const auto exp_of = [](const auto& x) { return math::exp(x); };
const auto exp_bounded_of = [](const auto& x) { return math::exp_bounded(x); };
const auto expm1_of = [](const auto& x) { return math::expm1(x); };

}  // namespace

TEST_CASE_TEMPLATE("exp, expm1: within their bounds of a 113-bit reference", T, float, double) {
  const double range = sizeof(T) == 4 ? 105 : 750;
  const auto inputs = samples<T>(-range, range, 15000);
  const auto e = worst_ulp<T>(inputs, exp_of, exp_of);
  INFO("exp at " << e.at);
  CHECK(e.error <= 1.1);
  const auto m = worst_ulp<T>(inputs, expm1_of, expm1_of);
  INFO("expm1 at " << m.at);
  CHECK(m.error <= 1.5);
}

TEST_CASE_TEMPLATE("exp_bounded: as exp within its range", T, float, double) {
  const T range = sizeof(T) == 4 ? T(87) : T(708);
  std::vector<T> inputs;
  for (const T x : samples<T>(-87, 87, 15000)) {
    if (!(std::fabs(x) > range)) inputs.push_back(x);
  }
  const auto e = worst_ulp<T>(inputs, exp_bounded_of, exp_bounded_of);
  INFO("exp_bounded at " << e.at);
  CHECK(e.error <= 1.1);
  CHECK(lanes_that_differ<T>(inputs, exp_bounded_of) == 0);
}

TEST_CASE_TEMPLATE("exp, expm1: a pack gives the bits of its scalars", T, float, double) {
  const double range = sizeof(T) == 4 ? 105 : 750;
  const auto inputs = samples<T>(-range, range, 50000);
  CHECK(lanes_that_differ<T>(inputs, exp_of) == 0);
  CHECK(lanes_that_differ<T>(inputs, expm1_of) == 0);
}

TEST_CASE_TEMPLATE("exp, expm1: edges", T, float, double) {
  using limits = std::numeric_limits<T>;
  const T inf = limits::infinity();
  CHECK(math::exp(T(0)) == T(1));
  CHECK(math::exp(T(-0.0)) == T(1));
  CHECK(math::exp(limits::denorm_min()) == T(1));
  CHECK(same_bits(math::exp(-inf), T(0)));
  CHECK(math::exp(inf) == inf);
  CHECK(math::exp(T(1e4)) == inf);
  CHECK(math::exp(T(-1e4)) == T(0));
  CHECK(std::isnan(math::exp(limits::quiet_NaN())));
  CHECK(std::isnan(math::exp_bounded(limits::quiet_NaN())));
  // the smallest denormal is 2^-149 = e^-103.28 (double: 2^-1074 = e^-744.44)
  CHECK(math::exp(sizeof(T) == 4 ? T(-103.3) : T(-744.45)) == limits::denorm_min());
  CHECK(same_bits(math::expm1(T(0)), T(0)));
  CHECK(same_bits(math::expm1(T(-0.0)), T(-0.0)));
  CHECK(same_bits(math::expm1(limits::denorm_min()), limits::denorm_min()));
  CHECK(same_bits(math::expm1(-limits::min()), -limits::min()));
  CHECK(math::expm1(-inf) == T(-1));
  CHECK(math::expm1(inf) == inf);
  CHECK(math::expm1(T(-1e4)) == T(-1));
  CHECK(std::isnan(math::expm1(limits::quiet_NaN())));
}

TEST_CASE("exp: a larger x gives no smaller result by more than rounding") {
  // Neighbours within one ULP of the true curve: at a step of 64 ULP the results must not fall.
  float previous = 0;
  int falls = 0;
  for (float x = -110; x < 90; x += std::fabs(x) * 0x1p-17f + 0x1p-20f) {
    const float y = math::exp(x);
    if (y < previous) ++falls;
    previous = y;
  }
  CHECK(falls == 0);
}

TEST_CASE("exp, expm1: every float (RLHF_LONG_TESTS)") {
  if (!long_tests()) {
    MESSAGE("skipped: set RLHF_LONG_TESTS to run over all 2^32 floats");
    return;
  }
  const auto e = worst_of_all_floats(exp_of, [](double x) { return std::exp(x); });
  MESSAGE("exp: " << e.error << " ULP at " << e.at);
  CHECK(e.error <= 1.1);
  const auto m = worst_of_all_floats(expm1_of, [](double x) { return std::expm1(x); });
  MESSAGE("expm1: " << m.error << " ULP at " << m.at);
  CHECK(m.error <= 1.5);
}
