#pragma once

#include <cstdint>

#include "rlhf/core/config.hpp"
#include "rlhf/tensor/shape.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Eight flags of a mask, one per byte: a byte that is not 0 is set.
struct flag_word {
  std::uint64_t bytes;

  static RLHF_INLINE flag_word at(const std::uint8_t* flags) {
    flag_word w;
    __builtin_memcpy(&w.bytes, flags, 8);
    return w;
  }
  /// Those of the last n, 0 < n <= 8, and not set below.
  RLHF_INLINE flag_word last(index n) const { return {bytes & ~std::uint64_t{0} << 8 * (8 - n)}; }

  /// Those of the first n, 0 < n <= 8, and not set beyond.
  RLHF_INLINE flag_word first(index n) const { return {bytes & ~std::uint64_t{0} >> 8 * (8 - n)}; }

  /// One bit per flag, bit i for byte i.
  RLHF_INLINE unsigned bits() const {
#if defined(__SSE2__) && !defined(RLHF_PORTABLE_PACKS)
    typedef char sixteen __attribute__((vector_size(16)));
    typedef std::uint64_t two __attribute__((vector_size(16)));
    const auto unset = __builtin_bit_cast(sixteen, two{bytes, 0}) == 0;
    return 255u &
           ~static_cast<unsigned>(__builtin_ia32_pmovmskb128(__builtin_bit_cast(sixteen, unset)));
#else
    return static_cast<unsigned>((tops() >> 7) * 0x0102040810204080ULL >> 56);
#endif
  }
  RLHF_INLINE index count() const {
#if defined(__POPCNT__)
    return __builtin_popcount(bits());
#else
    return static_cast<index>((tops() >> 7) * 0x0101010101010101ULL >> 56);
#endif
  }
  RLHF_INLINE bool none() const { return bytes == 0; }
  /// How many beyond the last one that is set; one is.
  RLHF_INLINE index none_at_end() const { return __builtin_clzll(bytes) / 8; }

  /// 255 for each flag that is set.
  RLHF_INLINE std::uint64_t whole_bytes() const { return (tops() >> 7) * 255; }

 private:
  static constexpr std::uint64_t low7 = 0x7f7f7f7f7f7f7f7fULL;
  /// The top bit of each byte that is not 0.
  RLHF_INLINE std::uint64_t tops() const { return (((bytes & low7) + low7) | bytes) & ~low7; }
};

/// One past the last flag in [0, n); 0 where there is none.
inline index last_flag(const std::uint8_t* flags, index n) {
  for (; n >= 8; n -= 8) {
    const flag_word w = flag_word::at(flags + n - 8);
    if (!w.none()) return n - w.none_at_end();
  }
  while (n > 0 && flags[n - 1] == 0) --n;
  return n;
}

/// The first flag in [0, n), or n.
inline index first_flag(const std::uint8_t* flags, index n) {
  index j = 0;
  while (j + 8 <= n && flag_word::at(flags + j).none()) j += 8;
  while (j < n && flags[j] == 0) ++j;
  return j;
}

/// The first flag in [0, n) that is not set, or n.
inline index first_unset(const std::uint8_t* flags, index n) {
  index j = 0;
  while (j + 8 <= n && flag_word::at(flags + j).count() == 8) j += 8;
  while (j < n && flags[j] != 0) ++j;
  return j;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
