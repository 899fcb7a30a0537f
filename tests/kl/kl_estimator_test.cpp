#include "rlhf/kl/kl_estimator.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using doctest::Approx;
using rlhf::kl_estimator;
using rlhf::kl_weighting;

struct terms {
  double value, slope;
};
bool operator==(const terms& a, const terms& b) {
  return a.value == Approx(b.value) && a.slope == Approx(b.slope);
}
doctest::String toString(const terms& t) {
  return doctest::toString(t.value) + ", slope " + doctest::toString(t.slope);
}

terms estimate(double delta, kl_estimator estimator, kl_weighting weighting = kl_weighting::plain,
               double ratio = 1, double input_clamp = 0, double output_clamp = 0) {
  const auto t = rlhf::RLHF_COMPUTE::formula::kl_estimate(delta, ratio, estimator, weighting,
                                                          input_clamp, output_clamp);
  return {t.value, t.d_log_prob};
}

const double ln2 = std::log(2.0);
// At delta = ln 2: e^-delta = 1/2, so k3 = ln 2 - 1/2 and its slope is 1/2. At -ln 2: 1 - ln 2, -1.
const double k3_up = ln2 - 0.5, k3_down = 1 - ln2;

TEST_CASE("kl_estimator: value and slope by hand") {
  CHECK(estimate(0.5, kl_estimator::k1) == terms{0.5, 1});
  CHECK(estimate(-0.5, kl_estimator::k1) == terms{-0.5, 1});
  CHECK(estimate(0.5, kl_estimator::k2) == terms{0.125, 0.5});
  CHECK(estimate(-3, kl_estimator::k2) == terms{4.5, -3});
  CHECK(estimate(ln2, kl_estimator::k3) == terms{k3_up, 0.5});
  CHECK(estimate(-ln2, kl_estimator::k3) == terms{k3_down, -1});
  CHECK(estimate(0.5, kl_estimator::absolute) == terms{0.5, 1});
  CHECK(estimate(-0.5, kl_estimator::absolute) == terms{0.5, -1});
  for (const auto e : {kl_estimator::k2, kl_estimator::k3, kl_estimator::absolute})
    CHECK(estimate(0, e) == terms{0, 0});  // the kink of the last has slope 0
}

TEST_CASE("kl_estimator: the ratio multiplies the value, and the slope is that of the product") {
  // d (r k) = r (k + dk): 3 (0.5 + 1), 3 (0.125 + 0.5), 3 ln 2 (k3 + dk3 = delta), 3 (0.5 - 1)
  CHECK(estimate(0.5, kl_estimator::k1, kl_weighting::ratio, 3) == terms{1.5, 4.5});
  CHECK(estimate(0.5, kl_estimator::k2, kl_weighting::ratio, 3) == terms{0.375, 1.875});
  CHECK(estimate(ln2, kl_estimator::k3, kl_weighting::ratio, 3) == terms{3 * k3_up, 3 * ln2});
  CHECK(estimate(-0.5, kl_estimator::absolute, kl_weighting::ratio, 3) == terms{1.5, -1.5});
}

TEST_CASE("kl_estimator: straight through has the slope of k2, score that of k with its weight") {
  for (const auto e :
       {kl_estimator::k1, kl_estimator::k2, kl_estimator::k3, kl_estimator::absolute}) {
    const terms plain = estimate(ln2, e);
    CHECK(estimate(ln2, e, kl_weighting::straight_through, 3) == terms{plain.value, ln2});
    CHECK(estimate(ln2, e, kl_weighting::score, 3) ==
          terms{plain.value, plain.value + plain.slope});
  }
}

TEST_CASE(
    "kl_estimator: a clamp that holds makes the estimator constant, at its edge it does not") {
  // The input 2 cut to 1: k1 1, k2 1/2, k3 1/e, and no slope but that of the weight.
  CHECK(estimate(2, kl_estimator::k1, kl_weighting::plain, 1, 1) == terms{1, 0});
  CHECK(estimate(-2, kl_estimator::k1, kl_weighting::plain, 1, 1) == terms{-1, 0});
  CHECK(estimate(2, kl_estimator::k2, kl_weighting::ratio, 3, 1) == terms{1.5, 1.5});
  CHECK(estimate(2, kl_estimator::k3, kl_weighting::ratio, 3, 1) ==
        terms{3 * std::exp(-1.0), 3 * std::exp(-1.0)});
  CHECK(estimate(2, kl_estimator::k3, kl_weighting::score, 3, 1) ==
        terms{std::exp(-1.0), std::exp(-1.0)});
  CHECK(estimate(1, kl_estimator::k1, kl_weighting::plain, 1, 1) == terms{1, 1});
  // The value 2 cut to 1.5, and -2 to -1.5.
  CHECK(estimate(2, kl_estimator::k2, kl_weighting::plain, 1, 0, 1.5) == terms{1.5, 0});
  CHECK(estimate(-2, kl_estimator::k1, kl_weighting::plain, 1, 0, 1.5) == terms{-1.5, 0});
  CHECK(estimate(ln2, kl_estimator::k3, kl_weighting::ratio, 3, 0, 0.1) == terms{0.3, 0.3});
  CHECK(estimate(ln2, kl_estimator::k3, kl_weighting::score, 3, 0, 0.1) == terms{0.1, 0.1});
  CHECK(estimate(2, kl_estimator::k2, kl_weighting::plain, 1, 0, 2) == terms{2, 2});
  // Straight through there is no clamp on the slope.
  CHECK(estimate(2, kl_estimator::k3, kl_weighting::straight_through, 3, 1) ==
        terms{std::exp(-1.0), 2});
  // One that does not hold changes nothing.
  CHECK(estimate(ln2, kl_estimator::k3, kl_weighting::ratio, 3, 1, 1) == terms{3 * k3_up, 3 * ln2});
}

TEST_CASE("kl_estimator: k3 stays finite beyond 80, the others need no bound") {
  const terms bound = estimate(-80, kl_estimator::k3);
  CHECK(bound == terms{std::exp(80.0) - 81, 1 - std::exp(80.0)});
  CHECK(estimate(-2000, kl_estimator::k3) == bound);
  CHECK(estimate(-2000, kl_estimator::k3, kl_weighting::score).slope == -80);
  CHECK(estimate(-2000, kl_estimator::k3, kl_weighting::ratio, 2).slope == -160);
  CHECK(estimate(-2000, kl_estimator::k1) == terms{-2000, 1});
  CHECK(estimate(2000, kl_estimator::k3) == terms{1999, 1});
}

TEST_CASE("kl_estimator: a NaN reaches the value, whatever the clamps") {
  for (const auto e :
       {kl_estimator::k1, kl_estimator::k2, kl_estimator::k3, kl_estimator::absolute})
    for (const double clamp : {0.0, 10.0})
      CHECK(std::isnan(estimate(not_a_number, e, kl_weighting::plain, 1, clamp, clamp).value));
}

}  // namespace
}  // namespace rlhf_test
