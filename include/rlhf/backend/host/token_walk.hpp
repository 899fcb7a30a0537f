#pragma once

#include <cstdint>
#include <type_traits>

#include "rlhf/backend/host/count.hpp"
#include "rlhf/backend/host/lane_sums.hpp"
#include "rlhf/backend/host/row_panel.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

enum class lanes_masked { no, by_flags, by_weights };

/// Steps of 16 tokens with every input contiguous: in the caller's tensors or in buffers.
template <class T>
struct token_tile {
  const T* const* in;
  T* const* out;
  const std::uint8_t* flags;
  const T* weights;
  const T* scale;
};

/// A kernel without its type, and what it works on: the walk below is compiled once for all.
template <class T>
struct token_work {
  const void* kernel;
  /// Reduces steps [first, last) of each of the groups [group, group_end) into the tree.
  void (*reduce)(const token_work& work, index group, index group_end, index first, index last,
                 index group_rows, figure_tree& into);
  void (*sweep)(const void* kernel, const token_tile<T>& tile, lanes_masked masked, index from,
                index steps, T* lanes);
  int inputs, outputs, sums, ranges, scales;
  bool takes_flags, takes_weights;
  const token_domain<host_space>* domain;
  const token_input<T>* in;
  const token_output<T>* out;
  const row_scale* scale;
  row_panel<T>* panel = nullptr;  // where the views above are of one
};

/// As many steps as a flush has of floats: the inputs of most kernels then fit the nearest cache.
template <class T>
inline constexpr index tile_steps = 256 / static_cast<index>(sizeof(T));
template <class T>
inline constexpr index tile_tokens = tile_steps<T>* virtual_lanes;

/// Memory of a walk, owned by its caller, who knows how much a kernel needs.
template <class T>
struct walk_memory {
  const T** in;   // inputs
  T** out;        // outputs
  T* in_buffer;   // inputs · tile_tokens
  T* out_buffer;  // outputs · tile_tokens
  index* filled;  // inputs
  T* scale;       // scales
  T* lanes;       // 16 · figures
  double* level;  // figure_tree::levels · figures
};

inline index steps_of(index length) {
  return length > 0 ? (length + virtual_lanes - 1) / virtual_lanes : 1;
}

template <class X>
RLHF_NOINLINE void fill_tokens(X* to, index step, index n, X value) {
  if (step == 1)
    for (index j = 0; j < n; ++j) to[j] = value;
  else
    for (index j = 0; j < n; ++j) to[j * step] = value;
}
template <class X, class Y>
RLHF_NOINLINE void copy_tokens(X* to, index to_step, const Y* from, index from_step, index n) {
  if (std::is_same_v<X, Y> && to_step == 1 && from_step == 1)
    __builtin_memcpy(to, from, static_cast<std::size_t>(n) * sizeof(X));
  else
    for (index j = 0; j < n; ++j) to[j * to_step] = static_cast<X>(from[j * from_step]);
}

/// Walks the rows of a group: cuts them into tiles, hands these to the kernel's sweep, and brings
/// the outputs home. Rows that lie side by side and fill their steps run as one; short rows share a
/// tile that is copied together.
template <class T>
class token_walk {
  /// Rows that run as one: a single row, or such as join in memory.
  struct row_run {
    index row;
    index rows;
    index length;  // tokens; of joined rows, their slots
    bool whole;    // no row of joined ones ends early
  };
  /// Steps of a run that lie in the tile.
  struct piece {
    row_run run;
    index from;  // first token
    index steps;
    index tokens;  // <= 16 · steps
  };
  static constexpr index few_steps = 8;  // up to here a copy costs less than a tile of its own
  static constexpr index block = 8;      // steps that are masked alike
  static constexpr index one_value = index{1} << 62;

