#pragma once

#include "rlhf/backend/host/reverse_scan.hpp"
#include "rlhf/backend/thrust/token_pass.hpp"

// reverse_scan on a device: one thread takes one segment of rows, backwards in blocks of 8, with
// the arithmetic of the host's scan in the same order.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Where segments begin: one ends with the row that fills it to 512 valid tokens, or with its 64th.
/// One thread; `counts` as count_lanes leaves them.
struct scan_segments {
  const double* counts;
  index rows;
  index* first;  // rows + 1
  index* number;
  static constexpr double tokens = 512;
  static constexpr index most_rows = 64;

  RLHF_HOST_DEVICE void operator()(index) const {
    index n = 0;
    double seen = 0;
    for (index i = 0, begin = 0; i < rows; ++i) {
      seen += counts[3 * i + 1];
      if (seen < tokens && i + 1 - begin < most_rows && i + 1 < rows) continue;
      first[n++] = begin;
      begin = i + 1;
      seen = 0;
    }
    first[n] = rows;
    *number = n;
  }
};

template <int N>
struct add_scan_sums {
  const scan_sums<N>* partial;
  const index* number;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    scan_sums<N> all;
    for (index s = 0; s < *number; ++s) all.add(partial[s]);
    all.write(to);
  }
};

template <class K, class Space>
struct segment_scan {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;
  using lanes = scan_lanes<V, K>;
  static constexpr int block = static_cast<int>(scan_block_tokens);
  static constexpr int outputs = K::outputs;
  static constexpr bool varying = has_varying_decay<K>();

  K kernel;
  scan_arguments<K, Space> a;
  decay_powers<T> power;
  const index* first;
  const index* number;
  scan_sums<K::outputs>* partial;

  /// Moments of a segment: 8 lanes by place in a block, and what is left beside whole blocks.
  struct moments {
    bool fresh = true;
    double shift[at_least_one(outputs)] = {};
    double sum[at_least_one(outputs)][block] = {};
    double square[at_least_one(outputs)][block] = {};
    double odd_sum[at_least_one(outputs)] = {};
    double odd_square[at_least_one(outputs)] = {};
  };

  struct row {
    index i, begin, mask_at, mask_step;
    bool masked;
  };

  RLHF_HOST_DEVICE void operator()(index s) const {
    if (s >= *number) return;
    moments m;
    double positions = 0;
    for (index i = first[s]; i < first[s + 1]; ++i) positions += run_row(i, m);
    scan_sums<K::outputs> sums;
    sums.positions = positions;
    for (int k = 0; k < outputs; ++k) {
      sums.shift[k] = m.shift[k];
      sums.sum[k] = add_block(m.sum[k]) + m.odd_sum[k];
      sums.square[k] = add_block(m.square[k]) + m.odd_square[k];
    }
    if (!sums.finite())
      for (index i = first[s]; i < first[s + 1]; ++i) sums.nonfinite += recount(i);
    partial[s] = sums;
  }

