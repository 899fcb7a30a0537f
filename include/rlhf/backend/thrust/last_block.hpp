#pragma once

#include "rlhf/backend/thrust/lanes.hpp"
#include "rlhf/backend/thrust/team.hpp"

// The end of a sum on a device: each team leaves a row of figures, and the last one that arrives
// folds all rows in the order of the host.

namespace rlhf::inline RLHF_COMPUTE::detail {

inline constexpr index fold_width = 64;

inline constexpr int fold_fan = 16;

/// Rows of figures: `sums` numbers that add, then `ranges` low ends, then as many high ends.
struct figure_row {
  int sums;
  int ranges;
  RLHF_HOST_DEVICE int size() const { return sums + 2 * ranges; }
  RLHF_HOST_DEVICE double none(int k) const {
    return k < sums ? 0 : k < sums + ranges ? __builtin_inf() : -__builtin_inf();
  }
  RLHF_HOST_DEVICE double merge(int k, double a, double b) const {
    return k < sums ? a + b : k < sums + ranges ? lower(a, b) : higher(a, b);
  }
  /// A row folds in parts, by a thread each: here its numbers. at(i) is row i of fold_fan, null for
  /// one that stands for nothing.
  RLHF_HOST_DEVICE int parts() const { return size(); }
  template <class Team, class At>
  RLHF_HOST_DEVICE RLHF_INLINE void fold(const Team& team, int k, const At& at, double* to) const;
};

/// The binary tree over x[0] ... x[15]. Where fewer are there the others are `none`, which changes
/// no bit: a sum of this library is never −0, so x + 0 is x.
RLHF_HOST_DEVICE RLHF_INLINE double fold16(const figure_row& row, int k, double (&x)[fold_fan]) {
  RLHF_UNROLL
  for (int apart = 1; apart < fold_fan; apart *= 2) {
    RLHF_UNROLL
    for (int i = 0; i < fold_fan; i += 2 * apart) x[i] = row.merge(k, x[i], x[i + apart]);
  }
  return x[0];
}

template <class Team, class At>
RLHF_HOST_DEVICE RLHF_INLINE void figure_row::fold(const Team& team, int k, const At& at,
                                                   double* to) const {
  double x[fold_fan];
  RLHF_UNROLL
  for (int i = 0; i < fold_fan; ++i) {
    const double* const p = at(i);
    x[i] = p != nullptr ? team.fetch(p + k) : none(k);
  }
  to[k] = fold16(*this, k, x);
}

/// The tree over x[0], x[stride], ... of n <= fold_width items; the split is at the largest power of
/// two, so a tree of such trees is the tree over all.
RLHF_HOST_DEVICE inline double fold(const figure_row& row, int k, const double* x, index stride,
                                    index n) {
  double part[fold_width / fold_fan];
  RLHF_UNROLL
  for (int p = 0; p < fold_width / fold_fan; ++p) {
    double y[fold_fan];
    RLHF_UNROLL
    for (int i = 0; i < fold_fan; ++i) {
      const index t = p * fold_fan + i;
      y[i] = t < n ? x[t * stride] : row.none(k);
    }
    part[p] = fold16(row, k, y);
  }
  static_assert(fold_width == 4 * fold_fan);
  return row.merge(k, row.merge(k, part[0], part[1]), row.merge(k, part[2], part[3]));
}

/// One round over plain rows of figures: y[b] = tree over x[64 b .. 64 b + 63]. Where only the
/// device knows how many rows there were before the first round, *rows of them are left in `n`.
struct fold_rows {
  figure_row row;
  const double* x;
  index n;
  double* y;
  const index* rows = nullptr;
  index shrunk = 1;  // by earlier rounds
  RLHF_HOST_DEVICE void operator()(index i) const {
    const int size = row.size();
    const index block = i / size;
    const int k = static_cast<int>(i % size);
    const index from = block * fold_width;
    const index all = rows == nullptr ? n : (*rows + shrunk - 1) / shrunk;
    const index left = all - from < fold_width ? all - from : fold_width;
    y[i] = fold(row, k, x + from * size + k, size, left > 0 ? left : 0);
  }
};

RLHF_HOST_DEVICE inline index steps_in(index length) {
  return length > 0 ? (length + virtual_lanes - 1) / virtual_lanes : 1;
}

/// The tree over n rows of figures, in rounds of 16 that end in the row of leaf 0. at(i) is the
/// address of leaf i, null for a leaf that stands for nothing.
template <class Team, class Row, class At>
RLHF_HOST_DEVICE void fold_leaves(const Team& team, const Row& row, index n, const At& at) {
  const auto parts = static_cast<unsigned>(row.parts());
  for (index apart = 1; apart < n; apart *= fold_fan) {
    const index trees = (n + apart * fold_fan - 1) / (apart * fold_fan);
    team.sync();
    team.each([&](int t) {
      const auto tasks = static_cast<unsigned>(trees) * parts;
      for (auto task = static_cast<unsigned>(t); task < tasks; task += Team::width) {
        const index first = static_cast<index>(task / parts) * apart * fold_fan;
        double* const to = at(first);
        if (to == nullptr) continue;
        row.fold(
            team, static_cast<int>(task % parts),
            [&](int i) -> const double* {
              const index leaf = first + i * apart;
              return leaf < n ? at(leaf) : nullptr;
            },
            to);
      }
    });
  }
  team.sync();
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