  const token_work<T>& work_;
  const token_domain<host_space>& domain_;
  const walk_memory<T>& memory_;
  lane_sums<T> lanes_;
  piece pieces_[tile_steps<T>];
  int count_ = 0;
  index steps_ = 0;
  index scale_row_ = -1;
  bool row_scales_ = false;
  bool joins_ = false;
  bool whole_ = false;   // one stretch of memory may serve the tile
  bool ragged_ = false;  // the tile's last step is masked by flags, and no other
  token_tile<T> tile_;
  lanes_masked masked_ = lanes_masked::no;
  alignas(64) T weight_[tile_tokens<T>];
  alignas(64) std::uint8_t flag_[tile_tokens<T>];

 public:
  token_walk(const token_work<T>& work, const walk_memory<T>& memory)
      : work_(work),
        domain_(*work.domain),
        memory_(memory),
        lanes_(memory.lanes, memory.level, work.sums + 1, work.ranges) {
    for (int k = 0; k < work_.scales; ++k)
      row_scales_ = row_scales_ || work_.scale[k].per_row != nullptr;
    for (int k = 0; k < work_.inputs; ++k) memory_.filled[k] = -1;
    joins_ = domain_.rows > 1 && rows_join();
  }

  /// Steps [first, last) of the rows [row, row_end). The range begins and, but for the group's end,
  /// ends at a flush, so its total is a subtree of the group's.
  void walk(index row, index row_end, index first, index last, double* figures) {
    index passed = 0;  // steps of earlier rows
    while (row < row_end && passed < last) {
      const row_run run =
          next_run(row, work_.panel != nullptr ? enter_panel(row, row_end) : row_end);
      row += run.rows;
      const index steps = steps_of(run.length);
      const index from = first > passed ? first - passed : 0;
      const index to = last - passed < steps ? last - passed : steps;
      passed += steps;
      if (from >= to) continue;
      if (to == steps && (run.rows == 1 || domain_.kind == arrangement::packed)) pad(run);
      if (run.length > 0) {
        add(run, from, to);
      } else {
        run_tile();
        lanes_.begin();
        lanes_.advance(1);
      }
    }
    run_tile();
    lanes_.finish(figures);
  }

 private:
  /// Sees to it that the panel has the row, and returns where its rows, or all, end.
  RLHF_NOINLINE index enter_panel(index row, index row_end) {
    if (!work_.panel->holds(row)) {
      run_tile();
      work_.panel->enter(row);
    }
    return work_.panel->end() < row_end ? work_.panel->end() : row_end;
  }

  /// Where a piece begins in a tensor.
  RLHF_NOINLINE index place(index per_row, index per_begin, index stride, const piece& p) const {
    return p.run.row * per_row + domain_.begin(p.run.row) * per_begin + p.from * stride;
  }
  template <class X>
  index place(const X& x, const piece& p) const {
    return place(x.per_row, x.per_begin, x.stride, p);
  }
  index mask_place(const piece& p) const {
    const bool packed = domain_.kind == arrangement::packed;
    const index stride = domain_.mask.stride(0);
    return place(packed ? 0 : stride, packed ? stride : 0, domain_.mask_stride(), p);
  }

  /// Slots of a run in memory, masked ones included.
  RLHF_NOINLINE index slots(const row_run& run) const {
    if (run.rows == 1) return domain_.slots(run.row);
    if (domain_.kind != arrangement::packed) return run.length;
    const index last = run.row + run.rows - 1;
    return domain_.begin(last) + domain_.length(last) - domain_.begin(run.row);
  }

