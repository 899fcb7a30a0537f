#pragma once

#include "rlhf/backend/thrust/sixteen_bytes.hpp"
#include "rlhf/backend/thrust/unit_fold.hpp"
#include "rlhf/backend/thrust/unit_rows.hpp"
#include "rlhf/math/single.hpp"
#include "rlhf/primitive/moment_reduce.hpp"

// moment_reduce on a device, in one launch. A team reads a few flushes into shared memory, 16 bytes
// of each tensor per thread and in any order; 16 threads, one for each virtual lane, then measure a
// series of a flush step by step, as often as its shift asks for it.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// The tree over leaf(from) ... leaf(from + N - 1). On a device it is a loop at each level: unrolled
/// it takes more registers than there are.
template <class M, int N, class F>
RLHF_HOST_DEVICE RLHF_INLINE M tree_of_moments(const F& leaf, int from = 0) {
  if constexpr (N == 1) {
    return leaf(from);
  } else {
    M all;
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int i = 0; i < N; i += N / 2) {
      const M half = tree_of_moments<M, N / 2>(leaf, from + i);
      all = i == 0 ? half : M::merge(all, half);
    }
    return all;
  }
}

/// Rows as moments_of<K> says, with positions, sequences and bad rows behind them. A series without
/// tokens changes no bit of what it merges with.
template <class K>
struct moment_row {
  using merged = shifted_moments<typename K::moments>;
  static constexpr int nonfinite = moments_of<K>::nonfinite;
  static constexpr int positions = moments_of<K>::size, sequences = positions + 1;
  static constexpr int bad_rows = positions + 2;

  RLHF_HOST_DEVICE static constexpr int size() { return positions + 3; }
  /// The moments of each series, then one number after the other: a thread has few registers.
  RLHF_HOST_DEVICE static constexpr int parts() { return 3 * K::size + 4; }
  /// Where a part that is no moments stands: ranges, non-finite, positions, sequences, bad rows.
  RLHF_HOST_DEVICE static constexpr int place(int part) {
    return part <= 3 * K::size ? part + 2 * K::size : positions + part - 3 * K::size - 1;
  }
  template <class Team, class At>
  RLHF_HOST_DEVICE void fold(const Team& team, int part, const At& at, double* to) const {
    if (part < K::size) {
      const auto all = tree_of_moments<merged, fold_fan>([&](int i) {
        merged x;
        const double* const p = at(i);
        if (p != nullptr) {
          const double* const m = p + 3 * part;
          const double* const beyond = p + nonfinite + 1;
          x.of = {team.fetch(m), team.fetch(beyond + K::size + part), team.fetch(m + 2)};
          x.shift = team.fetch(beyond + part);
        }
        return x;
      });
      double* const m = to + 3 * part;
      double* const beyond = to + nonfinite + 1;
      m[0] = all.of.count, m[1] = all.shift + all.of.mean, m[2] = all.of.m2;
      beyond[part] = all.shift, beyond[K::size + part] = all.of.mean;
      return;
    }
    const int k = place(part);
    const bool low = part < 2 * K::size, high = !low && part < 3 * K::size;
    double all = low ? __builtin_inf() : high ? -__builtin_inf() : 0;  // sums are whole numbers
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int i = 0; i < fold_fan; ++i) {
      const double* const p = at(i);
      if (p == nullptr) continue;
      const double x = team.fetch(p + k);
      all = low ? lower(all, x) : high ? higher(all, x) : all + x;
    }
    to[k] = all;
  }
};

template <class K, class Space, class After = nothing>
struct moment_pass : unit_reader<K, Space> {
  using T = typename K::scalar_type;
  using V = math::scalar_lane<T>;
  using M = series_moments<typename K::moments>;
  using figures = moment_row<K>;
  using reader = unit_reader<K, Space>;
  using tokens = unit_tokens<K>;
  using reader::a, reader::lanes, reader::map, reader::neighbours;

  static constexpr int threads = 256;
  static constexpr unsigned least_blocks = 2;
  static constexpr int size = figures::size();
  static constexpr int steps = static_cast<int>(steps_per_flush);
  static constexpr int flush_tokens = steps * lanes;
  static constexpr int pitch = flush_tokens + lanes;  // neighbouring flushes in different banks
  static constexpr int most_flushes = unit_map<Space>::most_flushes;

  /// Flushes that are measured side by side, as many as 32 KiB hold.
  static constexpr int flushes_at_once() {
    const int held = static_cast<int>(sizeof(T)) * flush_tokens * (K::size + 1);
    return held <= (8 << 10) ? 4 : held <= (16 << 10) ? 2 : 1;
  }
  static constexpr int at_once = flushes_at_once();
  static constexpr int jobs = threads / lanes;
  static constexpr int jobs_of_flush = K::size + 1;  // its series, then its weights
  static_assert(at_once * jobs_of_flush <= jobs);

