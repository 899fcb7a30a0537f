#pragma once

#include "rlhf/backend/thrust/sixteen_bytes.hpp"
#include "rlhf/backend/thrust/unit_fold.hpp"
#include "rlhf/backend/thrust/unit_rows.hpp"
#include "rlhf/math/single.hpp"

// map_reduce on a device, in one launch. A team of threads takes a flush of 64 steps, 16 bytes of
// each tensor per thread. Threads work on tokens in any order; the sums whose order matters go
// through shared memory to one thread for each virtual lane, which adds them step by step.

namespace rlhf::inline RLHF_COMPUTE::detail {

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

template <class K, class Space, class After = nothing>
struct token_pass : unit_reader<K, Space> {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;
  using reader = unit_reader<K, Space>;
  using tokens = unit_tokens<K>;
  using reader::a, reader::lanes, reader::map, reader::neighbours;

  static constexpr int ordered = ordered_sums<K>();
  static constexpr int whole = K::sums + 1 - ordered;
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
  pass_target to;
  After after;  // after(0) ... after(afters - 1), with the figures in place
  index afters;

  struct shared : unit_rows<K> {
    // Two lanes of different sums never meet in one bank.
    alignas(16) T term[at_least_one(ordered)][at_least_one(tile_steps * lanes + lanes)];
    double flushed[at_least_one(most_flushes)][at_least_one(ordered)];
    double part[at_least_one(unordered)][at_least_one(threads / lanes)];
    int row[at_least_one(tile_steps)];
    ranked_units<threads> ranked;
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
    this->read_rows(team, s, unit, to.bad != nullptr);
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

  /// Up to 16 bytes of outputs; slots that are masked become +0, or keep their bits.
  RLHF_HOST_DEVICE RLHF_INLINE void store(const shared& s, int row, index j, int k, const tokens& x,
                                          const sixteen_bytes<T>& value) const {
    T* const at = s.out[k][row];
    if (at == nullptr) return;
    const index stride = a.out[k].stride;
    if (a.out[k].accumulate) {
      RLHF_UNROLL
      for (int v = 0; v < neighbours; ++v)
        if (x.counts(v)) at[(j + v) * stride] += value.part[v];
    } else if (stride == 1 && x.count == neighbours && on_16_bytes(at + j)) {
      store_16_bytes(at + j, value);
    } else {
      RLHF_UNROLL
      for (int v = 0; v < neighbours; ++v)
        if (v < x.count) at[(j + v) * stride] = value.part[v];
    }
  }

  /// The tokens of one thread through the kernel.
  RLHF_HOST_DEVICE RLHF_INLINE void run(shared& s, kept& mine, int row, int slot, index j,
                                        const tokens& x) const {
    const mask_kind kind = a.domain.mask.kind();
    const bool weighted =
        may_weigh<K>() && (kind == mask_kind::weight32 || kind == mask_kind::weight64);
    sixteen_bytes<T> out[at_least_one(K::outputs)];
    sixteen_bytes<T> term[at_least_one(ordered)];
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
          term[o++].part[v] = counted ? math::first(weighed) : T(0);
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
        out[k].part[v] = counted ? math::first(t.out[k]) + T(0) : T(0);  // never −0
    }
    RLHF_UNROLL
    for (int k = 0; k < K::outputs; ++k) store(s, row, j, k, x, out[k]);
    RLHF_UNROLL
    for (int o = 0; o < ordered; ++o) put(s.term[o] + slot, term[o]);
  }

  static RLHF_HOST_DEVICE RLHF_INLINE void put(T* at, const sixteen_bytes<T>& q) {
    store_16_bytes(at, q);
  }

  /// Steps [from, from + tile_steps) of the group: tokens, then the sums in their order.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void run_tile(const Team& team, shared& s, Own& mine, index from) const {
    team.sync();
    team.each([&](int t) {
      if (t < tile_steps) s.row[t] = this->row_of(s, from + t);
    });
    team.sync();
    team.each([&](int t) {
      const int slot = t * neighbours;
      const int step = slot / lanes;
      const int row = s.row[step];
      tokens x;
      const index j = this->place(s, row, from + step, slot % lanes, x);
      if (x.count > 0) {
        this->load(s, row, j, x);
        run(s, mine[t], row, slot, j, x);
      } else {
        RLHF_UNROLL
        for (int o = 0; o < ordered; ++o) put(s.term[o] + slot, sixteen_bytes<T>{});
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
          for (int step = 0; step < tile_steps; ++step)
            sum = math::detail::add_rounded(sum, term[step * lanes]);
          mine[t].sum[c] = sum;
        }
      });
  }

  /// The lanes of a flush go to double.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void finish_flush(const Team& team, shared& s, Own& mine, int flush) const {
    RLHF_UNROLL
    for (int c = 0; c < chains; ++c)
      team.merge16(
          take_sum(), [&](int t) { return static_cast<double>(mine[t].sum[c]); },
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
          take_sum(), [&](int t) { return static_cast<double>(mine[t].free[k]); },
          [&](int t, double x) { s.part[k][t / lanes] = x; });
    RLHF_UNROLL
    for (int k = whole + 1; k < whole + 1 + K::ranges; ++k)
      team.merge16(
          take_lower(), [&](int t) { return static_cast<double>(mine[t].free[k]); },
          [&](int t, double x) { s.part[k][t / lanes] = x; });
    RLHF_UNROLL
    for (int k = whole + 1 + K::ranges; k < unordered; ++k)
      team.merge16(
          take_higher(), [&](int t) { return static_cast<double>(mine[t].free[k]); },
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
    fold_all_units(team, s.ranked, row, map, to.partial, to.rank);
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
              store_16_bytes(at + j, sixteen_bytes<T>{});
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
