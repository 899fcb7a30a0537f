#pragma once

#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE {

/// A sibling of map_reduce for statistics: count, mean and sum of squared distances from the mean
/// of one or more series, in one read of the tokens.
///
///     struct log_ratio {
///       using scalar_type = float;
///       using moments = rlhf::moments;   // count, mean, m2, and + that merges
///       static constexpr int inputs = 2, outputs = 0, scales = 0;
///       static constexpr int size = 1;           // series
///       static constexpr bool ranged = false;    // whether the smallest and largest are wanted
///       template <class V>
///       RLHF_HOST_DEVICE void operator()(const V* in, V* x) const { x[0] = in[0] - in[1]; }
///     };
///
/// The order is that of map_reduce: groups of 64 rows, 16 virtual lanes, flushes of 64 steps, a
/// binary tree over them. The tokens of a flush are measured from a number near them: the mean of
/// what the lanes hold first, in the flush's first four steps. Where that is farther from the mean
/// of the flush than one standard deviation, they are measured again from there, twice at most: a
/// flush is 1,024 tokens, which stay in cache. Where those steps have none, or a mean beyond all
/// numbers, and the squares overflow, they are measured again from the first one counted. Even and
/// odd steps have sums of their own. Flushes merge in double, about the number that the first of
/// them was measured from.
template <class K>
struct moments_of {
  static constexpr int low = 3 * K::size;  ///< behind count, mean and m2 of each series
  static constexpr int high = 4 * K::size;
  static constexpr int nonfinite = 5 * K::size;
  static constexpr int size = 7 * K::size + 1;  ///< and, for merging, a shift and the mean from it
};

namespace detail {

inline constexpr index steps_of_guess = 4;
inline constexpr int most_sweeps = 3;

/// Sums over a flush of w, w·d and w·d², d = x − shift.
struct shifted_sums {
  double weight = 0, sum = 0, square = 0;

  RLHF_HOST_DEVICE double mean() const { return sum / weight; }
  /// Whether the shift is no good: the squares are more about it than about the mean.
  RLHF_HOST_DEVICE bool far() const {
    return weight > 0 && 2 * math::detail::opaque(sum * mean()) > square;
  }
  template <class Series>
  RLHF_HOST_DEVICE Series about(double shift) const {
    Series r;
    if (!(weight > 0)) return r;
    const double m2 = math::fma(-sum, mean(), square);
    r.shift = shift;
    r.of = {weight, mean(), m2 < 0 ? 0 : m2};
    return r;
  }
};

/// Moments of x − shift. Kept so, a mean that is large beside the spread costs no digits of m2.
template <class M>
struct shifted_moments {
  M of = {};
  double shift = 0;

  RLHF_HOST_DEVICE static shifted_moments merge(const shifted_moments& a,
                                                const shifted_moments& b) {
    if (!(a.of.count > 0)) return b;
    if (!(b.of.count > 0)) return a;
    M moved = b.of;
    moved.mean = (b.shift - a.shift) + moved.mean;
    return {a.of + moved, a.shift};
  }
};

/// What is known of one series; it merges.
template <class M>
struct series_moments {
  M of = {};  // of x − shift
  double shift = 0;
  double low = __builtin_inf();
  double high = -__builtin_inf();

  RLHF_HOST_DEVICE static series_moments merge(const series_moments& a, const series_moments& b) {
    const auto all = shifted_moments<M>::merge({a.of, a.shift}, {b.of, b.shift});
    return {all.of, all.shift, a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
  }
  /// Series k of `series`, in a row of figures as moments_of says; at(i) is number i of the row.
  template <class At>
    requires requires(const At& at) { at(0); }
  RLHF_HOST_DEVICE static series_moments read(const At& at, int k, int series) {
    const int beyond = 5 * series + 1;
    return {{at(3 * k), at(beyond + series + k), at(3 * k + 2)},
            at(beyond + k),
            at(3 * series + k),
            at(4 * series + k)};
  }
  RLHF_HOST_DEVICE static series_moments read(const double* row, int k, int series) {
    return read([&](int i) { return row[i]; }, k, series);
  }
  RLHF_HOST_DEVICE void write(double* row, int k, int series) const {
    double* const m = row + 3 * k;
    double* const beyond = row + 5 * series + 1;
    m[0] = of.count, m[1] = shift + of.mean, m[2] = of.m2;
    row[3 * series + k] = low;
    row[4 * series + k] = high;
    beyond[k] = shift;
    beyond[series + k] = of.mean;
  }
};

}  // namespace detail

}  // namespace rlhf::inline RLHF_COMPUTE
