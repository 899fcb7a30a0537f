#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include "accuracy.hpp"

namespace {

using namespace rlhf_test;  // NOLINT: tests only

const auto k3_of = [](const auto& d) { return math::k3(d); };
const auto slope_of = [](const auto& d) { return math::k3_slope(d); };
const auto ratio_of = [](const auto& d) { return math::ratio_terms(d).ratio; };
const auto ratio_k3_of = [](const auto& d) { return math::ratio_terms(d).k3; };

template <class T>
std::vector<T> within(double range, int count) {
  std::vector<T> inputs;
  for (const T x : samples<T>(-range, range, count)) {
    if (std::fabs(x) <= static_cast<T>(range)) inputs.push_back(x);
  }
  return inputs;
}

}  // namespace

TEST_CASE_TEMPLATE("k3 and its slope: within their bounds of a 113-bit reference", T, float,
                   double) {
  std::vector<T> inputs = samples<T>(-3, 3, 10000);
  const double range = sizeof(T) == 4 ? 95 : 720;
  for (const T x : samples<T>(-range, range, 4000)) inputs.push_back(x);
  const auto k = worst_ulp<T>(inputs, k3_of, k3_of);
  INFO("k3 at " << k.at);
  CHECK(k.error <= 4);
  const auto s = worst_ulp<T>(inputs, slope_of, slope_of);
  INFO("k3_slope at " << s.at);
  CHECK(s.error <= 1.5);
}

TEST_CASE_TEMPLATE("ratio_terms: ratio and k3 within their bounds for |d| <= 87", T, float,
                   double) {
  auto inputs = within<T>(87, 8000);
  for (const T x : within<T>(2, 8000)) inputs.push_back(x);
  const auto r = worst_ulp<T>(inputs, ratio_of, [](quad d) { return math::exp(d); });
  INFO("ratio at " << r.at);
  CHECK(r.error <= 1.3);
  const auto k = worst_ulp<T>(inputs, ratio_k3_of, [](quad d) { return math::k3(-d); });
  INFO("k3 at " << k.at);
  CHECK(k.error <= 4);
}

TEST_CASE_TEMPLATE("k3, ratio_terms: a pack gives the bits of its scalars", T, float, double) {
  CHECK(lanes_that_differ<T>(samples<T>(-3, 3, 30000), k3_of) == 0);
  CHECK(lanes_that_differ<T>(samples<T>(-3, 3, 30000), slope_of) == 0);
  CHECK(lanes_that_differ<T>(within<T>(87, 30000), ratio_of) == 0);
  CHECK(lanes_that_differ<T>(within<T>(87, 30000), ratio_k3_of) == 0);
}

TEST_CASE_TEMPLATE("k3_terms: the bits of k3 and of its slope", T, float, double) {
  int differ = 0;
  for (const T x : samples<T>(-80, 120, 40000)) {
    if (!(x >= T(-80)) && x == x) continue;
    const auto both = math::k3_terms(x);
    const T value = math::k3(x), slope = math::k3_slope(x);
    differ += std::memcmp(&both.value, &value, sizeof(T)) != 0 && value == value ? 1 : 0;
    differ += std::memcmp(&both.slope, &slope, sizeof(T)) != 0 && slope == slope ? 1 : 0;
  }
  CHECK(differ == 0);
  CHECK(std::isnan(math::k3_terms(static_cast<T>(NAN)).slope));
  CHECK(lanes_that_differ<T>(samples<T>(-3, 3, 30000),
                             [](const auto& d) { return math::k3_terms(d).slope; }) == 0);
}

TEST_CASE_TEMPLATE("k3: never negative, never 0 but at d = 0", T, float, double) {
  int negative = 0;
  int lost = 0;
  for (int i = -400000; i <= 400000; ++i) {
    const T d = static_cast<T>(i) / T(400000);
    const T k = math::k3(d);
    const T r = math::ratio_terms(d).k3;
    if (!(k >= T(0)) || !(r >= T(0))) ++negative;
    if (i != 0 && (k == T(0) || r == T(0))) ++lost;
  }
  generator random;
  for (int i = 0; i < 400000; ++i) {
    const T size =
        static_cast<T>(std::ldexp(1 + random.unit(), -1 - static_cast<int>(random() % 50)));
    for (const T d : {size, -size}) {
      if (!(math::k3(d) > T(0)) || !(math::ratio_terms(d).k3 > T(0))) ++negative;
    }
  }
  CHECK(negative == 0);
  CHECK(lost == 0);
}

TEST_CASE_TEMPLATE("k3, ratio_terms: edges", T, float, double) {
  using limits = std::numeric_limits<T>;
  const T inf = limits::infinity();
  const T nan = limits::quiet_NaN();
  CHECK(math::k3(T(0)) == T(0));
  CHECK(math::k3(T(-0.0)) == T(0));
  CHECK(math::k3(limits::denorm_min()) == T(0));
  CHECK(math::k3(inf) == inf);
  CHECK(math::k3(-inf) == inf);
  CHECK(math::k3(T(1e4)) == T(9999));
  CHECK(math::k3(T(-1e4)) == inf);
  CHECK(std::isfinite(math::k3(sizeof(T) == 4 ? T(-88.7) : T(-709.7))));
  CHECK(math::k3(limits::max()) == limits::max());
  CHECK(std::isnan(math::k3(nan)));
  CHECK(same_bits(math::k3_slope(T(0)), T(0)));
  CHECK(math::k3_slope(inf) == T(1));
  CHECK(math::k3_slope(-inf) == -inf);
  CHECK(std::isnan(math::k3_slope(nan)));
  CHECK(math::ratio_terms(T(0)).ratio == T(1));
  CHECK(math::ratio_terms(T(0)).k3 == T(0));
  CHECK(std::isnan(math::ratio_terms(nan).ratio));
  CHECK(std::isnan(math::ratio_terms(nan).k3));
  CHECK(std::isfinite(math::ratio_terms(T(80)).ratio));
  CHECK(math::ratio_terms(T(-80)).ratio > T(0));
}

TEST_CASE("k3: every float (RLHF_LONG_TESTS)") {
  if (!long_tests()) {
    MESSAGE("skipped: set RLHF_LONG_TESTS to run over all 2^32 floats");
    return;
  }
  const auto second = [](double x) {  // e^x - 1 - x
    if (std::fabs(x) > 0.01) return std::isinf(x) ? HUGE_VAL : std::expm1(x) - x;
    return x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))));
  };
  const auto k = worst_of_all_floats(k3_of, [&](double d) { return second(-d); });
  MESSAGE("k3: " << k.error << " ULP at " << k.at);
  CHECK(k.error <= 4);
  const auto r = worst_of_all_floats(
      [](const auto& d) {
        using V = std::decay_t<decltype(d)>;
        return math::ratio_terms(
                   math::select(math::abs(d) <= math::constant<V>(87), d, math::constant<V>(0)))
            .k3;
      },
      [&](double d) { return std::fabs(d) <= 87 ? second(d) : 0; });
  MESSAGE("ratio_terms.k3: " << r.error << " ULP at " << r.at);
  CHECK(r.error <= 4);
}
