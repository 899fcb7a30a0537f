#pragma once

#include "rlhf/backend/thrust/last_block.hpp"
#include "rlhf/backend/thrust/sixteen_bytes.hpp"
#include "rlhf/primitive/count.hpp"

// Counts on a device, and what is wrong with lengths, offsets and weights.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Counts of a row and its valid length: 16 threads read its mask side by side. Weights are added by
/// the first of them alone, in the order of the host.
template <class Space>
struct count_lanes {
  using figures = lane_figures<2, 1>;
  token_domain<Space> domain;
  double* counts;  // per row: weight, positions, 1 if there is one; may be null
  index* length;   // may be null

  RLHF_HOST_DEVICE figures lane(index i, int l) const {
    figures r;
    const index n = domain.length(i);
    const mask_view<Space>& mask = domain.mask;
    if (mask.kind() == mask_kind::none) {
      if (l != 0) return r;
      r.sum[0] = r.sum[1] = r.high[0] = static_cast<double>(n);
      return r;
    }
    r.high[0] = 0;
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    const bool flags = mask.kind() == mask_kind::flag;
    if (!flags && l != 0) return r;
    for (index j = flags ? l : 0; j < n; j += flags ? virtual_lanes : 1) {
      const double w = mask.at(at + j * step);
      if (!(w > 0)) continue;
      r.sum[0] += w;
      r.sum[1] += 1;
      r.high[0] = static_cast<double>(j + 1);
    }
    return r;
  }
  RLHF_HOST_DEVICE void store(index i, const figures& r) const {
    if (counts != nullptr) {
      counts[3 * i] = r.sum[0];
      counts[3 * i + 1] = r.sum[1];
      counts[3 * i + 2] = r.sum[1] > 0 ? 1 : 0;
    }
    if (length != nullptr) length[i] = static_cast<index>(r.high[0]);
  }
};

/// Whether the length or the offsets of row i do not fit; on a stream no one else can look. Row 0 of
/// a batch without rows stands for its only offset.
template <class Space>
RLHF_HOST_DEVICE bool is_bad_row(const token_domain<Space>& domain, index i) {
  const index n = domain.columns;
  if (domain.kind == arrangement::lengths)
    return i < domain.rows && (domain.indices[i] < 0 || domain.indices[i] > n);
  if (domain.kind != arrangement::packed) return false;
  const bool starts = i > 0 || domain.indices[0] == 0;
  const bool grows = i >= domain.rows || domain.indices[i + 1] >= domain.indices[i];
  const bool ends = i + 1 < domain.rows || domain.indices[domain.rows] == n;
  return !(starts && grows && ends);
}

/// Counts, valid lengths and what is no weight, under weights, in one launch: a thread adds those of
/// a row and one thread those of the rows, because weights are no whole numbers and have the order of
/// the host.
template <class Space>
struct weigh_pass {
  static constexpr int threads = 128;
  static constexpr unsigned least_blocks = 8;
  static constexpr int weight = 0, positions = 1, wrong = 2, size = 3;

  token_domain<Space> domain;
  double* counts = nullptr;  // these may be null
  double* row_weight = nullptr;
  index* length = nullptr;
  double* bad = nullptr;
  double* bad_weights = nullptr;
  double* rows = nullptr;  // `size` for each row
  unsigned* arrived = nullptr;

  struct shared {
    double x[size][threads];
    int bad;
    bool last;
  };
  index units() const { return domain.rows > 0 ? (domain.rows + threads - 1) / threads : 1; }

  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const {
    team.each([&](int t) {
      const index i = unit * threads + t;
      if (i < domain.rows) weigh(i);
    });
    if (!team.arrive(arrived, domain.rows > 0 ? (domain.rows + threads - 1) / threads : 1, s.last))
      return;
    team.each([&](int t) {
      if (t == 0) s.bad = 0;
    });
    double sum[size] = {}, sequences = 0;  // of the first thread
    for (index first = 0; first < domain.rows; first += threads) {
      team.sync();
      team.each([&](int t) {
        const index i = first + t;
        if (i >= domain.rows) return;
        for (int k = 0; k < size; ++k) s.x[k][t] = team.fetch(rows + size * i + k);
        if (is_bad_row(domain, i)) team.next(s.bad);
      });
      team.sync();
      team.each([&](int t) {
        if (t != 0) return;
        for (int r = 0; r < threads && first + r < domain.rows; ++r) {
          for (int k = 0; k < size; ++k) sum[k] += s.x[k][r];
          sequences += s.x[positions][r] > 0 ? 1 : 0;
        }
      });
    }
    team.sync();
    team.each([&](int t) {
      if (t != 0) return;
      if (counts != nullptr)
        counts[0] = sum[weight], counts[1] = sum[positions], counts[2] = sequences;
      if (bad != nullptr) *bad = s.bad + (domain.rows == 0 && is_bad_row(domain, 0) ? 1 : 0);
      if (bad_weights != nullptr) *bad_weights = sum[wrong];
    });
  }

