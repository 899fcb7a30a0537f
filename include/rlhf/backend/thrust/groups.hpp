#pragma once

#include "rlhf/backend/host/group_reduce.hpp"
#include "rlhf/backend/thrust/team.hpp"

// group_reduce on a device. Groups of one size are where they are: one launch. Groups told by id are
// found in two more: every team looks for the beginnings of runs of one id, the last one says where
// those of each team go; then they are written, and sorted by the last team if an id comes back.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// The prefix sums of one number per thread, in s[0 .. threads) or s[threads .. 2 threads): which of
/// them is returned.
template <class Team, class X>
RLHF_HOST_DEVICE int prefix_sums(const Team& team, X* s) {
  constexpr int n = Team::width;
  int now = 0;
  team.sync();
  for (int apart = 1; apart < n; apart *= 2, now = 1 - now) {
    team.each([&](int t) {
      s[(1 - now) * n + t] = s[now * n + t] + (t >= apart ? s[now * n + t - apart] : X(0));
    });
    team.sync();
  }
  return now;
}

/// How a search is cut: a team looks at `tiles` times as many samples as it has threads.
struct group_cut {
  static constexpr int threads = 256;
  index samples;
  index tiles;
  index units;
  static group_cut over(index samples) {
    group_cut c{samples, 1, 1};
    while (c.tiles * threads * threads < samples) c.tiles *= 2;  // so that units <= threads
    c.units = (samples + c.tiles * threads - 1) / (c.tiles * threads);
    if (c.units < 1) c.units = 1;
    return c;
  }
  RLHF_HOST_DEVICE index at(index unit, index tile, int t) const {
    return (unit * tiles + tile) * threads + t;
  }
};

/// What a team has seen of the ids, and afterwards how many runs begin before it.
struct run_count {
  index runs;
  index rises, falls;  // how often the id does so from one run to the next
};

template <class Space>
RLHF_HOST_DEVICE bool begins_run(const index_view<Space>& id, index samples, index i) {
  return i < samples && (i == 0 || id[i] != id[i - 1]);
}

template <class Space>
struct count_runs {
  static constexpr int threads = group_cut::threads;
  index_view<Space> id;
  group_cut cut;
  run_count* counts;  // per unit, and behind them those of all
  unsigned* arrived;

  struct shared {
    int runs, rises, falls;
    index sums[2 * threads];
    bool last;
  };

  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const {
    team.each([&](int t) {
      if (t == 0) s.runs = s.rises = s.falls = 0;
    });
    team.sync();
    for (index tile = 0; tile < cut.tiles; ++tile)
      team.each([&](int t) {
        const index i = cut.at(unit, tile, t);
        if (!begins_run(id, cut.samples, i)) return;
        team.next(s.runs);
        if (i > 0) team.next(id[i] > id[i - 1] ? s.rises : s.falls);
      });
    team.sync();
    team.each([&](int t) {
      if (t == 0) counts[unit] = {s.runs, s.rises, s.falls};
    });
    if (!team.arrive(arrived, cut.units, s.last)) return;
    const index run_count::*const part[] = {&run_count::rises, &run_count::falls, &run_count::runs};
    index all[3];
    for (int k = 0; k < 3; ++k) {
      team.each([&](int t) { s.sums[t] = t < cut.units ? team.fetch(&(counts[t].*part[k])) : 0; });
      const int now = prefix_sums(team, s.sums);
      all[k] = s.sums[now * threads + threads - 1];
      if (k == 2)
        team.each([&](int t) {
          if (t < cut.units) counts[t].runs = t > 0 ? s.sums[now * threads + t - 1] : 0;
        });
      team.sync();
    }
    team.each([&](int t) {
      if (t == 0) counts[cut.units] = {all[2], all[0], all[1]};
    });
  }
};

template <class Space>
struct write_runs {
  static constexpr int threads = group_cut::threads;
  index_view<Space> id;
  group_cut cut;
  const run_count* counts;
  group_scratch scratch;
  found_groups* to;
  unsigned* arrived;

  struct shared {
    index sums[2 * threads];
    index more[2 * threads];
    int twice;
    bool last;
  };

  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const {
    index first = counts[unit].runs;
    for (index tile = 0; tile < cut.tiles; ++tile) {
      team.each(
          [&](int t) { s.sums[t] = begins_run(id, cut.samples, cut.at(unit, tile, t)) ? 1 : 0; });
      const int now = prefix_sums(team, s.sums);
      const index* const sums = s.sums + now * threads;
      team.each([&](int t) {
        const index i = cut.at(unit, tile, t);
        if (begins_run(id, cut.samples, i)) scratch.start[first + sums[t] - 1] = i;
      });
      first += sums[threads - 1];
      team.sync();
    }
    if (team.arrive(arrived, cut.units, s.last)) find(team, s);
  }

