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
template <class X>
RLHF_NOINLINE void move_panel(panel_way way, X* home, index per_row, index stride, index rows,
                              index columns, X* panel, index pitch) {
  constexpr index side = square<X>::side, line = 64 / static_cast<index>(sizeof(X));
  constexpr index ahead = 32;  // columns whose lines are on their way
  const bool in = way == panel_way::in;
  const index from_row = in ? per_row : pitch, from_column = in ? stride : 1;
  const index to_row = in ? pitch : per_row, to_column = in ? 1 : stride;
  const index from_step = in ? stride : pitch, to_step = in ? pitch : stride;  // of a square
  const index whole = per_row == 1 ? rows / side * side : 0;
  for (index j = 0; j < columns; j += side) {
    const index n = columns - j < side ? columns - j : side;
    for (index c = j + ahead; c < j + ahead + side && c < columns; ++c)
      for (index i = 0; i < rows; i += line) __builtin_prefetch(home + i * per_row + c * stride);
    const X* const from = in ? home + j * stride : panel + j;
    X* const to = in ? panel + j : home + j * stride;
    index done = 0;  // rows before it
    for (; n == side && done < whole; done += side)
      square<X>::move(from + done * from_row, from_step, to + done * to_row, to_step);
    for (index c = 0; c < n; ++c)
      for (index i = done; i < rows; ++i)
        to[i * to_row + c * to_column] = from[i * from_row + c * from_column];
  }
}

/// The same for elements of so many bytes: 1, or those of a float or a double.
RLHF_NOINLINE inline void move_panel(panel_way way, index size, std::byte* home, index per_row,
                                     index stride, index rows, index columns, std::byte* panel,
                                     index pitch) {
  const auto move = [&](auto* typed) {
    using X = std::remove_pointer_t<decltype(typed)>;
    move_panel(way, reinterpret_cast<X*>(home), per_row, stride, rows, columns,
               reinterpret_cast<X*>(panel), pitch);
  };
  if (size == 1)
    move(static_cast<std::uint8_t*>(nullptr));
  else if (size == sizeof(float))
    move(static_cast<float*>(nullptr));
  else
    move(static_cast<double*>(nullptr));
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

  static std::byte* bytes(const void* x) { return static_cast<std::byte*>(const_cast<void*>(x)); }
  /// Where row 0 of the next tensor would lie, so that row begin_ is in its memory.
  std::byte* take(index size, std::byte*& memory) const {
    std::byte* const to = memory;
    memory += plan_.rows * plan_.pitch * size;
    return to - begin_ * plan_.pitch * size;
  }
  RLHF_NOINLINE void move(panel_way way, index size, std::byte* home, index per_row, index stride,
                          index columns, std::byte* origin) const {
    move_panel(way, size, home + begin_ * per_row * size, per_row, stride, end_ - begin_, columns,
               origin + begin_ * plan_.pitch * size, plan_.pitch);
  }
  std::byte* bring(const void* home, index size, index per_row, index stride,
                   std::byte*& memory) const {
    std::byte* const origin = take(size, memory);
    move(panel_way::in, size, bytes(home), per_row, stride, longest_, origin);
    return origin;
  }
  void turn_mask(const void* at) {
    mask_view<host_space>& mask = at_.domain->mask;
    const shape all(at_.domain->rows, at_.domain->columns), strides(plan_.pitch, index{1});
    if (mask.kind() == mask_kind::flag)
      mask = {static_cast<const std::uint8_t*>(at), all, strides};
    else if (mask.kind() == mask_kind::weight32)
      mask = {static_cast<const float*>(at), all, strides};
    else
      mask = {static_cast<const double*>(at), all, strides};
  }

 public:
  /// For a call whose rows are to be shared by panels among so many threads.
  RLHF_RARE static panel_plan plan(const panel_views<T>& v, index threads) {
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

  RLHF_RARE row_panel(const panel_plan& plan, std::byte* memory, const panel_views<T>& home,
                      const panel_places<T>& at)
      : plan_(plan), memory_(memory), home_(home), at_(at) {
    const mask_view<host_space>& mask = home_.domain->mask;
    if (is_column_major(mask)) turn_mask(mask.data());
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
  RLHF_RARE void enter(index row) {
    leave();
    begin_ = row;
    end_ = row + plan_.rows < limit_ ? row + plan_.rows : limit_;
    longest_ = 0;
    for (index i = begin_; i < end_; ++i)
      longest_ = at_.domain->length(i) > longest_ ? at_.domain->length(i) : longest_;
    std::byte* memory = memory_;
    const mask_view<host_space>& mask = home_.domain->mask;
    if (is_column_major(mask))
      turn_mask(bring(mask.data(), static_cast<index>(mask.element_size()), mask.stride(0),
                      mask.stride(1), memory));
    for (int k = 0; k < home_.inputs; ++k) {
      const token_input<T>& x = home_.in[k];
      if (is_column_major(x))
        at_.in[k].data =
            reinterpret_cast<T*>(bring(x.data, sizeof(T), x.per_row, x.stride, memory));
    }
    for (int k = 0; k < home_.outputs; ++k) {
      const token_output<T>& y = home_.out[k];
      if (!is_column_major(y)) continue;
      at_.out[k].data =
          reinterpret_cast<T*>(y.accumulate ? bring(y.data, sizeof(T), y.per_row, y.stride, memory)
                                            : take(sizeof(T), memory));
    }
    for (int k = 0; k < home_.flags; ++k) {
      const token_flags& x = home_.flag[k];
      if (is_column_major(x))
        at_.flag[k].data =
            reinterpret_cast<std::uint8_t*>(bring(x.data, 1, x.per_row, x.stride, memory));
    }
  }

  /// Brings the outputs home. A row of the panel has been walked to its end.
  RLHF_RARE void leave() {
    for (int k = 0; begin_ < end_ && k < home_.outputs; ++k) {
      const token_output<T>& y = home_.out[k];
      if (is_column_major(y))
        move(panel_way::out, sizeof(T), bytes(y.data), y.per_row, y.stride,
             y.accumulate ? longest_ : at_.domain->columns, bytes(at_.out[k].data));
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
