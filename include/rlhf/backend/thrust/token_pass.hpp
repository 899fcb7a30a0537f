#pragma once

#include "rlhf/backend/thrust/unit_map.hpp"
#include "rlhf/math/single.hpp"

// map_reduce on a device, in one launch. A team of threads takes a flush of 64 steps, 16 bytes of
// each tensor per thread. Threads work on tokens in any order; the sums whose order matters go
// through shared memory to one thread for each virtual lane, which adds them step by step.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Whether a weight may stand beside a token of this kernel.
template <class K>
RLHF_HOST_DEVICE constexpr bool may_weigh() {
  if constexpr (requires { K::takes_weights; })
    return K::takes_weights;
  else
    return true;
}

/// Whether sum k, K::sums being that of non-finite tokens, adds up zeros and ones: then any order
/// of additions has the same bits.
template <class K>
RLHF_HOST_DEVICE constexpr bool counts_tokens(int k) {
  if (k == K::sums) return true;
  if constexpr (requires { K::plain_sum; })
    if (k == K::plain_sum) return true;
  if constexpr (requires { K::whole(k); }) return !may_weigh<K>() && K::whole(k);
  return false;
}
template <class K>
RLHF_HOST_DEVICE constexpr int ordered_sums() {
  int n = 0;
  for (int k = 0; k < K::sums; ++k) n += counts_tokens<K>(k) ? 0 : 1;
  return n;
}

/// Where the figures of a pass go. `counts` and `bad` are null where another launch has them.
struct pass_target {
  double* sums = nullptr;
  double* counts = nullptr;   // tokens, positions, sequences of a domain without weights
  double* bad = nullptr;      // rows whose length or offsets do not fit
  double* partial = nullptr;  // a row of figures per unit
  index* rank = nullptr;      // packed: which unit of its group a unit is, −1 for none
  unsigned* arrived = nullptr;
};

/// What comes after a pass where nothing does.
struct nothing {
  RLHF_HOST_DEVICE void operator()(index) const {}
};

template <class K, class Space, class After = nothing>
struct token_pass {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;

  static constexpr int ordered = ordered_sums<K>();
  static constexpr int whole = K::sums + 1 - ordered;
  static constexpr int group = static_cast<int>(rows_per_group);
  static constexpr int lanes = static_cast<int>(virtual_lanes);
  static constexpr int neighbours = quad<T>::size;  // tokens of one thread
  static constexpr int threads = ordered <= 7 ? 256 : 128;
  static constexpr unsigned least_blocks = sizeof(T) == sizeof(float) ? 3 : 2;
  static constexpr int tile_steps = threads * neighbours / lanes;
  static constexpr int tiles = static_cast<int>(steps_per_flush) / tile_steps;
  static constexpr int chains = (ordered * lanes + threads - 1) / threads;
  static constexpr int most_flushes = unit_map<Space>::most_flushes;

  // The figures of a unit: sums, non-finite, positions, sequences, bad rows, low and high ends.
  static constexpr int positions = K::sums + 1, sequences = K::sums + 2, bad_rows = K::sums + 3;
  static constexpr int sums = K::sums + 4;
  static constexpr int size = sums + 2 * K::ranges;
  static constexpr bool writes_figures = K::sums + K::ranges + K::observed > 0;
  // Those that no order changes.
  static constexpr int unordered = whole + 1 + 2 * K::ranges;

  K kernel;
  token_arguments<K, Space> a;
  unit_map<Space> map;
  pass_target to;
  After after;  // after(0) ... after(afters - 1), with the figures in place
  index afters;

