#pragma once

#include <cstdint>

#include "rlhf/primitive/count.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Bytes that are not 0, eight at a time.
inline index count_flags(const std::uint8_t* flags, index n) {
  index count = 0;
  index j = 0;
  for (; j + 8 <= n; j += 8) {
    std::uint64_t word;
    __builtin_memcpy(&word, flags + j, 8);
    constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
    const std::uint64_t top = ((word & low7) + low7) | word;  // top bit of a byte: it is not 0
    count += static_cast<index>(((top & ~low7) >> 7) * 0x0101010101010101ULL >> 56);
  }
  for (; j < n; ++j) count += flags[j] != 0 ? 1 : 0;
  return count;
}

struct row_count {
  double weight = 0;
  double positions = 0;
};

template <class Space>
row_count count_row(const token_domain<Space>& domain, index i) {
  const index n = domain.length(i);
  const mask_view<Space>& mask = domain.mask;
  if (mask.kind() == mask_kind::none)
    return {static_cast<double>(n), static_cast<double>(n)};
  row_count r;
  if (n == 0) return r;
  const index at = domain.mask_offset(i), step = domain.mask_stride();
  if (mask.kind() == mask_kind::flag) {
    const auto* const flags = static_cast<const std::uint8_t*>(mask.data()) + at;
    index count = 0;
    if (step == 1)
      count = count_flags(flags, n);
    else
      for (index j = 0; j < n; ++j) count += flags[j * step] != 0 ? 1 : 0;
    r.weight = r.positions = static_cast<double>(count);
    return r;
  }
  for (index j = 0; j < n; ++j) {
    const double w = mask.at(at + j * step);
    if (!(w > 0)) continue;
    r.weight += w;
    r.positions += 1;
  }
  return r;
}

/// Tokens, positions and sequences of a domain; row_weight[i], where wanted, is the sum of a row.
template <class Space>
RLHF_NOINLINE void count_rows(const token_domain<Space>& domain, double* counts,
                              double* row_weight) {
  double weight = 0;
  index positions = 0, sequences = 0;
  if (domain.mask.kind() == mask_kind::none) {
    for (index i = 0; i < domain.rows; ++i) {
      const index n = domain.length(i);
      positions += n;
      sequences += n > 0 ? 1 : 0;
      if (row_weight != nullptr) row_weight[i] = static_cast<double>(n);
    }
    weight = static_cast<double>(positions);
  } else {
    for (index i = 0; i < domain.rows; ++i) {
      const row_count r = count_row(domain, i);
      weight += r.weight;
      positions += static_cast<index>(r.positions);
      sequences += r.positions > 0 ? 1 : 0;
      if (row_weight != nullptr) row_weight[i] = r.weight;
    }
  }
  counts[0] = weight;
  counts[1] = static_cast<double>(positions);
  counts[2] = static_cast<double>(sequences);
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
