#pragma once

#include <cstdint>
#include <utility>

#include "rlhf/backend/host/count.hpp"
#include "rlhf/math/pack.hpp"
#include "rlhf/primitive/reverse_scan.hpp"

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

/// Moments of N outputs about a shift of each: they merge without a division.
template <int N>
struct scan_sums {
  double positions = 0;
  double nonfinite = 0;
  double shift[at_least_one(N)] = {};
  double sum[at_least_one(N)] = {};
  double square[at_least_one(N)] = {};

  RLHF_HOST_DEVICE void add(const scan_sums& r) {
    nonfinite += r.nonfinite;
    if (!(r.positions > 0)) return;
    const bool first = !(positions > 0);
    positions += r.positions;
    for (int k = 0; k < N; ++k) {
      if (first) shift[k] = r.shift[k];
      const double apart = r.shift[k] - shift[k];
      const double moved = math::fma(r.positions, apart, r.sum[k]);
      sum[k] += moved;
      square[k] += math::fma(apart, r.sum[k] + moved, r.square[k]);
    }
  }
  RLHF_HOST_DEVICE bool finite() const {
    double probe = 0;
    for (int k = 0; k < N; ++k) probe += square[k] - square[k];
    return probe == 0;
  }
  RLHF_HOST_DEVICE void write(double* to) const {
    to[0] = positions;
    to[1] = nonfinite;
    for (int k = 0; k < N; ++k) {
      const double mean = positions > 0 ? sum[k] / positions : 0;
      const double m2 = math::fma(-sum[k], mean, square[k]);
      to[2 + 2 * k] = positions > 0 ? shift[k] + mean : 0;
      to[3 + 2 * k] = m2 < 0 ? 0 : m2;
    }
  }
};

/// Powers of a decay that is the same everywhere, from double.
template <class T>
struct decay_powers {
  static constexpr int blocks = static_cast<int>(scan_tile_tokens / scan_block_tokens);
  T one, two, eight;
  alignas(32) T to_middle[8];  // 4, 3, 2, 1, and 0 four times
  alignas(32) T to_end[8];     // 8, 7, ..., 1
  T block[blocks + 1];         // 8·m
  double tile;                 // 1,024

  RLHF_NOINLINE explicit decay_powers(double decay) {
    double power[9];
    power[0] = 1;
    for (int k = 1; k <= 8; ++k) power[k] = power[k - 1] * decay;
    one = narrow(power[1]);
    two = narrow(power[2]);
    eight = narrow(power[8]);
    for (int k = 0; k < 8; ++k) {
      to_end[k] = narrow(power[8 - k]);
      to_middle[k] = k < 4 ? narrow(power[4 - k]) : T(0);
    }
    double far = 1;
    for (int m = 0; m <= blocks; ++m, far *= power[8]) block[m] = narrow(far);
    tile = far / power[8];
    if (!(power[8] > 0)) tile = 0;
  }

 private:
  /// Subnormal powers cost hundreds of cycles and say nothing.
  static T narrow(double x) {
    const T y = static_cast<T>(x);
    return y < math::detail::format<T>::smallest_normal ? T(0) : y;
  }
};

/// N values that are worked on together.
template <class X, int N>
struct block_of {
  X part[static_cast<std::size_t>(N)];
  RLHF_INLINE X& operator[](int i) { return part[i]; }
  RLHF_INLINE const X& operator[](int i) const { return part[i]; }
};

/// f(0), f(1), ... with constants: what they index stays in registers.
template <class F, int... N>
RLHF_INLINE void unrolled(std::integer_sequence<int, N...>, F&& f) {
  (f(std::integral_constant<int, N>()), ...);
}
template <int N, class F>
RLHF_INLINE void unrolled(F&& f) {
  unrolled(std::make_integer_sequence<int, N>(), f);
}

