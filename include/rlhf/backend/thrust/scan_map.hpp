#pragma once

#include "rlhf/backend/host/reverse_scan/moments.hpp"
#include "rlhf/backend/thrust/block_lanes.hpp"
#include "rlhf/backend/thrust/lanes.hpp"
#include "rlhf/math/single.hpp"
#include "rlhf/primitive/reverse_scan.hpp"

// How the rows of a scan are shared out among blocks of threads: what each takes is a segment of
// the moments, or a piece of one.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Of a row with a mask: its time steps, and its valid tokens.
struct scan_row_size {
  index steps, positions;
};

/// Sizes of rows, 16 threads to each.
template <class Space>
struct size_of_scan_rows {
  using figures = lane_figures<1, 1>;
  token_domain<Space> domain;
  hole_mode holes;
  scan_row_size* to;

  RLHF_HOST_DEVICE figures lane(index i, int l) const {
    figures r;
    r.high[0] = 0;
    const index at = domain.mask_offset(i), step = domain.mask_stride(), n = domain.length(i);
    for (index j = l; j < n; j += virtual_lanes) {
      if (!(domain.mask.at(at + j * step) > 0)) continue;
      r.sum[0] += 1;
      r.high[0] = static_cast<double>(j + 1);
    }
    return r;
  }
  RLHF_HOST_DEVICE void store(index i, const figures& r) const {
    to[i] = {static_cast<index>(holes == hole_mode::skip ? r.sum[0] : r.high[0]),
             static_cast<index>(r.sum[0])};
  }
};

/// Rows [first, last) of one segment. The last one may be in pieces: piece 0 comes with all other
/// rows, the others alone.
struct scan_slot {
  index first, last;  // equal: nothing
  index piece, pieces;
  index ordinal;  // of the segment in its group
};

/// Slots in the order of moments. Where all rows have one size they follow from it; otherwise they
/// are planned, and where each group's begin follows from sizes and offsets alone.
template <class Space>
struct scan_map {
  token_domain<Space> domain;
  const scan_row_size* size;  // null without a mask
  const scan_slot* planned;   // null where all rows have one size
  index groups, slots;
  index segment_rows, segments, pieces;  // of a group, where all rows have one size

  static constexpr index piece_steps = moment_piece_tiles * scan_tile_tokens;

  static bool plans(const token_domain<Space>& domain) {
    return domain.kind != arrangement::padded || domain.mask.kind() != mask_kind::none;
  }
  static scan_map over(const token_domain<Space>& domain) {
    scan_map m{};
    m.domain = domain;
    m.groups = (domain.rows + moment_group_rows - 1) / moment_group_rows;
    if (plans(domain)) {
      const index tokens =
          domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
      m.slots = tokens / moment_segment_tokens + m.groups;
      return m;
    }
    const index n = domain.columns;
    m.pieces = n > piece_steps ? (n + piece_steps - 1) / piece_steps : 1;
    m.segment_rows = n < 1 ? moment_group_rows : (moment_segment_tokens + n - 1) / n;
    if (m.segment_rows > moment_group_rows) m.segment_rows = moment_group_rows;
    m.segments = (moment_group_rows + m.segment_rows - 1) / m.segment_rows;
    m.slots = m.groups * m.segments * m.pieces;
    return m;
  }

  RLHF_HOST_DEVICE index steps(index i) const {
    return size != nullptr ? size[i].steps : domain.length(i);
  }
  RLHF_HOST_DEVICE index positions(index i) const {
    return size != nullptr ? size[i].positions : domain.length(i);
  }
  RLHF_HOST_DEVICE index pieces_of(index steps) const {
    return steps > piece_steps ? (steps + piece_steps - 1) / piece_steps : 1;
  }
  RLHF_HOST_DEVICE index first_slot(index g) const {
    if (uniform()) return g * segments * pieces;
    const index row = g * moment_group_rows < domain.rows ? g * moment_group_rows : domain.rows;
    const index tokens =
        domain.kind == arrangement::packed ? domain.begin(row) : row * domain.columns;
    return tokens / moment_segment_tokens + g;
  }
  RLHF_HOST_DEVICE index end_slot(index g) const {
    const index end = first_slot(g + 1);
    return end < slots ? end : slots;
  }
  RLHF_HOST_DEVICE index end_row(index g) const {
    const index end = (g + 1) * moment_group_rows;
    return end < domain.rows ? end : domain.rows;
  }
  RLHF_HOST_DEVICE scan_slot at(index slot) const {
    if (!uniform()) {
      const scan_slot s = planned[slot];
      // Offsets that are no offsets may have left anything here.
      const bool sound = s.first >= 0 && s.first < s.last && s.last <= domain.rows &&
                         s.piece >= 0 && s.piece < s.pieces &&
                         s.pieces == pieces_of(steps(s.last - 1)) && s.ordinal >= 0 &&
                         s.ordinal < moment_group_rows;
      return sound ? s : scan_slot{};
    }
    const index each = segments * pieces;
    const index g = slot / each, k = slot % each, ordinal = k / pieces;
    const index first = g * moment_group_rows + ordinal * segment_rows;
    const index last = first + segment_rows, end = end_row(g);
    if (first >= end) return {};
    return {first, last < end ? last : end, k % pieces, pieces, ordinal};
  }

