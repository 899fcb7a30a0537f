#pragma once

#include "rlhf/backend/thrust/sixteen_bytes.hpp"
#include "rlhf/backend/thrust/unit_map.hpp"

// How a team finds the rows of a unit of work and reads their tokens, 16 bytes of each tensor per
// thread.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Whether a weight may stand beside a token of this kernel.
template <class K>
RLHF_HOST_DEVICE constexpr bool may_weigh() {
  if constexpr (requires { K::takes_weights; })
    return K::takes_weights;
  else
    return true;
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

/// What the threads of a team know of the rows of their unit.
template <class K>
struct unit_rows {
  using T = typename K::scalar_type;
  static constexpr int group = static_cast<int>(rows_per_group);

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
  int sequences, bad_rows;
  index found;
  bool gaps;
};

/// The tokens of one thread, and what stands beside them.
template <class K>
struct unit_tokens {
  using T = typename K::scalar_type;
  static constexpr int neighbours = sixteen_bytes<T>::count;
  int count;         // slots of the row
  unsigned counted;  // bit v: token v is not masked
  T in[at_least_one(K::inputs)][at_least_one(neighbours)];
  T weight[at_least_one(may_weigh<K>() ? neighbours : 0)];
  RLHF_HOST_DEVICE bool counts(int v) const { return (counted >> v & 1u) != 0; }
};

template <class K, class Space>
struct unit_reader {
  using T = typename K::scalar_type;
  static constexpr int group = static_cast<int>(rows_per_group);
  static constexpr int lanes = static_cast<int>(virtual_lanes);
  static constexpr int neighbours = sixteen_bytes<T>::count;  // tokens of one thread

  token_arguments<K, Space> a;
  unit_map<Space> map;

  /// The last group that begins at or before a unit.
  template <class Team>
  RLHF_HOST_DEVICE index find_group(const Team& team, unit_rows<K>& s, index unit) const {
    constexpr int threads = Team::width;
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

  /// Lengths, steps, addresses and factors of the rows of a unit's group, by one thread each; where
  /// `check`, also how many lengths or offsets do not fit.
  template <class Team>
  RLHF_HOST_DEVICE void read_rows(const Team& team, unit_rows<K>& s, index unit, bool check) const {
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
      if (nth == 0 && (t < rows || (g == 0 && t == 0)) && check && is_bad_row(domain, i))
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

  /// The row that step `step` of the group belongs to, −1 behind the last.
  RLHF_HOST_DEVICE int row_of(const unit_rows<K>& s, index step) const {
    const index* const end = s.end[s.now];
    int low = 0, high = s.rows;  // the first row that ends behind the step
    while (low < high) {
      const int middle = (low + high) / 2;
      if (end[middle] > step)
        high = middle;
      else
        low = middle + 1;
    }
    return step < s.steps ? low : -1;
  }

  /// Which token of row `row` lane `lane` of step `step` is; x.count: how many are there from it on.
  RLHF_HOST_DEVICE RLHF_INLINE index place(const unit_rows<K>& s, int row, index step, int lane,
                                           unit_tokens<K>& x) const {
    x.count = 0;
    if (row < 0) return 0;
    const index j = (step - (row > 0 ? s.end[s.now][row - 1] : 0)) * lanes + lane;
    const index left = s.length[row] - j;
    x.count = left >= neighbours ? neighbours : left > 0 ? static_cast<int>(left) : 0;
    return j;
  }

  RLHF_HOST_DEVICE RLHF_INLINE void load(const unit_rows<K>& s, int row, index j,
                                         unit_tokens<K>& x) const {
    RLHF_UNROLL
    for (int k = 0; k < K::inputs; ++k) {
      const T* const from = s.in[k][row];
      const index stride = a.in[k].stride;
      if (from == nullptr || stride == 0) {
        const T value = from == nullptr ? a.in[k].absent : *from;
        RLHF_UNROLL
        for (int v = 0; v < neighbours; ++v) x.in[k][v] = value;
      } else if (stride == 1 && x.count == neighbours && on_16_bytes(from + j)) {
        const sixteen_bytes<T> q = load_16_bytes(from + j);
        RLHF_UNROLL
        for (int v = 0; v < neighbours; ++v) x.in[k][v] = q.part[v];
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
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
