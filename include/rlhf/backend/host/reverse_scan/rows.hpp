#pragma once

#include "rlhf/backend/host/count.hpp"
#include "rlhf/backend/host/lane_sums.hpp"
#include "rlhf/backend/host/reverse_scan/compaction.hpp"
#include "rlhf/backend/host/reverse_scan/tile.hpp"
#include "rlhf/backend/host/row_panel.hpp"

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

/// The moments of up to 64 segments.
template <int N>
using group_tree = binary_tree<scan_sums<N>, 7>;

/// The rows of one call, in segments. Rows of one tile are scanned several at a time: a call of the
/// scan costs more than a short row.
template <class V, class K, class Space>
class row_scan {
  using T = typename K::scalar_type;
  static constexpr index gap = 8;  // elements before a part that closing up its holes may write to
  static constexpr index room = scan_tile_tokens + 64 * gap + 2 * scan_block_tokens;
  static constexpr index few_tokens = 64;
  static constexpr index short_slots = 256;

  const K& kernel_;
  const scan_arguments<K, Space>& a_;
  const scan_arguments<K, Space>& home_;  // the same, where a_ is on a panel
  row_panel<T>* const panel_;
  tile_scan<V, K> scan_;
  bool direct_ = true;   // tokens of consecutive slots are scanned where they lie
  bool compact_ = true;  // holes close up by words of 8 flags
  bool spread_ = true;   // and open again
  bool hides_ = false;   // an output goes nowhere
  bool reads_mask_;
  bool short_ = false;  // rows of few slots go a way of their own

  struct row {
    index i, begin, slots;
    const T* in[at_least_one(K::inputs)];
    const std::uint8_t* flag[at_least_one(K::flags)];
    T* out[at_least_one(K::outputs)];
    const std::uint8_t* valid;
  };
  /// Where the outputs of a part belong that are not written there at once.
  struct origin {
    index row, from, end;
    bool dense;
  };

  binary_tree<scan_sums<K::outputs>> pieces_;  // of the segment, once it is cut
  bool cut_ = false;
  index positions_ = 0;  // valid tokens of the piece

  index parts_ = 0;
  index used_ = 0;  // of the buffers
  scan_part<K> part_[64];
  origin origin_[64];
  alignas(64) T in_buffer_[at_least_one(K::inputs)][room];
  alignas(64) T out_buffer_[at_least_one(K::outputs)][room];
  alignas(64) T absent_[at_least_one(K::inputs)][room];
  alignas(64) std::uint8_t flag_buffer_[at_least_one(K::flags)][room];
  alignas(64) std::uint8_t no_flag_[K::flags > 0 ? static_cast<std::size_t>(room) : 1];

 public:
  row_scan(const K& kernel, const scan_arguments<K, Space>& a, const decay_powers<T>& power)
      : row_scan(kernel, a, power, a, nullptr) {}
  row_scan(const K& kernel, const scan_arguments<K, Space>& a, const decay_powers<T>& power,
           const scan_arguments<K, Space>& home, row_panel<T>* panel)
      : kernel_(kernel), a_(a), home_(home), panel_(panel), scan_(kernel, power) {
    reads_mask_ = a.domain.mask.kind() != mask_kind::none;
    for (int k = 0; k < K::inputs; ++k) {
      compact_ = compact_ && (a.in[k].data == nullptr || a.in[k].stride == 1);
      if (a.in[k].data == nullptr)
        for (T& x : absent_[k]) x = a.in[k].absent;
    }
    for (int k = 0; k < K::flags; ++k)
      compact_ = compact_ && (a.flag[k].data == nullptr || a.flag[k].stride == 1);
    if constexpr (K::flags > 0) __builtin_memset(no_flag_, 0, sizeof no_flag_);
    for (int k = 0; k < K::outputs; ++k)
      spread_ =
          spread_ && (a.out[k].data == nullptr || (a.out[k].stride == 1 && !a.out[k].accumulate));
    direct_ = compact_ && spread_ && !(reads_mask_ && a.holes == hole_mode::zero);
    for (int k = 0; k < K::outputs; ++k) hides_ = hides_ || a.out[k].data == nullptr;
    if constexpr (K::flags == 0) short_ = has_short_rows();
  }

