#pragma once

#include <cstdint>

#include "rlhf/backend/host/flag_word.hpp"
#include "rlhf/math/pack.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Where each of 8 (or 4) slots takes its element from, to close up the flagged ones or to spread
/// them again. Of a row of `close`, the 8 bytes from the number of flagged ones on put those into
/// the last slots. In `spread` a slot that is not flagged has the top bit set.
struct compaction_tables {
  static constexpr std::uint8_t not_flagged = 128;
  std::uint8_t close[256][16] = {};
  std::uint8_t spread[256][8] = {};
  std::uint8_t close_pairs[16][16] = {};
  std::uint8_t spread_pairs[16][8] = {};

  constexpr compaction_tables() {
    for (unsigned bits = 0; bits < 256; ++bits) {
      std::uint8_t n = 0;
      for (std::uint8_t j = 0; j < 8; ++j) {
        const bool flagged = (bits >> j & 1u) != 0;
        spread[bits][j] = flagged ? n : static_cast<std::uint8_t>(n | not_flagged);
        if (flagged) close[bits][8 + n++] = j;
      }
    }
    for (unsigned bits = 0; bits < 16; ++bits)
      for (unsigned j = 0; j < 8; ++j) {
        close_pairs[bits][8 + j] = static_cast<std::uint8_t>(2 * close[bits][8 + j / 2] + j % 2);
        const unsigned from = spread[bits][j / 2];
        spread_pairs[bits][j] =
            static_cast<std::uint8_t>((2 * from + j % 2) | (from & not_flagged));
      }
  }
};
inline constexpr compaction_tables compaction;

#if RLHF_PACK_BYTES == 32 && !defined(RLHF_PORTABLE_PACKS)
typedef float eight_words __attribute__((vector_size(32)));
typedef int eight_places __attribute__((vector_size(32)));

/// 8 bytes of a table, each in a word, its top bit in front.
RLHF_INLINE eight_places places_at(const std::uint8_t* order) {
#if defined(__clang__)
  typedef signed char eight __attribute__((vector_size(8)));
  eight packed;
  __builtin_memcpy(&packed, order, 8);
  return __builtin_convertvector(packed, eight_places);
#else
  typedef char sixteen __attribute__((vector_size(16)));
  typedef std::int64_t two __attribute__((vector_size(16)));
  std::int64_t packed;
  __builtin_memcpy(&packed, order, 8);
  const two low = {packed, 0};
  return __builtin_bit_cast(eight_places,
                            __builtin_ia32_pmovsxbd256(__builtin_bit_cast(sixteen, low)));
#endif
}

/// The 8 words at `from`, in the order that `order` says.
RLHF_INLINE void permute_words(const void* from, const eight_places& order, void* to) {
  eight_words x;
  __builtin_memcpy(&x, from, sizeof x);
  const eight_words y = __builtin_ia32_permvarsf256(x, order);
  __builtin_memcpy(to, &y, sizeof y);
}

/// The same, and 0 where `kept` has no bits.
RLHF_INLINE void spread_words(const void* from, const eight_places& order, const eight_places& kept,
                              void* to) {
  eight_words x;
  __builtin_memcpy(&x, from, sizeof x);
  const eight_places y =
      __builtin_bit_cast(eight_places, __builtin_ia32_permvarsf256(x, order)) & kept;
  __builtin_memcpy(to, &y, sizeof y);
}
#define RLHF_DETAIL_PERMUTE 1
#else
#define RLHF_DETAIL_PERMUTE 0
#endif

/// What closing up and spreading ask of a word, found once for all tensors.
struct flag_pattern {
  flag_word word;
  unsigned bits;
  index count;
  explicit RLHF_INLINE flag_pattern(flag_word w) : word(w), bits(w.bits()), count(w.count()) {}
};
struct closing_pattern : flag_pattern {
#if RLHF_DETAIL_PERMUTE
  eight_places places;
  explicit RLHF_INLINE closing_pattern(flag_word w)
      : flag_pattern(w), places(places_at(compaction.close[bits] + count)) {}
#else
  using flag_pattern::flag_pattern;
#endif
};
struct spreading_pattern : flag_pattern {
#if RLHF_DETAIL_PERMUTE
  eight_places places, kept;
  explicit RLHF_INLINE spreading_pattern(flag_word w)
      : flag_pattern(w), places(places_at(compaction.spread[bits])), kept(places >= 0) {}
#else
  using flag_pattern::flag_pattern;
#endif
};

/// The flagged ones of x[0..8), one after the other, before `end`. Writes up to 8 elements there.
template <class T>
RLHF_INLINE void close_up(const T* x, const closing_pattern& flags, T* end) {
  const unsigned bits = flags.bits;
#if RLHF_DETAIL_PERMUTE
  if constexpr (sizeof(T) == 4) {
    permute_words(x, flags.places, end - 8);
    return;
  } else if constexpr (sizeof(T) == 8) {
    const index low = __builtin_popcount(bits & 15), high = flags.count - low;
    permute_words(x + 4, places_at(compaction.close_pairs[bits >> 4] + 2 * high), end - 4);
    permute_words(x, places_at(compaction.close_pairs[bits & 15] + 2 * low), end - high - 4);
    return;
  }
#endif
#if defined(__BMI2__) && defined(__x86_64__)
  if constexpr (sizeof(T) == 1) {
    std::uint64_t word;
    __builtin_memcpy(&word, x, 8);
    word = __builtin_ia32_pext_di(word, flags.word.whole_bytes());
    const index beyond = 4 * (8 - flags.count);
    word = word << beyond << beyond;
    __builtin_memcpy(end - 8, &word, 8);
    return;
  }
#endif
  for (int j = 8; j-- > 0;) {
    end[-1] = x[j];
    end -= bits >> j & 1u;
  }
}

/// The opposite: x[0], x[1], ... into the flagged ones of to[0..8), and +0 into the others. Reads
/// 8 elements.
template <class T>
RLHF_INLINE void spread_out(const T* x, const spreading_pattern& flags, T* to) {
  const unsigned bits = flags.bits;
#if RLHF_DETAIL_PERMUTE
  if constexpr (sizeof(T) == 4) {
    spread_words(x, flags.places, flags.kept, to);
  } else {
    const index low = __builtin_popcount(bits & 15);
    const auto put = [](const T* from, const std::uint8_t* order, T* four) {
      const eight_places places = places_at(order);
      spread_words(from, places, places >= 0, four);
    };
    put(x, compaction.spread_pairs[bits & 15], to);
    put(x + low, compaction.spread_pairs[bits >> 4], to + 4);
  }
#else
  for (int j = 0; j < 8; ++j) {
    const bool flagged = (bits >> j & 1u) != 0;
    to[j] = flagged ? *x : T(0);
    x += flagged ? 1 : 0;
  }
#endif
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail

#undef RLHF_DETAIL_PERMUTE