/// y[i + K] of each half of a block of 8, and `rest` beyond the half's end.
template <int K, class V, int P>
RLHF_INLINE void shift_in_fours(const block_of<V, P>& y, const V& rest, block_of<V, P>& to) {
  if constexpr (P == 8) {
    for (int i = 0; i < 8; ++i) to[i] = i % 4 + K < 4 ? y[i + K] : rest;
  } else {
#if RLHF_PACK_BYTES > 0
    if constexpr (P == 1) {
      const auto& a = y[0].native;
      const auto& b = rest.native;
      if constexpr (K == 1)
        to[0] = {__builtin_shufflevector(a, b, 1, 2, 3, 8, 5, 6, 7, 12)};
      else
        to[0] = {__builtin_shufflevector(a, b, 2, 3, 8, 9, 6, 7, 12, 13)};
    } else if constexpr (P == 2) {
      for (int p = 0; p < 2; ++p) to[p] = math::shift_down<K>(y[p], rest);
    } else {
      for (int p = 0; p < 4; p += 2) {
        to[p] = K == 1 ? math::shift_down<1>(y[p], y[p + 1]) : y[p + 1];
        to[p + 1] = K == 1 ? math::shift_down<1>(y[p + 1], rest) : rest;
      }
    }
#endif
  }
}

/// y[4] in the first half of a block, `rest` in the second.
template <class V, int P>
RLHF_INLINE void spread_middle(const block_of<V, P>& y, const V& rest, block_of<V, P>& to) {
  if constexpr (P == 1) {
#if RLHF_PACK_BYTES > 0
    const auto& a = y[0].native;
    const auto& b = rest.native;
    to[0] = {__builtin_shufflevector(a, b, 4, 4, 4, 4, 8, 9, 10, 11)};
#endif
  } else {
    const V middle = math::constant<V>(math::first(y[P / 2]));
    for (int p = 0; p < P; ++p) to[p] = p < P / 2 ? middle : rest;
  }
}

/// Up to 1,024 consecutive time steps of one row with every input contiguous.
template <class K>
struct scan_tile {
  using T = typename K::scalar_type;
  static constexpr index room = scan_tile_tokens + scan_block_tokens;

  const T* in[at_least_one(K::inputs)];
  const std::uint8_t* flag[at_least_one(K::flags)];
  const std::uint8_t* counted;  // null: every step is a valid token
  T* out[at_least_one(K::outputs)];
  index count;

  alignas(64) T in_buffer[at_least_one(K::inputs)][room];
  alignas(64) T out_buffer[at_least_one(K::outputs)][room];
  alignas(64) std::uint8_t flag_buffer[at_least_one(K::flags)][room];
};

/// Scans rows; keeps the moments of a segment of rows in 8 lanes.
template <class V, class K>
class tile_scan {
  using T = typename K::scalar_type;
  using D = math::native_lane<double>;
  using S = math::scalar_lane<T>;
  static constexpr int width = math::width<V>;
  static constexpr int packs = static_cast<int>(scan_block_tokens) / width;
  static constexpr int wide = static_cast<int>(scan_block_tokens) / math::width<D>;
  static constexpr int outputs = K::outputs;
  static constexpr bool varying = has_varying_decay<K>();

  bool fresh_ = true;
  double shift_[at_least_one(outputs)];
  block_of<D, wide> sum_[at_least_one(outputs)];
  block_of<D, wide> square_[at_least_one(outputs)];
  double odd_sum_[at_least_one(outputs)];
  double odd_square_[at_least_one(outputs)];

  static RLHF_INLINE void widen(const block_of<V, packs>& x, block_of<D, wide>& to) {
    if constexpr (packs == wide) {
      for (int p = 0; p < packs; ++p) to[p] = convert(x[p]);
    } else {
#if RLHF_PACK_BYTES > 0
      for (int p = 0; p < packs; ++p) {
        to[2 * p] = math::widen_low(x[p]);
        to[2 * p + 1] = math::widen_high(x[p]);
      }
#endif
    }
  }
  static RLHF_INLINE D convert(const V& x) {
    if constexpr (width == 1)
      return math::constant<D>(math::first(x));
    else
      return x;
  }

  /// x without its first element, and then `last`.
  static RLHF_INLINE V shift_in([[maybe_unused]] const V& x, T last) {
#if RLHF_PACK_BYTES > 0
    if constexpr (width > 1) return math::shift_down<1>(x, math::constant<V>(last));
#endif
    return math::constant<V>(last);
  }

  /// Nothing comes from later tokens, not even a NaN.
  static RLHF_INLINE bool stands_alone([[maybe_unused]] const K& kernel) {
    if constexpr (varying)
      return false;
    else
      return !(kernel.decay > 0);
  }