  /// Whether row i + 1 goes on in memory where row i ends, in every tensor, with no factor that
  /// changes from row to row.
  RLHF_NOINLINE bool rows_join() const {
    const token_domain<host_space>& d = domain_;
    const bool packed = d.kind == arrangement::packed;
    if (row_scales_ || (!packed && (d.columns == 0 || d.columns % virtual_lanes != 0)))
      return false;
    const index per_row = packed ? 0 : d.columns;
    if (d.mask.kind() != mask_kind::none &&
        (d.mask_stride() != 1 || (!packed && d.mask.stride(0) != d.columns)))
      return false;
    for (int k = 0; k < work_.inputs; ++k) {
      const token_input<T>& x = work_.in[k];
      if (x.data == nullptr || (x.stride == 0 && !packed)) continue;
      if (x.stride != 1 || x.per_row != per_row) return false;
    }
    for (int k = 0; k < work_.outputs; ++k) {
      const token_output<T>& y = work_.out[k];
      if (y.data != nullptr && (y.stride != 1 || y.per_row != per_row)) return false;
    }
    return true;
  }

  /// Rows that join and take all the steps of their columns have the order of one long row; what
  /// lies behind the end of one is masked.
  RLHF_NOINLINE row_run next_run(index row, index row_end) const {
    const token_domain<host_space>& d = domain_;
    if (!joins_) return {row, 1, last_counted(d, row), true};
    if (d.kind == arrangement::packed) {
      // A row that fills its steps has the next one behind it.
      index length = last_counted(d, row);
      index end = row + 1;
      const auto filled = [&](index last) {
        return last > 0 && last % virtual_lanes == 0 && last == d.length(end - 1);
      };
      for (index last = length; filled(last) && end < row_end; ++end) {
        last = last_counted(d, end);
        if (last == 0) break;
        length += last;
      }
      return {row, end - row, length, true};
    }
    const bool plain = d.kind == arrangement::padded;
    if (plain && (d.mask.kind() == mask_kind::none || d.columns == virtual_lanes))
      return {row, row_end - row, (row_end - row) * d.columns, true};
    index end = row;
    bool whole = true;
    for (; end < row_end; ++end) {
      const index length = d.length(end);
      if (d.columns > virtual_lanes && last_counted(d, end) <= d.columns - virtual_lanes) break;
      whole = whole && length == d.columns;
    }
    // A single row goes its own way: a tile of its tail needs no flags of other rows.
    if (end - row <= 1) return {row, 1, last_counted(d, row), true};
    return {row, end - row, (end - row) * d.columns, whole};
  }

  RLHF_NOINLINE void add(const row_run& run, index from, index to) {
    const bool covered = slots(run) >= to * virtual_lanes;
    for (index s = from; s < to;) {
      const index space = lanes_.room() < tile_steps<T> ? lanes_.room() : tile_steps<T>;
      index n = to - s;
      if (count_ > 0 && (n > few_steps || steps_ + n > space || row_scales_)) {
        run_tile();
        continue;
      }
      if (n > space) n = space;
      // A last step that memory does not hold is copied; the full ones before it need not be.
      if ((s + n) * virtual_lanes > run.length && !covered && n > few_steps) --n;
      const index at = s * virtual_lanes;
      const index rest = run.length - at;
      pieces_[count_++] = {run, at, n, rest < n * virtual_lanes ? rest : n * virtual_lanes};
      steps_ += n;
      s += n;
      if (n > few_steps || steps_ == space) run_tile();
    }
  }

  /// Whether one contiguous stretch of memory serves the whole tile.
  bool direct(index stride) const { return whole_ && stride == 1; }

