#pragma once

#include <cstddef>
#include <cstdint>

#include "rlhf/primitive/reverse_scan.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Whether a row's tokens lie further apart than its neighbours: a cache line then holds as many
/// rows as tokens of one row elsewhere, and a walk along rows would fetch it once for each.
inline bool is_column_major(index per_row, index stride) {
  const index across = per_row < 0 ? -per_row : per_row;
  const index along = stride < 0 ? -stride : stride;
  return across > 0 && across < along;
}
template <class X>
bool is_column_major(const X& x) {
  return x.data != nullptr && is_column_major(x.per_row, x.stride);
}
inline bool is_column_major(const mask_view<host_space>& mask) {
  return mask.kind() != mask_kind::none && is_column_major(mask.stride(0), mask.stride(1));
}

/// Squares of a transposed copy that are worked on in registers: 16 bytes to a side, of bytes 8.
template <class X>
struct square {
  static constexpr index side = 16 / static_cast<index>(sizeof(X));
  static RLHF_INLINE void move(const X* from, index from_step, X* to, index to_step) {
#if RLHF_PACK_BYTES > 0
    typedef X pack __attribute__((vector_size(16)));
    pack x[static_cast<std::size_t>(side)];
    for (index k = 0; k < side; ++k) __builtin_memcpy(&x[k], from + k * from_step, 16);
    if constexpr (side == 4) {
      const pack a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
      const pack b = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
      const pack c = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
      const pack d = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
      x[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
      x[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
      x[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
      x[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
    } else {
      const pack a = __builtin_shufflevector(x[0], x[1], 0, 2);
      x[1] = __builtin_shufflevector(x[0], x[1], 1, 3);
      x[0] = a;
    }
    for (index k = 0; k < side; ++k) __builtin_memcpy(to + k * to_step, &x[k], 16);
#else
    for (index k = 0; k < side; ++k)
      for (index i = 0; i < side; ++i) to[i * to_step + k] = from[k * from_step + i];
#endif
  }
};
template <>
struct square<std::uint8_t> {
  static constexpr index side = 8;
  /// In words of 8 bytes: squares of 1, 2 and 4 bytes change places across the diagonal.
  static RLHF_INLINE void move(const std::uint8_t* from, index from_step, std::uint8_t* to,
                               index to_step) {
    std::uint64_t x[8];
    for (index k = 0; k < side; ++k) __builtin_memcpy(&x[k], from + k * from_step, 8);
    const auto swap = [&](int apart, std::uint64_t low) __attribute__((always_inline)) {
      for (int k = 0; k < 8; ++k) {
        if ((k & apart) != 0) continue;
        const std::uint64_t t = (x[k] >> 8 * apart ^ x[k + apart]) & low;
        x[k] ^= t << 8 * apart;
        x[k + apart] ^= t;
      }
    };
    swap(1, 0x00ff00ff00ff00ffULL);
    swap(2, 0x0000ffff0000ffffULL);
    swap(4, 0x00000000ffffffffULL);
    for (index k = 0; k < side; ++k) __builtin_memcpy(to + k * to_step, &x[k], 8);
  }
};

enum class panel_way { in, out };

/// Copies elements (row, column) of `home`, at home[row * per_row + column * stride], to rows of
/// `pitch` elements or back. Columns follow each other, so that each line of `home` is there once.
template <panel_way Way, class X>
RLHF_NOINLINE void move_panel(X* home, index per_row, index stride, index rows, index columns,
                              X* panel, index pitch) {
  constexpr index side = square<X>::side, line = 64 / static_cast<index>(sizeof(X));
  constexpr index ahead = 32;  // columns whose lines are on their way
  constexpr int writes = Way == panel_way::out ? 1 : 0;
  const index whole = per_row == 1 ? rows / side * side : 0;
  for (index j = 0; j < columns; j += side) {
    const index n = columns - j < side ? columns - j : side;
    for (index c = j + ahead; c < j + ahead + side && c < columns; ++c)
      for (index i = 0; i < rows; i += line)
        __builtin_prefetch(home + i * per_row + c * stride, writes);
    X* const column = home + j * stride;
    index from = 0;  // rows before it are done
    for (; n == side && from < whole; from += side)
      if constexpr (Way == panel_way::in)
        square<X>::move(column + from, stride, panel + from * pitch + j, pitch);
      else
        square<X>::move(panel + from * pitch + j, pitch, column + from, stride);
    for (index c = 0; c < n; ++c)
      for (index i = from; i < rows; ++i)
        if constexpr (Way == panel_way::in)
          panel[i * pitch + j + c] = column[i * per_row + c * stride];
        else
          column[i * per_row + c * stride] = panel[i * pitch + j + c];
  }
}

/// How many rows a panel has, and its memory; no rows where none is wanted.
struct panel_plan {
  index rows = 0;
  index pitch = 0;  // elements from row to row
  index bytes = 0;  // of one thread
  std::byte* memory = nullptr;
  explicit operator bool() const { return rows > 0; }
};

/// The tensors of a call.
template <class T>
struct panel_views {
  const token_domain<host_space>* domain;
  const token_input<T>* in = nullptr;
  int inputs = 0;
  const token_output<T>* out = nullptr;
  int outputs = 0;
  const token_flags* flag = nullptr;
  int flags = 0;
};
/// Copies of them, which a walk reads and a panel changes.
template <class T>
struct panel_places {
  token_domain<host_space>* domain;
  token_input<T>* in = nullptr;
  token_output<T>* out = nullptr;
  token_flags* flag = nullptr;
};

inline constexpr index least_panel_rows = 4;      // fewer gain less than the copy costs
inline constexpr index least_panel_slots = 4096;  // smaller tensors are in the nearest cache

/// Whether a tensor of such a domain would be put on panels, were it column-major.
inline bool worth_panels(const token_domain<host_space>& d) {
  return d.kind != arrangement::packed && d.rows >= least_panel_rows &&
         d.rows * d.columns >= least_panel_slots;
}

/// A row panel: the next rows of a walk, copied from each tensor that is column-major to where they
/// lie one behind the other, and outputs from there back once the walk goes on. The places it is
/// given then point into it: rows outside of the panel must not be looked for there.
template <class T>
class row_panel {
  static constexpr index most_rows = rows_per_group;
  static constexpr index most_bytes = 1536 * 1024;  // per thread
  static constexpr index same_sets = 64;  // rows of as many elements would share few cache sets

  panel_plan plan_;
  std::byte* memory_;
  panel_views<T> home_;
  panel_places<T> at_;
  index begin_ = 0, end_ = 0, limit_ = 0;
  index longest_ = 0;

  /// f(tensor) for each that is column-major, in one order.
  template <class F>
  static void each_element_size(const panel_views<T>& v, const F& f) {
    const mask_view<host_space>& mask = v.domain->mask;
    if (is_column_major(mask)) f(static_cast<index>(mask.element_size()));
    for (int k = 0; k < v.inputs; ++k)
      if (is_column_major(v.in[k])) f(index{sizeof(T)});
    for (int k = 0; k < v.outputs; ++k)
      if (is_column_major(v.out[k])) f(index{sizeof(T)});
    for (int k = 0; k < v.flags; ++k)
      if (is_column_major(v.flag[k])) f(index{1});
  }

  /// The memory of the next tensor.
  template <class X>
  X* take(std::byte*& memory) const {
    X* const to = reinterpret_cast<X*>(memory);
    memory += plan_.rows * plan_.pitch * static_cast<index>(sizeof(X));
    return to;
  }
  /// What a view must begin with, so that row begin_ lies at `panel`.
  template <class X>
  X* origin(X* panel) const {
    return panel - begin_ * plan_.pitch;
  }
  template <class X>
  const X* bring(const X* home, index per_row, index stride, std::byte*& memory) const {
    X* const panel = take<X>(memory);
    move_panel<panel_way::in>(const_cast<X*>(home) + begin_ * per_row, per_row, stride,
                              end_ - begin_, longest_, panel, plan_.pitch);
    return origin(panel);
  }
  template <class X>
  void turn_mask(const X* at) {
    const token_domain<host_space>& d = *at_.domain;
    at_.domain->mask = {at, shape(d.rows, d.columns), shape(plan_.pitch, index{1})};
  }
  /// f(the mask's elements), where it is column-major.
  template <class F>
  void with_mask(const F& f) const {
    const mask_view<host_space>& mask = home_.domain->mask;
    if (!is_column_major(mask)) return;
    if (mask.kind() == mask_kind::flag) f(static_cast<const std::uint8_t*>(mask.data()));
    if (mask.kind() == mask_kind::weight32) f(static_cast<const float*>(mask.data()));
    if (mask.kind() == mask_kind::weight64) f(static_cast<const double*>(mask.data()));
  }

 public:
  /// For a call whose rows are to be shared by panels among so many threads.
  RLHF_NOINLINE static panel_plan plan(const panel_views<T>& v, index threads) {
    const token_domain<host_space>& d = *v.domain;
    index bytes = 0;  // of one element of each
    each_element_size(v, [&](index size) { bytes += size; });
    if (bytes == 0) return {};
    index pitch = (d.columns + virtual_lanes - 1) / virtual_lanes;
    if (pitch * virtual_lanes > same_sets) pitch |= 1;
    pitch *= virtual_lanes;
    index rows = most_rows;
    while (rows >= least_panel_rows && rows * pitch * bytes > most_bytes) rows /= 2;
    while (rows > virtual_lanes && rows * threads > d.rows) rows /= 2;
    if (rows < least_panel_rows) return {};
    if (rows > d.rows) rows = (d.rows + 3) / 4 * 4;  // so that tensors of flags take whole lines
    return {rows, pitch, rows * pitch * bytes};
  }

  row_panel(const panel_plan& plan, std::byte* memory, const panel_views<T>& home,
            const panel_places<T>& at)
      : plan_(plan), memory_(memory), home_(home), at_(at) {
    with_mask([&](const auto* mask) { turn_mask(mask); });
    const auto turn = [&](auto& x) {
      if (!is_column_major(x)) return;
      x.per_row = plan_.pitch;
      x.stride = 1;
    };
    for (int k = 0; k < home_.inputs; ++k) turn(at_.in[k]);
    for (int k = 0; k < home_.outputs; ++k) turn(at_.out[k]);
    for (int k = 0; k < home_.flags; ++k) turn(at_.flag[k]);
  }
  row_panel(const row_panel&) = delete;
  row_panel& operator=(const row_panel&) = delete;

  bool holds(index row) const { return begin_ <= row && row < end_; }
  index end() const { return end_; }
  /// Rows from here on are not to be touched.
  void stop_at(index limit) { limit_ = limit; }

  /// Takes the rows from `row` on.
  RLHF_NOINLINE void enter(index row) {
    leave();
    begin_ = row;
    end_ = row + plan_.rows < limit_ ? row + plan_.rows : limit_;
    longest_ = 0;
    for (index i = begin_; i < end_; ++i)
      longest_ = at_.domain->length(i) > longest_ ? at_.domain->length(i) : longest_;
    std::byte* memory = memory_;
    with_mask([&](const auto* mask) {
      const mask_view<host_space>& view = home_.domain->mask;
      turn_mask(bring(mask, view.stride(0), view.stride(1), memory));
    });
    for (int k = 0; k < home_.inputs; ++k) {
      const token_input<T>& x = home_.in[k];
      if (is_column_major(x)) at_.in[k].data = bring(x.data, x.per_row, x.stride, memory);
    }
    for (int k = 0; k < home_.outputs; ++k) {
      const token_output<T>& y = home_.out[k];
      if (!is_column_major(y)) continue;
      if (y.accumulate)
        at_.out[k].data = const_cast<T*>(bring(y.data, y.per_row, y.stride, memory));
      else
        at_.out[k].data = origin(take<T>(memory));
    }
    for (int k = 0; k < home_.flags; ++k) {
      const token_flags& x = home_.flag[k];
      if (is_column_major(x)) at_.flag[k].data = bring(x.data, x.per_row, x.stride, memory);
    }
  }

  /// Brings the outputs home. A row of the panel has been walked to its end.
  RLHF_NOINLINE void leave() {
    const index rows = end_ - begin_;
    for (int k = 0; rows > 0 && k < home_.outputs; ++k) {
      const token_output<T>& y = home_.out[k];
      if (!is_column_major(y)) continue;
      move_panel<panel_way::out>(y.data + begin_ * y.per_row, y.per_row, y.stride, rows,
                                 y.accumulate ? longest_ : at_.domain->columns,
                                 at_.out[k].data + begin_ * plan_.pitch, plan_.pitch);
    }
    begin_ = end_ = 0;
  }
};

template <class K>
panel_views<typename K::scalar_type> views_of(const token_arguments<K, host_space>& a) {
  return {&a.domain, a.in, K::inputs, a.out, K::outputs};
}
template <class K>
panel_places<typename K::scalar_type> places_of(token_arguments<K, host_space>& a) {
  return {&a.domain, a.in, a.out};
}

template <class K>
panel_views<typename K::scalar_type> views_of(const scan_arguments<K, host_space>& a) {
  return {&a.domain, a.in, K::inputs, a.out, K::outputs, a.flag, K::flags};
}
template <class K>
panel_places<typename K::scalar_type> places_of(scan_arguments<K, host_space>& a) {
  return {&a.domain, a.in, a.out, a.flag};
}

/// A copy of a call's arguments that is on a panel.
template <class T, class A>
class arguments_on_panel {
  A copy_;
  row_panel<T> panel_;

 public:
  arguments_on_panel(const A& home, const panel_plan& plan, std::byte* memory)
      : copy_(home), panel_(plan, memory, views_of(home), places_of(copy_)) {}

  /// f(the copy, the panel), which takes rows before `row_end` alone, one after the other.
  template <class F>
  void run(index row_end, const F& f) {
    panel_.stop_at(row_end);
    f(static_cast<const A&>(copy_), panel_);
    panel_.leave();
  }
};

/// A domain whose mask is on a panel.
class domain_on_panel {
  token_domain<host_space> copy_;
  row_panel<float> panel_;  // of no number

 public:
  domain_on_panel(const token_domain<host_space>& home, const panel_plan& plan, std::byte* memory)
      : copy_(home), panel_(plan, memory, {&home}, {&copy_}) {}

  /// The domain for the rows [row, row_end) of a panel.
  const token_domain<host_space>& at(index row, index row_end) {
    panel_.stop_at(row_end);
    panel_.enter(row);
    return copy_;
  }
};

/// f(what begin(memory) returned for the thread, unit) for each unit, a thread's one by one.
template <class Exec, class Begin, class F>
void on_panels(const Exec& exec, const panel_plan& plan, index units, const Begin& begin,
               const F& f) {
  const index threads = exec.concurrency() < units ? exec.concurrency() : units;
  index next = 0;
  exec.parallel_for(threads, [&](index thread) {
    auto walk = begin(plan.memory + thread * plan.bytes);
    for (;;) {
      const index task = __atomic_fetch_add(&next, index{1}, __ATOMIC_RELAXED);
      if (task >= units) return;
      f(walk, task);
    }
  });
}
/// The same for f(walk, first row, end) with `each` rows to a unit.
template <class Exec, class Begin, class F>
void on_panels(const Exec& exec, const panel_plan& plan, index rows, index each, const Begin& begin,
               const F& f) {
  on_panels(exec, plan, (rows + each - 1) / each, begin, [&](auto& walk, index task) {
    const index row = task * each;
    f(walk, row, row + each < rows ? row + each : rows);
  });
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