  static RLHF_INLINE bool flagged(const scan_tile<K>& tile, index at) {
    bool any = false;
    for (int k = 0; k < K::flags; ++k) any = any || tile.flag[k][at] != 0;
    return any;
  }

  static RLHF_INLINE V splat(T x) {
    if constexpr (width == 1) {
      return math::constant<V>(x);
    } else if constexpr (width == 2) {
      return {typename V::values{x, x}};
    } else if constexpr (width == 4) {
      return {typename V::values{x, x, x, x}};
    } else {
      return {typename V::values{x, x, x, x, x, x, x, x}};
    }
  }

  /// The moments of a segment are taken about the outputs of its first row's last token.
  RLHF_NOINLINE void choose_shift(const K& kernel, const decay_powers<T>& power,
                                  const scan_tile<K>& tile, T after, double carry) {
    const index at = tile.count - 1;
    const auto t = one_step(kernel, power, tile, at, after, static_cast<T>(carry));
    for (int k = 0; k < outputs; ++k) shift_[k] = static_cast<double>(math::first(t.out[k]));
    fresh_ = false;
  }

  static RLHF_INLINE scan_lanes<S, K> one_step(const K& kernel, const decay_powers<T>& power,
                                               const scan_tile<K>& tile, index at, T after,
                                               T later) {
    scan_lanes<S, K> t;
    for (int k = 0; k < K::inputs; ++k) t.in[k] = math::constant<S>(tile.in[k][at]);
    for (int k = 0; k < K::flags; ++k) t.flag[k] = tile.flag[k][at] != 0;
    if constexpr (K::shifted >= 0)
      t.next = math::constant<S>(at + 1 < tile.count ? tile.in[K::shifted][at + 1] : after);
    kernel.step(t);
    bool stops = stands_alone(kernel) || flagged(tile, at);
    S decay = math::constant<S>(power.one);
    if constexpr (varying) {
      decay = t.a;
      stops = stops || t.a == math::constant<S>(0);
    }
    t.x = stops ? t.b : math::fma(decay, math::constant<S>(later), t.b);
    kernel.emit(t);
    return t;
  }

