#pragma once

#include "rlhf/backend/thrust/last_block.hpp"
#include "rlhf/primitive/moment_reduce.hpp"

// moment_reduce on a device: 16 threads measure one flush, thread = virtual lane, with the
// arithmetic of the host in the same order; then the trees over flushes and over groups.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Where the work of a domain lies: groups of rows, cut into flushes of 64 steps, each of which has
/// a slot. Slots follow from sizes and offsets alone, so no pass is needed to find them; some stay
/// empty.
template <class Space>
struct moment_map {
  token_domain<Space> domain;
  index groups;
  index slots;
  const index* length;  // of each row: its last valid position + 1; null: what the layout says
  const index* before;  // steps of the earlier rows of its group

  static constexpr index tokens_per_flush = virtual_lanes * steps_per_flush;

  static moment_map over(const token_domain<Space>& domain, const index* length) {
    moment_map m{domain, (domain.rows + rows_per_group - 1) / rows_per_group, 0, length, nullptr};
    const index tokens =
        domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
    m.slots = (tokens + virtual_lanes * domain.rows) / tokens_per_flush + m.groups;
    return m;
  }
  /// The most flushes one group may have.
  index longest() const {
    const index rows = rows_per_group < domain.rows ? rows_per_group : domain.rows;
    const index tokens =
        domain.kind == arrangement::packed ? domain.columns : rows * domain.columns;
    const index n = (tokens + virtual_lanes * rows) / tokens_per_flush + 1;
    return n < slots ? n : slots;
  }

  RLHF_HOST_DEVICE index length_of(index row) const {
    return length != nullptr ? length[row] : domain.length(row);
  }
  RLHF_HOST_DEVICE index first_row(index g) const { return g * rows_per_group; }
  RLHF_HOST_DEVICE index end_row(index g) const {
    const index end = (g + 1) * rows_per_group;
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
    return before[last] + steps_in(length_of(last));
  }
  /// Never beyond the slots there are, whatever the offsets say.
  RLHF_HOST_DEVICE index flushes(index g, index slot) const {
    const index n = (steps(g) + steps_per_flush - 1) / steps_per_flush;
    return n < slots - slot ? n : slots - slot;
  }
};

template <class Space>
struct steps_before {
  moment_map<Space> map;
  index* to;
  RLHF_HOST_DEVICE void operator()(index i) const {
    index steps = 0;
    for (index k = i / rows_per_group * rows_per_group; k < i; ++k)
      steps += steps_in(map.length_of(k));
    to[i] = steps;
  }
};

/// The row of group g that step `step` of the group belongs to.
template <class Space>
RLHF_HOST_DEVICE index row_of_step(const moment_map<Space>& map, index g, index step) {
  index low = map.first_row(g), high = map.end_row(g);
  while (high - low > 1) {
    const index middle = low + (high - low) / 2;
    (map.before[middle] <= step ? low : high) = middle;
  }
  return low;
}

template <class K, class Space>
struct moment_pass {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;
  using M = series_moments<typename K::moments>;
  K kernel;
  token_arguments<K, Space> a;
  moment_map<Space> map;
  double* partial;  // per slot, as moments_of says

  /// What one lane adds to one series: even steps, odd steps.
  struct lane_sums {
    double weight = 0;
    T sum[2] = {T(0), T(0)};
    T square[2] = {T(0), T(0)};
    T low = static_cast<T>(__builtin_inf());
    T high = static_cast<T>(-__builtin_inf());
    double nonfinite = 0;
  };

  template <class Lanes>
  RLHF_HOST_DEVICE void operator()(const Lanes& lanes, index slot) const {
    const index g = map.group_of(slot);
    const index flush = slot - map.first_slot(g);
    double* const to = partial + slot * moments_of<K>::size;
    const bool used = flush >= 0 && flush < map.flushes(g, map.first_slot(g));
    double nonfinite = 0;
    for (int k = 0; k < K::size; ++k) {
      M series;
      if (used) nonfinite = measure(lanes, g, flush, k, series);
      lanes.first([&] { series.write(to, k, K::size); });
    }
    lanes.first([&] { to[moments_of<K>::nonfinite] = nonfinite; });
  }

 private:
  /// f(step in the flush, x of series k, weight, whether the inputs are finite) for each counted
  /// token of lane l, while it returns true.
  template <class F>
  RLHF_HOST_DEVICE void each_token(index g, index flush, int k, int l, const F& f) const {
    const index first = flush * steps_per_flush, last = first + steps_per_flush;
    const index end = map.end_row(g);
    const mask_view<Space>& mask = a.domain.mask;
    for (index i = row_of_step(map, g, first); i < end && map.before[i] < last; ++i) {
      const index length = map.length_of(i), begin = a.domain.begin(i);
      index from = first - map.before[i], to = last - map.before[i];
      if (from < 0) from = 0;
      if (to > steps_in(length)) to = steps_in(length);
      for (index s = from; s < to; ++s) {
        const index j = s * virtual_lanes + l;
        if (j >= length) continue;
        T weight = T(1);
        if (mask.kind() != mask_kind::none) {
          weight = static_cast<T>(mask.at(a.domain.mask_offset(i) + j * a.domain.mask_stride()));
          if (!(weight > T(0))) continue;
          if (mask.kind() == mask_kind::flag) weight = T(1);
        }
        V in[at_least_one(K::inputs)], x[at_least_one(K::size)];
        bool finite = true;
        for (int c = 0; c < K::inputs; ++c) {
          const token_input<T>& from_c = a.in[c];
          const T value =
              from_c.data[i * from_c.per_row + begin * from_c.per_begin + j * from_c.stride];
          finite = finite && math::is_finite(value);
          in[c] = math::constant<V>(value);
        }
        kernel(static_cast<const V*>(in), x);
        if (!f(map.before[i] + s - first, x[k], math::constant<V>(weight), finite)) return;
      }
    }
  }