  /// Rows from `first` on; `last` becomes one past the segment's end.
  RLHF_NOINLINE scan_sums<K::outputs> segment(index first, index& last) {
    scan_.begin_segment();
    cut_ = false;
    positions_ = 0;
    last = first;
    do {
      if (panel_ != nullptr && !panel_->holds(last)) {
        finish_parts();
        panel_->enter(last);
      }
      if constexpr (K::flags == 0) {
        if (short_) {
          last = add_short_rows(last);
          continue;
        }
      }
      add_row(last++);
    } while (goes_on(last));
    finish_parts();
    auto sums = scan_.end_segment(positions_);
    if (cut_) {
      pieces_.push(sums);
      sums = pieces_.finish();
    }
    count_nonfinite(sums, first, last);
    return sums;
  }

  /// All segments of a group of rows.
  RLHF_NOINLINE scan_sums<K::outputs> group(index first) {
    const index left = a_.domain.rows - first;
    const index last = first + (left < moment_group_rows ? left : moment_group_rows);
    group_tree<K::outputs> tree;
    while (first < last) tree.push(segment(first, first));
    return tree.finish();
  }

  /// x after the last step of row i.
  static double after_row(const scan_arguments<K, Space>& a, index i) {
    return static_cast<double>(read(a.end, i, a.domain.begin(i)));
  }

  /// Valid tokens with unusable inputs, where the moments of a segment say that there are some.
  void count_nonfinite(scan_sums<K::outputs>& sums, index first, index last) const {
    if (!sums.finite()) [[unlikely]]
      for (index i = first; i < last; ++i) sums.nonfinite += static_cast<double>(recount(i));
  }

  // The pieces of a segment one by one, for rows where every step is a valid token: piece 0 ends with
  // the first 4 tiles of the last row, each other one has 4 tiles of it.

  /// One past the last valid token of row i.
  index end_of(index i) const {
    const index length = a_.domain.length(i);
    return reads_mask_ ? last_flag(open(i).valid, length) : length;
  }

  /// Where row i ends without the last `tokens` valid ones in [0, end), of which there are more.
  index end_before(index i, index end, index tokens) const {
    if (!reads_mask_) return end - tokens;
    const std::uint8_t* const valid = open(i).valid;
    index count;
    return last_flag(valid, reach_back(valid, end, tokens, count));
  }

  /// Valid tokens in slots [from, end) of row i, which has a mask.
  index count_slots(index i, index from, index end) const {
    return count_flags(open(i).valid + from, end - from);
  }

  /// What the 4 tiles of row i that end at `end` give to those before.
  RLHF_NOINLINE void links(index i, index end, tile_link* to) {
    const row r = open(i);
    T after = after_tile(r, i, end);
    for (index t = 0; t < moment_piece_tiles; ++t) {
      parts_ = used_ = 0;
      end = begin_tile(r, end, after, 0);
      to[t] = scan_.link_of(part_[0]);
      if constexpr (K::shifted >= 0) after = part_[0].in[K::shifted][0];
      if (reads_mask_) end = last_flag(r.valid, end);
    }
    parts_ = used_ = 0;
  }

  /// Piece p of the segment of rows [first, last), whose tiles end at `end`; `carry` is x after it,
  /// and then of its first token.
  RLHF_NOINLINE scan_sums<K::outputs> piece(index first, index last, index p, index end,
                                            double& carry) {
    scan_.begin_segment();
    positions_ = 0;
    const index i = last - 1;
    const row r = open(i);
    if (p == 0) {
      for (index j = first; j < i; ++j) add_row(j);
      finish_parts();
      clear(r, end, r.slots);
    } else {
      take_shift(first);
    }
    T after = after_tile(r, i, end);
    run_tiles(r, end, after, carry);
    return scan_.end_segment(positions_);
  }

