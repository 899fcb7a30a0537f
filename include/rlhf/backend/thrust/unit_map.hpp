#pragma once

#include "rlhf/backend/thrust/count_rows.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// How the tokens of a domain are cut into units, one for a team: a unit is a few flushes (a power
/// of two, aligned) of one group of rows, so that its figures are one node of the tree. Units follow
/// from sizes and offsets alone; some have nothing to do.
template <class Space>
struct unit_map {
  token_domain<Space> domain;
  const index* length;  // of each row: its last valid position + 1; null: what the layout says
  index groups;
  index units;
  index per_group;  // units of each group; of a packed batch 0: its groups differ
  index fan;        // the power of two from per_group on
  int flushes;      // of a unit

  static constexpr index tokens_per_flush = virtual_lanes * steps_per_flush;
  static constexpr int most_flushes = 16;
  static constexpr index enough_units = 1024;  // several for each block that a large GPU holds

  static unit_map over(const token_domain<Space>& domain, const index* length) {
    unit_map m{domain, length, (domain.rows + rows_per_group - 1) / rows_per_group, 0, 0, 1, 1};
    const bool packed = domain.kind == arrangement::packed;
    const index rows = domain.rows < rows_per_group ? domain.rows : rows_per_group;
    const index longest = (rows * steps_in(domain.columns) + steps_per_flush - 1) / steps_per_flush;
    const index slots = packed ? (domain.columns + virtual_lanes * domain.rows) / tokens_per_flush
                               : m.groups * longest;
    while (m.flushes < most_flushes && m.flushes < (packed ? slots : longest) &&
           slots > enough_units * m.flushes)
      m.flushes *= 2;
    if (packed) {
      m.units = slots / m.flushes + m.groups;
    } else {
      m.per_group = (longest + m.flushes - 1) / m.flushes;
      m.units = m.groups * m.per_group;
      while (m.fan < m.per_group) m.fan *= 2;
    }
    if (m.units < 1) m.units = 1;  // someone has to say that there is nothing
    return m;
  }

  RLHF_HOST_DEVICE index first_row(index g) const { return g * rows_per_group; }
  RLHF_HOST_DEVICE int rows_of(index g) const {
    const index left = domain.rows - first_row(g);
    return static_cast<int>(left < 0 ? 0 : left < rows_per_group ? left : rows_per_group);
  }
  RLHF_HOST_DEVICE index length_of(index row) const {
    return length != nullptr ? length[row] : domain.length(row);
  }
  RLHF_HOST_DEVICE index first_unit(index g) const {
    if (per_group > 0) return g * per_group;
    const index row = first_row(g);
    return (domain.begin(row) + virtual_lanes * row) / (tokens_per_flush * flushes) + g;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
