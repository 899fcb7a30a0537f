#include <doctest/doctest.h>

#include <type_traits>

#include "accuracy.hpp"

namespace {

using namespace rlhf_test;  // NOLINT: tests only
using rlhf::lane;
using rlhf::mask_of;
using rlhf::scalar_of;

static_assert(lane<float> && lane<double> && lane<quad>);
static_assert(lane<math::dual<double>> && lane<math::dual<math::native_lane<float>>>);
static_assert(lane<math::native_lane<float>> && lane<math::native_lane<double>>);
static_assert(lane<math::single<float>> && lane<math::scalar_lane<double>>);
static_assert(!lane<int> && !lane<long double>);
static_assert(std::is_same_v<mask_of<float>, bool> && std::is_same_v<scalar_of<double>, double>);
static_assert(std::is_same_v<scalar_of<math::dual<math::native_lane<float>>>, float>);
static_assert(math::width<float> == 1);
static_assert(std::is_trivially_copyable_v<math::native_lane<float>>);
static_assert(std::is_trivially_copyable_v<math::dual<math::native_lane<double>>>);

}  // namespace

TEST_CASE_TEMPLATE("min, max, clamp: a NaN in the first argument comes through", T, float, double) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  CHECK((math::min)(T(1), T(2)) == T(1));
  CHECK((math::max)(T(1), T(2)) == T(2));
  CHECK(std::isnan((math::min)(nan, T(2))));
  CHECK(std::isnan((math::max)(nan, T(2))));
  CHECK((math::min)(T(1), nan) == T(1));
  CHECK((math::max)(T(1), nan) == T(1));
  CHECK(math::clamp(T(3), T(0), T(2)) == T(2));
  CHECK(math::clamp(T(-3), T(0), T(2)) == T(0));
  CHECK(math::clamp(T(1), T(0), T(2)) == T(1));
  CHECK(std::isnan(math::clamp(nan, T(0), T(2))));
  CHECK(math::bounded(T(1e9)) == T(80));
  CHECK(math::bounded(-std::numeric_limits<T>::infinity()) == T(-80));
  CHECK(math::bounded(T(79.5)) == T(79.5));
  CHECK(std::isnan(math::bounded(nan)));
}

TEST_CASE_TEMPLATE("select, any, all, is_nan, is_finite, copysign on scalars", T, float, double) {
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const T inf = std::numeric_limits<T>::infinity();
  CHECK(math::select<T>(true, T(1), nan) == T(1));
  CHECK(math::select<T>(false, nan, T(2)) == T(2));
  CHECK(math::any(true));
  CHECK_FALSE(math::all(false));
  CHECK(math::is_nan(nan));
  CHECK(math::is_nan(-nan));
  CHECK_FALSE(math::is_nan(inf));
  CHECK_FALSE(math::is_finite(inf));
  CHECK_FALSE(math::is_finite(nan));
  CHECK(math::is_finite(std::numeric_limits<T>::max()));
  CHECK(math::is_finite(std::numeric_limits<T>::denorm_min()));
  CHECK(same_bits(math::copysign(T(0), T(-1)), T(-0.0)));
  CHECK(same_bits(math::abs(T(-0.0)), T(0)));
  CHECK(math::sqrt(T(2)) == std::sqrt(T(2)));
  const std::uint8_t flags[] = {0, 1, 255};
  CHECK_FALSE(math::load_flags<T>(flags));
  CHECK(math::load_flags<T>(flags + 1));
  CHECK(math::load_flags<T>(flags + 2));
}

TEST_CASE_TEMPLATE("fma: one rounding where the machine has it, two in strict mode", T, float,
                   double) {
  // (1 + e)(1 - e) - 1 = -e²: all of it is lost when the product is rounded.
  volatile T e = std::numeric_limits<T>::epsilon();
  const T fused = math::fma(T(1) + e, T(1) - e, T(-1));
  if (RLHF_HAS_FMA) {
    CHECK(fused == -e * e);
  } else {
    CHECK(fused == T(0));
  }
  using V = math::native_lane<T>;
  const V one = math::constant<V>(1);
  const V step = math::constant<V>(T(e));
  CHECK(math::first(math::fma(one + step, one - step, -one)) == fused);
}

TEST_CASE("strict mode: a*b + c of native lanes is not contracted") {
  volatile float e = std::numeric_limits<float>::epsilon();
  using V = math::native_lane<float>;
  const V one = math::constant<V>(1);
  const V step = math::constant<V>(static_cast<float>(e));
  const V sum = (one + step) * (one - step) - one;
  const float first = math::first(sum);
#if defined(RLHF_STRICT)
  CHECK(first == 0.0f);
#else
  CHECK(std::fabs(first) <= 1e-13f);
#endif
}

TEST_CASE_TEMPLATE("single: the bits of the scalar it wraps, from every function", T, float,
                   double) {
  using V = math::single<T>;
  const auto all = [](const auto& x) {
    using L = std::decay_t<decltype(x)>;
    const L y = math::fma(math::exp(x), math::log1p(math::abs(x)), math::sigmoid(-x));
    const L z = math::softplus(x) / (math::sqrt(math::abs(x)) + math::constant<L>(1));
    const mask_of<L> less = y < z;
    const L chosen = math::select(less, y, (math::max)(z, x));
    return math::clamp(math::copysign(chosen, x), math::constant<L>(-3), math::k3(x));
  };
  int different = 0;
  for (const T x : samples<T>(-50, 50, 3000)) {
    T y;
    math::store<V>(&y, all(math::load<V>(&x)));
    if (!same_bits(y, all(x))) ++different;
  }
  CHECK(different == 0);
}