  /// All rows have the size of the first.
  RLHF_HOST_DEVICE bool uniform() const { return segments > 0; }
};

/// Plans the slots of a group of rows: a block for each.
template <class Space>
struct plan_scan {
  scan_map<Space> map;
  scan_slot* to;

  static constexpr int rows = static_cast<int>(moment_group_rows);
  static constexpr block_shape shape{rows, (4 * rows + 1) * sizeof(index)};

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index g) const {
    auto* const steps = block.template shared<index>(0);
    index* const positions = steps + rows;
    index* const slot = positions + rows;  // of the segment a row ends, or -1
    index* const first = slot + rows;      // row of that segment
    index* const count = first + rows;
    const index from = g * moment_group_rows;
    const auto n = static_cast<int>(map.end_row(g) - from);
    block.each([&](int t) {
      if (t >= n) return;
      steps[t] = map.steps(from + t);
      positions[t] = map.positions(from + t);
    });
    block.each([&](int t) {
      if (t != 0) return;
      index slots = 0, filled = 0, begin = 0;
      for (int i = 0; i < n; ++i) {
        filled += positions[i];
        const index pieces = map.pieces_of(steps[i]);
        const bool ends = filled >= moment_segment_tokens || pieces > 1 || i + 1 == n;
        slot[i] = ends ? slots : -1;
        first[i] = begin;
        if (!ends) continue;
        slots += pieces;
        begin = i + 1;
        filled = 0;
      }
      *count = slots;
    });
    const index base = map.first_slot(g), end = map.end_slot(g);
    block.each([&](int t) {
      if (t < n && slot[t] >= 0) {
        index ordinal = 0;
        for (int i = 0; i < t; ++i) ordinal += slot[i] >= 0 ? 1 : 0;
        const index pieces = map.pieces_of(steps[t]);
        for (index p = 0; p < pieces && base + slot[t] + p < end; ++p)
          to[base + slot[t] + p] = {from + first[t], from + t + 1, p, pieces, ordinal};
      }
      for (index s = base + *count + t; s < end; s += rows) to[s] = {};
    });
  }
};

/// Valid tokens whose inputs are not finite.
template <class K, class Space>
struct unusable_tokens {
  using T = typename K::scalar_type;
  K kernel;
  scan_arguments<K, Space> a;

  /// Of rows [first, last), those of thread t.
  RLHF_HOST_DEVICE double operator()(index first, index last, int t, int threads) const {
    double bad = 0;
    for (index i = first; i < last; ++i) bad += of_one(i, t, threads);
    return bad;
  }

 private:
  RLHF_HOST_DEVICE static T of_row(const token_input<T>& x, index i, index begin) {
    return x.data == nullptr ? x.absent : x.data[i * x.per_row + begin * x.per_begin];
  }
  RLHF_HOST_DEVICE double of_one(index i, int t, int threads) const {
    const index begin = a.domain.begin(i), n = a.domain.valid_length(i);
    const index at = a.domain.mask_offset(i), step = a.domain.mask_stride();
    const bool masked = a.domain.mask.kind() != mask_kind::none;
    double bad = 0;
    for (index j = t; j < n; j += threads) {
      if (masked && !(a.domain.mask.at(at + j * step) > 0)) continue;
      scan_lanes<math::scalar_lane<T>, K> lanes;
      for (int k = 0; k < K::inputs; ++k) {
        const token_input<T>& x = a.in[k];
        lanes.in[k] = math::constant<math::scalar_lane<T>>(
            x.data == nullptr ? x.absent
                              : x.data[i * x.per_row + begin * x.per_begin + j * x.stride]);
      }
      for (int k = 0; k < K::flags; ++k) {
        const token_flags& f = a.flag[k];
        lanes.flag[k] =
            f.data != nullptr && f.data[i * f.per_row + begin * f.per_begin + j * f.stride] != 0;
      }
      bool usable = kernel.usable(lanes);
      if (j + 1 == n)
        usable = usable && math::is_finite(of_row(a.after, i, begin)) &&
                 math::is_finite(of_row(a.end, i, begin));
      bad += usable ? 0 : 1;
    }
    return bad;
  }
};

