#pragma once

#include "rlhf/backend/thrust/lanes.hpp"
#include "rlhf/math/single.hpp"
#include "rlhf/primitive/count.hpp"

// The steps of counting and of map_reduce, each a functor of independent threads or of groups of 16
// threads that end in one sum. A machine only has to launch them: a CUDA stream, or Thrust.

namespace rlhf::inline RLHF_COMPUTE::detail {

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
};

inline constexpr index fold_width = 64;

/// The binary tree over x[0], x[stride], ... of n <= fold_width items; the split is at the largest
/// power of two, so a tree of such trees is the tree over all.
RLHF_HOST_DEVICE inline double fold(const figure_row& row, int k, const double* x, index stride,
                                    index n) {
  double level[8];
  for (index t = 0; t < n; ++t) {
    double carry = x[t * stride];
    int at = 0;
    for (index m = t; (m & 1) != 0; m >>= 1, ++at) carry = row.merge(k, level[at], carry);
    level[at] = carry;
  }
  double r = row.none(k);
  bool first = true;
  int at = 0;
  for (index m = n; m != 0; m >>= 1, ++at)
    if ((m & 1) != 0) {
      r = first ? level[at] : row.merge(k, level[at], r);
      first = false;
    }
  return r;
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

/// Where the work of a domain lies: groups of rows, cut into flushes of 64 steps, each of which has
/// a slot. Slots follow from sizes and offsets alone, so no pass is needed to find them; some stay
/// empty.
template <class Space>
struct flush_map {
  token_domain<Space> domain;
  index group_rows;
  index groups;
  index slots;
  const index* length;  // of each row: its last valid position + 1
  const index* before;  // steps of the earlier rows of its group

  static constexpr index tokens_per_flush = virtual_lanes * steps_per_flush;

  static flush_map over(const token_domain<Space>& domain, index group_rows) {
    flush_map m{domain, group_rows, (domain.rows + group_rows - 1) / group_rows,
                0,      nullptr,    nullptr};
    const index tokens =
        domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
    m.slots = (tokens + virtual_lanes * domain.rows) / tokens_per_flush + m.groups;
    return m;
  }
  /// The most flushes one group may have.
  index longest() const {
    const index rows = group_rows < domain.rows ? group_rows : domain.rows;
    const index tokens =
        domain.kind == arrangement::packed ? domain.columns : rows * domain.columns;
    const index n = (tokens + virtual_lanes * rows) / tokens_per_flush + 1;
    return n < slots ? n : slots;
  }

  RLHF_HOST_DEVICE index first_row(index g) const { return g * group_rows; }
  RLHF_HOST_DEVICE index end_row(index g) const {
    const index end = (g + 1) * group_rows;
    return end < domain.rows ? end : domain.rows;
  }
  RLHF_HOST_DEVICE index first_slot(index g) const {
    const index row = first_row(g) < domain.rows ? first_row(g) : domain.rows;
    const index tokens =
        domain.kind == arrangement::packed ? domain.begin(row) : row * domain.columns;
    return (tokens + virtual_lanes * row) / tokens_per_flush + g;
  }
  RLHF_HOST_DEVICE index group_of(index slot) const {
    index low = 0, high = groups;
    while (high - low > 1) {
      const index middle = low + (high - low) / 2;
      if (first_slot(middle) <= slot)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  RLHF_HOST_DEVICE index steps(index g) const {
    const index last = end_row(g) - 1;
    return before[last] + steps_in(length[last]);
  }
  /// Never beyond the slots there are, whatever the offsets say.
  RLHF_HOST_DEVICE index flushes(index g, index slot) const {
    const index n = (steps(g) + steps_per_flush - 1) / steps_per_flush;
    return n < slots - slot ? n : slots - slot;
  }
};

/// Counts of a row and its valid length: 16 threads read its mask side by side. Weights are added by
/// the first of them alone, in the order of the host.
template <class Space>
struct count_lanes {
  using figures = lane_figures<2, 1>;
  token_domain<Space> domain;
  double* counts;  // per row: weight, positions, 1 if there is one; may be null
  index* length;   // may be null

  RLHF_HOST_DEVICE figures lane(index i, int l) const {
    figures r;
    const index n = domain.length(i);
    const mask_view<Space>& mask = domain.mask;
    if (mask.kind() == mask_kind::none) {
      if (l != 0) return r;
      r.sum[0] = r.sum[1] = r.high[0] = static_cast<double>(n);
      return r;
    }
    r.high[0] = 0;
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    const bool flags = mask.kind() == mask_kind::flag;
    if (!flags && l != 0) return r;
    for (index j = flags ? l : 0; j < n; j += flags ? virtual_lanes : 1) {
      const double w = mask.at(at + j * step);
      if (!(w > 0)) continue;
      r.sum[0] += w;
      r.sum[1] += 1;
      r.high[0] = static_cast<double>(j + 1);
    }
    return r;
  }
  RLHF_HOST_DEVICE void store(index i, const figures& r) const {
    if (counts != nullptr) {
      counts[3 * i] = r.sum[0];
      counts[3 * i + 1] = r.sum[1];
      counts[3 * i + 2] = r.sum[1] > 0 ? 1 : 0;
    }
    if (length != nullptr) length[i] = static_cast<index>(r.high[0]);
  }
};

/// Adds the counts of rows one by one: where weights are no integers, the order of the host.
struct add_counts {
  const double* counts;
  index rows;
  double* to;
  RLHF_HOST_DEVICE void operator()(index k) const {
    double s = 0;
    for (index i = 0; i < rows; ++i) s += counts[3 * i + k];
    to[k] = s;
  }
};

struct copy_row_weight {
  const double* counts;
  double* to;
  RLHF_HOST_DEVICE void operator()(index i) const { to[i] = counts[3 * i]; }
};

template <class Space>
struct steps_before {
  flush_map<Space> map;
  index* to;
  RLHF_HOST_DEVICE void operator()(index i) const {
    index steps = 0;
    for (index k = i / map.group_rows * map.group_rows; k < i; ++k)
      steps += steps_in(map.length[k]);
    to[i] = steps;
  }
};

/// The pass itself: one flush of one group by 16 threads, thread = virtual lane.
template <class K, class Space>
struct token_pass {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;
  using figures = lane_figures<K::sums + 1, K::ranges>;
  K kernel;
  token_arguments<K, Space> a;
  flush_map<Space> map;
  double* partial;  // per slot, in the order of figure_row; null for a kernel that only writes

  struct lane_sums {
    T sum[K::sums + 1];
    T low[at_least_one(K::ranges)];
    T high[at_least_one(K::ranges)];
  };

  RLHF_HOST_DEVICE void token(lane_sums& s, index i, index begin, index j, const T* scale) const {
    const mask_view<Space>& mask = a.domain.mask;
    const bool weighted = mask.kind() == mask_kind::weight32 || mask.kind() == mask_kind::weight64;
    T weight = T(1);
    if (mask.kind() != mask_kind::none) {
      weight = static_cast<T>(mask.at(a.domain.mask_offset(i) + j * a.domain.mask_stride()));
      if (!(weight > T(0))) {
        zero(i, begin, j);
        return;
      }
    }
    const V factor = math::constant<V>(weight);
    token_lanes<V, K> t;
    for (int k = 0; k < K::inputs; ++k) {
      const token_input<T>& x = a.in[k];
      t.in[k] = math::constant<V>(x.data == nullptr
                                      ? x.absent
                                      : x.data[i * x.per_row + begin * x.per_begin + j * x.stride]);
    }
    for (int k = 0; k < K::scales; ++k) {
      t.scale[k] = math::constant<V>(scale[k]);
      if (weighted) t.scale[k] = t.scale[k] * factor;
    }
    if constexpr (K::observed > 0) {
      V probe = t.in[0] - t.in[0];  // 0 for every finite number, NaN otherwise
      for (int k = 1; k < K::observed; ++k) probe = probe + (t.in[k] - t.in[k]);
      s.sum[K::sums] = s.sum[K::sums] + (math::first(probe) == T(0) ? T(0) : T(1));
    }
    kernel(t);
    for (int k = 0; k < K::sums; ++k) {
      T term = math::first(weighted && takes_weight<K>(k) ? t.sum[k] * factor : t.sum[k]);
      math::detail::keep_rounding(term);
      s.sum[k] = s.sum[k] + term;
    }
    for (int k = 0; k < K::ranges; ++k) {
      const T x = math::first(t.range[k]);
      if (x < s.low[k]) s.low[k] = x;
      if (x > s.high[k]) s.high[k] = x;
    }
    for (int k = 0; k < K::outputs; ++k) {
      const token_output<T>& y = a.out[k];
      if (y.data == nullptr) continue;
      const T value = math::first(t.out[k]) + T(0);  // never −0
      T& to = y.data[i * y.per_row + begin * y.per_begin + j * y.stride];
      to = y.accumulate ? to + value : value;
    }
  }

  RLHF_HOST_DEVICE void zero(index i, index begin, index j) const {
    for (int k = 0; k < K::outputs; ++k) {
      const token_output<T>& y = a.out[k];
      if (y.data == nullptr || y.accumulate) continue;
      y.data[i * y.per_row + begin * y.per_begin + j * y.stride] = T(0);
    }
  }

  RLHF_HOST_DEVICE figures lane(index slot, int l) const {
    figures r;
    const index g = map.group_of(slot);
    const index flush = slot - map.first_slot(g);
    if (flush < 0 || flush >= map.flushes(g, map.first_slot(g))) return r;
    const index first = flush * steps_per_flush;
    const index last = first + steps_per_flush;
    lane_sums s;
    for (int k = 0; k <= K::sums; ++k) s.sum[k] = T(0);
    for (int k = 0; k < K::ranges; ++k) {
      s.low[k] = static_cast<T>(__builtin_inf());
      s.high[k] = static_cast<T>(-__builtin_inf());
    }
    const index end = map.end_row(g);
    for (index i = row_at(g, first); i < end && map.before[i] < last; ++i) {
      const index length = map.length[i];
      const index steps = steps_in(length);
      const index begin = a.domain.begin(i);
      index from = first - map.before[i];
      if (from < 0) from = 0;
      index to = last - map.before[i];
      if (to >= steps) {
        to = steps;
        const index slots = a.domain.slots(i);
        for (index j = length + l; j < slots; j += virtual_lanes) zero(i, begin, j);
      }
      T scale[at_least_one(K::scales)] = {};
      for (int k = 0; k < K::scales; ++k) scale[k] = static_cast<T>(a.scale[k].at(i));
      for (index step = from; step < to; ++step) {
        const index j = step * virtual_lanes + l;
        if (j < length) token(s, i, begin, j, scale);
      }
    }
    for (int k = 0; k <= K::sums; ++k) r.sum[k] = static_cast<double>(s.sum[k]);
    for (int k = 0; k < K::ranges; ++k) {
      r.low[k] = static_cast<double>(s.low[k]);
      r.high[k] = static_cast<double>(s.high[k]);
    }
    return r;
  }

  RLHF_HOST_DEVICE void store(index slot, const figures& r) const {
    if (partial == nullptr) return;
    double* const to = partial + slot * (K::sums + 1 + 2 * K::ranges);
    for (int k = 0; k <= K::sums; ++k) to[k] = r.sum[k];
    for (int k = 0; k < K::ranges; ++k) {
      to[K::sums + 1 + k] = r.low[k];
      to[K::sums + 1 + K::ranges + k] = r.high[k];
    }
  }

 private:
  /// The row of group g that step `step` of the group belongs to.
  RLHF_HOST_DEVICE index row_at(index g, index step) const {
    index low = map.first_row(g), high = map.end_row(g);
    while (high - low > 1) {
      const index middle = low + (high - low) / 2;
      if (map.before[middle] <= step)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
};

/// One round of the tree over the flushes of each group, in place: `stride` flushes apart.
template <class Space>
struct fold_flushes {
  flush_map<Space> map;
  figure_row row;
  double* x;
  index stride;
  RLHF_HOST_DEVICE void operator()(index i) const {
    const int size = row.size();
    const index slot = i / size;
    const int k = static_cast<int>(i % size);
    const index g = map.group_of(slot);
    const index first = map.first_slot(g);
    const index flush = slot - first;
    if (flush < 0 || flush % (stride * fold_width) != 0) return;
    const index flushes = map.flushes(g, first);
    if (flush >= flushes) return;
    const index left = (flushes - flush + stride - 1) / stride;
    x[i] = fold(row, k, x + i, stride * size, left < fold_width ? left : fold_width);
  }
};

/// y[g] = the figures of group g, the first `keep` of each.
template <class Space>
struct gather_groups {
  flush_map<Space> map;
  int size;
  int keep;
  const double* x;
  double* y;
  RLHF_HOST_DEVICE void operator()(index i) const {
    const index g = i / keep;
    const index slot = map.first_slot(g);
    y[i] = slot < map.slots ? x[slot * size + i % keep] : 0;
  }
};

/// What is wrong with the lengths, offsets and weights of a row: on a stream no one else can look.
template <class Space>
struct examine_lanes {
  using figures = lane_figures<2, 0>;
  token_domain<Space> domain;
  double* found;  // per row: bad offsets, bad weights

  RLHF_HOST_DEVICE figures lane(index i, int l) const {
    figures r;
    if (l == 0) {
      const index n = domain.columns;
      if (domain.kind == arrangement::lengths && i < domain.rows)
        r.sum[0] = domain.indices[i] < 0 || domain.indices[i] > n ? 1 : 0;
      if (domain.kind == arrangement::packed) {
        const bool starts = i > 0 || domain.indices[0] == 0;
        const bool grows = i >= domain.rows || domain.indices[i + 1] >= domain.indices[i];
        const bool ends = i + 1 < domain.rows || domain.indices[domain.rows] == n;
        r.sum[0] = starts && grows && ends ? 0 : 1;
      }
    }
    if (i < domain.rows &&
        (domain.mask.kind() == mask_kind::weight32 || domain.mask.kind() == mask_kind::weight64)) {
      const index at = domain.mask_offset(i), step = domain.mask_stride();
      for (index j = l; j < domain.length(i); j += virtual_lanes) {
        const double w = domain.mask.at(at + j * step);
        if (!is_weight(w)) r.sum[1] += 1;
      }
    }
    return r;
  }
  RLHF_HOST_DEVICE void store(index i, const figures& r) const {
    found[2 * i] = r.sum[0];
    found[2 * i + 1] = r.sum[1];
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
