#include "rlhf/math/math.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <type_traits>

// One header for whoever writes a formula: the same text on every kind of lane.

namespace {

namespace math = rlhf::math;

/// Something of every header below math.hpp.
template <rlhf::lane V>
V formula(const V& x, const V& y) {
  const V half = math::constant<V>(0.5);
  const V ratio = math::exp(math::bounded(x - y));
  const V k = math::k3(math::log1p(math::abs(y)));
  const V choice = math::select(x > y, (math::min)(ratio, half), math::sqrt(math::abs(x)));
  return choice + math::softplus(x) * math::sigmoid(y) - k + math::logaddexp(x, y);
}

TEST_CASE_TEMPLATE("math: one formula gives the same number on every lane", T, float, double) {
  const T points[] = {T(-2), T(-0.5), T(0.25), T(1.5)};
  for (const T x : points)
    for (const T y : points) {
      const T expected = formula<T>(x, y);
      CHECK(std::isfinite(expected));
      CHECK(formula(math::single<T>{x}, math::single<T>{y}).value == expected);
      CHECK(formula(math::dual<T>{x, 1}, math::dual<T>{y, 0}).value == expected);
      using V = math::native_lane<T>;
      const V pack = formula(math::constant<V>(x), math::constant<V>(y));
      for (int i = 0; i < math::width<V>; ++i) CHECK(math::lane_at(pack, i) == expected);
      const T step = sizeof(T) == sizeof(double) ? T(1e-6) : T(1e-2);
      if (x == y) continue;  // a kink
      const T slope = (formula<T>(x + step, y) - formula<T>(x - step, y)) / (2 * step);
      CHECK(formula(math::dual<T>{x, 1}, math::dual<T>{y, 0}).tangent ==
            doctest::Approx(slope).epsilon(sizeof(T) == sizeof(double) ? 1e-6 : 1e-2));
    }
}

}  // namespace
