#pragma once

#include "rlhf/backend/host/count.hpp"
#include "rlhf/backend/host/map_reduce.hpp"
#include "rlhf/backend/host/reverse_scan/compaction.hpp"
#include "rlhf/backend/host/reverse_scan/tile.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Bytes of one row's mask, for masks of weights and of strided flags.
template <class Space>
struct flag_row {
  token_domain<Space> domain;
  std::uint8_t* to;  // [rows, columns] or packed like the domain
  RLHF_HOST_DEVICE void operator()(index i) const {
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    std::uint8_t* const row =
        to + (domain.kind == arrangement::packed ? domain.begin(i) : i * domain.columns);
    for (index j = 0; j < domain.length(i); ++j) row[j] = domain.mask.at(at + j * step) > 0 ? 1 : 0;
  }
};

/// How many valid tokens each row adds to its segment: enough to end it where the row is cut.
template <class Space>
struct row_positions {
  token_domain<Space> domain;
  hole_mode holes;
  index* to;
  void operator()(index i) const {
    const auto positions = static_cast<index>(count_row(domain, i).positions);
    const bool steps_at_holes = domain.mask.kind() != mask_kind::none && holes != hole_mode::skip;
    const bool cut = steps_at_holes && positions < moment_segment_tokens &&
                     domain.valid_length(i) > moment_piece_tiles * scan_tile_tokens;
    to[i] = cut ? moment_segment_tokens : positions;
  }
};

/// The rows of one call, in segments.
template <class V, class K, class Space>
class row_scan {
  using T = typename K::scalar_type;
  const K& kernel_;
  const scan_arguments<K, Space>& a_;
  const decay_powers<T>& power_;
  tile_scan<V, K> scan_;
  scan_tile<K> tile_;
  binary_tree<scan_sums<K::outputs>> pieces_;
  index positions_ = 0;  // of the piece
  bool cut_ = false;

  struct row {
    index i, begin, slots;
    const T* in[at_least_one(K::inputs)];
    const std::uint8_t* flag[at_least_one(K::flags)];
    T* out[at_least_one(K::outputs)];
    const std::uint8_t* valid;
  };

 public:
  row_scan(const K& kernel, const scan_arguments<K, Space>& a, const decay_powers<T>& power)
      : kernel_(kernel), a_(a), power_(power) {
    for (int k = 0; k < K::inputs; ++k)
      if (a.in[k].data == nullptr)
        for (T& x : tile_.in_buffer[k]) x = a.in[k].absent;
    for (int k = 0; k < K::flags; ++k)
      if (a.flag[k].data == nullptr)
        for (std::uint8_t& x : tile_.flag_buffer[k]) x = 0;
  }

  /// Rows from `first` on; `last` becomes one past the segment's end.
  RLHF_NOINLINE scan_sums<K::outputs> segment(index first, index& last) {
    scan_.begin_segment();
    pieces_ = {};
    positions_ = 0;
    cut_ = false;
    last = first;
    do run_row(last++);
    while (last < a_.domain.rows && last % moment_group_rows != 0 &&
           positions_ < moment_segment_tokens && !cut_);
    pieces_.push(scan_.end_segment(positions_));
    auto sums = pieces_.finish();
    if (!sums.finite()) [[unlikely]]
      for (index i = first; i < last; ++i) sums.nonfinite += static_cast<double>(recount(i));
    return sums;
  }

 private:
  static T read(const token_input<T>& x, index i, index begin) {
    return x.data == nullptr ? x.absent : x.data[i * x.per_row + begin * x.per_begin];
  }

  row open(index i) const {
    row r;
    r.i = i;
    r.begin = a_.domain.begin(i);
    r.slots = a_.domain.slots(i);
    for (int k = 0; k < K::inputs; ++k)
      r.in[k] = a_.in[k].data == nullptr
                    ? nullptr
                    : a_.in[k].data + i * a_.in[k].per_row + r.begin * a_.in[k].per_begin;
    for (int k = 0; k < K::flags; ++k)
      r.flag[k] = a_.flag[k].data == nullptr
                      ? nullptr
                      : a_.flag[k].data + i * a_.flag[k].per_row + r.begin * a_.flag[k].per_begin;
    for (int k = 0; k < K::outputs; ++k)
      r.out[k] = a_.out[k].data == nullptr
                     ? nullptr
                     : a_.out[k].data + i * a_.out[k].per_row + r.begin * a_.out[k].per_begin;
    r.valid =
        a_.domain.mask.kind() == mask_kind::none
            ? nullptr
            : static_cast<const std::uint8_t*>(a_.domain.mask.data()) + a_.domain.mask_offset(i);
    return r;
  }

