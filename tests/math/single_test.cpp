#define RLHF_STRICT

#include "rlhf/math/single.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <type_traits>

#include "rlhf/math/exp.hpp"

namespace {

namespace math = rlhf::math;

TEST_CASE_TEMPLATE("single: operators and functions are those of the number inside", T, float,
                   double) {
  using V = math::single<T>;
  static_assert(rlhf::lane<V> && std::is_same_v<rlhf::scalar_of<V>, T>);
  static_assert(std::is_same_v<rlhf::mask_of<V>, bool> && math::width<V> == 1);
  const T values[] = {T(-2.5), T(-0.0), T(0), T(0.75), T(3)};
  for (const T a : values)
    for (const T b : values) {
      const V x{a}, y{b};
      CHECK((x + y).value == a + b);
      CHECK((x - y).value == a - b);
      CHECK((x * y).value == a * b);
      if (b != 0) CHECK((x / y).value == a / b);
      CHECK((-x).value == -a);
      CHECK((x < y) == (a < b));
      CHECK((x >= y) == (a >= b));
      CHECK((x == y) == (a == b));
      CHECK((math::min)(x, y).value == (b < a ? b : a));
      CHECK((math::max)(x, y).value == (a < b ? b : a));
      CHECK(math::select(a < b, x, y).value == (a < b ? a : b));
      CHECK(std::signbit(math::copysign(x, y).value) == std::signbit(b));
      V sum = x;
      sum += y;
      sum *= y;
      sum -= x;
      CHECK(sum.value == (a + b) * b - a);
    }
  CHECK(math::exp(V{T(1)}).value == math::exp(T(1)));
  CHECK(math::is_nan(V{std::numeric_limits<T>::quiet_NaN()}));
  CHECK(!math::is_finite(V{std::numeric_limits<T>::infinity()}));
}

TEST_CASE_TEMPLATE("single: in strict mode it is the scalar lane, and no product is fused", T,
                   float, double) {
  using V = math::scalar_lane<T>;
  static_assert(std::is_same_v<V, math::single<T>>);
  // (1 + e)² = 1 + 2e + e²: rounded, e² is lost; fused with −(1 + 2e) it would remain.
  const T e = std::numeric_limits<T>::epsilon() * 2;
  volatile T one_and = 1 + e, rounded = -(1 + 2 * e);
  const V x{one_and}, y{rounded};
  CHECK((x * x + y).value == 0);
  CHECK(math::fma(x, x, y).value == 0);
}

}  // namespace