  struct shared {
    // The unit: its group, which of its units it is, its first step there, all steps of the group.
    index of_group, nth, first, steps;
    int rows;
    int now;                            // which of the two `end` holds
    index end[2][at_least_one(group)];  // steps of the group up to and with a row
    index length[at_least_one(group)];
    const T* in[at_least_one(K::inputs)][at_least_one(group)];
    T* out[at_least_one(K::outputs)][at_least_one(group)];
    index mask[at_least_one(group)];
    T scale[at_least_one(K::scales)][at_least_one(group)];
    // Two lanes of different sums never meet in one bank.
    T term[at_least_one(ordered)][at_least_one(tile_steps * lanes + lanes)];
    double flushed[at_least_one(most_flushes)][at_least_one(ordered)];
    double part[at_least_one(unordered)][at_least_one(threads / lanes)];
    int sequences, bad_rows;
    int row[at_least_one(tile_steps)];
    int heads[at_least_one(threads)];
    int head_count;
    int more;
    index found;
    bool gaps;
    bool last;
  };

  /// What a thread keeps from tile to tile.
  struct kept {
    T free[at_least_one(unordered)];  // whole sums, positions, low and high ends
    T sum[at_least_one(chains)];
  };

  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const {
    typename Team::template own<kept> mine;
    team.each([&](int t) { clear(mine[t]); });
    read_rows(team, s, unit);
    for (int flush = 0; flush < map.flushes; ++flush) {
      const index from = s.first + flush * steps_per_flush;
      if (s.nth >= 0 && from < s.steps) {
        for (int tile = 0; tile < tiles; ++tile) run_tile(team, s, mine, from + tile * tile_steps);
        if constexpr (ordered > 0) finish_flush(team, s, mine, flush);
      } else if constexpr (ordered > 0) {
        team.each([&](int t) {
          if (t < ordered) s.flushed[flush][t] = 0;
        });
      }
      if (K::outputs > 0 && s.nth >= 0 && s.gaps) clear_gaps(team, s, from);
    }
    if constexpr (writes_figures) {
      finish_unit(team, s, mine, unit);
      if (team.arrive(to.arrived, map.units, s.last)) fold_units(team, s);
    }
  }

 private:
  static RLHF_HOST_DEVICE void clear(kept& x) {
    RLHF_UNROLL
    for (int k = 0; k < whole + 1; ++k) x.free[k] = T(0);
    RLHF_UNROLL
    for (int k = 0; k < K::ranges; ++k) {
      x.free[whole + 1 + k] = static_cast<T>(__builtin_inf());
      x.free[whole + 1 + K::ranges + k] = static_cast<T>(-__builtin_inf());
    }
    RLHF_UNROLL
    for (int c = 0; c < chains; ++c) x.sum[c] = T(0);
  }

  /// The last group that begins at or before a unit.
  template <class Team>
  RLHF_HOST_DEVICE index find_group(const Team& team, shared& s, index unit) const {
    if (map.per_group > 0) return unit / map.per_group;
    index low = 0, high = map.groups;
    while (high - low > 1) {
      const index apart = (high - low + threads - 1) / threads;
      team.each([&](int t) {
        if (t == 0) s.found = low;
      });
      team.sync();
      team.each([&](int t) {
        const index at = low + t * apart, next = at + apart;
        if (at < high && map.first_unit(at) <= unit &&
            (next >= high || map.first_unit(next) > unit))
          s.found = at;
      });
      team.sync();
      low = s.found;
      if (low + apart < high) high = low + apart;
      team.sync();
    }
    return low;
  }