  /// +0 where no token is, unless the output is added to.
  void clear(const row& r, index from, index to) const {
    if (from < to) clear_some(r, from, to);
  }
  RLHF_NOINLINE void clear_some(const row& r, index from, index to) const {
    for (int k = 0; k < K::outputs; ++k) {
      if (r.out[k] == nullptr || a_.out[k].accumulate) continue;
      const index stride = a_.out[k].stride;
      if (stride == 1)
        __builtin_memset(r.out[k] + from, 0, static_cast<std::size_t>(to - from) * sizeof(T));
      else
        for (index j = from; j < to; ++j) r.out[k][j * stride] = T(0);
    }
  }

  void run_row(index i) {
    const row r = open(i);
    index end = a_.domain.length(i);
    if (r.valid != nullptr) end = after_last_flag(r.valid, end);
    clear(r, end, r.slots);
    if (end == 0) return;
    const bool skip = r.valid != nullptr && a_.holes == hole_mode::skip;
    T after = read(a_.after, i, r.begin);
    double carry = static_cast<double>(read(a_.end, i, r.begin));
    index tiles = 0;
    while (end > 0) {
      index from = end > scan_tile_tokens ? end - scan_tile_tokens : 0;
      tile_.count = end - from;
      if (skip) from = reach_back(r.valid, end, tile_.count);
      const bool dense = tile_.count == end - from;
      tile_.counted = r.valid != nullptr && !skip ? r.valid + from : nullptr;
      if (dense)
        point(r, from);
      else
        gather(r, from, end);
      scan_.run(kernel_, power_, tile_, after, carry);
      if constexpr (K::shifted >= 0) after = tile_.in[K::shifted][0];
      positions_ += tile_.counted == nullptr ? tile_.count : count_flags(tile_.counted, tile_.count);
      if (dense)
        copy_back(r, from);
      else
        scatter(r, from, end);
      end = from;
      if (skip) {
        const index next = after_last_flag(r.valid, end);
        clear(r, next, end);
        end = next;
      }
      if (++tiles % moment_piece_tiles == 0 && end > 0) {
        pieces_.push(scan_.end_piece(positions_));
        positions_ = 0;
        cut_ = true;
      }
    }
  }

  /// Where a tile that ends at `end` begins, so that it holds 1,024 valid tokens or all there are.
  static index reach_back(const std::uint8_t* valid, index end, index& count) {
    index from = end;
    count = 0;
    while (from >= 8) {
      const index more = flag_count(flag_word(valid + from - 8));
      if (count + more > scan_tile_tokens) break;
      count += more;
      from -= 8;
    }
    while (from > 0 && count < scan_tile_tokens) count += valid[--from] != 0 ? 1 : 0;
    return from + first_flag(valid + from, end - from);
  }

  /// A tile of consecutive tokens: the caller's memory where it is contiguous.
  void point(const row& r, index from) {
    const index n = tile_.count;
    for (int k = 0; k < K::inputs; ++k) {
      const index stride = a_.in[k].stride;
      T* const buffer = tile_.in_buffer[k];
      tile_.in[k] = buffer;
      if (r.in[k] == nullptr) continue;
      const T* const at = r.in[k] + from * stride;
      if (tile_.counted != nullptr && a_.holes == hole_mode::zero)
        for (index j = 0; j < n; ++j) buffer[j] = tile_.counted[j] != 0 ? at[j * stride] : T(0);
      else if (stride == 1)
        tile_.in[k] = at;
      else
        for (index j = 0; j < n; ++j) buffer[j] = at[j * stride];
    }
    for (int k = 0; k < K::flags; ++k) {
      const index stride = a_.flag[k].stride;
      std::uint8_t* const buffer = tile_.flag_buffer[k];
      tile_.flag[k] = buffer;
      if (r.flag[k] == nullptr) continue;
      const std::uint8_t* const at = r.flag[k] + from * stride;
      if (tile_.counted != nullptr && a_.holes == hole_mode::zero)
        for (index j = 0; j < n; ++j)
          buffer[j] = tile_.counted[j] != 0 ? at[j * stride] : std::uint8_t{0};
      else if (stride == 1)
        tile_.flag[k] = at;
      else
        for (index j = 0; j < n; ++j) buffer[j] = at[j * stride];
    }
    for (int k = 0; k < K::outputs; ++k) {
      const bool direct = r.out[k] != nullptr && a_.out[k].stride == 1 && !a_.out[k].accumulate;
      tile_.out[k] = direct ? r.out[k] + from : tile_.out_buffer[k];
    }
  }

