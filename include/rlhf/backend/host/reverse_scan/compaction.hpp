#pragma once

#include <cstdint>

#include "rlhf/math/pack.hpp"
#include "rlhf/tensor/shape.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// One bit per byte of `word` that is not 0, bit i for byte i.
RLHF_INLINE unsigned flag_bits(std::uint64_t word) {
  constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
  const std::uint64_t top = (((word & low7) + low7) | word) & ~low7;
  return static_cast<unsigned>((top >> 7) * 0x0102040810204080ULL >> 56);
}
RLHF_INLINE std::uint64_t flag_word(const std::uint8_t* flags) {
  std::uint64_t word;
  __builtin_memcpy(&word, flags, 8);
  return word;
}
/// How many of them there are.
RLHF_INLINE index flag_count(std::uint64_t word) {
  constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
  const std::uint64_t top = (((word & low7) + low7) | word) & ~low7;
  return static_cast<index>((top >> 7) * 0x0101010101010101ULL >> 56);
}

/// Where each of 8 (or 4) slots takes its element from, to close up the flagged ones or to spread
/// them again.
struct compaction_tables {
  std::uint8_t close[256][8] = {};
  std::uint8_t spread[256][8] = {};
  std::uint8_t close_pairs[16][8] = {};
  std::uint8_t spread_pairs[16][8] = {};

  constexpr compaction_tables() {
    for (unsigned bits = 0; bits < 256; ++bits) {
      std::uint8_t n = 0;
      for (std::uint8_t j = 0; j < 8; ++j) {
        spread[bits][j] = n;
        if ((bits >> j & 1u) != 0) close[bits][n++] = j;
      }
    }
    for (unsigned bits = 0; bits < 16; ++bits)
      for (unsigned j = 0; j < 8; ++j) {
        close_pairs[bits][j] = static_cast<std::uint8_t>(2 * close[bits][j / 2] + j % 2);
        spread_pairs[bits][j] = static_cast<std::uint8_t>(2 * spread[bits][j / 2] + j % 2);
      }
  }
};
inline constexpr compaction_tables compaction;

#if RLHF_PACK_BYTES == 32 && !defined(RLHF_PORTABLE_PACKS)
/// The 8 words at `from`, in the order that `order` says.
RLHF_INLINE void permute_words(const void* from, const std::uint8_t* order, void* to) {
  typedef float words __attribute__((vector_size(32)));
  typedef int places __attribute__((vector_size(32)));
  words x;
  __builtin_memcpy(&x, from, sizeof x);
#if defined(__clang__)
  typedef std::uint8_t eight __attribute__((vector_size(8)));
  eight packed;
  __builtin_memcpy(&packed, order, 8);
  const places at = __builtin_convertvector(packed, places);
#else
  typedef char sixteen __attribute__((vector_size(16)));
  typedef std::int64_t two __attribute__((vector_size(16)));
  std::int64_t packed;
  __builtin_memcpy(&packed, order, 8);
  const two low = {packed, 0};
  const auto at =
      __builtin_bit_cast(places, __builtin_ia32_pmovzxbd256(__builtin_bit_cast(sixteen, low)));
#endif
  const words y = __builtin_ia32_permvarsf256(x, at);
  __builtin_memcpy(to, &y, sizeof y);
}
#define RLHF_DETAIL_PERMUTE 1
#else
#define RLHF_DETAIL_PERMUTE 0
#endif

/// The flagged ones of x[0..8), one after the other. Writes up to 8 elements.
template <class T>
RLHF_INLINE void close_up(const T* x, unsigned bits, T* to) {
#if RLHF_DETAIL_PERMUTE
  if constexpr (sizeof(T) == 4) {
    permute_words(x, compaction.close[bits], to);
    return;
  } else if constexpr (sizeof(T) == 8) {
    permute_words(x, compaction.close_pairs[bits & 15], to);
    permute_words(x + 4, compaction.close_pairs[bits >> 4], to + compaction.spread[bits][4]);
    return;
  }
#endif
  for (int j = 0; j < 8; ++j) {
    *to = x[j];
    to += bits >> j & 1u;
  }
}

/// The opposite: x[0], x[1], ... into the flagged ones of to[0..8), and +0 into the others.
template <class T>
RLHF_INLINE void spread_out(const T* x, unsigned bits, const std::uint8_t* flags, T* to) {
#if RLHF_DETAIL_PERMUTE
  using V = math::pack<T>;
  if constexpr (sizeof(T) == 4) {
    V y;
    permute_words(x, compaction.spread[bits], &y);
    math::store(to, math::select(math::load_flags<V>(flags), y, math::constant<V>(0)));
  } else {
    V y;
    permute_words(x, compaction.spread_pairs[bits & 15], &y);
    math::store(to, math::select(math::load_flags<V>(flags), y, math::constant<V>(0)));
    permute_words(x + compaction.spread[bits][4], compaction.spread_pairs[bits >> 4], &y);
    math::store(to + 4, math::select(math::load_flags<V>(flags + 4), y, math::constant<V>(0)));
  }
#else
  static_cast<void>(flags);
  for (int j = 0; j < 8; ++j) {
    const bool flagged = (bits >> j & 1u) != 0;
    to[j] = flagged ? *x : T(0);
    x += flagged ? 1 : 0;
  }
#endif
}

/// One past the last flag in [0, n).
inline index after_last_flag(const std::uint8_t* flags, index n) {
  while (n >= 8 && flag_word(flags + n - 8) == 0) n -= 8;
  while (n > 0 && flags[n - 1] == 0) --n;
  return n;
}
/// The first flag in [0, n), or n.
inline index first_flag(const std::uint8_t* flags, index n) {
  index j = 0;
  while (j + 8 <= n && flag_word(flags + j) == 0) j += 8;
  while (j < n && flags[j] == 0) ++j;
  return j;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail

#undef RLHF_DETAIL_PERMUTE
