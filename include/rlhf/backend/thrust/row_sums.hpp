#pragma once

#include "rlhf/backend/thrust/last_block.hpp"
#include "rlhf/math/single.hpp"

// map_reduce_rows on a device: a set of sums for each row. 16 threads take a flush, side by side as
// virtual lanes; rounds of 64 then fold the flushes of each row.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// The flushes of rows, each of which has a slot. Slots follow from sizes and offsets alone; some
/// stay empty.
template <class Space>
struct flush_map {
  token_domain<Space> domain;
  const index* length;  // of each row: its last valid position + 1; null: what the layout says
  index slots;

  static constexpr index tokens_per_flush = virtual_lanes * steps_per_flush;

  static flush_map over(const token_domain<Space>& domain, const index* length) {
    const index tokens =
        domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
    return {domain, length,
            (tokens + virtual_lanes * domain.rows) / tokens_per_flush + domain.rows};
  }
  /// The most flushes one row may have.
  index longest() const {
    const index n = (domain.columns + virtual_lanes) / tokens_per_flush + 1;
    return n < slots ? n : slots;
  }

  RLHF_HOST_DEVICE index first_slot(index row) const {
    const index tokens =
        domain.kind == arrangement::packed ? domain.begin(row) : row * domain.columns;
    return (tokens + virtual_lanes * row) / tokens_per_flush + row;
  }
  RLHF_HOST_DEVICE index row_of(index slot) const {
    index low = 0, high = domain.rows;
    while (high - low > 1) {
      const index middle = low + (high - low) / 2;
      if (first_slot(middle) <= slot)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  RLHF_HOST_DEVICE index length_of(index row) const {
    return length != nullptr ? length[row] : domain.length(row);
  }
  /// Never beyond the slots there are, whatever the offsets say.
  RLHF_HOST_DEVICE index flushes(index row, index slot) const {
    const index n = (steps_in(length_of(row)) + steps_per_flush - 1) / steps_per_flush;
    return n < slots - slot ? n : slots - slot;
  }
};

/// The pass itself: one flush of one row by 16 threads, thread = virtual lane.
template <class K, class Space>
struct row_sums_pass {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;
  using figures = lane_figures<K::sums + 1, K::ranges>;
  K kernel;
  token_arguments<K, Space> a;
  flush_map<Space> map;
  double* partial;  // per slot, in the order of figure_row

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
      const V term = weighted && takes_weight<K>(k) ? t.sum[k] * factor : t.sum[k];
      s.sum[k] = math::detail::add_rounded(s.sum[k], math::first(term));
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
    const index i = map.row_of(slot);
    const index flush = slot - map.first_slot(i);
    if (flush < 0 || flush >= map.flushes(i, map.first_slot(i))) return r;
    lane_sums s;
    for (int k = 0; k <= K::sums; ++k) s.sum[k] = T(0);
    for (int k = 0; k < K::ranges; ++k) {
      s.low[k] = static_cast<T>(__builtin_inf());
      s.high[k] = static_cast<T>(-__builtin_inf());
    }
    const index length = map.length_of(i);
    const index steps = steps_in(length);
    const index begin = a.domain.begin(i);
    const index from = flush * steps_per_flush;
    index to = from + steps_per_flush;
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
    for (int k = 0; k <= K::sums; ++k) r.sum[k] = static_cast<double>(s.sum[k]);
    for (int k = 0; k < K::ranges; ++k) {
      r.low[k] = static_cast<double>(s.low[k]);
      r.high[k] = static_cast<double>(s.high[k]);
    }
    return r;
  }

  RLHF_HOST_DEVICE void store(index slot, const figures& r) const {
    double* const to = partial + slot * (K::sums + 1 + 2 * K::ranges);
    for (int k = 0; k <= K::sums; ++k) to[k] = r.sum[k];
    for (int k = 0; k < K::ranges; ++k) {
      to[K::sums + 1 + k] = r.low[k];
      to[K::sums + 1 + K::ranges + k] = r.high[k];
    }
  }
};

/// One round of the tree over the flushes of each row, in place: `stride` flushes apart.
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
    const index g = map.row_of(slot);
    const index first = map.first_slot(g);
    const index flush = slot - first;
    if (flush < 0 || flush % (stride * fold_width) != 0) return;
    const index flushes = map.flushes(g, first);
    if (flush >= flushes) return;
    const index left = (flushes - flush + stride - 1) / stride;
    x[i] = fold(row, k, x + i, stride * size, left < fold_width ? left : fold_width);
  }
};

/// y[i] = the figures of row i, the first `keep` of each.
template <class Space>
struct gather_rows {
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

}  // namespace rlhf::inline RLHF_COMPUTE::detail