 private:
  /// The shifted input that follows a tile of row i which ends at `end`.
  T after_tile(const row& r, index i, index end) const {
    if constexpr (K::shifted >= 0) {
      const index length = a_.domain.length(i);
      if (reads_mask_) end += first_flag(r.valid + end, length - end);
      if (end == length) return read(a_.after, i, r.begin);
      const auto& x = a_.in[K::shifted];
      return x.data == nullptr ? x.absent : r.in[K::shifted][end * x.stride];
    } else {
      return T(0);
    }
  }

  /// The shift of a segment from `first` on.
  RLHF_NOINLINE void take_shift(index first) {
    index end = end_of(first);
    while (end == 0) end = end_of(++first);
    const row r = open(first);
    point(r, end - 1, end, read(a_.after, first, r.begin), after_row(a_, first));
    parts_ = used_ = 0;
    scan_.take_shift(part_[0]);
  }

  static T read(const token_input<T>& x, index i, index begin) {
    return x.data == nullptr ? x.absent : x.data[i * x.per_row + begin * x.per_begin];
  }

  RLHF_INLINE row open(index i) const { return open(a_, i); }
  RLHF_INLINE row open(const scan_arguments<K, Space>& a, index i) const {
    row r;
    r.i = i;
    r.begin = a.domain.begin(i);
    r.slots = a.domain.slots(i);
    for (int k = 0; k < K::inputs; ++k)
      r.in[k] = a.in[k].data == nullptr
                    ? nullptr
                    : a.in[k].data + i * a.in[k].per_row + r.begin * a.in[k].per_begin;
    for (int k = 0; k < K::flags; ++k)
      r.flag[k] = a.flag[k].data == nullptr
                      ? nullptr
                      : a.flag[k].data + i * a.flag[k].per_row + r.begin * a.flag[k].per_begin;
    for (int k = 0; k < K::outputs; ++k)
      r.out[k] = a.out[k].data == nullptr
                     ? nullptr
                     : a.out[k].data + i * a.out[k].per_row + r.begin * a.out[k].per_begin;
    r.valid = !reads_mask_ ? nullptr
                           : static_cast<const std::uint8_t*>(a.domain.mask.data()) +
                                 a.domain.mask_offset(i);
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

  bool goes_on(index next) const {
    return next < a_.domain.rows && next % moment_group_rows != 0 &&
           positions_ < moment_segment_tokens && !cut_;
  }
  /// Whether rows are short and all tensors alike, so that one number says where a row lies.
  bool has_short_rows() const {
    const token_domain<Space>& d = a_.domain;
    bool alike = direct_ && !hides_ && d.kind != arrangement::packed &&
                 d.columns >= scan_block_tokens && d.columns <= short_slots &&
                 (!reads_mask_ || a_.holes == hole_mode::skip);
    for (const auto& x : a_.in) alike = alike && x.data != nullptr && x.per_row == a_.in[0].per_row;
    for (const auto& x : a_.out) alike = alike && x.per_row == a_.in[0].per_row;
    return alike;
  }

  /// Rows of few slots from row i on, as far as the segment goes: what add_row does, with as little
  /// as they need. Returns the row after them.
  RLHF_NOINLINE index add_short_rows(index i) {
    // Copies, which no store can change.
    const token_domain<Space> domain = a_.domain;
    const token_input<T> after = a_.after, behind = a_.end;
    const T* in[at_least_one(K::inputs)];
    T* out[at_least_one(K::outputs)];
    for (int k = 0; k < K::inputs; ++k) in[k] = a_.in[k].data;
    for (int k = 0; k < K::outputs; ++k) out[k] = a_.out[k].data;
    const bool masked = reads_mask_;
    const auto* const flags = static_cast<const std::uint8_t*>(domain.mask.data());
    const index slots = domain.columns, step = a_.in[0].per_row;
    const index flag_step = masked ? domain.mask.stride(0) : 0;
    const index in_group = moment_group_rows - i % moment_group_rows;
    const index fit = scan_tile_tokens / slots;

    index limit = i + (in_group < fit ? in_group : fit);
    if (limit > domain.rows) limit = domain.rows;
    if (panel_ != nullptr && limit > panel_->end()) limit = panel_->end();
    const index first = i;
    index wanted = moment_segment_tokens - positions_;
    scan_part<K>* p = part_;
    const auto put = [&](const auto& in_of, const auto& out_of, index count)
        __attribute__((always_inline)) {
      for (int k = 0; k < K::inputs; ++k) p->in[k] = in_of(k);
      for (int k = 0; k < K::outputs; ++k) p->out[k] = out_of(k);
      p->count = count;
      p->ahead = 0;
      p->counted = nullptr;
      p->after = read(after, i, 0);
      p->carry = static_cast<double>(read(behind, i, 0));
      wanted -= count;
      ++i;
    };
    const auto put_here = [&](index length) __attribute__((always_inline)) {
      const index at = i * step;
      p->apart = false;
      clear_words(out, at, length, slots);
      put([&](int k) { return in[k] + at; }, [&](int k) { return out[k] + at; }, length);
      p += length > 0 ? 1 : 0;
    };
    if (!masked) {
      do put_here(domain.length(i));
      while (i < limit && wanted > 0);
      scan_.run(part_, p - part_);
    } else {
      // Rows without holes stay where they are, but for those shorter than the search for holes.
      const bool searches = slots > 4 * scan_block_tokens;
      constexpr index here = -1;
      index begin_of[moment_group_rows];
      index end = 0;
      do {
        const index length = domain.length(i), at = i * step;
        const std::uint8_t* const valid = flags + i * flag_step;
        index& begin = begin_of[i - first];
        if (searches) {
          const index last = last_flag(valid, length);
          if (first_unset(valid, last) == last) {
            begin = here;
            put_here(last);
            continue;
          }
        }
        end += gap + slots;
        begin = close_row(in, at, valid, length, end);
        for (int k = 0; k < K::outputs; ++k)
          for (index j = 0; j < slots; j += 16) __builtin_prefetch(out[k] + at + j, 1);
        p->apart = true;
        const index from = begin;
        put([&](int k) { return in_buffer_[k] + from; },
            [&](int k) { return out_buffer_[k] + from; }, end - from);
        p += from < end ? 1 : 0;
      } while (i < limit && wanted > 0);
      scan_.run(part_, p - part_);
      const index ahead = (i - first) * step;
      for (index j = first; j < i; ++j) {
        if (begin_of[j - first] == here) continue;
        const index length = domain.length(j), at = j * step;
        for (int k = 0; k < K::inputs; ++k)
          for (index z = 0; z < slots; z += 16) __builtin_prefetch(in[k] + at + ahead + z);
        clear_words(out, at, length, slots);
        spread_row(begin_of[j - first], flags + j * flag_step, length, out, at);
      }
    }
    positions_ = moment_segment_tokens - wanted;
    return i;
  }

  /// The valid tokens of the row at `at`, in words of 8 slots, to before `end`. Returns where they
  /// begin.
  RLHF_INLINE index close_row(const T* const* in, index at, const std::uint8_t* valid, index length,
                              index end) {
    const auto take = [&](flag_word word, index j) __attribute__((always_inline)) {
      const closing_pattern pattern(word);
      for (int k = 0; k < K::inputs; ++k) close_up(in[k] + at + j, pattern, in_buffer_[k] + end);
      end -= pattern.count;
    };
    for (; length >= 8; length -= 8) take(flag_word::at(valid + length - 8), length - 8);
    if (length > 0) take(flag_word::at(valid).first(length), 0);
    clear_gap(end);
    return end;
  }
  /// +0 before a part: closing up has put masked tokens there, and tile_scan::solve_rests computes
  /// on what it finds.
  RLHF_INLINE void clear_gap(index begin) {
    for (int k = 0; k < K::inputs; ++k)
      __builtin_memset(in_buffer_[k] + begin - gap, 0, gap * sizeof(T));
  }
  RLHF_INLINE void spread_row(index from, const std::uint8_t* valid, index length, T* const* out,
                              index at) const {
    const auto put = [&](flag_word word, index j) __attribute__((always_inline)) {
      const spreading_pattern pattern(word);
      for (int k = 0; k < K::outputs; ++k)
        spread_out(out_buffer_[k] + from, pattern, out[k] + at + j);
      from += pattern.count;
    };
    index j = length % 8;
    if (j > 0) put(flag_word::at(valid).first(j), 0);
    for (; j < length; j += 8) put(flag_word::at(valid + j), j);
  }

  /// +0 from slot `from` on, before what may be written up to 7 slots further down.
  static RLHF_INLINE void clear_words(T* const* out, index at, index from, index slots) {
    for (index j = slots; j > from; j -= 8)
      for (int k = 0; k < K::outputs; ++k)
        __builtin_memset(out[k] + at + (j < 8 ? 0 : j - 8), 0, 8 * sizeof(T));
  }

  /// Scans a row, or puts it to those that finish_parts scans.
  RLHF_INLINE void add_row(index i) {
    const row r = open(i);
    const index length = a_.domain.length(i);
    const index end = r.valid == nullptr ? length : last_flag(r.valid, length);
    if (end == 0) {
      clear(r, 0, r.slots);
      return;
    }
    if (end > scan_tile_tokens) {
      clear(r, end, r.slots);
      run_row(r, end);
      return;
    }
    const T after = read(a_.after, i, r.begin);
    const double carry = after_row(a_, i);
    // Short rows take one number of words, which is foreseen, rather than as many as they need.
    const index reach = length > few_tokens ? end : length;
    const bool skip = r.valid != nullptr && a_.holes == hole_mode::skip;
    const bool dense = !skip || first_unset(r.valid, end) == end;
    const index stop = dense ? end : reach;
    clear(r, stop, r.slots);
    if (used_ + stop > scan_tile_tokens + gap * parts_) finish_parts();
    if (dense)
      positions_ += point(r, 0, end, after, carry);
    else
      gather(r, stop, after, carry);
  }

  /// A row of several tiles.
  RLHF_NOINLINE void run_row(const row& r, index end) {
    finish_parts();
    T after = read(a_.after, r.i, r.begin);
    double carry = after_row(a_, r.i);
    for (;;) {
      end = run_tiles(r, end, after, carry);
      if (end == 0) return;
      if (!cut_) pieces_ = {};
      pieces_.push(scan_.end_piece(positions_));
      positions_ = 0;
      cut_ = true;
    }
  }

  /// Up to 4 tiles of a row. Returns where the one before them ends.
  RLHF_INLINE index run_tiles(const row& r, index end, T& after, double& carry) {
    const bool skip = r.valid != nullptr && a_.holes == hole_mode::skip;
    for (index t = 0; t < moment_piece_tiles && end > 0; ++t) {
      end = begin_tile(r, end, after, carry);
      finish_parts();
      if constexpr (K::shifted >= 0) after = part_[0].in[K::shifted][0];
      carry = part_[0].carry;
      if (!skip) continue;
      const index next = last_flag(r.valid, end);
      clear(r, next, end);
      end = next;
    }
    return end;
  }

  /// Makes a part of the tile that ends at `end`. Returns where it begins.
  RLHF_INLINE index begin_tile(const row& r, index end, T after, double carry) {
    const index from = end > scan_tile_tokens ? end - scan_tile_tokens : 0;
    if (r.valid == nullptr || a_.holes != hole_mode::skip ||
        first_unset(r.valid + from, end - from) == end - from) {
      positions_ += point(r, from, end, after, carry);
      return from;
    }
    return gather(r, end, after, carry);
  }

  /// Where slots that end at `end` begin, so that they hold `most` valid tokens or all there are.
  static index reach_back(const std::uint8_t* valid, index end, index most, index& count) {
    index from = end;
    count = 0;
    while (from >= 8) {
      const index more = flag_word::at(valid + from - 8).count();
      if (count + more > most) break;
      count += more;
      from -= 8;
    }
    while (from > 0 && count < most) count += valid[--from] != 0 ? 1 : 0;
    return from + first_flag(valid + from, end - from);
  }

  /// Scans what has been put together, and brings the outputs to where they belong.
  void finish_parts() {
    scan_.run(part_, parts_);
    if (used_ > 0)
      for (index p = 0; p < parts_; ++p) {
        if (reads_mask_ && !origin_[p].dense)
          scatter(part_[p], origin_[p]);
        else if (!direct_)
          copy_back(part_[p], origin_[p]);
      }
    parts_ = used_ = 0;
  }

  /// A part of consecutive tokens: the caller's memory where it is contiguous.
  RLHF_INLINE index point(const row& r, index from, index end, T after, double carry) {
    scan_part<K>& p = part_[parts_];
    p.count = end - from;
    p.apart = false;
    p.after = after;
    p.carry = carry;
    p.counted = r.valid != nullptr && a_.holes != hole_mode::skip ? r.valid + from : nullptr;
    p.ahead = 0;
    if (direct_) {
      // Slots of the next tile, or row, as far from its end as these are.
      const bool more = from > 0 || r.i + 1 < a_.domain.rows;
      if (more) p.ahead = from > 0 ? from - end : 2 * r.slots - end;
      for (int k = 0; k < K::inputs; ++k)
        p.in[k] = r.in[k] == nullptr ? absent_[k] : r.in[k] + from;
      for (int k = 0; k < K::flags; ++k)
        p.flag[k] = r.flag[k] == nullptr ? no_flag_ : r.flag[k] + from;
      for (int k = 0; k < K::outputs; ++k)
        p.out[k] = r.out[k] == nullptr ? out_buffer_[k] + used_ : r.out[k] + from;
      if (reads_mask_) origin_[parts_].dense = true;
      if (hides_) used_ += p.count;
    } else {
      copy(r, from, p);
      origin_[parts_] = {r.i, from, end, true};
    }
    ++parts_;
    return p.counted == nullptr ? p.count : count_flags(p.counted, p.count);
  }

  /// The inputs of a part, as they are read.
  RLHF_NOINLINE void copy(const row& r, index from, scan_part<K>& p) {
    const index n = p.count;
    const bool blank = p.counted != nullptr && a_.holes == hole_mode::zero;
    for (int k = 0; k < K::inputs; ++k) {
      const index stride = a_.in[k].stride;
      T* const buffer = in_buffer_[k] + used_;
      p.in[k] = r.in[k] == nullptr ? absent_[k] : buffer;
      if (r.in[k] == nullptr) continue;
      const T* const at = r.in[k] + from * stride;
      if (blank)
        for (index j = 0; j < n; ++j) buffer[j] = p.counted[j] != 0 ? at[j * stride] : T(0);
      else if (stride == 1)
        p.in[k] = at;
      else
        for (index j = 0; j < n; ++j) buffer[j] = at[j * stride];
    }
    for (int k = 0; k < K::flags; ++k) {
      const index stride = a_.flag[k].stride;
      std::uint8_t* const buffer = flag_buffer_[k] + used_;
      p.flag[k] = r.flag[k] == nullptr ? no_flag_ : buffer;
      if (r.flag[k] == nullptr) continue;
      const std::uint8_t* const at = r.flag[k] + from * stride;
      if (blank)
        for (index j = 0; j < n; ++j)
          buffer[j] = p.counted[j] != 0 ? at[j * stride] : std::uint8_t{0};
      else if (stride == 1)
        p.flag[k] = at;
      else
        for (index j = 0; j < n; ++j) buffer[j] = at[j * stride];
    }
    for (int k = 0; k < K::outputs; ++k) {
      const bool straight = r.out[k] != nullptr && a_.out[k].stride == 1 && !a_.out[k].accumulate;
      p.out[k] = straight ? r.out[k] + from : out_buffer_[k] + used_;
    }
    used_ += n;
  }

  RLHF_NOINLINE void copy_back(const scan_part<K>& p, const origin& o) const {
    const row r = open(o.row);
    for (int k = 0; k < K::outputs; ++k) {
      const index stride = a_.out[k].stride;
      if (r.out[k] == nullptr || (stride == 1 && !a_.out[k].accumulate)) continue;
      T* const at = r.out[k] + o.from * stride;
      const T* const y = p.out[k];
      if (!a_.out[k].accumulate)
        for (index j = 0; j < p.count; ++j) at[j * stride] = y[j];
      else
        for (index j = 0; j < p.count; ++j)
          if (p.counted == nullptr || p.counted[j] != 0) at[j * stride] += y[j];
    }
  }

  /// A part with holes: the last 1,024 valid tokens before `end`, or all there are, close together.
  /// Returns where the first one is, or 0. From the end to the beginning, as rows of several tiles are
  /// read: memory is fetched ahead in one direction only. What scatter will write to is fetched along
  /// the way.
  RLHF_NOINLINE index gather(const row& r, index end, T after, double carry) {
    index left = scan_tile_tokens < end ? scan_tile_tokens : end;
    const index last = used_ + gap + left;
    index j = end, to = last;
    if (compact_ && r.slots >= 8) {
      const row here = r;  // pointers that no store can change
      const auto take = [&](flag_word word, index at) __attribute__((always_inline)) {
        const closing_pattern w(word);
        for (int k = 0; k < K::inputs; ++k)
          if (here.in[k] != nullptr) close_up(here.in[k] + at, w, in_buffer_[k] + to);
        for (int k = 0; k < K::flags; ++k)
          if (here.flag[k] != nullptr) close_up(here.flag[k] + at, w, flag_buffer_[k] + to);
        to -= w.count;
        left -= w.count;
      };
      for (; j >= 16 && left >= 16; j -= 16) {
        for (int k = 0; k < K::outputs; ++k)
          if (here.out[k] != nullptr) __builtin_prefetch(here.out[k] + (j - 16), 1);
        take(flag_word::at(here.valid + j - 8), j - 8);
        take(flag_word::at(here.valid + j - 16), j - 16);
      }
      while (j > 0 && left > 0) {
        const index at = j < 8 ? 0 : j - 8;
        flag_word word = flag_word::at(here.valid + at).first(j - at);
        index from = at;
        while (word.count() > left) word = word.last(8 - (++from - at));
        take(word, at);
        j = from;
      }
    } else {
      while (j > 0 && left > 0) {
        if (r.valid[--j] == 0) continue;
        --to;
        --left;
        for (int k = 0; k < K::inputs; ++k)
          if (r.in[k] != nullptr) in_buffer_[k][to] = r.in[k][j * a_.in[k].stride];
        for (int k = 0; k < K::flags; ++k)
          if (r.flag[k] != nullptr) flag_buffer_[k][to] = r.flag[k][j * a_.flag[k].stride];
      }
    }

    if constexpr (K::flags == 0) clear_gap(to);
    scan_part<K>& p = part_[parts_];
    for (int k = 0; k < K::inputs; ++k)
      p.in[k] = r.in[k] == nullptr ? absent_[k] + gap : in_buffer_[k] + to;
    for (int k = 0; k < K::flags; ++k)
      p.flag[k] = r.flag[k] == nullptr ? no_flag_ : flag_buffer_[k] + to;
    for (int k = 0; k < K::outputs; ++k) p.out[k] = out_buffer_[k] + to;
    p.count = last - to;
    p.ahead = 0;
    p.apart = true;
    p.after = after;
    p.carry = carry;
    p.counted = nullptr;
    origin_[parts_++] = {r.i, j, end, false};
    used_ = last;
    positions_ += p.count;
    return j;
  }

  RLHF_NOINLINE void scatter(const scan_part<K>& p, const origin& o) const {
    const row r = open(o.row);
    if (spread_ && o.end - o.from >= 8) {
      // Slots of the next tile, or row, as far from its end as these are: while tokens are scanned
      // nothing else asks for memory.
      const bool more = o.from > 0 || r.i + 1 < a_.domain.rows;
      const index ahead = !more ? 0 : o.from > 0 ? o.from - o.end : 2 * r.slots - o.end;
      const row here = r;  // pointers that no store can change
      const index begin = p.out[0] - out_buffer_[0];
      const auto put = [&](const spreading_pattern& w, index from, index at)
          __attribute__((always_inline)) {
        for (int k = 0; k < K::outputs; ++k)
          if (here.out[k] != nullptr) spread_out(out_buffer_[k] + from, w, here.out[k] + at);
      };
      // What is less than a word first: the word it is put with covers slots that come later.
      const index rest = (o.end - o.from) % 8;
      if (rest > 0)
        put(spreading_pattern(flag_word::at(r.valid + o.from).first(rest)), begin, o.from);
      index y = begin + p.count;
      const auto put_before = [&](index at) __attribute__((always_inline)) {
        const spreading_pattern w(flag_word::at(here.valid + at));
        put(w, y -= w.count, at);
      };
      index j = o.end;
      for (; j - 16 >= o.from; j -= 16) {
        for (int k = 0; k < K::inputs; ++k)
          if (here.in[k] != nullptr) __builtin_prefetch(here.in[k] + (j - 16 + ahead));
        put_before(j - 8);
        put_before(j - 16);
      }
      if (j - 8 >= o.from) put_before(j - 8);
      return;
    }
    for (int k = 0; k < K::outputs; ++k) {
      if (r.out[k] == nullptr) continue;
      const index stride = a_.out[k].stride;
      const T* y = p.out[k];
      for (index j = o.from; j < o.end; ++j) {
        T& to = r.out[k][j * stride];
        if (r.valid[j] != 0)
          to = a_.out[k].accumulate ? to + *y++ : *y++;
        else if (!a_.out[k].accumulate)
          to = T(0);
      }
    }
  }

  /// Valid tokens of row i whose inputs are not finite.
  RLHF_NOINLINE index recount(index i) const {
    const scan_arguments<K, Space>& a = home_;
    const row r = open(a, i);
    index bad = 0;
    bool last = true;
    for (index j = a.domain.length(i); j-- > 0;) {
      if (r.valid != nullptr && r.valid[j] == 0) continue;
      scan_lanes<T, K> t;
      for (int k = 0; k < K::inputs; ++k)
        t.in[k] = r.in[k] == nullptr ? a.in[k].absent : r.in[k][j * a.in[k].stride];
      for (int k = 0; k < K::flags; ++k)
        t.flag[k] = r.flag[k] != nullptr && r.flag[k][j * a.flag[k].stride] != 0;
      bool usable = kernel_.usable(t);
      if (last)
        usable = usable && math::is_finite(read(a.after, i, r.begin)) &&
                 math::is_finite(read(a.end, i, r.begin));
      last = false;
      bad += usable ? 0 : 1;
    }
    return bad;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