 private:
  /// Runs are groups already when no id comes back. Otherwise runs are sorted, never single samples.
  template <class Team>
  RLHF_HOST_DEVICE void find(const Team& team, shared& s) const {
    const run_count all = counts[cut.units];
    const index runs = all.runs;
    team.each([&](int t) {
      if (t == 0) {
        scratch.start[runs] = cut.samples;
        *to = {runs, 0, scratch.start, nullptr};
        s.twice = 0;
      }
    });
    team.sync();
    if (all.rises == 0 || all.falls == 0) return;
    const index* const sorted = sort(team, runs);
    team.each([&](int t) {
      for (index k = t + 1; k < runs; k += threads)
        if (id_of(sorted[k]) == id_of(sorted[k - 1])) s.twice = 1;
    });
    team.sync();
    if (s.twice == 0) return;

    index* const order = sorted == scratch.sorted ? scratch.spare : scratch.sorted;
    index groups = 0, at = 0;
    for (index first = 0; first < runs; first += threads) {
      const auto run = [&](int t) { return sorted[first + t]; };
      team.each([&](int t) {
        const bool there = first + t < runs;
        s.sums[t] =
            there ? team.fetch(scratch.start + run(t) + 1) - team.fetch(scratch.start + run(t)) : 0;
        s.more[t] = there && begins_group(sorted, first + t) ? 1 : 0;
      });
      const int now = prefix_sums(team, s.sums);
      prefix_sums(team, s.more);  // as many rounds, so in the same half
      const index* const sums = s.sums + now * threads;
      const index* const more = s.more + now * threads;
      team.each([&](int t) {
        if (first + t >= runs) return;
        index to_at = at + (t > 0 ? sums[t - 1] : 0);
        if (begins_group(sorted, first + t)) scratch.group_start[groups + more[t] - 1] = to_at;
        const index end = team.fetch(scratch.start + run(t) + 1);
        for (index i = team.fetch(scratch.start + run(t)); i < end; ++i) order[to_at++] = i;
      });
      at += sums[threads - 1];
      groups += more[threads - 1];
      team.sync();
    }
    team.each([&](int t) {
      if (t != 0) return;
      scratch.group_start[groups] = at;
      *to = {groups, 0, scratch.group_start, order};
    });
  }

  RLHF_HOST_DEVICE index id_of(index run) const { return id[scratch.start[run]]; }
  RLHF_HOST_DEVICE bool begins_group(const index* sorted, index k) const {
    return k == 0 || id_of(sorted[k]) != id_of(sorted[k - 1]);
  }

  /// Numbers of runs by the id of the run, stably: merges of doubling width, where each number finds
  /// its own place.
  template <class Team>
  RLHF_HOST_DEVICE const index* sort(const Team& team, index runs) const {
    index* a = scratch.sorted;
    index* b = scratch.spare;
    team.each([&](int t) {
      for (index k = t; k < runs; k += threads) a[k] = k;
    });
    team.sync();
    for (index width = 1; width < runs; width *= 2) {
      team.each([&](int t) {
        for (index k = t; k < runs; k += threads) {
          const index low = k / (2 * width) * (2 * width);
          const index middle = low + width < runs ? low + width : runs;
          const index high = low + 2 * width < runs ? low + 2 * width : runs;
          const index key = id_of(a[k]);
          const bool left = k < middle;
          index from = left ? middle : low, end = left ? high : middle;
          while (from < end) {  // how many of the other half come first
            const index at = from + (end - from) / 2;
            const index other = id_of(a[at]);
            if (left ? other < key : other <= key)
              from = at + 1;
            else
              end = at;
          }
          b[left ? k + (from - middle) : k - middle + from] = a[k];
        }
      });
      team.sync();
      index* const other = a;
      a = b;
      b = other;
    }
    return a;
  }
};

/// The kernel on every group, and the sum of what it returns, in units of 64 groups.
template <class K>
struct group_pass {
  using partial = typename K::partial;
  static constexpr int threads = static_cast<int>(groups_per_unit);
  static constexpr unsigned least_blocks = 8;
  static constexpr int words = static_cast<int>(sizeof(partial) / sizeof(double));
  static_assert(sizeof(partial) % sizeof(double) == 0 && std::is_trivially_copyable_v<partial>);

  K kernel;
  found_groups known;         // where the size of groups says it
  const found_groups* found;  // where ids do; else null
  index units;                // enough for the groups there may be
  double* unit_sum;           // `words` for each unit
  double* to;
  unsigned* arrived;

  struct shared {
    double x[threads][at_least_one(words)];
    bool last;
  };

  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const {
    const found_groups groups = found != nullptr ? *found : known;
    const index first = unit * threads;
    team.each([&](int t) {
      if (first + t >= groups.groups) return;
      const partial mine = kernel(groups.at(first + t));
      __builtin_memcpy(s.x[t], &mine, sizeof mine);
    });
    team.sync();
    team.each([&](int t) {
      if (t != 0) return;
      partial sum;
      for (int k = 0; k < threads && first + k < groups.groups; ++k) sum = sum + read(s, k);
      __builtin_memcpy(s.x[0], &sum, sizeof sum);
      for (int k = 0; k < words; ++k) unit_sum[unit * words + k] = s.x[0][k];
    });
    if (!team.arrive(arrived, units, s.last)) return;
    partial all;  // of the first thread
    const index used = (groups.groups + threads - 1) / threads;
    for (index begin = 0; begin < used; begin += threads) {
      team.each([&](int t) {
        if (begin + t < used)
          for (int k = 0; k < words; ++k)
            s.x[t][k] = team.fetch(unit_sum + (begin + t) * words + k);
      });
      team.sync();
      team.each([&](int t) {
        if (t == 0)
          for (int k = 0; k < threads && begin + k < used; ++k) all = all + read(s, k);
      });
      team.sync();
    }
    team.each([&](int t) {
      if (t == 0) all.write(to);
    });
  }

 private:
  static RLHF_HOST_DEVICE partial read(const shared& s, int k) {
    partial x;
    __builtin_memcpy(&x, s.x[k], sizeof x);
    return x;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