  K kernel;
  pass_target to;
  After after;  // after(0) ... after(afters - 1), with the figures in place
  index afters;

  struct shared : unit_rows<K> {
    alignas(16) T x[at_least_one(K::size)][at_least_one(at_once)][at_least_one(pitch)];
    alignas(16) T weight[at_least_one(at_once)][at_least_one(pitch)];  // 0: does not count
    int row[at_least_one(at_once * steps)];
    T shift[at_least_one(jobs)];
    double weights[at_least_one(at_once)];  // of all tokens of a flush
    double found[at_least_one(jobs)];
    double total[2][at_least_one(jobs)];  // of distances and of their squares
    double flushed[at_least_one(most_flushes)][at_least_one(moments_of<K>::size)];
    double part[2][at_least_one(jobs)];
    ranked_units<threads> ranked;
    bool open[at_least_one(at_once)];  // flushes that are being measured
    bool lost[at_least_one(at_once)];  // whose squares overflow about a shift that is no token's
    bool again, any_lost;
    bool last;
  };

  /// What a thread keeps: counts of the unit, and of a sweep what its lane has.
  struct kept {
    int nonfinite, positions;
    double sum, square, low, high;
  };

  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const {
    typename Team::template own<kept> mine;
    team.each([&](int t) { mine[t] = {}; });
    this->read_rows(team, s, unit, to.bad != nullptr);
    for (int flush = 0; flush < map.flushes; flush += at_once) {
      const index from = s.first + flush * steps_per_flush;
      const int n = map.flushes - flush < at_once ? map.flushes - flush : at_once;
      if (s.nth >= 0 && from < s.steps) {
        read_flushes(team, s, mine, from, n);
        measure(team, s, mine, flush, n);
      } else {
        team.each([&](int t) {
          if (t < n * K::size) M().write(s.flushed[flush + t / K::size], t % K::size, K::size);
        });
      }
    }
    finish_unit(team, s, mine, unit);
    if (team.arrive(to.arrived, map.units, s.last)) finish(team, s);
  }

 private:
  /// Reads what the team itself has written.
  struct here {
    RLHF_HOST_DEVICE double fetch(const double* p) const { return *p; }
  };

  RLHF_HOST_DEVICE bool weighted() const {
    const mask_kind kind = a.domain.mask.kind();
    return kind == mask_kind::weight32 || kind == mask_kind::weight64;
  }

