#pragma once

#include "rlhf/backend/host/reverse_scan/rows.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// The moments of a call from those of its segments, in order.
template <int N>
class segment_tree {
  binary_tree<scan_sums<N>> all_;
  group_tree<N> group_;

 public:
  /// The segment ends with row `last` - 1 of `rows`.
  void add(const scan_sums<N>& segment, index last, index rows) {
    group_.push(segment);
    if (last % moment_group_rows == 0 || last == rows) add_group();
  }
  void add_group() {
    all_.push(group_.finish());
    group_ = {};
  }
  void add_group(const scan_sums<N>& group) { all_.push(group); }
  scan_sums<N> finish() { return all_.finish(); }
};

/// How threads share the rows of a call. Units are groups of 64 rows where there are enough;
/// else segments; else, where rows are few and long, pieces of segments, with one pass more that
/// finds what each hands on, but for those of the last thread. Every way has the bits of one thread.
template <class V, class K, class Space, class Exec>
class scan_share {
  using T = typename K::scalar_type;
  using sums = scan_sums<K::outputs>;
  using scan = row_scan<V, K, Space>;
  static constexpr index piece_tokens = moment_piece_tiles * scan_tile_tokens;

  const Exec& exec_;
  const K& kernel_;
  const scan_arguments<K, Space>& a_;
  const decay_powers<T>& power_;
  const panel_plan& plan_;
  const index rows_ = a_.domain.rows;
  const index groups_ = (rows_ + moment_group_rows - 1) / moment_group_rows;
  const bool by_group_ = groups_ >= 4 * exec_.concurrency();
  const bool masked_ = a_.domain.mask.kind() != mask_kind::none;
  const bool cuts_ = !by_group_ && (!masked_ || a_.holes == hole_mode::skip);

  sums* partial_ = nullptr;    // by group, by segment, or by piece
  index* first_ = nullptr;     // row of each segment
  index* steps_ = nullptr;     // of each segment's last row
  index* end_ = nullptr;       // of each piece, in its row
  index* beyond_ = nullptr;    // valid tokens from a stretch of a row on
  tile_link* link_ = nullptr;  // of the tiles of a piece

  /// f(begin, end) for ranges that make up [0, n).
  template <class F>
  void in_ranges(index n, const F& f) const {
    const index most = 16 * exec_.concurrency();
    const index units = n < most ? n : most;
    exec_.parallel_for(units, [&](index u) { f(u * n / units, (u + 1) * n / units); });
  }

  /// Of any batch of such extents: scratch memory does not depend on lengths.
  index most_pieces() const {
    if (!cuts_) return rows_;
    const index columns = a_.domain.columns;
    return a_.domain.kind == arrangement::packed ? rows_ + columns / piece_tokens
                                                 : rows_ * (columns / piece_tokens + 1);
  }

  index pieces(index s) const {
    return steps_[s] > piece_tokens ? (steps_[s] + piece_tokens - 1) / piece_tokens : 1;
  }

  /// f(rows_of, begin, end) for such ranges; first_row(k) is where k of n begins.
  template <class Row, class F>
  void scan_ranges(index n, const Row& first_row, const F& f) const {
    if (!plan_)
      return in_ranges(n, [&](index begin, index end) {
        scan rows_of(kernel_, a_, power_);
        f(rows_of, begin, end);
      });
    using on_panel = arguments_on_panel<T, scan_arguments<K, Space>>;
    const index panels = (rows_ + plan_.rows - 1) / plan_.rows, units = n < panels ? n : panels;
    on_panels(
        exec_, plan_, units, [&](std::byte* memory) { return on_panel(a_, plan_, memory); },
        [&](on_panel& on, index u) {
          const index begin = u * n / units, end = (u + 1) * n / units;
          on.run(end < n ? first_row(end) : rows_, [&](const auto& some, auto& panel) {
            scan rows_of(kernel_, some, power_, a_, &panel);
            f(rows_of, begin, end);
          });
        });
  }

  void groups(segment_tree<K::outputs>& tree) const {
    const auto first_row = [](index g) { return g * moment_group_rows; };
    scan_ranges(groups_, first_row, [&](scan& rows_of, index begin, index end) {
      for (index g = begin; g < end; ++g) partial_[g] = rows_of.group(first_row(g));
    });
    for (index g = 0; g < groups_; ++g) tree.add_group(partial_[g]);
  }

  index find_segments() const {
    exec_.parallel_for(rows_, row_positions<Space>{a_.domain, a_.holes, first_});
    index segments = 0, tokens = 0;
    for (index i = 0, begin = 0; i < rows_; ++i) {
      tokens += first_[i];
      if (tokens < moment_segment_tokens && (i + 1) % moment_group_rows != 0 && i + 1 < rows_)
        continue;
      if (cuts_) steps_[segments] = first_[i];
      first_[segments++] = begin;
      begin = i + 1;
      tokens = 0;
    }
    first_[segments] = rows_;
    return segments;
  }

  void each_segment(index segments, segment_tree<K::outputs>& tree) const {
    const auto first_row = [&](index s) { return first_[s]; };
    scan_ranges(segments, first_row, [&](scan& rows_of, index begin, index end) {
      for (index s = begin; s < end; ++s) {
        index last = 0;
        partial_[s] = rows_of.segment(first_[s], last);
      }
    });
    for (index s = 0; s < segments; ++s) tree.add(partial_[s], first_[s + 1], rows_);
  }

