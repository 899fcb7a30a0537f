#pragma once

#include "rlhf/math/lane.hpp"
#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// The order of moments, the same on every machine. Rows stand in groups of 64. There a segment
/// ends with the row that fills it to 512 valid tokens; all of a segment has one shift and 8 lanes,
/// by place in a block. A row of more than 4 tiles is cut behind each fourth and ends its segment:
/// the pieces make a binary tree, the segments of a group another, and so do the groups.
inline constexpr index moment_group_rows = 64;
inline constexpr index moment_segment_tokens = 512;
inline constexpr index moment_piece_tiles = 4;

/// Moments of N outputs about a shift of each: they merge without a division.
template <int N>
struct scan_sums {
  double positions = 0;
  double nonfinite = 0;
  double shift[at_least_one(N)] = {};
  double sum[at_least_one(N)] = {};
  double square[at_least_one(N)] = {};

  RLHF_HOST_DEVICE void add(const scan_sums& r) {
    nonfinite += r.nonfinite;
    if (!(r.positions > 0)) return;
    const bool first = !(positions > 0);
    positions += r.positions;
    for (int k = 0; k < N; ++k) {
      if (first) shift[k] = r.shift[k];
      const double apart = r.shift[k] - shift[k];
      const double moved = math::fma(r.positions, apart, r.sum[k]);
      sum[k] += moved;
      square[k] += math::fma(apart, r.sum[k] + moved, r.square[k]);
    }
  }
  RLHF_HOST_DEVICE static scan_sums none() { return {}; }
  RLHF_HOST_DEVICE static scan_sums merge(const scan_sums& a, const scan_sums& b) {
    scan_sums r = a;
    r.add(b);
    return r;
  }
  RLHF_HOST_DEVICE bool finite() const {
    double probe = 0;
    for (int k = 0; k < N; ++k) probe += square[k] - square[k];
    return probe == 0;
  }
  RLHF_HOST_DEVICE void write(double* to) const {
    to[0] = positions;
    to[1] = nonfinite;
    for (int k = 0; k < N; ++k) {
      const double mean = positions > 0 ? sum[k] / positions : 0;
      const double m2 = math::fma(-sum[k], mean, square[k]);
      to[2 + 2 * k] = positions > 0 ? shift[k] + mean : 0;
      to[3 + 2 * k] = m2 < 0 ? 0 : m2;
    }
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
