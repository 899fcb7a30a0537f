#include <doctest/doctest.h>

#include "accuracy.hpp"

namespace {

using namespace rlhf_test;  // NOLINT: tests only

const auto log_of = [](const auto& x) { return math::log(x); };
const auto log1p_of = [](const auto& x) { return math::log1p(x); };
const auto log1mexp_of = [](const auto& x) { return math::log1mexp(x); };

}  // namespace

TEST_CASE_TEMPLATE("log, log1p, log1mexp: within their bounds of a 113-bit reference", T, float,
                   double) {
  const auto around_one = samples<T>(0.4, 4, 15000);
  const auto l = worst_ulp<T>(around_one, log_of, log_of);
  INFO("log at " << l.at);
  CHECK(l.error <= 1);
  const auto p = worst_ulp<T>(around_one, log1p_of, log1p_of);
  INFO("log1p at " << p.at);
  CHECK(p.error <= 1);
  std::vector<T> below_zero = samples<T>(-3, 0, 10000);
  for (const T x : samples<T>(-120, 0, 3000)) below_zero.push_back(x);
  const auto m = worst_ulp<T>(below_zero, log1mexp_of, log1mexp_of);
  INFO("log1mexp at " << m.at);
  CHECK(m.error <= 1.1);
}

TEST_CASE_TEMPLATE("log, log1p, log1mexp: a pack gives the bits of its scalars", T, float, double) {
  const auto around_one = samples<T>(0.4, 4, 40000);
  CHECK(lanes_that_differ<T>(around_one, log_of) == 0);
  CHECK(lanes_that_differ<T>(around_one, log1p_of) == 0);
  CHECK(lanes_that_differ<T>(samples<T>(-20, 0, 40000), log1mexp_of) == 0);
}

TEST_CASE_TEMPLATE("log, log1p: edges", T, float, double) {
  using limits = std::numeric_limits<T>;
  const T inf = limits::infinity();
  CHECK(same_bits(math::log(T(1)), T(0)));
  CHECK(math::log(T(0)) == -inf);
  CHECK(math::log(T(-0.0)) == -inf);
  CHECK(std::isnan(math::log(T(-1))));
  CHECK(std::isnan(math::log(-limits::denorm_min())));
  CHECK(std::isnan(math::log(-inf)));
  CHECK(math::log(inf) == inf);
  CHECK(std::isnan(math::log(limits::quiet_NaN())));
  CHECK(math::log(limits::denorm_min()) ==
        doctest::Approx(sizeof(T) == 4 ? -103.27893 : -744.44007));
  CHECK(same_bits(math::log1p(T(0)), T(0)));
  CHECK(same_bits(math::log1p(T(-0.0)), T(-0.0)));
  CHECK(same_bits(math::log1p(limits::denorm_min()), limits::denorm_min()));
  CHECK(same_bits(math::log1p(-limits::denorm_min()), -limits::denorm_min()));
  CHECK(math::log1p(T(-1)) == -inf);
  CHECK(std::isnan(math::log1p(std::nextafter(T(-1), T(-2)))));
  CHECK(std::isnan(math::log1p(-inf)));
  CHECK(math::log1p(inf) == inf);
  CHECK(std::isfinite(math::log1p(limits::max())));
  CHECK(std::isnan(math::log1p(limits::quiet_NaN())));
}

TEST_CASE_TEMPLATE("log1mexp: finite wherever the answer is, on both sides of -ln 2", T, float,
                   double) {
  using limits = std::numeric_limits<T>;
  const T inf = limits::infinity();
  CHECK(math::log1mexp(T(0)) == -inf);
  CHECK(math::log1mexp(T(-0.0)) == -inf);
  CHECK(math::log1mexp(T(-1e-8)) == doctest::Approx(-18.420680743952367));
  CHECK(math::log1mexp(-limits::denorm_min()) == math::log(limits::denorm_min()));
  const T ln2 = T(0.6931471805599453);
  CHECK(math::log1mexp(-ln2) == doctest::Approx(-0.6931471805599453));
  for (const T x : {std::nextafter(-ln2, T(0)), -ln2, std::nextafter(-ln2, T(-1))}) {
    CHECK(ulp_error<T>(math::log1mexp(x), math::log1mexp(static_cast<quad>(x))) <= 1.1);
  }
  CHECK(math::log1mexp(T(-50)) == doctest::Approx(-1.9287498479639178e-22));
  CHECK(math::log1mexp(T(-1e4)) == T(0));
  CHECK(math::log1mexp(-inf) == T(0));
  CHECK(std::isnan(math::log1mexp(limits::denorm_min())));
  CHECK(std::isnan(math::log1mexp(T(1))));
  CHECK(std::isnan(math::log1mexp(inf)));
  CHECK(std::isnan(math::log1mexp(limits::quiet_NaN())));
}

TEST_CASE("log, log1p, log1mexp: every float (RLHF_LONG_TESTS)") {
  if (!long_tests()) {
    MESSAGE("skipped: set RLHF_LONG_TESTS to run over all 2^32 floats");
    return;
  }
  const auto l = worst_of_all_floats(log_of, [](double x) { return std::log(x); });
  MESSAGE("log: " << l.error << " ULP at " << l.at);
  CHECK(l.error <= 1);
  const auto p = worst_of_all_floats(log1p_of, [](double x) { return std::log1p(x); });
  MESSAGE("log1p: " << p.error << " ULP at " << p.at);
  CHECK(p.error <= 1);
  const auto m = worst_of_all_floats(log1mexp_of, [](double x) {
    return x > -0.6931471805599453 ? std::log(-std::expm1(x)) : std::log1p(-std::exp(x));
  });
  MESSAGE("log1mexp: " << m.error << " ULP at " << m.at);
  CHECK(m.error <= 1.1);
}