  /// The series and weights of n flushes from step `from` of the group on.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void read_flushes(const Team& team, shared& s, Own& mine, index from,
                                     int n) const {
    team.sync();
    team.each([&](int t) {
      for (int step = t; step < n * steps; step += threads)
        s.row[step] = this->row_of(s, from + step);
    });
    team.sync();
    const bool weighs = weighted();
    team.each([&](int t) {
      for (int slot = t * neighbours; slot < n * flush_tokens; slot += threads * neighbours) {
        const int step = slot / lanes;
        const int flush = slot / flush_tokens, at = slot % flush_tokens;
        const int row = s.row[step];
        tokens x;
        const index j = this->place(s, row, from + step, slot % lanes, x);
        sixteen_bytes<T> series[at_least_one(K::size)] = {};
        sixteen_bytes<T> weight = {};
        if (x.count > 0) {
          this->load(s, row, j, x);
          RLHF_UNROLL
          for (int v = 0; v < neighbours; ++v) {
            if (!x.counts(v)) continue;
            V in[at_least_one(K::inputs)], of[at_least_one(K::size)];
            bool finite = true;
            RLHF_UNROLL
            for (int k = 0; k < K::inputs; ++k) {
              finite = finite && math::is_finite(x.in[k][v]);
              in[k] = math::constant<V>(x.in[k][v]);
            }
            kernel(static_cast<const V*>(in), of);
            RLHF_UNROLL
            for (int k = 0; k < K::size; ++k) series[k].part[v] = math::first(of[k]);
            weight.part[v] = weighs ? x.weight[v] : T(1);
            mine[t].positions += 1;
            mine[t].nonfinite += finite ? 0 : 1;
          }
        }
        RLHF_UNROLL
        for (int k = 0; k < K::size; ++k) store_16_bytes(s.x[k][flush] + at, series[k]);
        store_16_bytes(s.weight[flush] + at, weight);
      }
    });
    team.sync();
  }

  /// What 16 threads do together: a series of a flush, or, where k is K::size, its weights.
  struct job {
    int flush, k;
    RLHF_HOST_DEVICE explicit job(int t)
        : flush(t / lanes / jobs_of_flush), k(t / lanes % jobs_of_flush) {}
    RLHF_HOST_DEVICE bool series(int n) const { return flush < n && k < K::size; }
    RLHF_HOST_DEVICE bool weights(int n) const { return flush < n && k == K::size; }
  };

  template <class Team, class Own>
  RLHF_HOST_DEVICE void measure(const Team& team, shared& s, Own& mine, int flush, int n) const {
    guess(team, s, mine, n);
    while (sweep_flushes(team, s, mine, n)) guess_again(team, s, n);
    if constexpr (K::ranged) {
      const auto keep = [&](int t, int k, double x) {
        const job j(t);
        if (j.series(n)) s.flushed[flush + j.flush][k * K::size + j.k] = x;
      };
      team.merge16(
          take_lower(), [&](int t) { return mine[t].low; },
          [&](int t, double x) { keep(t, 3, x); });
      team.merge16(
          take_higher(), [&](int t) { return mine[t].high; },
          [&](int t, double x) { keep(t, 4, x); });
    }
    team.each([&](int t) {
      const job j(t);
      if (t % lanes != 0 || !j.series(n)) return;
      double* const f = s.flushed[flush + j.flush];
      M series;
      if constexpr (K::ranged) series = M::read(f, j.k, K::size);
      const double low = series.low, high = series.high;
      series = sums_of_job(s, t).template about<M>(static_cast<double>(s.shift[t / lanes]));
      series.low = low, series.high = high;
      series.write(f, j.k, K::size);
    });
  }

  /// The sums of all open flushes, about shifts that are good for them. True where some are lost.
  template <class Team, class Own>
  RLHF_HOST_DEVICE bool sweep_flushes(const Team& team, shared& s, Own& mine, int n) const {
    for (int sweep = 0;; ++sweep) {
      team.each([&](int t) {
        if (t == 0) s.again = s.any_lost = false;
        const job j(t);
        if (j.series(n) && s.open[j.flush]) sweep_lane(s, mine[t], t);
      });
      team.merge16(
          take_sum(), [&](int t) { return mine[t].sum; },
          [&](int t, double x) { s.total[0][t / lanes] = x; });
      team.merge16(
          take_sum(), [&](int t) { return mine[t].square; },
          [&](int t, double x) { s.total[1][t / lanes] = x; });
      team.sync();
      team.each([&](int t) {
        const job j(t);
        if (t % lanes != 0 || !j.series(n) || !s.open[j.flush]) return;
        const shifted_sums of = sums_of_job(s, t);
        if (!math::is_finite(of.square) && !(s.found[t / lanes] > 0))
          s.lost[j.flush] = s.any_lost = true;
        if (!of.far() || sweep + 1 == most_sweeps) return;
        T& shift = s.shift[t / lanes];
        shift = static_cast<T>(static_cast<double>(shift) + of.mean());
        s.again = true;
      });
      team.sync();
      const bool again = s.again, any_lost = s.any_lost;
      team.sync();
      if (!again) return any_lost;
    }
  }

  /// Of lost flushes every series is measured from the first token, and the others no more.
  template <class Team>
  RLHF_HOST_DEVICE void guess_again(const Team& team, shared& s, int n) const {
    team.each([&](int t) {
      const job j(t);
      if (t % lanes != 0 || !j.series(n) || !s.lost[j.flush]) return;
      s.shift[t / lanes] = first_counted(s, j);
      s.found[t / lanes] = 1;
    });
    team.sync();
    team.each([&](int t) {
      if (t < n) s.open[t] = s.lost[t], s.lost[t] = false;
    });
    team.sync();
  }

  RLHF_HOST_DEVICE static shifted_sums sums_of_job(const shared& s, int t) {
    return {s.weights[job(t).flush], s.total[0][t / lanes], s.total[1][t / lanes]};
  }

  /// The shift of each series, and the weight of each flush.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void guess(const Team& team, shared& s, Own& mine, int n) const {
    team.each([&](int t) {
      const job j(t);
      const int l = t % lanes;
      if (t < n) s.open[t] = true, s.lost[t] = false;
      mine[t].sum = mine[t].square = 0;
      if (j.series(n)) {
        for (int step = 0; step < static_cast<int>(steps_of_guess); ++step) {
          const int at = step * lanes + l;
          if (!(s.weight[j.flush][at] > T(0))) continue;
          mine[t].sum = static_cast<double>(s.x[j.k][j.flush][at]);
          mine[t].square = 1;  // there is one
          break;
        }
      } else if (j.weights(n)) {
        double sum = 0;
        for (int step = 0; step < steps; ++step)
          sum += static_cast<double>(s.weight[j.flush][step * lanes + l]);
        mine[t].sum = sum;
      }
    });
    team.merge16(
        take_sum(), [&](int t) { return mine[t].square; },
        [&](int t, double x) { s.found[t / lanes] = x; });
    team.merge16(
        take_sum(), [&](int t) { return mine[t].sum; },
        [&](int t, double x) {
          const job j(t);
          if (j.weights(n)) s.weights[j.flush] = x;
          if (!j.series(n)) return;
          const double found = s.found[t / lanes];
          T shift = found > 0 ? static_cast<T>(x / found) : T(0);
          if (!math::is_finite(shift)) shift = first_counted(s, j);
          s.shift[t / lanes] = shift;
        });
    team.sync();
  }

  /// Of the flush, in the order of tokens.
  RLHF_HOST_DEVICE static T first_counted(const shared& s, const job& j) {
    for (int at = 0; at < flush_tokens; ++at)
      if (s.weight[j.flush][at] > T(0)) return s.x[j.k][j.flush][at];
    return T(0);
  }

  /// One lane of a series of a flush, about its shift.
  RLHF_HOST_DEVICE void sweep_lane(const shared& s, kept& mine, int t) const {
    const job j(t);
    const int l = t % lanes;
    const T* const x = s.x[j.k][j.flush] + l;
    const T* const w = s.weight[j.flush] + l;
    const V about = math::constant<V>(s.shift[t / lanes]);
    const bool weighs = weighted();
    T sum[2] = {T(0), T(0)}, square[2] = {T(0), T(0)};
    T low = static_cast<T>(__builtin_inf()), high = static_cast<T>(-__builtin_inf());
#if defined(__CUDA_ARCH__)
#pragma unroll 2
#endif
    for (int step = 0; step < steps; step += 2) {
      RLHF_UNROLL
      for (int odd = 0; odd < 2; ++odd) {
        const T seen = x[(step + odd) * lanes], weight = w[(step + odd) * lanes];
        const bool counts = weight > T(0);
        const V d = counts ? math::constant<V>(seen) - about : math::constant<V>(T(0));
        const V part = weighs ? math::constant<V>(weight) * d : d;
        sum[odd] = math::first(math::detail::add_rounded(math::constant<V>(sum[odd]), part));
        square[odd] = math::first(math::fma(part, d, math::constant<V>(square[odd])));
        if constexpr (K::ranged) {
          low = counts && seen < low ? seen : low;
          high = counts && seen > high ? seen : high;
        }
      }
    }
    mine.sum = static_cast<double>(sum[0] + sum[1]);
    mine.square = static_cast<double>(square[0] + square[1]);
    mine.low = static_cast<double>(low);
    mine.high = static_cast<double>(high);
  }

  /// The figures of a unit, and its rank in its group.
  template <class Team, class Own>
  RLHF_HOST_DEVICE void finish_unit(const Team& team, shared& s, Own& mine, index unit) const {
    team.merge16(
        take_sum(), [&](int t) { return static_cast<double>(mine[t].nonfinite); },
        [&](int t, double x) { s.part[0][t / lanes] = x; });
    team.merge16(
        take_sum(), [&](int t) { return static_cast<double>(mine[t].positions); },
        [&](int t, double x) { s.part[1][t / lanes] = x; });
    team.sync();
    team.each([&](int t) {
      double* const to_row = to.partial + unit * size;
      if (t == 0 && to.rank != nullptr)
        to.rank[unit] = s.nth == 0 || (s.nth > 0 && s.first < s.steps) ? s.nth : -1;
      constexpr int folded = 3 * K::size;  // parts: the series and their ranges
      if (t < folded) {
        static_assert(most_flushes == fold_fan);
        figures().fold(
            here(), t,
            [&](int f) -> const double* { return f < map.flushes ? s.flushed[f] : nullptr; },
            to_row);
      } else if (t < folded + 2) {
        double sum = 0;
        for (const double x : s.part[t - folded]) sum += x;
        to_row[figures::place(t)] = sum;
      } else if (t == folded + 2) {
        to_row[figures::sequences] = s.sequences;
        to_row[figures::bad_rows] = s.bad_rows;
      }
    });
  }

  template <class Team>
  RLHF_HOST_DEVICE void finish(const Team& team, shared& s) const {
    fold_all_units(team, s.ranked, figures(), map, to.partial, to.rank);
    team.each([&](int t) {
      if (t >= size) return;
      const double x = team.fetch(to.partial + t);
      if (t < moments_of<K>::size) to.sums[t] = x;
      if (to.counts != nullptr && t == figures::positions) to.counts[0] = to.counts[1] = x;
      if (to.counts != nullptr && t == figures::sequences) to.counts[2] = x;
      if (to.bad != nullptr && t == figures::bad_rows) *to.bad = x;
    });
    team.sync();
    team.each([&](int t) {
      for (index k = t; k < afters; k += threads) after(k);
    });
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
