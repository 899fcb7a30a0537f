#pragma once

#include <cstdint>

#include "rlhf/backend/host/flag_word.hpp"
#include "rlhf/primitive/count.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Bytes that are not 0.
RLHF_NOINLINE inline index count_flags(const std::uint8_t* flags, index n) {
  constexpr index width = RLHF_PACK_BYTES == 32 ? 32 : 16;
  constexpr index words = width / 8;
  typedef std::uint8_t block __attribute__((vector_size(width)));
  typedef std::uint64_t sums __attribute__((vector_size(width)));
  constexpr std::uint64_t low = 0x00ff00ff00ff00ffULL;
  index count = 0;
  index j = 0;
  while (n - j >= 64) {
    // A byte counts up to 255 rounds before it is read.
    const index end = n - j < 255 * width ? j + (n - j) / width * width : j + 255 * width;
    block seen = {};
    for (; j < end; j += width) {
      block x;
      __builtin_memcpy(&x, flags + j, sizeof x);
      seen -= __builtin_bit_cast(block, x != 0);
    }
    const sums byte = __builtin_bit_cast(sums, seen);
    const sums pair = (byte & low) + (byte >> 8 & low);
    for (index w = 0; w < words; ++w)
      count += static_cast<index>(pair[w] * 0x0001000100010001ULL >> 48);
  }
  for (; j + 8 <= n; j += 8) count += flag_word::at(flags + j).count();
  for (; j < n; ++j) count += flags[j] != 0 ? 1 : 0;
  return count;
}

/// The same for a row, which may be short.
RLHF_INLINE index count_row_flags(const std::uint8_t* flags, index n) {
  if (n >= 64) return count_flags(flags, n);
  index count = 0, j = 0;
  for (; j + 8 <= n; j += 8) count += flag_word::at(flags + j).count();
  for (; j < n; ++j) count += flags[j] != 0 ? 1 : 0;
  return count;
}

struct flags_seen {
  bool all;
  bool some;
};

/// Whether all, and whether some of n bytes are not 0, n a multiple of 16.
RLHF_NOINLINE inline flags_seen look_at_flags(const std::uint8_t* flags, index n) {
  typedef std::uint8_t sixteen __attribute__((vector_size(16)));
  typedef std::uint64_t two __attribute__((vector_size(16)));
  sixteen any = {};
  sixteen holes = {};
  for (index j = 0; j < n; j += 16) {
    sixteen x;
    __builtin_memcpy(&x, flags + j, 16);
    any |= x;
    holes |= __builtin_bit_cast(sixteen, x == 0);
  }
  const two some = __builtin_bit_cast(two, any);
  const two lacks = __builtin_bit_cast(two, holes);
  return {(lacks[0] | lacks[1]) == 0, (some[0] | some[1]) != 0};
}

/// token_domain::valid_length, with the flags of a row read eight at a time.
template <class Space>
RLHF_NOINLINE index last_counted(const token_domain<Space>& domain, index i) {
  if (domain.mask.kind() != mask_kind::flag || domain.mask_stride() != 1)
    return domain.valid_length(i);
  return last_flag(static_cast<const std::uint8_t*>(domain.mask.data()) + domain.mask_offset(i),
                   domain.length(i));
}

/// What a row, or a part of a domain, has.
struct row_count {
  double weight = 0;
  double positions = 0;
  double sequences = 0;

  void add(const row_count& r) {
    weight += r.weight;
    positions += r.positions;
    sequences += r.sequences;
  }
  void write(double* counts) const {
    counts[0] = weight;
    counts[1] = positions;
    counts[2] = sequences;
  }
};

/// Positions [from, to) of row i.
template <class Space>
row_count count_span(const token_domain<Space>& domain, index i, index from, index to) {
  const mask_view<Space>& mask = domain.mask;
  row_count r;
  const index step = domain.mask_stride();
  const index n = to - from;
  const auto sum = [&](const auto* w) {
    // Added one by one, as on every backend; a 0 changes nothing.
    double weight = 0;
    index positions = 0;
    for (index j = 0; j < n; ++j) {
      const double x = static_cast<double>(w[j * step]);
      weight += x > 0 ? x : 0;
      positions += x > 0 ? 1 : 0;
    }
    r.weight = weight;
    r.positions = static_cast<double>(positions);
  };
  if (n > 0) {
    const index at = domain.mask_offset(i) + from * step;
    switch (mask.kind()) {
      case mask_kind::none:
        r.positions = r.weight = static_cast<double>(n);
        break;
      case mask_kind::flag: {
        const auto* const flags = static_cast<const std::uint8_t*>(mask.data()) + at;
        index count = 0;
        if (step == 1)
          count = count_flags(flags, n);
        else
          for (index j = 0; j < n; ++j) count += flags[j * step] != 0 ? 1 : 0;
        r.positions = r.weight = static_cast<double>(count);
        break;
      }
      case mask_kind::weight32:
        sum(static_cast<const float*>(mask.data()) + at);
        break;
      case mask_kind::weight64:
        sum(static_cast<const double*>(mask.data()) + at);
        break;
    }
  }
  r.sequences = r.positions > 0 ? 1 : 0;
  return r;
}