  void copy_back(const row& r, index from) {
    for (int k = 0; k < K::outputs; ++k)
      if (r.out[k] != nullptr && tile_.out[k] == tile_.out_buffer[k]) copy_output(r, from, k);
  }
  RLHF_NOINLINE void copy_output(const row& r, index from, int k) {
    const index stride = a_.out[k].stride;
    T* const at = r.out[k] + from * stride;
    const T* const y = tile_.out_buffer[k];
    if (!a_.out[k].accumulate)
      for (index j = 0; j < tile_.count; ++j) at[j * stride] = y[j];
    else
      for (index j = 0; j < tile_.count; ++j)
        if (tile_.counted == nullptr || tile_.counted[j] != 0) at[j * stride] += y[j];
  }

  /// A tile with holes: its valid tokens, close together.
  RLHF_NOINLINE void gather(const row& r, index from, index end) {
    for (int k = 0; k < K::inputs; ++k) tile_.in[k] = tile_.in_buffer[k];
    for (int k = 0; k < K::flags; ++k) tile_.flag[k] = tile_.flag_buffer[k];
    for (int k = 0; k < K::outputs; ++k) tile_.out[k] = tile_.out_buffer[k];
    bool dense_inputs = true;
    for (int k = 0; k < K::inputs; ++k)
      dense_inputs = dense_inputs && (r.in[k] == nullptr || a_.in[k].stride == 1);
    for (int k = 0; k < K::flags; ++k)
      dense_inputs = dense_inputs && (r.flag[k] == nullptr || a_.flag[k].stride == 1);
    index j = from, to = 0;
    if (dense_inputs)
      for (; j + 8 <= end; j += 8) {
        const std::uint64_t word = flag_word(r.valid + j);
        if (word == 0) continue;
        const unsigned bits = flag_bits(word);
        for (int k = 0; k < K::inputs; ++k) {
          if (r.in[k] == nullptr) continue;
          if (bits == 255)
            __builtin_memcpy(tile_.in_buffer[k] + to, r.in[k] + j, 8 * sizeof(T));
          else
            close_up(r.in[k] + j, bits, tile_.in_buffer[k] + to);
        }
        for (int k = 0; k < K::flags; ++k)
          if (r.flag[k] != nullptr)
            for (index l = 0, at = to; l < 8; ++l) {
              tile_.flag_buffer[k][at] = r.flag[k][j + l];
              at += bits >> l & 1u;
            }
        to += flag_count(word);
      }
    for (; j < end; ++j) {
      if (r.valid[j] == 0) continue;
      for (int k = 0; k < K::inputs; ++k)
        if (r.in[k] != nullptr) tile_.in_buffer[k][to] = r.in[k][j * a_.in[k].stride];
      for (int k = 0; k < K::flags; ++k)
        if (r.flag[k] != nullptr) tile_.flag_buffer[k][to] = r.flag[k][j * a_.flag[k].stride];
      ++to;
    }
  }

  RLHF_NOINLINE void scatter(const row& r, index from, index end) {
    for (int k = 0; k < K::outputs; ++k) {
      if (r.out[k] == nullptr) continue;
      const index stride = a_.out[k].stride;
      const T* y = tile_.out_buffer[k];
      T* const to = r.out[k];
      index j = from;
      if (stride == 1 && !a_.out[k].accumulate)
        for (; j + 8 <= end; j += 8) {
          const std::uint64_t word = flag_word(r.valid + j);
          const unsigned bits = flag_bits(word);
          if (bits == 255)
            __builtin_memcpy(to + j, y, 8 * sizeof(T));
          else if (bits == 0)
            __builtin_memset(to + j, 0, 8 * sizeof(T));
          else
            spread_out(y, bits, r.valid + j, to + j);
          y += flag_count(word);
        }
      for (; j < end; ++j) {
        if (r.valid[j] != 0) {
          if (a_.out[k].accumulate)
            to[j * stride] += *y++;
          else
            to[j * stride] = *y++;
        } else if (!a_.out[k].accumulate) {
          to[j * stride] = T(0);
        }
      }
    }
  }

  /// Valid tokens of row i whose inputs are not finite.
  RLHF_NOINLINE index recount(index i) const {
    const row r = open(i);
    index bad = 0;
    bool last = true;
    for (index j = a_.domain.length(i); j-- > 0;) {
      if (r.valid != nullptr && r.valid[j] == 0) continue;
      scan_lanes<T, K> t;
      for (int k = 0; k < K::inputs; ++k)
        t.in[k] = r.in[k] == nullptr ? a_.in[k].absent : r.in[k][j * a_.in[k].stride];
      for (int k = 0; k < K::flags; ++k)
        t.flag[k] = r.flag[k] != nullptr && r.flag[k][j * a_.flag[k].stride] != 0;
      bool usable = kernel_.usable(t);
      if (last)
        usable = usable && math::is_finite(read(a_.after, i, r.begin)) &&
                 math::is_finite(read(a_.end, i, r.begin));
      last = false;
      bad += usable ? 0 : 1;
    }
    return bad;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