 private:
  RLHF_HOST_DEVICE void weigh(index i) const {
    const index n = domain.length(i);
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    double sum = 0;
    index there = 0, end = 0, no_weights = 0;
    for (index j = 0; j < n; ++j) {
      const double w = domain.mask.at(at + j * step);
      if (!is_weight(w)) ++no_weights;
      if (!(w > 0)) continue;
      sum += w;
      ++there;
      end = j + 1;
    }
    rows[size * i + weight] = sum;
    rows[size * i + positions] = static_cast<double>(there);
    rows[size * i + wrong] = static_cast<double>(no_weights);
    if (row_weight != nullptr) row_weight[i] = sum;
    if (length != nullptr) length[i] = end;
  }
};

/// How many of 8 bytes are not 0.
RLHF_HOST_DEVICE inline int count_bytes(std::uint64_t word) {
  constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
  const std::uint64_t top = ((word & low7) + low7) | word;  // top bit of a byte: it is not 0
  return static_cast<int>(((top & ~low7) >> 7) * 0x0101010101010101ULL >> 56);
}

/// Counts and valid lengths of all rows under flags or no mask, in one launch: 16 threads read a
/// segment of a row, 16 bytes each. All of it are whole numbers, so no order changes a bit.
template <class Space>
struct count_pass {
  static constexpr int threads = 256;
  static constexpr unsigned least_blocks = 4;
  static constexpr int readers = 16;
  static constexpr int at_once = threads / readers;
  static constexpr int positions = 0, sequences = 1, bad_rows = 2, size = 3;
  static constexpr index segment_tokens = 8192;
  static constexpr index enough_units = 1024;

  token_domain<Space> domain;
  index segments;  // of each row
  index each;      // segments that 16 threads read, one after the other
  index units;
  double* counts;      // the result; may be null
  double* row_weight;  // of each row; may be null
  index* length;       // of each row; may be null
  double* bad;         // may be null
  double* partial;     // `size` for each unit
  double* found;       // per segment: positions, last position + 1; null where a row has one
  unsigned* arrived;

