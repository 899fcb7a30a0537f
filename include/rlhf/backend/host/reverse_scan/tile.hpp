#pragma once

#include "rlhf/backend/host/lane_sums.hpp"
#include "rlhf/backend/host/reverse_scan/block.hpp"
#include "rlhf/backend/host/reverse_scan/compaction.hpp"
#include "rlhf/backend/host/reverse_scan/moments.hpp"
#include "rlhf/backend/host/reverse_scan/powers.hpp"
#include "rlhf/backend/host/row_panel.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Up to 1,024 consecutive time steps of one row with every input contiguous.
template <class K>
struct scan_part {
  using T = typename K::scalar_type;

  const T* in[at_least_one(K::inputs)];
  const std::uint8_t* flag[at_least_one(K::flags)];
  const std::uint8_t* counted;  // null: every step is a valid token
  T* out[at_least_one(K::outputs)];
  index count;
  index ahead;   // elements from here to what comes next, which is fetched along the way; or 0
  bool apart;    // a block before its own may be read, as +0 in the inputs, and written
  T after;       // the shifted input after the last step
  double carry;  // x after the last step; once 1,024 are scanned, x of the first one
};

/// What a tile of 1,024 steps gives to the one before it: x of its first step is `x` + `scale`
/// times x after its last one.
struct tile_link {
  double x, scale;
  double carry(double later) const { return scale > 0 ? math::fma(scale, later, x) : x; }
};

/// Scans parts of rows; keeps the moments of a segment of rows in 8 lanes.
template <class V, class K>
class tile_scan {
  using T = typename K::scalar_type;
  using D = math::native_lane<double>;
  using S = math::scalar_lane<T>;
  using part = scan_part<K>;
  static constexpr int width = math::width<V>;
  static constexpr int packs = static_cast<int>(scan_block_tokens) / width;
  static constexpr int wide = static_cast<int>(scan_block_tokens) / math::width<D>;
  static constexpr int outputs = K::outputs;
  static constexpr bool varying = has_varying_decay<K>();
  using values = block_of<V, packs>;
  using lanes = block_of<scan_lanes<V, K>, packs>;

  const K kernel_;
  const decay_powers<T>& power_;
  const bool stands_alone_;  // nothing comes from later tokens, not even a NaN
  const V one_, two_, eight_;
  values to_middle_, to_end_;

  bool fresh_ = true;
  double shift_[at_least_one(outputs)];
  block_of<D, wide> sum_[at_least_one(outputs)];
  block_of<D, wide> square_[at_least_one(outputs)];
  double odd_sum_[at_least_one(outputs)];
  double odd_square_[at_least_one(outputs)];

  /// What one block leaves for the one before it.
  struct link {
    V chain;      // x of the next block, without the part's carry
    V outer;      // which adds a power of the decay times this
    V reach;      // that power, where decays vary
    double held;  // the carry in double; 0 once an episode ends
  };

