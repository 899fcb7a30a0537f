#pragma once

#include "rlhf/backend/thrust/unit_map.hpp"

// The tree over the figures of all units of a domain, by the team that came last.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// What the threads share while they look for units that head a subtree.
template <int Threads>
struct ranked_units {
  int heads[at_least_one(Threads)];
  int head_count;
  int more;
};

/// The tree over the units of each group of a packed batch, in place.
template <class Team, class Row>
RLHF_HOST_DEVICE void fold_ranked(const Team& team, ranked_units<Team::width>& s, const Row& row,
                                  index units, double* partial, const index* ranks) {
  constexpr int threads = Team::width;
  const int size = row.size(), parts = row.parts();
  for (index apart = 1;; apart *= fold_fan) {
    team.sync();
    team.each([&](int t) {
      if (t == 0) s.more = 0;
    });
    for (index begin = 0; begin < units; begin += threads) {
      team.sync();
      team.each([&](int t) {
        if (t == 0) s.head_count = 0;
      });
      team.sync();
      team.each([&](int t) {
        const index unit = begin + t;
        if (unit + apart >= units) return;
        const index rank = team.fetch(ranks + unit);
        if (rank < 0 || rank % (apart * fold_fan) != 0) return;
        if (team.fetch(ranks + unit + apart) != rank + apart) return;
        s.heads[team.next(s.head_count)] = t;
        s.more = 1;
      });
      team.sync();
      team.each([&](int t) {
        for (int task = t; task < s.head_count * parts; task += threads) {
          const index head = begin + s.heads[task / parts];
          const index rank = team.fetch(ranks + head);
          row.fold(
              team, task % parts,
              [&](int i) -> const double* {
                const index unit = head + i * apart;
                const bool same = unit < units && team.fetch(ranks + unit) == rank + i * apart;
                return same ? partial + unit * size : nullptr;
              },
              partial + head * size);
        }
      });
    }
    team.sync();
    if (s.more == 0) return;
  }
}

/// The tree over the units of each group and then over the groups, into the row of unit 0. `ranks`:
/// of a packed batch, which unit of its group each is.
template <class Team, class Row, class Space>
RLHF_HOST_DEVICE void fold_all_units(const Team& team, ranked_units<Team::width>& s, const Row& row,
                                     const unit_map<Space>& map, double* partial,
                                     const index* ranks) {
  const int size = row.size();
  if (map.per_group > 0 || map.groups == 0) {
    fold_leaves(team, row, map.groups * map.fan, [&](index leaf) -> double* {
      const index g = leaf / map.fan, nth = leaf % map.fan;
      return nth < map.per_group ? partial + (g * map.per_group + nth) * size : nullptr;
    });
    return;
  }
  fold_ranked(team, s, row, map.units, partial, ranks);
  fold_leaves(team, row, map.groups,
              [&](index g) -> double* { return partial + map.first_unit(g) * size; });
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