  RLHF_NOINLINE void load_input(int k) {
    const token_input<T>& x = work_.in[k];
    T* const buffer = memory_.in_buffer + k * tile_tokens<T>;
    memory_.in[k] = buffer;
    index& filled = memory_.filled[k];
    if (x.data == nullptr) {
      // One value for all tokens: it stays as far as a tile has reached.
      const index from = filled > 0 ? filled : 0, to = steps_ * virtual_lanes;
      if (from < to) fill_tokens(buffer + from, 1, to - from, x.absent);
      filled = from < to ? to : from;
      return;
    }
    if (direct(x.stride)) {
      memory_.in[k] = x.data + place(x, pieces_[0]);
      return;
    }
    T* to = buffer;
    if (x.stride == 0) {
      const piece& p = pieces_[0];
      if (count_ == 1 && p.run.rows == 1) {
        // One value for the tile: it stays until the row changes.
        if (filled == p.run.row) return;
        const T value = x.data[place(x, p)];  // the stride is 0
        const index most =
            p.run.length < tile_tokens<T> ? steps_of(p.run.length) * virtual_lanes : tile_tokens<T>;
        fill_tokens(buffer, 1, most, value);
        filled = p.run.row;
        return;
      }
      filled = -1;
      for (int c = 0; c < count_; ++c) to = spread(x, pieces_[c], to);
      return;
    }
    for (int c = 0; c < count_; ++c) {
      const piece& p = pieces_[c];
      T* const end = to + p.steps * virtual_lanes;
      if (to + p.tokens < end)
        __builtin_memset(end - virtual_lanes, 0,
                         sizeof(T) * static_cast<std::size_t>(virtual_lanes));
      copy_tokens(to, 1, x.data + place(x, p), x.stride, p.tokens);
      to = end;
    }
  }

  /// One value per row.
  RLHF_NOINLINE T* spread(const token_input<T>& x, const piece& p, T* to) const {
    const index all = p.steps * virtual_lanes;
    const index columns = p.run.rows > 1 ? domain_.columns : one_value;
    index row = p.run.row + p.from / columns;
    for (index j = 0, end = columns - p.from % columns; j < all; end += columns, ++row) {
      if (end > all) end = all;
      fill_tokens(to + j, 1, end - j, x.data[row * x.per_row + domain_.begin(row) * x.per_begin]);
      j = end;
    }
    return to + all;
  }

  /// Zeros in `to` where a row has ended.
  template <class X>
  RLHF_NOINLINE void clear_tails(const piece& p, X* to) const {
    const index all = p.steps * virtual_lanes;
    if (p.tokens < all) fill_tokens(to + p.tokens, 1, all - p.tokens, X(0));
    if (p.run.whole || p.run.rows == 1) return;
    const index columns = domain_.columns;
    index row = p.run.row + p.from / columns;
    for (index begin = -(p.from % columns); begin < all; begin += columns, ++row) {
      index from = begin + domain_.length(row);
      if (from < 0) from = 0;
      const index end = begin + columns < all ? begin + columns : all;
      for (; from < end; ++from) to[from] = X(0);
    }
  }

  RLHF_NOINLINE void load_mask() {
    ragged_ = false;
    const mask_view<host_space>& mask = domain_.mask;
    const index step = domain_.mask_stride();
    const bool weighs = mask.kind() == mask_kind::weight32 || mask.kind() == mask_kind::weight64;
    bool ends = false;  // some row ends in the tile
    for (int c = 0; c < count_; ++c)
      ends = ends || !pieces_[c].run.whole || pieces_[c].tokens < pieces_[c].steps * virtual_lanes;
    if (weighs || !work_.takes_flags) {
      masked_ = lanes_masked::by_weights;
      T* to = weight_;
      for (int c = 0; c < count_; ++c, to += pieces_[c - 1].steps * virtual_lanes) {
        const piece& p = pieces_[c];
        load_weights(mask, mask_place(p), step, p.tokens, to);
        clear_tails(p, to);
      }
      tile_.weights = weight_;
      return;
    }
    const piece& first = pieces_[0];
    if (mask.kind() == mask_kind::none &&
        (!ends || (count_ == 1 && first.run.rows == 1 && first.steps > 1))) {
      masked_ = lanes_masked::no;
      if (!ends) return;
      // A row that ends within its last step: flags of that step are enough.
      std::uint8_t* const last = flag_ + (first.steps - 1) * virtual_lanes;
      const index there = first.tokens % virtual_lanes;
      for (index j = 0; j < virtual_lanes; ++j) last[j] = j < there ? 1 : 0;
      tile_.flags = flag_;
      ragged_ = true;
      return;
    }
    masked_ = lanes_masked::by_flags;
    // Behind its last counted token a padded row has no flag that is set.
    if (mask.kind() == mask_kind::flag && direct(step) &&
        (!ends || domain_.kind == arrangement::padded)) {
      tile_.flags = static_cast<const std::uint8_t*>(mask.data()) + mask_place(pieces_[0]);
      return;
    }
    std::uint8_t* to = flag_;
    for (int c = 0; c < count_; ++c) {
      const piece& p = pieces_[c];
      if (mask.kind() == mask_kind::none)
        fill_tokens(to, 1, p.tokens, std::uint8_t{1});
      else
        copy_tokens(to, 1, static_cast<const std::uint8_t*>(mask.data()) + mask_place(p), step,
                    p.tokens);
      clear_tails(p, to);
      to += p.steps * virtual_lanes;
    }
    tile_.flags = flag_;
  }