 private:
  RLHF_HOST_DEVICE static double add_block(const double* x) {
    double lane[block];
    for (int l = 0; l < block; ++l) lane[l] = x[l];
    for (int half = block / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
  }

  RLHF_HOST_DEVICE row open(index i) const {
    return {i, a.domain.begin(i), a.domain.mask_offset(i), a.domain.mask_stride(),
            a.domain.mask.kind() != mask_kind::none};
  }
  RLHF_HOST_DEVICE bool valid(const row& r, index j) const {
    return !r.masked || a.domain.mask.at(r.mask_at + j * r.mask_step) > 0;
  }
  RLHF_HOST_DEVICE static T of_row(const token_input<T>& x, const row& r) {
    return x.data == nullptr ? x.absent : x.data[r.i * x.per_row + r.begin * x.per_begin];
  }
  RLHF_HOST_DEVICE void clear(const row& r, index j) const {
    for (int k = 0; k < outputs; ++k) {
      const token_output<T>& y = a.out[k];
      if (y.data == nullptr || y.accumulate) continue;
      y.data[r.i * y.per_row + r.begin * y.per_begin + j * y.stride] = T(0);
    }
  }
  RLHF_HOST_DEVICE void put(const row& r, index j, const T* value) const {
    for (int k = 0; k < outputs; ++k) {
      const token_output<T>& y = a.out[k];
      if (y.data == nullptr) continue;
      T& to = y.data[r.i * y.per_row + r.begin * y.per_begin + j * y.stride];
      to = y.accumulate ? to + value[k] : value[k];
    }
  }

  /// The inputs of step j; at a hole with hole_mode::zero they are 0.
  RLHF_HOST_DEVICE void load(const row& r, index j, bool blank, lanes& t) const {
    for (int k = 0; k < K::inputs; ++k) {
      const token_input<T>& x = a.in[k];
      t.in[k] = x.data == nullptr ? x.absent
                : blank           ? T(0)
                                  : x.data[r.i * x.per_row + r.begin * x.per_begin + j * x.stride];
    }
    for (int k = 0; k < K::flags; ++k) {
      const token_flags& f = a.flag[k];
      t.flag[k] = f.data != nullptr && !blank &&
                  f.data[r.i * f.per_row + r.begin * f.per_begin + j * f.stride] != 0;
    }
  }
  RLHF_HOST_DEVICE static bool flagged(const lanes& t) {
    bool any = false;
    for (int k = 0; k < K::flags; ++k) any = any || t.flag[k];
    return any;
  }
  /// x of one step after its b, from the x that follows it.
  RLHF_HOST_DEVICE void advance(lanes& t, T later) const {
    bool stops = flagged(t);
    V decay = math::constant<V>(power.one);
    if constexpr (varying) {
      decay = t.a;
      stops = stops || math::first(t.a) == T(0);
    } else {
      stops = stops || !(kernel.decay > 0);
    }
    t.x = stops ? t.b : math::fma(decay, math::constant<V>(later), t.b);
    kernel.emit(t);
  }

  RLHF_HOST_DEVICE static V lane_of(T x) { return math::constant<V>(x); }
  RLHF_HOST_DEVICE static T fused(T x, T y, T z) {
    return math::first(math::fma(lane_of(x), lane_of(y), lane_of(z)));
  }

  /// x of a block's 8 steps from their b, and what the next block needs.
  RLHF_HOST_DEVICE void solve(lanes* t, index m, T& chain, T& outer, T& reach, double& held) const {
    T x[block];
    for (int l = 0; l < block; ++l) x[l] = math::first(t[l].b);
    if constexpr (varying) {
      T c[block];
      for (int l = 0; l < block; ++l) c[l] = math::first(t[l].a);
      const auto combine = [&](int l, T later, T later_c) {
        x[l] = fused(c[l], c[l] == T(0) ? T(0) : later, x[l]);
        c[l] = math::first(lane_of(c[l]) * lane_of(later_c));
      };
      for (int d = 1; d <= 2; ++d)
        for (int l = 0; l < block; ++l)
          combine(l, l % 4 + d < 4 ? x[l + d] : T(0), l % 4 + d < 4 ? c[l + d] : T(1));
      const T middle = x[4], middle_c = c[4];
      for (int l = 0; l < block; ++l) combine(l, l < 4 ? middle : T(0), l < 4 ? middle_c : T(1));
      const T total = fused(reach, reach == T(0) ? T(0) : outer, chain);
      const T whole = c[0];
      chain = fused(whole, whole == T(0) ? T(0) : chain, x[0]);
      reach = math::first(lane_of(reach) * lane_of(whole));
      for (int l = 0; l < block; ++l) x[l] = fused(c[l], c[l] == T(0) ? T(0) : total, x[l]);
    } else if (kernel.decay > 0) {
      bool stops = false;
      for (int l = 0; l < block; ++l) stops = stops || flagged(t[l]);
      if (!stops) {
        const T total = fused(power.block[m], outer, chain);
        for (int l = 0; l < block; ++l)
          x[l] = fused(power.one, l % 4 + 1 < 4 ? x[l + 1] : T(0), x[l]);
        for (int l = 0; l < block; ++l)
          x[l] = fused(power.two, l % 4 + 2 < 4 ? x[l + 2] : T(0), x[l]);
        const T middle = x[4];
        for (int l = 0; l < block; ++l)
          x[l] = fused(power.to_middle[l], l < 4 ? middle : T(0), x[l]);
        chain = fused(power.eight, chain, x[0]);
        for (int l = 0; l < block; ++l) x[l] = fused(power.to_end[l], total, x[l]);
      } else {
        T next = fused(power.block[m], outer, chain);
        for (int l = block; l-- > 0;) {
          if (!flagged(t[l])) x[l] = fused(power.one, next, x[l]);
          next = x[l];
        }
        chain = next;
        outer = T(0);
        held = 0;
      }
    }
    for (int l = 0; l < block; ++l) {
      t[l].x = lane_of(x[l]);
      kernel.emit(t[l]);
    }
  }

  RLHF_HOST_DEVICE double run_row(index i, moments& moment) const {
    const row r = open(i);
    index end = a.domain.length(i);
    while (end > 0 && !valid(r, end - 1)) --end;
    for (index j = end; j < a.domain.slots(i); ++j) clear(r, j);
    if (end == 0) return 0;
    const bool skip = r.masked && a.holes == hole_mode::skip;
    const bool zero = r.masked && a.holes == hole_mode::zero;
    double carry = static_cast<double>(of_row(a.end, r));
    T chain = T(0), outer = static_cast<T>(carry), reach = T(1);
    [[maybe_unused]] T next = of_row(a.after, r);
    double held = carry;
    double positions = 0;
    index m = 0;  // blocks of this tile
    index j = end;
    while (j > 0) {
      // The 8 steps before j, or all there are.
      lanes t[block];
      index at[block];
      bool counts[block];
      int n = 0;
      while (j > 0 && n < block) {
        --j;
        const bool here = valid(r, j);
        if (!here && skip) {
          clear(r, j);
          continue;
        }
        const int l = block - 1 - n++;
        load(r, j, zero && !here, t[l]);
        if constexpr (K::shifted >= 0) {
          t[l].next = lane_of(next);
          next = math::first(t[l].in[K::shifted >= 0 ? K::shifted : 0]);
        }
        kernel.step(t[l]);
        at[l] = j;
        counts[l] = here;
        positions += here ? 1 : 0;
      }
      if (moment.fresh && n > 0) {
        lanes last = t[block - 1];
        advance(last, static_cast<T>(carry));
        for (int k = 0; k < outputs; ++k)
          moment.shift[k] = static_cast<double>(math::first(last.out[k]));
        moment.fresh = false;
      }
      if (n == block) {
        solve(t, m, chain, outer, reach, held);
        for (int l = 0; l < block; ++l) {
          T y[at_least_one(outputs)] = {};
          for (int k = 0; k < outputs; ++k) y[k] = math::first(t[l].out[k]) + T(0);
          if (!counts[l]) {
            clear(r, at[l]);
            continue;
          }
          put(r, at[l], y);
          for (int k = 0; k < outputs; ++k) {
            const double d = static_cast<double>(y[k]) - moment.shift[k];
            moment.sum[k][l] = moment.sum[k][l] + d;
            moment.square[k][l] = math::fma(d, d, moment.square[k][l]);
          }
        }
        if (++m == scan_tile_tokens / scan_block_tokens) {
          const double scale = varying ? static_cast<double>(reach) : power.tile;
          carry = static_cast<double>(chain);
          if (scale > 0) carry = math::fma(scale, held, carry);
          chain = T(0);
          outer = static_cast<T>(carry);
          reach = T(1);
          held = carry;
          m = 0;
        }
        continue;
      }
      // The row begins inside this block: one by one.
      const T reached = varying ? reach : power.block[m];
      T later = reached > T(0) ? fused(reached, outer, chain) : chain;
      for (int l = block; l-- > block - n;) {
        advance(t[l], later);
        later = math::first(t[l].x);
        T y[at_least_one(outputs)] = {};
        for (int k = 0; k < outputs; ++k) y[k] = math::first(t[l].out[k]) + T(0);
        if (!counts[l]) {
          clear(r, at[l]);
          continue;
        }
        put(r, at[l], y);
        for (int k = 0; k < outputs; ++k) {
          const double d = static_cast<double>(y[k]) - moment.shift[k];
          moment.odd_sum[k] += d;
          moment.odd_square[k] = math::fma(d, d, moment.odd_square[k]);
        }
      }
    }
    return positions;
  }

  /// Valid tokens of row i whose inputs are not finite.
  RLHF_HOST_DEVICE double recount(index i) const {
    const row r = open(i);
    double bad = 0;
    bool last = true;
    for (index j = a.domain.length(i); j-- > 0;) {
      if (!valid(r, j)) continue;
      lanes t;
      load(r, j, false, t);
      bool usable = kernel.usable(t);
      if (last)
        usable = usable && math::is_finite(of_row(a.after, r)) && math::is_finite(of_row(a.end, r));
      last = false;
      bad += usable ? 0 : 1;
    }
    return bad;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