template <class Space>
row_count count_row(const token_domain<Space>& domain, index i) {
  return count_span(domain, i, 0, domain.length(i));
}

/// Rows [first, last), one after the other.
template <class Space>
RLHF_NOINLINE row_count count_rows(const token_domain<Space>& domain, index first, index last,
                                   double* row_weight) {
  const token_domain<Space> d = domain;  // which no store can change
  const bool flags = d.mask.kind() == mask_kind::flag && d.mask_stride() == 1;
  row_count all;
  if (d.mask.kind() == mask_kind::none || flags) {
    index positions = 0, sequences = 0;
    const bool plain = d.kind == arrangement::lengths && !flags && row_weight == nullptr;
    for (index i = plain ? first : last; i < last; ++i) {
      positions += d.indices[i];
      sequences += d.indices[i] > 0 ? 1 : 0;
    }
    for (index i = plain ? last : first; i < last; ++i) {
      index n = d.length(i);
      if (flags)
        n = count_row_flags(static_cast<const std::uint8_t*>(d.mask.data()) + d.mask_offset(i), n);
      positions += n;
      sequences += n > 0 ? 1 : 0;
      if (row_weight != nullptr) row_weight[i] = static_cast<double>(n);
    }
    all.weight = all.positions = static_cast<double>(positions);
    all.sequences = static_cast<double>(sequences);
    return all;
  }
  for (index i = first; i < last; ++i) {
    const row_count r = count_row(d, i);
    all.add(r);
    if (row_weight != nullptr) row_weight[i] = r.weight;
  }
  return all;
}

template <class Space>
bool counts_weights(const token_domain<Space>& domain) {
  return domain.mask.kind() == mask_kind::weight32 || domain.mask.kind() == mask_kind::weight64;
}

/// How a count is shared between threads: some rows each, or, where rows are few and hold flags,
/// stretches of them. Sizes follow from extents alone.
class count_units {
  static constexpr index least = 32768;  // positions worth a unit
  index rows_ = 0;                       // per unit
  index spans_ = 1;                      // per row
  index units_ = 1;

 public:
  template <class Space>
  count_units(const token_domain<Space>& domain, index threads) : rows_(domain.rows) {
    const bool packed = domain.kind == arrangement::packed;
    const index slots = packed ? domain.columns : domain.rows * domain.columns;
    if (threads <= 1 || domain.mask.kind() == mask_kind::none || slots < 2 * least) return;
    const index average = slots / domain.rows;
    if (domain.rows < 4 * threads && domain.mask.kind() == mask_kind::flag) {
      rows_ = 1;
      spans_ = (domain.columns + least - 1) / least;
    } else {
      rows_ = average < least ? least / (average > 0 ? average : 1) : 1;
    }
    units_ = (domain.rows + rows_ - 1) / rows_ * spans_;
  }

  index size() const { return units_; }

  template <class Space>
  row_count count(const token_domain<Space>& domain, index u, double* row_weight) const {
    const index row = u / spans_ * rows_;
    if (spans_ == 1)
      return count_rows(domain, row, row + rows_ < domain.rows ? row + rows_ : domain.rows,
                        row_weight);
    const index n = domain.length(row);
    const index from = u % spans_ * least;
    return count_span(domain, row, from < n ? from : n, from + least < n ? from + least : n);
  }

  /// The bits of count_rows over all rows: flags are whole numbers, weights are added row by row.
  template <class Space>
  row_count merge(const token_domain<Space>& domain, const row_count* partial,
                  double* row_weight) const {
    row_count all;
    for (index u = 0; u < units_;) {
      row_count unit;
      for (index s = 0; s < spans_; ++s, ++u) unit.add(partial[u]);
      if (spans_ > 1) {
        unit.sequences = unit.positions > 0 ? 1 : 0;
        if (row_weight != nullptr) row_weight[u / spans_ - 1] = unit.weight;
      }
      all.add(unit);
    }
    if (counts_weights(domain)) {
      all.weight = 0;
      for (index i = 0; i < domain.rows; ++i) all.weight += row_weight[i];
    }
    return all;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