  /// Where the pieces of segment s end.
  void find_pieces(index s, index* end) const {
    const index n = pieces(s), row = first_[s + 1] - 1;
    const auto scan_of = [&] { return scan(kernel_, a_, power_); };
    end[0] = scan_of().end_of(row);
    if (n == 1) return;
    // With a mask, from the valid tokens of each stretch of as many slots as a tile has tokens.
    const index stretches = masked_ ? (end[0] + scan_tile_tokens - 1) / scan_tile_tokens : 0;
    in_ranges(stretches, [&](index from, index to) {
      const scan rows_of = scan_of();
      for (index k = from; k < to; ++k)
        beyond_[k] = rows_of.count_slots(row, k * scan_tile_tokens, stretch_end(k, end[0]));
    });
    for (index k = stretches - 1; k-- > 0;) beyond_[k] += beyond_[k + 1];
    in_ranges(n - 1, [&](index from, index to) {
      const scan rows_of = scan_of();
      for (index p = from + 1; p <= to; ++p) {
        index tokens = p * piece_tokens, k = 0, last = stretches;
        while (k + 1 < last) {
          const index middle = (k + last) / 2;
          (beyond_[middle] >= tokens ? k : last) = middle;
        }
        if (k + 1 < stretches) tokens -= beyond_[k + 1];
        end[p] = rows_of.end_before(row, masked_ ? stretch_end(k, end[0]) : end[0], tokens);
      }
    });
  }
  static index stretch_end(index k, index end) {
    return (k + 1) * scan_tile_tokens < end ? (k + 1) * scan_tile_tokens : end;
  }

  void each_piece(index segments, segment_tree<K::outputs>& tree) const {
    // Piece q of all is piece q - `before` of a segment.
    const auto segment_of = [&](index q, index& before) {
      index s = 0;
      before = 0;
      for (index n = pieces(s); q >= before + n; n = pieces(s)) before += n, ++s;
      return s;
    };
    index all = 0;
    for (index s = 0; s < segments; all += pieces(s), ++s) find_pieces(s, end_ + all);

    // A thread takes one range of pieces, so that one piece in `units` needs what others hand on.
    const index units = all < exec_.concurrency() ? all : exec_.concurrency();
    const index last_unit = (units - 1) * all / units;
    in_ranges(last_unit, [&](index begin, index end) {
      scan rows_of(kernel_, a_, power_);
      for (index q = begin; q < end; ++q) {
        index before;
        const index s = segment_of(q, before);
        if (q + 1 == before + pieces(s)) continue;  // nothing comes before it
        rows_of.links(first_[s + 1] - 1, end_[q], link_ + q * moment_piece_tiles);
      }
    });
    exec_.parallel_for(units, [&](index u) {
      scan rows_of(kernel_, a_, power_);
      const index begin = u * all / units, end = (u + 1) * all / units;
      index before;
      index s = segment_of(begin, before);
      double carry = scan::after_row(a_, first_[s + 1] - 1);
      for (index l = before * moment_piece_tiles; l < begin * moment_piece_tiles; ++l)
        carry = link_[l].carry(carry);
      for (index q = begin; q < end; ++q) {
        if (q == before + pieces(s)) {
          before = q;
          carry = scan::after_row(a_, first_[++s + 1] - 1);
        }
        partial_[q] = rows_of.piece(first_[s], first_[s + 1], q - before, end_[q], carry);
      }
    });
    scan rows_of(kernel_, a_, power_);
    for (index s = 0, q = 0; s < segments; ++s) {
      binary_tree<sums> tree_of_pieces;
      for (index n = q + pieces(s); q < n; ++q) tree_of_pieces.push(partial_[q]);
      sums segment = tree_of_pieces.finish();
      rows_of.count_nonfinite(segment, first_[s], first_[s + 1]);
      tree.add(segment, first_[s + 1], rows_);
    }
  }

 public:
  template <class Run>
  scan_share(Run& run, const Exec& exec, const K& kernel, const scan_arguments<K, Space>& a,
             const decay_powers<T>& power, const panel_plan& plan)
      : exec_(exec), kernel_(kernel), a_(a), power_(power), plan_(plan) {
    partial_ = run.template allocate<sums>(by_group_ ? groups_ : most_pieces());
    if (by_group_) return;
    first_ = run.template allocate<index>(rows_ + 1);
    if (!cuts_) return;
    link_ = run.template allocate<tile_link>(most_pieces() * moment_piece_tiles);
    steps_ = run.template allocate<index>(rows_);
    end_ = run.template allocate<index>(most_pieces());
    if (masked_) beyond_ = run.template allocate<index>(most_pieces() * moment_piece_tiles);
  }

  sums operator()() const {
    segment_tree<K::outputs> tree;
    if (by_group_) {
      groups(tree);
      return tree.finish();
    }
    const index segments = find_segments();
    if (cuts_ && segments > 0 && segments < exec_.concurrency())
      each_piece(segments, tree);
    else
      each_segment(segments, tree);
    return tree.finish();
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
