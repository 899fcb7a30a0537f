#include "rlhf/statistics/metric.hpp"

#include <doctest/doctest.h>

TEST_CASE("metric: sums and counts merge before they are divided; nothing has mean 0") {
  const rlhf::metric a{6, 3}, b{1, 1}, none;
  CHECK(a.mean() == 2);
  CHECK((a + b).mean() == 7.0 / 4);  // not the mean of the means, 3/2
  CHECK((a + none).mean() == 2);
  CHECK(none.mean() == 0);
}

TEST_CASE("range: the widest of both; nothing seen is the identity") {
  const rlhf::range a{-1, 2}, b{0, 5}, none;
  CHECK((a + b).low == -1);
  CHECK((a + b).high == 5);
  CHECK((b + a).low == -1);
  CHECK((b + a).high == 5);
  CHECK((none + a).low == -1);
  CHECK((a + none).high == 2);
  CHECK(none.low > none.high);
}