  RLHF_NOINLINE static void load_weights(const mask_view<host_space>& mask, index at, index step,
                                         index n, T* to) {
    switch (mask.kind()) {
      case mask_kind::none:
        return fill_tokens(to, 1, n, T(1));
      case mask_kind::flag: {
        const auto* const from = static_cast<const std::uint8_t*>(mask.data()) + at;
        for (index j = 0; j < n; ++j) to[j] = from[j * step] != 0 ? T(1) : T(0);
        return;
      }
      case mask_kind::weight32:
        return copy_tokens(to, 1, static_cast<const float*>(mask.data()) + at, step, n);
      case mask_kind::weight64:
        return copy_tokens(to, 1, static_cast<const double*>(mask.data()) + at, step, n);
    }
  }

  RLHF_NOINLINE void run_tile() {
    if (count_ == 0) return;
    const piece& first = pieces_[0];
    const index row = first.run.row;
    whole_ = count_ == 1 && (first.tokens == first.steps * virtual_lanes ||
                             slots(first.run) >= first.from + first.steps * virtual_lanes);
    if (scale_row_ < 0 || (row_scales_ && scale_row_ != row)) {
      for (int k = 0; k < work_.scales; ++k)
        memory_.scale[k] = static_cast<T>(work_.scale[k].at(row));
      scale_row_ = row;
    }
    for (int k = 0; k < work_.inputs; ++k) load_input(k);
    for (int k = 0; k < work_.outputs; ++k) {
      const token_output<T>& y = work_.out[k];
      memory_.out[k] = y.data != nullptr && !y.accumulate && direct(y.stride)
                           ? y.data + place(y, pieces_[0])
                           : memory_.out_buffer + k * tile_tokens<T>;
    }
    tile_.in = memory_.in;
    tile_.out = memory_.out;
    tile_.scale = memory_.scale;
    load_mask();
    lanes_.begin();
    if (masked_ == lanes_masked::by_flags)
      sweep_blocks();
    else
      work_.sweep(work_.kernel, tile_, masked_, 0, ragged_ ? steps_ - 1 : steps_, lanes_.lanes());
    if (ragged_)
      work_.sweep(work_.kernel, tile_, lanes_masked::by_flags, steps_ - 1, 1, lanes_.lanes());
    for (int k = 0; k < work_.outputs; ++k)
      if (work_.out[k].data != nullptr && memory_.out[k] == memory_.out_buffer + k * tile_tokens<T>)
        store(k);
    lanes_.advance(steps_);
    count_ = 0;
    steps_ = 0;
  }