  static count_pass over(const token_domain<Space>& domain) {
    count_pass p{domain, 1, 1, 1, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
    if (domain.mask.kind() == mask_kind::flag) {
      const index most = domain.rows > 0 ? 8 * enough_units / domain.rows : 0;
      p.segments = (domain.columns + segment_tokens - 1) / segment_tokens;
      if (domain.kind == arrangement::packed && p.segments > most) p.segments = most;
      if (p.segments < 1) p.segments = 1;
    }
    const index all = domain.rows * p.segments;
    p.each = (all + at_once * enough_units - 1) / (at_once * enough_units);
    if (p.each < 1) p.each = 1;
    p.units = (all + at_once * p.each - 1) / (at_once * p.each);
    if (p.units < 1) p.units = 1;
    return p;
  }

  struct shared {
    double part[size][at_once];
    bool last;
  };
  struct kept {
    double count[size];
    double positions, end;  // of a segment
  };

  template <class Team>
  RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const {
    typename Team::template own<kept> mine;
    team.each([&](int t) { mine[t] = {}; });
    for (index k = 0; k < each; ++k) {
      const auto at = [&](int t) { return (unit * each + k) * at_once + t / readers; };
      team.each([&](int t) {
        mine[t].positions = mine[t].end = 0;
        if (at(t) < domain.rows * segments) read(mine[t], at(t), t % readers);
      });
      team.merge16(
          take_sum(), [&](int t) { return mine[t].positions; },
          [&](int t, double x) { mine[t].positions = x; });
      team.merge16(
          take_higher(), [&](int t) { return mine[t].end; },
          [&](int t, double x) { mine[t].end = x; });
      team.each([&](int t) {
        if (t % readers != 0) return;
        const index i = at(t);
        const bool there = i < domain.rows * segments;
        if (bad != nullptr && (there ? i % segments == 0 : i == 0))
          mine[t].count[bad_rows] += is_bad_row(domain, i / segments) ? 1 : 0;
        if (!there) return;
        mine[t].count[positions] += mine[t].positions;
        if (found != nullptr) {
          found[2 * i] = mine[t].positions;
          found[2 * i + 1] = mine[t].end;
        } else {
          mine[t].count[sequences] += mine[t].end > 0 ? 1 : 0;
          if (row_weight != nullptr) row_weight[i] = mine[t].positions;
          if (length != nullptr) length[i] = static_cast<index>(mine[t].end);
        }
      });
    }
    team.sync();
    team.each([&](int t) {
      if (t % readers != 0) return;
      for (int k = 0; k < size; ++k) s.part[k][t / readers] = mine[t].count[k];
    });
    team.sync();
    team.each([&](int t) {
      if (t >= size) return;
      double sum = 0;
      for (const double x : s.part[t]) sum += x;
      partial[unit * size + t] = sum;
    });
    if (team.arrive(arrived, units, s.last)) finish(team, s, mine);
  }

 private:
  /// What reader l of 16 sees of a segment.
  RLHF_HOST_DEVICE void read(kept& x, index at, int l) const {
    const index i = at / segments;
    const index n = domain.length(i);
    if (domain.mask.kind() == mask_kind::none) {
      if (l == 0) x.positions = x.end = static_cast<double>(n);
      return;
    }
    const index tokens = (n + segments * 16 - 1) / (segments * 16) * 16;
    const index low = at % segments * tokens;
    const index high = low + tokens < n ? low + tokens : n;
    const index step = domain.mask_stride();
    const auto* const flags =
        static_cast<const std::uint8_t*>(domain.mask.data()) + domain.mask_offset(i);
    index count = 0, last = -1;  // the last block of 16 with a position
    for (index j = low + 16 * l; j < high; j += 16 * readers) {
      int here = 0;
      if (step == 1 && j + 16 <= high && on_16_bytes(flags + j)) {
        const sixteen_bytes<std::uint8_t> bytes = load_16_bytes(flags + j);
        std::uint64_t word[2];
        __builtin_memcpy(word, bytes.part, 16);
        here = count_bytes(word[0]) + count_bytes(word[1]);
      } else {
        for (index k = j; k < high && k < j + 16; ++k) here += flags[k * step] != 0 ? 1 : 0;
      }
      count += here;
      if (here > 0) last = j;
    }
    x.positions = static_cast<double>(count);
    if (last < 0) return;
    index end = last + 16 < high ? last + 16 : high;
    while (flags[(end - 1) * step] == 0) --end;
    x.end = static_cast<double>(end);
  }

  template <class Team, class Own>
  RLHF_HOST_DEVICE void finish(const Team& team, shared& s, Own& mine) const {
    if (found != nullptr) {
      team.each([&](int t) { mine[t].count[sequences] = 0; });
      for (index first = 0; first < domain.rows; first += at_once) {
        team.each([&](int t) {
          const index i = first + t / readers;
          mine[t].positions = mine[t].end = 0;
          if (i >= domain.rows) return;
          for (index k = t % readers; k < segments; k += readers) {
            mine[t].positions += team.fetch(found + 2 * (i * segments + k));
            mine[t].end = higher(mine[t].end, team.fetch(found + 2 * (i * segments + k) + 1));
          }
        });
        team.merge16(
            take_sum(), [&](int t) { return mine[t].positions; },
            [&](int t, double x) { mine[t].positions = x; });
        team.merge16(
            take_higher(), [&](int t) { return mine[t].end; },
            [&](int t, double x) { mine[t].end = x; });
        team.each([&](int t) {
          const index i = first + t / readers;
          if (t % readers != 0 || i >= domain.rows) return;
          mine[t].count[sequences] += mine[t].end > 0 ? 1 : 0;
          if (row_weight != nullptr) row_weight[i] = mine[t].positions;
          if (length != nullptr) length[i] = static_cast<index>(mine[t].end);
        });
      }
      team.sync();
      team.each([&](int t) {
        if (t % readers == 0) s.part[sequences][t / readers] = mine[t].count[sequences];
      });
      team.sync();
    }
    constexpr figure_row row{size, 0};
    fold_leaves(team, row, units, [&](index unit) { return partial + unit * size; });
    team.each([&](int t) {
      if (t >= size) return;
      double x = team.fetch(partial + t);
      if (t == sequences && found != nullptr) {
        x = 0;
        for (const double y : s.part[sequences]) x += y;
      }
      if (counts != nullptr && t == positions) counts[0] = counts[1] = x;
      if (counts != nullptr && t == sequences) counts[2] = x;
      if (bad != nullptr && t == bad_rows) *bad = x;
    });
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
