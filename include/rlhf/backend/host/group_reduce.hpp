#pragma once

#include "rlhf/primitive/group_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Groups, found: group g is order[start[g]] ... order[start[g + 1] − 1], or, with a size, what
/// that says.
struct found_groups {
  index groups = 0;
  index size = 0;
  const index* start = nullptr;
  const index* order = nullptr;

  RLHF_HOST_DEVICE sample_group at(index g) const {
    if (size > 0) return {nullptr, g * size, (g + 1) * size};
    return {order, start[g], start[g + 1]};
  }
};

/// Four arrays of `samples` + 1 for finding groups by id.
struct group_scratch {
  index* start;
  index* sorted;
  index* spare;
  index* group_start;
};

/// Sorts numbers of runs by the id of the run, stably: merges of doubling width.
template <class Space>
RLHF_HOST_DEVICE index* sort_runs(const index_view<Space>& id, const index* start, index runs,
                                  index* a, index* b) {
  for (index k = 0; k < runs; ++k) a[k] = k;
  for (index width = 1; width < runs; width *= 2) {
    for (index low = 0; low < runs; low += 2 * width) {
      const index middle = low + width < runs ? low + width : runs;
      const index high = low + 2 * width < runs ? low + 2 * width : runs;
      index x = low, y = middle;
      for (index to = low; to < high; ++to) {
        const bool first = y >= high || (x < middle && id[start[a[x]]] <= id[start[a[y]]]);
        b[to] = first ? a[x++] : a[y++];
      }
    }
    index* const other = a;
    a = b;
    b = other;
  }
  return a;
}

/// Runs of equal ids are groups already when no id comes back. Otherwise runs are sorted, never
/// single samples.
template <class Space>
RLHF_HOST_DEVICE found_groups find_groups(const sample_groups<Space>& g,
                                          const group_scratch& scratch) {
  if (g.size > 0) return {g.samples / g.size, g.size, nullptr, nullptr};
  index runs = 0;
  bool rising = true, falling = true;
  index previous = 0;
  for (index i = 0; i < g.samples; ++i) {
    const index id = g.id[i];
    if (i > 0 && id == previous) continue;
    if (i > 0) (id > previous ? falling : rising) = false;
    scratch.start[runs++] = i;
    previous = id;
  }
  scratch.start[runs] = g.samples;
  found_groups found{runs, 0, scratch.start, nullptr};
  if (rising || falling) return found;

  const index* const sorted = sort_runs(g.id, scratch.start, runs, scratch.sorted, scratch.spare);
  bool twice = false;
  for (index k = 1; k < runs; ++k)
    twice = twice || g.id[scratch.start[sorted[k]]] == g.id[scratch.start[sorted[k - 1]]];
  if (!twice) return found;

  index* const order = sorted == scratch.sorted ? scratch.spare : scratch.sorted;
  index groups = 0, at = 0;
  for (index k = 0; k < runs; ++k) {
    const index run = sorted[k];
    if (k == 0 || g.id[scratch.start[run]] != g.id[scratch.start[sorted[k - 1]]])
      scratch.group_start[groups++] = at;
    for (index i = scratch.start[run]; i < scratch.start[run + 1]; ++i) order[at++] = i;
  }
  scratch.group_start[groups] = at;
  return {groups, 0, scratch.group_start, order};
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
