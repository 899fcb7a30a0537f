#pragma once

// What each consumer computes: two answers, packed; ratios e^0.2, 1 and e^-0.5, of which none is
// cut. The loss is (-e^0.2 + 1 - 0.5 e^-0.5) / 3, the slope at the last token -0.5 e^-0.5 / 3.

#include <cmath>
#include <cstdio>

inline constexpr float log_prob_of[] = {-1.0F, -0.5F, -2.0F};
inline constexpr float old_log_prob_of[] = {-1.2F, -0.5F, -1.5F};
inline constexpr float advantage_of[] = {1.0F, -1.0F, 0.5F};
inline constexpr int ends_of[] = {0, 2, 3};

inline int verdict(const char* component, double loss, float last_slope) {
  const double expected = (-std::exp(0.2) + 1 - 0.5 * std::exp(-0.5)) / 3;
  const double slope = -0.5 * std::exp(-0.5) / 3;
  std::printf("%s: loss %.7f, last slope %.7f\n", component, loss, static_cast<double>(last_slope));
  return std::fabs(loss - expected) < 1e-6 &&
                 std::fabs(static_cast<double>(last_slope) - slope) < 1e-6
             ? 0
             : 1;
}