  template <class Lanes>
  RLHF_HOST_DEVICE double measure(const Lanes& lanes, index g, index flush, int k,
                                  M& series) const {
    typename Lanes::template each_lane<T> value, have;
    lanes.each([&](int l) {
      value[l] = have[l] = T(0);
      each_token(g, flush, k, l, [&](index s, const V& x, const V&, bool) {
        if (s < steps_of_guess) value[l] = math::first(x), have[l] = T(1);
        return false;
      });
    });
    const double found = lanes.sum([&](int l) { return have[l]; });
    const double first = lanes.sum([&](int l) { return value[l]; });
    T shift = found > 0 ? static_cast<T>(first / found) : T(0);

    const bool weighted =
        a.domain.mask.kind() == mask_kind::weight32 || a.domain.mask.kind() == mask_kind::weight64;
    typename Lanes::template each_lane<lane_sums> of;
    shifted_sums s;
    for (int sweep = 0; sweep < most_sweeps; ++sweep) {
      const V about = math::constant<V>(shift);
      lanes.each([&](int l) {
        of[l] = lane_sums();
        each_token(g, flush, k, l, [&](index step, const V& x, const V& weight, bool finite) {
          const int odd = static_cast<int>(step % 2);
          const V d = x - about;
          V part = weighted ? weight * d : d;
          math::detail::keep_rounding(part);  // not fused with its sum, on any machine
          of[l].weight += static_cast<double>(math::first(weight));
          of[l].sum[odd] = math::first(math::constant<V>(of[l].sum[odd]) + part);
          of[l].square[odd] = math::first(math::fma(part, d, math::constant<V>(of[l].square[odd])));
          const T seen = math::first(x);
          if (seen < of[l].low) of[l].low = seen;
          if (seen > of[l].high) of[l].high = seen;
          if (!finite) of[l].nonfinite += 1;
          return true;
        });
      });
      s.weight = lanes.sum([&](int l) { return of[l].weight; });
      s.sum = lanes.sum([&](int l) { return of[l].sum[0] + of[l].sum[1]; });
      s.square = lanes.sum([&](int l) { return of[l].square[0] + of[l].square[1]; });
      if (!s.far() || sweep + 1 == most_sweeps) break;
      shift = static_cast<T>(static_cast<double>(shift) + s.mean());
    }
    series = s.template about<M>(static_cast<double>(shift));
    const auto range = lanes.merge([&](int l) {
      lane_figures<1, 1> r;
      r.sum[0] = of[l].nonfinite;
      r.low[0] = static_cast<double>(of[l].low);
      r.high[0] = static_cast<double>(of[l].high);
      return r;
    });
    if constexpr (K::ranged) series.low = range.low[0], series.high = range.high[0];
    return range.sum[0];
  }
};

/// The tree over `n` <= 64 rows of moments, `stride` numbers apart: series k, or, behind the last of
/// them, the count of non-finite tokens.
template <class K>
RLHF_HOST_DEVICE void fold_moments(int k, const double* x, index stride, index n, double* to) {
  using M = series_moments<typename K::moments>;
  if (k == K::size) {
    double all = 0;
    for (index t = 0; t < n; ++t) all += x[t * stride + moments_of<K>::nonfinite];
    to[moments_of<K>::nonfinite] = all;
    return;
  }
  M level[8];
  for (index t = 0; t < n; ++t) {
    M carry = M::read(x + t * stride, k, K::size);
    int at = 0;
    for (index m = t; (m & 1) != 0; m >>= 1, ++at) carry = M::merge(level[at], carry);
    level[at] = carry;
  }
  M r;
  bool first = true;
  int at = 0;
  for (index m = n; m != 0; m >>= 1, ++at)
    if ((m & 1) != 0) {
      r = first ? level[at] : M::merge(level[at], r);
      first = false;
    }
  r.write(to, k, K::size);
}

/// One round of the tree over the flushes of each group, in place: `stride` flushes apart.
template <class K, class Space>
struct fold_moment_flushes {
  moment_map<Space> map;
  double* x;
  index stride;
  RLHF_HOST_DEVICE void operator()(index i) const {
    constexpr index size = moments_of<K>::size;
    const index slot = i / (K::size + 1);
    const index g = map.group_of(slot);
    const index first = map.first_slot(g);
    const index flush = slot - first;
    if (flush < 0 || flush % (stride * fold_width) != 0) return;
    const index flushes = map.flushes(g, first);
    if (flush >= flushes) return;
    const index left = (flushes - flush + stride - 1) / stride;
    fold_moments<K>(static_cast<int>(i % (K::size + 1)), x + slot * size, stride * size,
                    left < fold_width ? left : fold_width, x + slot * size);
  }
};

/// y[g] = the moments of group g.
template <class Space>
struct gather_moment_groups {
  moment_map<Space> map;
  index size;
  const double* x;
  double* y;
  RLHF_HOST_DEVICE void operator()(index i) const {
    const index slot = map.first_slot(i / size);
    y[i] = slot < map.slots ? x[slot * size + i % size] : 0;
  }
};

/// One round over plain rows of moments: y[b] = tree over x[64 b .. 64 b + 63].
template <class K>
struct fold_moment_rows {
  const double* x;
  index n;
  double* y;
  RLHF_HOST_DEVICE void operator()(index i) const {
    constexpr index size = moments_of<K>::size;
    const index from = i / (K::size + 1) * fold_width;
    const index left = n - from < fold_width ? n - from : fold_width;
    fold_moments<K>(static_cast<int>(i % (K::size + 1)), x + from * size, size, left > 0 ? left : 0,
                    y + i / (K::size + 1) * size);
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