  /// Lengths, steps, addresses and factors of the rows of a unit's group, by one thread each.
  template <class Team>
  RLHF_HOST_DEVICE void read_rows(const Team& team, shared& s, index unit) const {
    const token_domain<Space>& domain = a.domain;
    const index g = find_group(team, s, unit);
    const index nth = unit - map.first_unit(g);
    const int rows = map.rows_of(g);
    team.each([&](int t) {
      if (t == 0) s.gaps = false, s.sequences = s.bad_rows = 0;
    });
    team.sync();
    team.each([&](int t) {
      if (t >= group) return;
      const index i = map.first_row(g) + t;
      if (nth == 0 && (t < rows || (g == 0 && t == 0)) && to.bad != nullptr &&
          is_bad_row(domain, i))
        team.next(s.bad_rows);
      if (t >= rows) {
        s.end[0][t] = 0;
        return;
      }
      const index length = map.length_of(i);
      const index begin = domain.begin(i);
      s.length[t] = length;
      s.end[0][t] = steps_in(length);
      if (length < domain.slots(i)) s.gaps = true;
      if (nth == 0 && length > 0) team.next(s.sequences);
      RLHF_UNROLL
      for (int k = 0; k < K::inputs; ++k) {
        const token_input<T>& x = a.in[k];
        s.in[k][t] = x.data == nullptr ? nullptr : x.data + (i * x.per_row + begin * x.per_begin);
      }
      RLHF_UNROLL
      for (int k = 0; k < K::outputs; ++k) {
        const token_output<T>& y = a.out[k];
        s.out[k][t] = y.data == nullptr ? nullptr : y.data + (i * y.per_row + begin * y.per_begin);
      }
      s.mask[t] = domain.mask_offset(i);
      RLHF_UNROLL
      for (int k = 0; k < K::scales; ++k) s.scale[k][t] = static_cast<T>(a.scale[k].at(i));
    });
    team.sync();
    int now = 0;
    for (int apart = 1; apart < rows; apart *= 2, now = 1 - now) {
      team.each([&](int t) {
        if (t < group) s.end[1 - now][t] = s.end[now][t] + (t >= apart ? s.end[now][t - apart] : 0);
      });
      team.sync();
    }
    team.each([&](int t) {
      if (t != 0) return;
      s.of_group = g, s.nth = nth, s.first = nth * map.flushes * steps_per_flush;
      s.rows = rows, s.now = now, s.steps = rows > 0 ? s.end[now][rows - 1] : 0;
    });
    team.sync();
  }

  /// The tokens of one thread, and what stands beside them.
  struct tokens {
    int count;         // slots of the row
    unsigned counted;  // bit v: token v is not masked
    T in[at_least_one(K::inputs)][at_least_one(neighbours)];
    T weight[at_least_one(may_weigh<K>() ? neighbours : 0)];
    RLHF_HOST_DEVICE bool counts(int v) const { return (counted >> v & 1u) != 0; }
  };

  RLHF_HOST_DEVICE RLHF_INLINE void load(const shared& s, int row, index j, tokens& x) const {
    RLHF_UNROLL
    for (int k = 0; k < K::inputs; ++k) {
      const T* const from = s.in[k][row];
      const index stride = a.in[k].stride;
      if (from == nullptr || stride == 0) {
        const T value = from == nullptr ? a.in[k].absent : *from;
        RLHF_UNROLL
        for (int v = 0; v < neighbours; ++v) x.in[k][v] = value;
      } else if (stride == 1 && x.count == neighbours && on_16_bytes(from + j)) {
        const quad<T> q = load_16_bytes(from + j);
        RLHF_UNROLL
        for (int v = 0; v < neighbours; ++v) x.in[k][v] = q.x[v];
      } else {
        RLHF_UNROLL
        for (int v = 0; v < neighbours; ++v)
          x.in[k][v] = v < x.count ? from[(j + v) * stride] : T(0);
      }
    }
    const mask_view<Space>& mask = a.domain.mask;
    x.counted = (1u << x.count) - 1u;
    if (mask.kind() == mask_kind::none) return;
    const index step = a.domain.mask_stride();
    const index at = s.mask[row] + j * step;
    if (mask.kind() == mask_kind::flag) {
      const auto* const flags = static_cast<const std::uint8_t*>(mask.data()) + at;
      std::uint8_t flag[at_least_one(neighbours)];
      if (step == 1 && x.count == neighbours &&
          (reinterpret_cast<std::uintptr_t>(flags) % neighbours) == 0) {
        load_flags(flags, flag);
      } else {
        RLHF_UNROLL
        for (int v = 0; v < neighbours; ++v)
          flag[v] = v < x.count ? flags[v * step] : std::uint8_t(0);
      }
      RLHF_UNROLL
      for (int v = 0; v < neighbours; ++v)
        if (flag[v] == 0) x.counted &= ~(1u << v);
    } else if constexpr (may_weigh<K>()) {
      RLHF_UNROLL
      for (int v = 0; v < neighbours; ++v) {
        x.weight[v] = v < x.count ? static_cast<T>(mask.at(at + v * step)) : T(0);
        if (!(x.weight[v] > T(0))) x.counted &= ~(1u << v);
      }
    }
  }