  static double add_lanes(const block_of<D, wide>& x) {
    double lane[scan_block_tokens];
    for (int p = 0; p < wide; ++p) math::store(lane + p * math::width<D>, x[p]);
    for (int half = 4; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
  }

 public:
  void begin_segment() {
    fresh_ = true;
    for (int k = 0; k < outputs; ++k) {
      shift_[k] = odd_sum_[k] = odd_square_[k] = 0;
      for (int p = 0; p < wide; ++p) sum_[k][p] = square_[k][p] = math::constant<D>(0);
    }
  }
  RLHF_NOINLINE scan_sums<outputs> end_segment(index positions) const {
    scan_sums<outputs> s;
    s.positions = static_cast<double>(positions);
    for (int k = 0; k < outputs; ++k) {
      s.shift[k] = shift_[k];
      s.sum[k] = add_lanes(sum_[k]) + odd_sum_[k];
      s.square[k] = add_lanes(square_[k]) + odd_square_[k];
    }
    return s;
  }

  /// `carry` is x after the tile's last step, and then x of its first one.
  RLHF_NOINLINE void run(const K& callers_kernel, const decay_powers<T>& power,
                         const scan_tile<K>& tile, T after, double& carry) {
    // Everything the loop needs is copied: a store of T may alias any member.
    const K kernel = callers_kernel;
    const bool none = stands_alone(kernel);
    const index count = tile.count;
    const index blocks = count / scan_block_tokens;
    const std::uint8_t* const counted = tile.counted;
    const T* in[at_least_one(K::inputs)];
    const std::uint8_t* flag[at_least_one(K::flags)];
    T* out[at_least_one(outputs)];
    for (int k = 0; k < K::inputs; ++k) in[k] = tile.in[k];
    for (int k = 0; k < K::flags; ++k) flag[k] = tile.flag[k];
    for (int k = 0; k < outputs; ++k) out[k] = tile.out[k];
    if (fresh_) choose_shift(kernel, power, tile, after, carry);
    block_of<D, wide> sum[at_least_one(outputs)], square[at_least_one(outputs)];
    D shift[at_least_one(outputs)];
    unrolled<outputs>([&](auto k) __attribute__((always_inline)) {
      for (int p = 0; p < wide; ++p) sum[k][p] = sum_[k][p], square[k][p] = square_[k][p];
      shift[k] = math::constant<D>(shift_[k]);
    });
    const V zero = math::constant<V>(0);
    const V one = splat(power.one);
    const V two = splat(power.two);
    const V eight = splat(power.eight);
    block_of<V, packs> to_middle, to_end;
    for (int p = 0; p < packs; ++p) {
      to_middle[p] = math::load<V>(power.to_middle + p * width);
      to_end[p] = math::load<V>(power.to_end + p * width);
    }
    V chain = zero;                                      // x of the next block, without the carry
    V outer = math::constant<V>(static_cast<T>(carry));  // which adds a power of the decay of it
    [[maybe_unused]] V reach = math::constant<V>(1);     // that power, where decays vary
    double held = carry;

    for (index m = 0; m < blocks; ++m) {
      const index at = count - scan_block_tokens * (m + 1);
      block_of<scan_lanes<V, K>, packs> t;
      block_of<V, packs> x;
      for (int p = 0; p < packs; ++p) {
        const index from = at + p * width;
        for (int k = 0; k < K::inputs; ++k) t[p].in[k] = math::load<V>(in[k] + from);
        for (int k = 0; k < K::flags; ++k) t[p].flag[k] = math::load_flags<V>(flag[k] + from);
        if constexpr (K::shifted >= 0) {
          if (m == 0 && p == packs - 1)
            t[p].next = shift_in(t[p].in[K::shifted], after);
          else
            t[p].next = math::load<V>(in[K::shifted] + from + 1);
        }
        kernel.step(t[p]);
        x[p] = t[p].b;
      }
      std::uint64_t stops = 0;
      for (int k = 0; k < K::flags; ++k) stops |= flag_word(flag[k] + at);

      block_of<V, packs> later;
      if constexpr (varying) {
        block_of<V, packs> a, later_a;
        const V unit = math::constant<V>(1);
        for (int p = 0; p < packs; ++p) a[p] = t[p].a;
        const auto combine = [&] {
          for (int p = 0; p < packs; ++p) {
            x[p] = math::fma(a[p], math::select(a[p] == zero, zero, later[p]), x[p]);
            a[p] = a[p] * later_a[p];
          }
        };
        shift_in_fours<1>(x, zero, later);
        shift_in_fours<1>(a, unit, later_a);
        combine();
        shift_in_fours<2>(x, zero, later);
        shift_in_fours<2>(a, unit, later_a);
        combine();
        spread_middle(x, zero, later);
        spread_middle(a, unit, later_a);
        combine();
        const V total = math::fma(reach, math::select(reach == zero, zero, outer), chain);
        const V whole = splat(math::first(a[0]));
        chain =
            math::fma(whole, math::select(whole == zero, zero, chain), splat(math::first(x[0])));
        reach = reach * whole;
        for (int p = 0; p < packs; ++p)
          x[p] = math::fma(a[p], math::select(a[p] == zero, zero, total), x[p]);
      } else if (none) {
        // x is b
      } else if (stops == 0) {
        const V total = math::fma(splat(power.block[m]), outer, chain);
        shift_in_fours<1>(x, zero, later);
        for (int p = 0; p < packs; ++p) x[p] = math::fma(one, later[p], x[p]);
        shift_in_fours<2>(x, zero, later);
        for (int p = 0; p < packs; ++p) x[p] = math::fma(two, later[p], x[p]);
        spread_middle(x, zero, later);
        for (int p = 0; p < packs; ++p) x[p] = math::fma(to_middle[p], later[p], x[p]);
        chain = math::fma(eight, chain, splat(math::first(x[0])));
        for (int p = 0; p < packs; ++p) x[p] = math::fma(to_end[p], total, x[p]);
      } else {
        // An episode ends in this block: rare enough to go one by one.
        T each[scan_block_tokens];
        for (int p = 0; p < packs; ++p) math::store(each + p * width, x[p]);
        T next = math::first(math::fma(splat(power.block[m]), outer, chain));
        for (index j = scan_block_tokens; j-- > 0;) {
          if (!flagged(tile, at + j)) each[j] = math::fma(power.one, next, each[j]);
          next = each[j];
        }
        for (int p = 0; p < packs; ++p) x[p] = math::load<V>(each + p * width);
        chain = splat(next);
        outer = zero;
        held = 0;
      }

      for (int p = 0; p < packs; ++p) {
        t[p].x = x[p];
        kernel.emit(t[p]);
      }
      unrolled<outputs>([&](auto k) __attribute__((always_inline)) {
        block_of<V, packs> y;
        block_of<D, wide> d;
        for (int p = 0; p < packs; ++p) y[p] = t[p].out[k] + zero;  // never −0
        if (counted == nullptr) {
          for (int p = 0; p < packs; ++p) math::store(out[k] + at + p * width, y[p]);
        } else {
          const V unmoved = math::constant<V>(shift_[k]);
          for (int p = 0; p < packs; ++p) {
            const auto valid = math::load_flags<V>(counted + at + p * width);
            math::store(out[k] + at + p * width, math::select(valid, y[p], zero));
            y[p] = math::select(valid, y[p], unmoved);
          }
        }
        widen(y, d);
        for (int p = 0; p < wide; ++p) {
          d[p] = d[p] - shift[k];
          sum[k][p] = sum[k][p] + d[p];
          square[k][p] = math::fma(d[p], d[p], square[k][p]);
        }
      });
    }
    unrolled<outputs>([&](auto k) __attribute__((always_inline)) {
      for (int p = 0; p < wide; ++p) sum_[k][p] = sum[k][p], square_[k][p] = square[k][p];
    });

    const index rest = count - blocks * scan_block_tokens;
    if (rest == 0) {
      const double scale = varying ? static_cast<double>(math::first(reach)) : power.tile;
      carry = static_cast<double>(math::first(chain));
      if (scale > 0) carry = math::fma(scale, held, carry);
      return;
    }
    T reached = varying ? math::first(reach) : power.block[blocks];
    T later = reached > T(0) ? math::fma(reached, math::first(outer), math::first(chain))
                             : math::first(chain);
    for (index at = rest; at-- > 0;) {
      const scan_lanes<S, K> t = one_step(kernel, power, tile, at, after, later);
      later = math::first(t.x);
      const bool valid = counted == nullptr || counted[at] != 0;
      for (int k = 0; k < outputs; ++k) {
        const T y = math::first(t.out[k]) + T(0);
        out[k][at] = valid ? y : T(0);
        if (!valid) continue;
        const double d = static_cast<double>(y) - shift_[k];
        odd_sum_[k] += d;
        odd_square_[k] = math::fma(d, d, odd_square_[k]);
      }
    }
    carry = static_cast<double>(later);
  }
};

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

/// How many valid tokens each row has.
template <class Space>
struct row_positions {
  token_domain<Space> domain;
  index* to;
  void operator()(index i) const { to[i] = static_cast<index>(count_row(domain, i).positions); }
};

/// The rows of one call, in segments: a segment ends with the row that fills it to 512 valid
/// tokens, or with its 64th row.
template <class V, class K, class Space>
class row_scan {
  using T = typename K::scalar_type;
  const K& kernel_;
  const scan_arguments<K, Space>& a_;
  const decay_powers<T>& power_;
  tile_scan<V, K> scan_;
  scan_tile<K> tile_;

  struct row {
    index i, begin, slots;
    const T* in[at_least_one(K::inputs)];
    const std::uint8_t* flag[at_least_one(K::flags)];
    T* out[at_least_one(K::outputs)];
    const std::uint8_t* valid;
  };

 public:
  static constexpr index segment_tokens = 512;
  static constexpr index segment_rows = 64;

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
    index positions = 0;
    last = first;
    while (last < a_.domain.rows && last - first < segment_rows && positions < segment_tokens)
      positions += run_row(last++);
    auto sums = scan_.end_segment(positions);
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

  index run_row(index i) {
    const row r = open(i);
    index end = a_.domain.length(i);
    if (r.valid != nullptr) end = after_last_flag(r.valid, end);
    clear(r, end, r.slots);
    if (end == 0) return 0;
    const bool skip = r.valid != nullptr && a_.holes == hole_mode::skip;
    T after = read(a_.after, i, r.begin);
    double carry = static_cast<double>(read(a_.end, i, r.begin));
    index positions = 0;
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
      positions += tile_.counted == nullptr ? tile_.count : count_flags(tile_.counted, tile_.count);
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
    }
    return positions;
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

#undef RLHF_DETAIL_PERMUTE