  static RLHF_INLINE void widen(const values& x, block_of<D, wide>& to) {
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

  static bool is_alone([[maybe_unused]] const K& kernel) {
    if constexpr (varying)
      return false;
    else
      return !(kernel.decay > 0);
  }

  static RLHF_INLINE bool flagged(const part& p, index at) {
    bool any = false;
    for (int k = 0; k < K::flags; ++k) any = any || p.flag[k][at] != 0;
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

  static RLHF_INLINE values load(const T* from) {
    values x;
    for (int p = 0; p < packs; ++p) x[p] = math::load<V>(from + p * width);
    return x;
  }

  /// The moments of a segment are taken about the outputs of its first row's last token.
  RLHF_NOINLINE void choose_shift(const part& p) {
    const index at = p.count - 1;
    const auto t = one_step(p, at, static_cast<T>(p.carry));
    for (int k = 0; k < outputs; ++k) shift_[k] = static_cast<double>(math::first(t.out[k]));
    fresh_ = false;
  }

  RLHF_INLINE scan_lanes<S, K> one_step(const part& p, index at, T later) const {
    scan_lanes<S, K> t;
    for (int k = 0; k < K::inputs; ++k) t.in[k] = math::constant<S>(p.in[k][at]);
    for (int k = 0; k < K::flags; ++k) t.flag[k] = p.flag[k][at] != 0;
    if constexpr (K::shifted >= 0)
      t.next = math::constant<S>(at + 1 < p.count ? p.in[K::shifted][at + 1] : p.after);
    kernel_.step(t);
    bool stops = stands_alone_ || flagged(p, at);
    S decay = math::constant<S>(power_.one);
    if constexpr (varying) {
      decay = t.a;
      stops = stops || t.a == math::constant<S>(0);
    }
    t.x = stops ? t.b : math::fma(decay, math::constant<S>(later), t.b);
    kernel_.emit(t);
    return t;
  }

  static double add_lanes(const block_of<D, wide>& x) {
    double lane[scan_block_tokens];
    for (int p = 0; p < wide; ++p) math::store(lane + p * math::width<D>, x[p]);
    return sum_lanes<scan_block_tokens>(lane);
  }

  /// Inputs and b of the 8 steps at `at`, which may be the last ones.
  static RLHF_INLINE void read_steps(const K& kernel, const part& s, index at, bool last,
                                     lanes& t) {
    for (int p = 0; p < packs; ++p) {
      const index begin = at + p * width;
      for (int k = 0; k < K::inputs; ++k) t[p].in[k] = math::load<V>(s.in[k] + begin);
      for (int k = 0; k < K::flags; ++k) t[p].flag[k] = math::load_flags<V>(s.flag[k] + begin);
      if constexpr (K::shifted >= 0) {
        if (last && p == packs - 1)
          t[p].next = shift_in(t[p].in[K::shifted], s.after);
        else
          t[p].next = math::load<V>(s.in[K::shifted] + begin + 1);
      }
      kernel.step(t[p]);
    }
  }
  /// The outputs of the 8 steps at `at`.
  static RLHF_INLINE void write_steps(const K& kernel, const part& s, index at, const values& x,
                                      lanes& t) {
    for (int p = 0; p < packs; ++p) {
      t[p].x = x[p];
      kernel.emit(t[p]);
      for (int k = 0; k < outputs; ++k)
        math::store(s.out[k] + at + p * width, t[p].out[k] + math::constant<V>(0));  // never −0
    }
  }

  /// The 8 steps at `at`, the m-th block from the part's end. Without outputs, only their link.
  template <bool Last, bool Writes = true>
  RLHF_INLINE void block(const K& kernel, const part& s, index at, index m, link& from) const {
    const V zero = math::constant<V>(0);
    lanes t;
    read_steps(kernel, s, at, Last, t);
    values x;
    for (int p = 0; p < packs; ++p) x[p] = t[p].b;
    std::uint64_t stops = 0;
    for (int k = 0; k < K::flags; ++k) stops |= flag_word::at(s.flag[k] + at).bytes;

    values later;
    if constexpr (varying) {
      values a, later_a;
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
      const V total =
          math::fma(from.reach, math::select(from.reach == zero, zero, from.outer), from.chain);
      const V whole = splat(math::first(a[0]));
      from.chain =
          math::fma(whole, math::select(whole == zero, zero, from.chain), splat(math::first(x[0])));
      from.reach = from.reach * whole;
      for (int p = 0; p < packs; ++p)
        x[p] = math::fma(a[p], math::select(a[p] == zero, zero, total), x[p]);
    } else if (stands_alone_) {
      // x is b
    } else if (stops == 0) {
      const V total = math::fma(splat(power_.block[m]), from.outer, from.chain);
      shift_in_fours<1>(x, zero, later);
      for (int p = 0; p < packs; ++p) x[p] = math::fma(one_, later[p], x[p]);
      shift_in_fours<2>(x, zero, later);
      for (int p = 0; p < packs; ++p) x[p] = math::fma(two_, later[p], x[p]);
      spread_middle(x, zero, later);
      for (int p = 0; p < packs; ++p) x[p] = math::fma(to_middle_[p], later[p], x[p]);
      from.chain = math::fma(eight_, from.chain, splat(math::first(x[0])));
      for (int p = 0; p < packs; ++p) x[p] = math::fma(to_end_[p], total, x[p]);
    } else {
      // An episode ends in this block: rare enough to go one by one.
      T each[scan_block_tokens];
      for (int p = 0; p < packs; ++p) math::store(each + p * width, x[p]);
      T next = math::first(math::fma(splat(power_.block[m]), from.outer, from.chain));
      for (index j = scan_block_tokens; j-- > 0;) {
        if (!flagged(s, at + j)) each[j] = math::fma(power_.one, next, each[j]);
        next = each[j];
      }
      for (int p = 0; p < packs; ++p) x[p] = math::load<V>(each + p * width);
      from.chain = splat(next);
      from.outer = zero;
      from.held = 0;
    }

    if constexpr (Writes) write_steps(kernel, s, at, x, t);
  }

  static RLHF_INLINE link begin(double carry) {
    return {math::constant<V>(0), splat(static_cast<T>(carry)), math::constant<V>(1), carry};
  }
  /// Of a tile of 1,024 steps.
  RLHF_INLINE tile_link end(const link& from) const {
    const double scale = varying ? static_cast<double>(math::first(from.reach)) : power_.tile;
    return {static_cast<double>(math::first(from.chain)), scale};
  }

  /// x and the outputs of a part's whole blocks. Returns x behind what is left of it.
  RLHF_INLINE T solve_blocks(part& to) const {
    const K kernel = kernel_;
    const part s = to;  // pointers that no store can change
    const index blocks = s.count / scan_block_tokens;
    link from = begin(s.carry);
    index at = s.count;
    if (blocks > 0) block<true>(kernel, s, at -= scan_block_tokens, 0, from);
    for (index m = 1; m < blocks; ++m) block<false>(kernel, s, at -= scan_block_tokens, m, from);
    if (s.count == scan_tile_tokens) to.carry = end(from).carry(from.held);
    const T reached = varying ? math::first(from.reach) : power_.block[blocks];
    return reached > T(0) ? math::fma(reached, math::first(from.outer), math::first(from.chain))
                          : math::first(from.chain);
  }

  /// The steps at a part's beginning that are no whole block, one by one from `later` on.
  RLHF_NOINLINE void solve_rest(const part& s, T later) const {
    for (index at = s.count % scan_block_tokens; at-- > 0;) {
      const scan_lanes<S, K> t = one_step(s, at, later);
      later = math::first(t.x);
      for (int k = 0; k < outputs; ++k) s.out[k][at] = math::first(t.out[k]) + T(0);
    }
  }

  /// The same of up to 8 parts that are apart: each in a lane of its own. The +0 before a part runs
  /// along in its lane, and its outputs end up where nobody reads them.
  RLHF_NOINLINE void solve_rests(const part* const* parts, const T* later, int n) const {
    constexpr index side = scan_block_tokens;
    alignas(32) T by_part[side][side], by_step[side][side];
    const auto turn = [](const T(&from)[side][side], T(&to)[side][side]) {
      for (index i = 0; i < side; i += square<T>::side)
        for (index j = 0; j < side; j += square<T>::side)
          square<T>::move(&from[i][j], side, &to[j][i], side);
    };
    const K kernel = kernel_;
    const auto read = [&](const part& s, lanes& t) __attribute__((always_inline)) {
      const index at = s.count % side - side;
      read_steps(kernel, s, at, s.count < side, t);
      return at;
    };
    for (int i = 0; i < side; ++i) {
      lanes t;
      read(*parts[i < n ? i : 0], t);
      for (int p = 0; p < packs; ++p) math::store(by_part[i] + p * width, t[p].b);
    }
    turn(by_part, by_step);
    for (int p = 0; p < packs && !stands_alone_; ++p) {
      V x = math::load<V>(later + p * width);
      for (index j = side; j-- > 0;) {
        T* const at = by_step[j] + p * width;
        x = math::fma(one_, x, math::load<V>(at));
        math::store(at, x);
      }
    }
    turn(by_step, by_part);
    for (int i = 0; i < n; ++i) {
      lanes t;
      const index at = read(*parts[i], t);
      write_steps(kernel, *parts[i], at, load(by_part[i]), t);
    }
  }

  /// x and the outputs of up to 8 parts.
  RLHF_INLINE void solve(part* parts, index n) const {
    constexpr bool plain = K::flags == 0 && !varying;
    const part* rest[scan_block_tokens];
    alignas(32) T later[scan_block_tokens] = {};
    int rests = 0;
    for (part* s = parts; s != parts + n; ++s) {
      const T x = solve_blocks(*s);
      const int left = s->count % scan_block_tokens != 0 ? 1 : 0;
      if (plain && s->apart) {
        rest[rests] = s;
        later[rests] = x;
        rests += left;
      } else if (left != 0) {
        solve_rest(*s, x);
      }
    }
    if constexpr (plain)
      if (rests > 2) {
        solve_rests(rest, later, rests);
        return;
      }
    for (int i = 0; i < rests; ++i) solve_rest(*rest[i], later[i]);
  }

  RLHF_INLINE void add_odd(int k, T y) {
    const double d = static_cast<double>(y) - shift_[k];
    odd_sum_[k] += d;
    odd_square_[k] = math::fma(d, d, odd_square_[k]);
  }

  /// Adds the outputs of up to 8 parts to the moments, block by block from the end of each. Masked:
  /// some steps are no valid tokens; their outputs become +0.
  template <bool Masked>
  RLHF_INLINE void add_moments(const part* parts, index n) {
    const V zero = math::constant<V>(0);
    D shift[at_least_one(outputs)];
    V unmoved[at_least_one(outputs)];
    block_of<D, wide> sum[at_least_one(outputs)], square[at_least_one(outputs)];
    unrolled<outputs>([&](auto k) __attribute__((always_inline)) {
      shift[k] = math::constant<D>(shift_[k]);
      unmoved[k] = math::constant<V>(static_cast<T>(shift_[k]));
      sum[k] = sum_[k];
      square[k] = square_[k];
    });
    constexpr index most_odd = scan_block_tokens * scan_block_tokens;
    T odd[at_least_one(outputs)][most_odd];
    index odd_from = most_odd;
    for (const part* s = parts; s != parts + n; ++s) {
      index at = s->count;
      for (; at >= scan_block_tokens; at -= scan_block_tokens) {
        const index first = at - scan_block_tokens;
        if (s->ahead != 0 && (first & 8) != 0) {
          for (int k = 0; k < K::inputs; ++k) __builtin_prefetch(s->in[k] + first + s->ahead);
          for (int k = 0; k < outputs; ++k) __builtin_prefetch(s->out[k] + first + s->ahead, 1);
        }
        unrolled<outputs>([&](auto k) __attribute__((always_inline)) {
          values y = load(s->out[k] + first);
          block_of<D, wide> d;  // not behind the branch, where nvcc 13 does not see it
          if constexpr (Masked) {
            for (int p = 0; p < packs; ++p) {
              const auto valid = math::load_flags<V>(s->counted + first + p * width);
              math::store(s->out[k] + first + p * width, math::select(valid, y[p], zero));
              y[p] = math::select(valid, y[p], unmoved[k]);
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
      if constexpr (Masked) {
        while (at-- > 0) {
          const bool valid = s->counted[at] != 0;
          for (int k = 0; k < outputs; ++k) {
            if (valid)
              add_odd(k, s->out[k][at]);
            else
              s->out[k][at] = T(0);
          }
        }
      } else {
        // All of them together: a loop for each part would be left at another step every time.
        for (int k = 0; k < outputs; ++k) {
          if (s->apart)
            for (int p = 0; p < packs; ++p)
              math::store(odd[k] + odd_from - 8 + p * width,
                          math::load<V>(s->out[k] + at - 8 + p * width));
          else
            for (index j = 0; j < at; ++j) odd[k][odd_from - at + j] = s->out[k][j];
        }
        odd_from -= at;
      }
    }
    if constexpr (!Masked)
      for (index at = most_odd; at-- > odd_from;)
        for (int k = 0; k < outputs; ++k) add_odd(k, odd[k][at]);
    unrolled<outputs>([&](auto k) __attribute__((always_inline)) {
      sum_[k] = sum[k];
      square_[k] = square[k];
    });
  }

 public:
  tile_scan(const K& kernel, const decay_powers<T>& power)
      : kernel_(kernel),
        power_(power),
        stands_alone_(is_alone(kernel)),
        one_(splat(power.one)),
        two_(splat(power.two)),
        eight_(splat(power.eight)),
        to_middle_(load(power.to_middle)),
        to_end_(load(power.to_end)) {}

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

  /// The moments of what follows are about the outputs of this part's last step.
  void take_shift(const part& s) {
    if (fresh_) choose_shift(s);
  }

  /// What a tile of 1,024 steps gives to the one before it, whatever comes after it.
  RLHF_NOINLINE tile_link link_of(const part& s) const {
    const K kernel = kernel_;
    link from = begin(0);
    from.held = 1;
    index at = s.count;
    block<true, false>(kernel, s, at -= scan_block_tokens, 0, from);
    for (index m = 1; at > 0; ++m) block<false, false>(kernel, s, at -= scan_block_tokens, m, from);
    tile_link l = end(from);
    if (!(from.held > 0)) l.scale = 0;
    return l;
  }

  /// Parts of as many rows, with memory of their own; all of them with `counted`, or none.
  RLHF_NOINLINE void run(part* parts, index n) {
    if (n == 0) return;
    if (fresh_) choose_shift(parts[0]);
    for (index i = 0; i < n; i += scan_block_tokens) {
      const index some = n - i < scan_block_tokens ? n - i : scan_block_tokens;
      solve(parts + i, some);
      if (parts[0].counted == nullptr)
        add_moments<false>(parts + i, some);
      else
        add_moments<true>(parts + i, some);
    }
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