  static RLHF_HOST_DEVICE RLHF_INLINE void load_flags(
      const std::uint8_t* from, std::uint8_t (&to)[at_least_one(neighbours)]) {
#if defined(__CUDA_ARCH__)
    if constexpr (neighbours == 4) {
      const uchar4 four = *reinterpret_cast<const uchar4*>(from);
      to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
    } else {
      const uchar2 two = *reinterpret_cast<const uchar2*>(from);
      to[0] = two.x, to[1] = two.y;
    }
#else
    RLHF_UNROLL
    for (int v = 0; v < neighbours; ++v) to[v] = from[v];
#endif
  }

  /// Up to 16 bytes of outputs; slots that are masked become +0, or keep their bits.
  RLHF_HOST_DEVICE RLHF_INLINE void store(const shared& s, int row, index j, int k, const tokens& x,
                                          const quad<T>& value) const {
    T* const at = s.out[k][row];
    if (at == nullptr) return;
    const index stride = a.out[k].stride;
    if (a.out[k].accumulate) {
      RLHF_UNROLL
      for (int v = 0; v < neighbours; ++v)
        if (x.counts(v)) at[(j + v) * stride] += value.x[v];
    } else if (stride == 1 && x.count == neighbours && on_16_bytes(at + j)) {
      store_16_bytes(at + j, value);
    } else {
      RLHF_UNROLL
      for (int v = 0; v < neighbours; ++v)
        if (v < x.count) at[(j + v) * stride] = value.x[v];
    }
  }

  /// The tokens of one thread through the kernel.
  RLHF_HOST_DEVICE RLHF_INLINE void run(shared& s, kept& mine, int row, int slot, index j,
                                        const tokens& x) const {
    const mask_kind kind = a.domain.mask.kind();
    const bool weighted =
        may_weigh<K>() && (kind == mask_kind::weight32 || kind == mask_kind::weight64);
    quad<T> out[at_least_one(K::outputs)];
    quad<T> term[at_least_one(ordered)];
    RLHF_UNROLL
    for (int v = 0; v < neighbours; ++v) {
      const bool counted = x.counts(v);
      [[maybe_unused]] V factor = math::constant<V>(1);
      if constexpr (may_weigh<K>())
        if (weighted) factor = math::constant<V>(x.weight[v]);
      token_lanes<V, K> t;
      RLHF_UNROLL
      for (int k = 0; k < K::inputs; ++k) t.in[k] = math::constant<V>(counted ? x.in[k][v] : T(0));
      RLHF_UNROLL
      for (int k = 0; k < K::scales; ++k) {
        t.scale[k] = math::constant<V>(s.scale[k][row]);
        if (weighted) t.scale[k] = t.scale[k] * factor;
      }
      [[maybe_unused]] bool odd = false;
      if constexpr (K::observed > 0) {
        V probe = t.in[0] - t.in[0];  // 0 for every finite number, NaN otherwise
        for (int k = 1; k < K::observed; ++k) probe = probe + (t.in[k] - t.in[k]);
        odd = !(math::first(probe) == T(0));
      }
      kernel(t);
      int w = 0, o = 0;
      RLHF_UNROLL
      for (int k = 0; k < K::sums; ++k) {
        if (counts_tokens<K>(k)) {
          mine.free[w] = mine.free[w] + (counted ? math::first(t.sum[k]) : T(0));
          ++w;
        } else {
          const V weighed = weighted && takes_weight<K>(k) ? t.sum[k] * factor : t.sum[k];
          term[o].x[v] = counted ? math::first(weighed) : T(0);
          math::detail::keep_rounding(term[o].x[v]);
          ++o;
        }
      }
      mine.free[w] = mine.free[w] + (odd ? T(1) : T(0));
      mine.free[whole] = mine.free[whole] + (counted ? T(1) : T(0));
      RLHF_UNROLL
      for (int k = 0; k < K::ranges; ++k) {
        const T number = math::first(t.range[k]);
        T& low = mine.free[whole + 1 + k];
        T& high = mine.free[whole + 1 + K::ranges + k];
        low = counted && number < low ? number : low;
        high = counted && number > high ? number : high;
      }
      RLHF_UNROLL
      for (int k = 0; k < K::outputs; ++k)
        out[k].x[v] = counted ? math::first(t.out[k]) + T(0) : T(0);  // never −0
    }
    RLHF_UNROLL
    for (int k = 0; k < K::outputs; ++k) store(s, row, j, k, x, out[k]);
    RLHF_UNROLL
    for (int o = 0; o < ordered; ++o) put(s.term[o] + slot, term[o]);
  }