/// The sums of each group: a block for each. Pieces join in their segment's first slot.
template <class K, class Space>
struct fold_segments {
  using sums = scan_sums<K::outputs>;
  unusable_tokens<K, Space> unusable;
  scan_map<Space> map;
  sums* partial;  // per slot
  sums* to;       // per group

  static constexpr int threads = 128;
  static constexpr int most = static_cast<int>(moment_group_rows);
  static constexpr std::size_t slots_at = 0;
  static constexpr std::size_t bad_at = most * sizeof(index);
  static constexpr std::size_t sums_at = bad_at + (threads + 1) * sizeof(double) + 8;
  static constexpr block_shape shape{threads, sums_at + most * sizeof(sums)};

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index g) const {
    auto* const slot_of = block.template shared<index>(slots_at);
    auto* const bad = block.template shared<double>(bad_at);
    auto* const segment = block.template shared<sums>(sums_at);
    const index base = map.first_slot(g);
    const index n = map.end_slot(g) - base;
    block.each([&](int t) {
      for (int k = t; k < most; k += threads) slot_of[k] = -1;
    });
    for (index stride = 1; stride < n; stride *= 2)
      block.each([&](int t) {
        for (index k = t; k < n; k += threads) {
          const scan_slot s = map.at(base + k);
          if (s.piece % (2 * stride) == 0 && s.piece + stride < s.pieces && k + stride < n)
            partial[base + k].add(partial[base + k + stride]);
        }
      });
    block.each([&](int t) {
      for (index k = t; k < n; k += threads) {
        const scan_slot s = map.at(base + k);
        if (s.first == s.last || s.piece != 0) continue;
        slot_of[s.ordinal] = base + k;
        segment[s.ordinal] = partial[base + k];
      }
    });
    int count = 0;
    while (count < most && slot_of[count] >= 0) ++count;
    for (int k = 0; k < count; ++k) {
      if (segment[k].finite()) continue;
      const scan_slot s = map.at(slot_of[k]);
      block.each([&](int t) { bad[t] = unusable(s.first, s.last, t, threads); });
      block.each([&](int t) {
        if (t != 0) return;
        double r = 0;
        for (int l = 0; l < threads; ++l) r += bad[l];
        segment[k].nonfinite += r;
      });
    }
    for (int stride = 1; stride < count; stride *= 2)
      block.each([&](int t) {
        if (t % (2 * stride) == 0 && t + stride < count) segment[t].add(segment[t + stride]);
      });
    block.each([&](int t) {
      if (t == 0) to[g] = count > 0 ? segment[0] : sums{};
    });
  }
};

/// The same where a group has few slots: a thread for each group.
template <class K, class Space>
struct fold_few_segments {
  using sums = scan_sums<K::outputs>;
  unusable_tokens<K, Space> unusable;
  scan_map<Space> map;  // of equal rows in one piece, one or two segments to a group
  const sums* partial;
  sums* to;

  static bool serve(const scan_map<Space>& map) {
    return map.uniform() && map.pieces == 1 && map.segments <= 2;
  }
  static constexpr int most_threads = 128;
  static constexpr unsigned least_blocks = 4;
  static constexpr block_shape shape{most_threads, 0};
  index jobs() const { return (map.groups + most_threads - 1) / most_threads; }

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index job) const {
    block.each([&](int t) {
      const index g = job * most_threads + t;
      if (g >= map.groups) return;
      sums all;
      for (index k = 0; k < map.segments; ++k) {
        const scan_slot s = map.at(g * map.segments + k);
        if (s.first == s.last) break;
        sums r = partial[g * map.segments + k];
        if (!r.finite()) r.nonfinite += unusable(s.first, s.last, 0, 1);
        if (k == 0)
          all = r;
        else
          all.add(r);
      }
      to[g] = all;
    });
  }
};

/// One round of the tree over groups: 256 of them to one, and what the last round writes.
template <int N>
struct fold_groups {
  const scan_sums<N>* from;
  index n;
  scan_sums<N>* to;
  double* figures;  // of the last round; else null

  static constexpr int width = most_block_threads;
  static constexpr block_shape shape{width, width * sizeof(scan_sums<N>)};

  template <class Block>
  RLHF_HOST_DEVICE void operator()(const Block& block, index b) const {
    auto* const x = block.template shared<scan_sums<N>>(0);
    const index first = b * width;
    const int count = n - first < width ? static_cast<int>(n - first) : width;
    block.each([&](int t) {
      if (t < count) x[t] = from[first + t];
    });
    for (int stride = 1; stride < count; stride *= 2)
      block.each([&](int t) {
        if (t % (2 * stride) == 0 && t + stride < count) x[t].add(x[t + stride]);
      });
    block.each([&](int t) {
      if (t != 0) return;
      const scan_sums<N> all = count > 0 ? x[0] : scan_sums<N>{};
      if (figures != nullptr)
        all.write(figures);
      else
        to[b] = all;
    });
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
