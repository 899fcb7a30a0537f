#include "rlhf/math/polynomial.hpp"

#include <doctest/doctest.h>

#include <utility>

namespace {

constexpr int primes[] = {2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53};

template <class V, int... I>
V by_estrin(const V& x, std::integer_sequence<int, I...>) {
  return rlhf::RLHF_COMPUTE::math::detail::polynomial(x, primes[I]...);
}

/// With integers nothing is rounded, so any order gives the sum of its terms.
template <int Count>
void check_count() {
  for (const double x : {-3.0, 0.0, 1.0, 2.0}) {
    double sum = 0;
    for (int k = Count; k-- > 0;) sum = sum * x + primes[k];
    CAPTURE(Count);
    CHECK(by_estrin(x, std::make_integer_sequence<int, Count>()) == sum);
  }
}
template <int... I>
void check_all(std::integer_sequence<int, I...>) {
  (check_count<I + 2>(), ...);
}

}  // namespace

TEST_CASE("polynomial: every number of coefficients, 2 to 16, by Horner's rule") {
  check_all(std::make_integer_sequence<int, 15>());
}
