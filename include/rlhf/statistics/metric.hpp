#pragma once

namespace rlhf::inline v1 {

/// A mean that still merges: sums and counts of micro-batches and ranks add up. Nothing counted
/// has mean 0.
struct metric {
  double sum = 0;
  double count = 0;

  constexpr double mean() const { return count > 0 ? sum / count : 0; }
  friend constexpr metric operator+(const metric& a, const metric& b) {
    return {a.sum + b.sum, a.count + b.count};
  }
};

/// The smallest and the largest value seen; low > high where nothing was.
struct range {
  double low = __builtin_inf();
  double high = -__builtin_inf();

  friend constexpr range operator+(const range& a, const range& b) {
    return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
  }
};

}  // namespace rlhf::inline v1
