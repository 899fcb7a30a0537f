#pragma once

#include "rlhf/backend/host/reverse_scan/block.hpp"
#include "rlhf/backend/host/reverse_scan/compaction.hpp"
#include "rlhf/backend/host/reverse_scan/moments.hpp"
#include "rlhf/backend/host/reverse_scan/powers.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

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

  /// The moments so far; what follows is another piece, about the same shift.
  RLHF_NOINLINE scan_sums<outputs> end_piece(index positions) {
    const auto s = end_segment(positions);
    for (int k = 0; k < outputs; ++k) {
      odd_sum_[k] = odd_square_[k] = 0;
      for (int p = 0; p < wide; ++p) sum_[k][p] = square_[k][p] = math::constant<D>(0);
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

}  // namespace rlhf::inline RLHF_COMPUTE::detail
