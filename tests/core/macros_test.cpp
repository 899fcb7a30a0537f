#define RLHF_TEST_HOSTILE_MACROS 1
// Macros that other people's headers define must not break ours.

#include <doctest/doctest.h>

#include <complex>
#include <optional>
#include <string>
#include <vector>

#define min(a, b) hostile_macro(a, b)
#define max(a, b) hostile_macro(a, b)
#define I hostile_macro
#define small hostile_macro
#define near hostile_macro
#define far hostile_macro
#define B0 hostile_macro
#define ERROR hostile_macro

#include "rlhf/backend/host.hpp"
#include "rlhf/rlhf.hpp"

#undef min
#undef max
#undef I
#undef small
#undef near
#undef far
#undef B0
#undef ERROR

TEST_CASE("headers: macros of other people's headers do no harm") {
  const double log_prob[1][1] = {{-1}}, advantage[1] = {2};
  const auto r = rlhf::clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = log_prob, .advantage = advantage}, {},
      {.over = rlhf::aggregation::token_sum()});
  CHECK(r.loss == -2);
}
