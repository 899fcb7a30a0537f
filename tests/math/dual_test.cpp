#include <doctest/doctest.h>

#include "accuracy.hpp"

namespace {

using namespace rlhf_test;  // NOLINT: tests only
using rlhf::lane;

/// The largest relative distance of the dual's tangent from the central difference of the same
/// function at 113 bits, over points in [low, high].
template <class Function>
double worst_slope(double low, double high, Function function) {
  generator random;
  double worst = 0;
  for (int i = 0; i < 300; ++i) {
    const double x = low + (high - low) * random.unit();
    const double tangent = function(math::variable(x)).tangent;
    const quad h = static_cast<quad>(1e-11);
    const quad at = static_cast<quad>(x);
    const double difference = static_cast<double>((function(at + h) - function(at - h)) / (2 * h));
    const double error = std::fabs(tangent - difference) / std::max(std::fabs(difference), 1e-30);
    const quad exact = function(math::dual<quad>{at, 1}).tangent;
    worst = std::max({worst, error,
                      std::fabs(static_cast<double>(exact) - difference) /
                          std::max(std::fabs(difference), 1e-30)});
  }
  return worst;
}

/// Every operation in one formula, for any lane.
template <lane V>
V everything(const V& x) {
  const V two = math::constant<V>(2);
  const V bent = math::select(x < two, x * x, two / x) - math::sqrt(x + two) * -x;
  const V more = math::fma(x, bent, (math::min)(x, two)) + (math::max)(bent, x);
  return math::clamp(more, -two, two * two) + math::copysign(x, bent) + math::abs(x - two) +
         math::bounded(x) + math::exp(-x) * math::log_sigmoid(x);
}

}  // namespace

TEST_CASE("dual: the tangent of every function is the slope of its value") {
  const double bound = 1e-13;
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::exp(x); }) < bound);
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::exp_bounded(x); }) < bound);
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::expm1(x); }) < bound);
  CHECK(worst_slope(0.01, 9, [](const auto& x) { return math::log(x); }) < bound);
  CHECK(worst_slope(-0.9, 9, [](const auto& x) { return math::log1p(x); }) < bound);
  CHECK(worst_slope(-9, -0.01, [](const auto& x) { return math::log1mexp(x); }) < bound);
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::sigmoid(x); }) < bound);
  CHECK(worst_slope(0.1, 20, [](const auto& x) { return math::dsigmoid(x); }) < bound);
  CHECK(worst_slope(-20, -0.1, [](const auto& x) { return math::dsigmoid(x); }) < bound);
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::softplus(x); }) < bound);
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::log_sigmoid(x); }) < bound);
  CHECK(worst_slope(0.1, 20, [](const auto& x) { return math::k3(x); }) < bound);
  CHECK(worst_slope(-20, -0.1, [](const auto& x) { return math::k3(x); }) < bound);
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::k3_slope(x); }) < bound);
  CHECK(worst_slope(-20, 20, [](const auto& x) { return math::ratio_terms(x).ratio; }) < bound);
  CHECK(worst_slope(0.1, 20, [](const auto& x) { return math::ratio_terms(x).k3; }) < bound);
  CHECK(worst_slope(0.1, 3, [](const auto& x) { return math::logaddexp(x, x * x); }) < bound);
  CHECK(worst_slope(0.1, 9, [](const auto& x) { return math::sqrt(x); }) < bound);
}

TEST_CASE("dual: arithmetic and choices follow the chain rule") {
  CHECK(worst_slope(0.1, 0.9, [](const auto& x) { return everything(x); }) < 1e-12);
  CHECK(worst_slope(2.5, 9, [](const auto& x) { return everything(x); }) < 1e-12);
}

TEST_CASE_TEMPLATE("dual: a pack of duals gives what its scalars give", T, float, double) {
  using V = math::native_lane<T>;
  constexpr int w = math::width<V>;
  T x[static_cast<std::size_t>(w)];
  for (int i = 0; i < w; ++i) x[i] = static_cast<T>(0.3 + 0.7 * i);
  const math::dual<V> y = everything(math::variable(math::load<V>(x)));
  for (int i = 0; i < w; ++i) {
    const math::dual<T> alone = everything(math::variable(x[i]));
    const double scale = 64 * static_cast<double>(std::numeric_limits<T>::epsilon());
    const double value = static_cast<double>(alone.value);
    const double tangent = static_cast<double>(alone.tangent);
    CHECK(static_cast<double>(math::lane_at(y.value, i)) == doctest::Approx(value).epsilon(scale));
    CHECK(static_cast<double>(math::lane_at(y.tangent, i)) ==
          doctest::Approx(tangent).epsilon(scale));
  }
}

TEST_CASE("stop_gradient keeps the value and forgets the slope") {
  namespace math = rlhf::math;
  const auto x = math::variable(3.0);
  const auto y = math::stop_gradient(x) * x;
  CHECK(y.value == 9);
  CHECK(y.tangent == 3);
  CHECK(math::stop_gradient(2.0) == 2.0);
}

TEST_CASE("dual: a constant has no slope, even where the function has an infinite one") {
  using D = math::dual<double>;
  CHECK(math::log(math::constant<D>(0)).tangent == 0.0);
  CHECK(math::sqrt(math::constant<D>(0)).tangent == 0.0);
  CHECK(math::exp(math::constant<D>(1e4)).tangent == 0.0);
  CHECK(math::bounded(math::variable(1e4)).tangent == 0.0);
  CHECK(math::bounded(math::variable(79.0)).tangent == 1.0);
}