  static RLHF_HOST_DEVICE RLHF_INLINE void put(T* at, const quad<T>& q) { store_16_bytes(at, q); }

  /// Steps [from, from + tile_steps) of the group: tokens, then the sums in their order.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void run_tile(const Team& team, shared& s, Own& mine, index from) const {
    team.sync();
    team.each([&](int t) {
      if (t >= tile_steps) return;
      const index* const end = s.end[s.now];
      const index step = from + t;
      int low = 0, high = s.rows;  // the first row that ends behind the step
      while (low < high) {
        const int middle = (low + high) / 2;
        if (end[middle] > step)
          high = middle;
        else
          low = middle + 1;
      }
      s.row[t] = step < s.steps ? low : -1;
    });
    team.sync();
    team.each([&](int t) {
      const int slot = t * neighbours;
      const int step = slot / lanes;
      const int row = s.row[step];
      tokens x;
      index j = 0;
      x.count = 0;
      if (row >= 0) {
        j = (from + step - (row > 0 ? s.end[s.now][row - 1] : 0)) * lanes + slot % lanes;
        const index left = s.length[row] - j;
        x.count = left >= neighbours ? neighbours : left > 0 ? static_cast<int>(left) : 0;
      }
      if (x.count > 0) {
        load(s, row, j, x);
        run(s, mine[t], row, slot, j, x);
      } else {
        RLHF_UNROLL
        for (int o = 0; o < ordered; ++o) put(s.term[o] + slot, quad<T>{});
      }
    });
    team.sync();
    if constexpr (ordered > 0)
      team.each([&](int t) {
        RLHF_UNROLL
        for (int c = 0; c < chains; ++c) {
          const int chain = t + c * threads;
          if (chain >= ordered * lanes) break;
          const T* const term = s.term[chain / lanes] + chain % lanes;
          T sum = tiles == 1 ? T(0) : mine[t].sum[c];  // a tile may be all of a flush
#if defined(__CUDA_ARCH__)
#pragma unroll 16
#endif
          for (int step = 0; step < tile_steps; ++step) sum = sum + term[step * lanes];
          mine[t].sum[c] = sum;
        }
      });
  }

  struct add {
    RLHF_HOST_DEVICE double operator()(double x, double y) const { return x + y; }
  };
  struct least {
    RLHF_HOST_DEVICE double operator()(double x, double y) const { return lower(x, y); }
  };
  struct largest {
    RLHF_HOST_DEVICE double operator()(double x, double y) const { return higher(x, y); }
  };

  /// The lanes of a flush go to double.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void finish_flush(const Team& team, shared& s, Own& mine, int flush) const {
    RLHF_UNROLL
    for (int c = 0; c < chains; ++c)
      team.merge16(
          add(), [&](int t) { return static_cast<double>(mine[t].sum[c]); },
          [&](int t, double sum) {
            const int o = (t + c * threads) / lanes;
            if (o < ordered) s.flushed[flush][o] = sum;
          });
    team.each([&](int t) {
      RLHF_UNROLL
      for (int c = 0; c < chains; ++c) mine[t].sum[c] = T(0);
    });
  }

  /// The figures of a unit, and its rank in its group.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void finish_unit(const Team& team, shared& s, Own& mine, index unit) const {
    RLHF_UNROLL
    for (int k = 0; k < whole + 1; ++k)
      team.merge16(
          add(), [&](int t) { return static_cast<double>(mine[t].free[k]); },
          [&](int t, double x) { s.part[k][t / lanes] = x; });
    RLHF_UNROLL
    for (int k = whole + 1; k < whole + 1 + K::ranges; ++k)
      team.merge16(
          least(), [&](int t) { return static_cast<double>(mine[t].free[k]); },
          [&](int t, double x) { s.part[k][t / lanes] = x; });
    RLHF_UNROLL
    for (int k = whole + 1 + K::ranges; k < unordered; ++k)
      team.merge16(
          largest(), [&](int t) { return static_cast<double>(mine[t].free[k]); },
          [&](int t, double x) { s.part[k][t / lanes] = x; });
    team.sync();
    team.each([&](int t) {
      if (t == 0 && to.rank != nullptr)
        to.rank[unit] = s.nth == 0 || (s.nth > 0 && s.first < s.steps) ? s.nth : -1;
      if (t >= size) return;
      constexpr figure_row row{sums, K::ranges};
      int w = 0, o = 0;  // of the figures before t
      for (int k = 0; k < t && k < K::sums; ++k) ++(counts_tokens<K>(k) ? w : o);
      double x[fold_fan];
      if (t < K::sums && !counts_tokens<K>(t)) {
        RLHF_UNROLL
        for (int f = 0; f < fold_fan; ++f) x[f] = f < map.flushes ? s.flushed[f][o] : 0;
      } else if (t == sequences || t == bad_rows) {
        RLHF_UNROLL
        for (int f = 0; f < fold_fan; ++f) x[f] = 0;
        x[0] = t == sequences ? s.sequences : s.bad_rows;
      } else {
        // behind the sums come non-finite, positions, and, two rows further on, the ranges
        const int behind = t >= sums ? t - 2 : t;
        const int k = t < K::sums ? w : behind - K::sums + whole - 1;
        RLHF_UNROLL
        for (int f = 0; f < fold_fan; ++f) x[f] = f < threads / lanes ? s.part[k][f] : row.none(t);
      }
      to.partial[unit * size + t] = fold16(row, t, x);
    });
  }

  template <class Team>
  RLHF_HOST_DEVICE void fold_units(const Team& team, shared& s) const {
    constexpr figure_row row{sums, K::ranges};
    if (map.per_group > 0 || map.groups == 0) {
      const index n = map.groups * map.fan;
      fold_leaves(team, row, n, [&](index leaf) -> double* {
        const index g = leaf / map.fan, nth = leaf % map.fan;
        return nth < map.per_group ? to.partial + (g * map.per_group + nth) * size : nullptr;
      });
    } else {
      fold_ranked(team, s, row);
      fold_leaves(team, row, map.groups,
                  [&](index g) -> double* { return to.partial + map.first_unit(g) * size; });
    }
    team.each([&](int t) {
      if (t >= size) return;
      const double x = team.fetch(to.partial + t);
      if (t <= K::sums) to.sums[t] = x;
      if (t >= sums) to.sums[t - sums + K::sums + 1] = x;
      if (to.counts != nullptr && t == positions) to.counts[0] = to.counts[1] = x;
      if (to.counts != nullptr && t == sequences) to.counts[2] = x;
      if (to.bad != nullptr && t == bad_rows) *to.bad = x;
    });
    team.sync();
    team.each([&](int t) {
      for (index k = t; k < afters; k += threads) after(k);
    });
  }

  /// The tree over the units of each group of a packed batch, in place.
  template <class Team>
  RLHF_HOST_DEVICE void fold_ranked(const Team& team, shared& s, const figure_row& row) const {
    for (index apart = 1;; apart *= fold_fan) {
      team.sync();
      team.each([&](int t) {
        if (t == 0) s.more = 0;
      });
      for (index begin = 0; begin < map.units; begin += threads) {
        team.sync();
        team.each([&](int t) {
          if (t == 0) s.head_count = 0;
        });
        team.sync();
        team.each([&](int t) {
          const index unit = begin + t;
          if (unit + apart >= map.units) return;
          const index rank = team.fetch(to.rank + unit);
          if (rank < 0 || rank % (apart * fold_fan) != 0) return;
          if (team.fetch(to.rank + unit + apart) != rank + apart) return;
          s.heads[team.next(s.head_count)] = t;
          s.more = 1;
        });
        team.sync();
        team.each([&](int t) {
          for (int task = t; task < s.head_count * size; task += threads) {
            const index head = begin + s.heads[task / size];
            const int k = task % size;
            const index rank = team.fetch(to.rank + head);
            double x[fold_fan];
            RLHF_UNROLL
            for (int i = 0; i < fold_fan; ++i) {
              const index unit = head + i * apart;
              const bool same = unit < map.units && team.fetch(to.rank + unit) == rank + i * apart;
              x[i] = same ? team.fetch(to.partial + unit * size + k) : row.none(k);
            }
            to.partial[head * size + k] = fold16(row, k, x);
          }
        });
      }
      team.sync();
      if (s.more == 0) return;
    }
  }

  /// +0 in the padding of the rows, where an output is overwritten. Of a padded batch every unit
  /// takes as many slots as it has steps, wherever they lie; of a packed one, where only a mask
  /// leaves padding, the flush that ends a row takes what is behind it.
  template <class Team>
  RLHF_HOST_DEVICE void clear_gaps(const Team& team, const shared& s, index from) const {
    if (map.per_group > 0) {
      const index columns = a.domain.columns;
      const index row_steps = steps_in(columns);
      for (int tile = 0; tile < tiles; ++tile)
        team.each([&](int t) {
          const int slot = t * neighbours;
          const index step = from + tile * tile_steps + slot / lanes;
          const index row = step / row_steps;
          if (row >= s.rows) return;
          const index j = step % row_steps * lanes + slot % lanes;
          if (j + neighbours <= s.length[row] || j >= columns) return;
          RLHF_UNROLL
          for (int k = 0; k < K::outputs; ++k) {
            T* const at = s.out[k][row];
            if (at == nullptr || a.out[k].accumulate) continue;
            const index stride = a.out[k].stride;
            if (stride == 1 && j >= s.length[row] && j + neighbours <= columns &&
                on_16_bytes(at + j)) {
              store_16_bytes(at + j, quad<T>{});
            } else {
              RLHF_UNROLL
              for (int v = 0; v < neighbours; ++v)
                if (j + v >= s.length[row] && j + v < columns) at[(j + v) * stride] = T(0);
            }
          }
        });
      return;
    }
    for (int row = 0; row < s.rows; ++row) {
      const index last = s.end[s.now][row] - 1;
      if (last < from || last >= from + steps_per_flush) continue;
      const index slots = a.domain.slots(map.first_row(s.of_group) + row);
      team.each([&](int t) {
        RLHF_UNROLL
        for (int k = 0; k < K::outputs; ++k) {
          T* const at = s.out[k][row];
          if (at == nullptr || a.out[k].accumulate) continue;
          for (index j = s.length[row] + t; j < slots; j += threads) at[j * a.out[k].stride] = T(0);
        }
      });
    }
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