  /// Blocks without a hole take the kernel without a mask, blocks of nothing are left out.
  RLHF_NOINLINE void sweep_blocks() {
    for (index from = 0; from < steps_;) {
      index to = from;
      lanes_masked how = lanes_masked::no;
      bool empty = false;
      while (to < steps_) {
        const index n = steps_ - to < block ? steps_ - to : block;
        const flags_seen seen = look_at_flags(tile_.flags + to * virtual_lanes, n * virtual_lanes);
        const bool none = !seen.some;
        const lanes_masked here = seen.all ? lanes_masked::no : lanes_masked::by_flags;
        if (to > from && (none != empty || (!none && here != how))) break;
        empty = none;
        how = here;
        to += n;
      }
      if (!empty) {
        work_.sweep(work_.kernel, tile_, how, from, to - from, lanes_.lanes());
      } else {
        for (int k = 0; k < work_.outputs; ++k)
          fill_tokens(memory_.out[k] + from * virtual_lanes, 1, (to - from) * virtual_lanes, T(0));
      }
      from = to;
    }
  }

  /// Brings a buffered output home.
  RLHF_NOINLINE void store(int k) {
    const token_output<T>& y = work_.out[k];
    const T* from = memory_.out[k];
    index at = 0;
    for (int c = 0; c < count_; ++c) {
      const piece& p = pieces_[c];
      T* const to = y.data + place(y, p);
      const index left = slots(p.run) - p.from;
      const index n = left < p.steps * virtual_lanes ? left : p.steps * virtual_lanes;
      if (!y.accumulate)
        copy_tokens(to, y.stride, from, 1, n);
      else
        for (index j = 0; j < p.tokens; ++j)
          if (masked_ == lanes_masked::no ||
              (masked_ == lanes_masked::by_flags ? tile_.flags[at + j] != 0
                                                 : tile_.weights[at + j] > T(0)))
            to[j * y.stride] += from[j];
      from += p.steps * virtual_lanes;
      at += p.steps * virtual_lanes;
    }
  }

  /// +0 behind the last token of a run, where an output is overwritten.
  RLHF_NOINLINE void pad(const row_run& run) {
    const index end = slots(run);
    if (run.length == end) return;
    for (int k = 0; k < work_.outputs; ++k) {
      const token_output<T>& y = work_.out[k];
      if (y.data == nullptr || y.accumulate) continue;
      fill_tokens(y.data + place(y, {run, run.length, 0, 0}), y.stride, end - run.length, T(0));
    }
  }
};

template <class T>
panel_views<T> views_of(const token_work<T>& work) {
  return {work.domain, work.in, work.inputs, work.out, work.outputs};
}

/// The same work on a panel.
template <class T>
class work_on_panel {
  static constexpr int most = 16;
  token_domain<host_space> domain_;
  token_input<T> in_[most];
  token_output<T> out_[most];
  row_panel<T> panel_;
  token_work<T> work_;

  panel_places<T> copy(const token_work<T>& work) {
    for (int k = 0; k < work.inputs; ++k) in_[k] = work.in[k];
    for (int k = 0; k < work.outputs; ++k) out_[k] = work.out[k];
    return {&domain_, in_, out_};
  }

 public:
  work_on_panel(const token_work<T>& work, const panel_plan& plan, std::byte* memory)
      : domain_(*work.domain), panel_(plan, memory, views_of(work), copy(work)), work_(work) {
    work_.domain = &domain_;
    work_.in = in_;
    work_.out = out_;
    work_.panel = &panel_;
  }
  static bool takes(const token_work<T>& work) {
    return work.inputs <= most && work.outputs <= most;
  }

  /// f(the work), which takes rows before `row_end` alone, one after the other.
  template <class F>
  void run(index row_end, const F& f) {
    panel_.stop_at(row_end);
    f(work_);
    panel_.leave();
  }
};

template <class T>
RLHF_NOINLINE void walk_groups(const token_work<T>& work, const walk_memory<T>& memory, index group,
                               index group_end, index first, index last, index group_rows,
                               figure_tree& into) {
  token_walk<T> walk(work, memory);
  const index rows = work.domain->rows;
  for (; group < group_end; ++group) {
    const index end = (group + 1) * group_rows < rows ? (group + 1) * group_rows : rows;
    walk.walk(group * group_rows, end, first, last, into.next());
    into.push();
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
