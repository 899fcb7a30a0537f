#pragma once

#include "rlhf/backend/host/map_reduce.hpp"
#include "rlhf/backend/host/row_panel.hpp"
#include "rlhf/primitive/moment_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

template <class K>
struct moment_totals {
  series_moments<typename K::moments> series[at_least_one(K::size)];
  double nonfinite = 0;

  static moment_totals none() { return {}; }
  static moment_totals merge(const moment_totals& a, const moment_totals& b) {
    moment_totals t;
    for (int k = 0; k < K::size; ++k)
      t.series[k] = series_moments<typename K::moments>::merge(a.series[k], b.series[k]);
    t.nonfinite = a.nonfinite + b.nonfinite;
    return t;
  }
  void write(double* to) const {
    for (int k = 0; k < K::size; ++k) series[k].write(to, k, K::size);
    to[moments_of<K>::nonfinite] = nonfinite;
  }
};

/// sum_lanes of 16 lanes in packs.
template <class V>
double tree_of_lanes(const V* packs) {
  return sum_packs<packs_of_lanes<V>>(packs);
}

/// Collects the steps of one flush, where they lie, and measures them when it is full.
template <class V, class K>
class moment_flush {
  using T = typename K::scalar_type;
  static constexpr int packs = static_cast<int>(virtual_lanes) / math::width<V>;
  static constexpr std::size_t all_packs = at_least_one(packs);
  static constexpr std::size_t all_series = at_least_one(K::size);
  static constexpr std::size_t all_inputs = at_least_one(K::inputs);
  static_assert(packs % 2 == 0);
  static constexpr index tokens = steps_per_flush * virtual_lanes;

  /// Steps that lie side by side, full ones but for masked slots.
  struct piece {
    const T* in[all_inputs];
    const std::uint8_t* flags;
    const T* weights;
    lanes_masked masked;
    index first, steps;
  };
  struct sweep_sums {
    V sum[all_series][all_packs], square[all_series][all_packs];
    V low[all_series][all_packs], high[all_series][all_packs];
  };

  const K& kernel_;
  piece piece_[steps_per_flush];
  int pieces_ = 0;
  index filled_ = 0;
  binary_tree<moment_totals<K>> flushed_;
  alignas(64) T in_[all_inputs][tokens];
  alignas(64) T weight_[tokens];
  alignas(64) std::uint8_t flag_[tokens];

  /// Steps [from, to) of a piece, one series each, into `x`; what is masked is `rest`.
  template <lanes_masked M>
  RLHF_INLINE void read(const piece& c, index at, V* x, V& weight, mask_of<V>& counted) const {
    const V zero = math::constant<V>(0), one = math::constant<V>(1);
    V in[all_inputs];
    for (int k = 0; k < K::inputs; ++k) in[k] = math::load<V>(c.in[k] + at);
    if constexpr (M == lanes_masked::by_flags) {
      counted = math::load_flags<V>(c.flags + at);
      weight = math::select(counted, one, zero);
    } else if constexpr (M == lanes_masked::by_weights) {
      weight = math::load<V>(c.weights + at);
      counted = weight > zero;
    }
    if constexpr (M != lanes_masked::no)
      for (int k = 0; k < K::inputs; ++k) in[k] = math::select(counted, in[k], zero);
    kernel_(static_cast<const V*>(in), x);
  }

  /// One step of two packs of lanes.
  template <lanes_masked M>
  RLHF_INLINE void step(const piece& c, index s, int p, const V* shift, V (&weight)[2],
                        V (&sum)[all_series][2], V (&square)[all_series][2],
                        V (&low)[all_series][2], V (&high)[all_series][2]) const {
    for (int h = 0; h < 2; ++h) {
      V x[all_series], w = math::constant<V>(1);
      mask_of<V> counted = w > w;
      read<M>(c, s * virtual_lanes + (p + h) * math::width<V>, x, w, counted);
      if constexpr (M == lanes_masked::by_flags) weight[h] = weight[h] + w;
      for (int k = 0; k < K::size; ++k) {
        V d = x[k] - shift[k];
        if constexpr (M != lanes_masked::no) d = math::select(counted, d, math::constant<V>(0));
        V part = d;
        if constexpr (M == lanes_masked::by_weights) {
          part = w * d;
          math::detail::keep_rounding(part);  // not fused with its sum, on any machine
        }
        sum[k][h] = sum[k][h] + part;
        square[k][h] = math::fma(part, d, square[k][h]);
        if constexpr (K::ranged) {
          // The second operand of min and max gives way where it is NaN.
          const V below = M == lanes_masked::no ? x[k] : math::select(counted, x[k], low[k][h]);
          const V above = M == lanes_masked::no ? x[k] : math::select(counted, x[k], high[k][h]);
          low[k][h] = (math::min)(low[k][h], below);
          high[k][h] = (math::max)(high[k][h], above);
        }
      }
    }
  }

  template <lanes_masked M>
  RLHF_INLINE void sweep_piece(const piece& c, const V* shift, sweep_sums (&to)[2],
                               V (&flagged)[all_packs]) const {
    for (int p = 0; p < packs; p += 2) {
      V weight[2] = {flagged[p], flagged[p + 1]};  // small integers: no order to keep
      V sum[2][all_series][2], square[2][all_series][2];
      V low[2][all_series][2], high[2][all_series][2];
      for (int odd = 0; odd < 2; ++odd)
        for (int h = 0; h < 2; ++h) {
          for (int k = 0; k < K::size; ++k) {
            sum[odd][k][h] = to[odd].sum[k][p + h];
            square[odd][k][h] = to[odd].square[k][p + h];
            low[odd][k][h] = to[odd].low[k][p + h];
            high[odd][k][h] = to[odd].high[k][p + h];
          }
        }
      index s = 0;
      if (c.first % 2 != 0 && s < c.steps) {
        step<M>(c, s, p, shift, weight, sum[1], square[1], low[1], high[1]);
        ++s;
      }
      for (; s + 2 <= c.steps; s += 2) {
        step<M>(c, s, p, shift, weight, sum[0], square[0], low[0], high[0]);
        step<M>(c, s + 1, p, shift, weight, sum[1], square[1], low[1], high[1]);
      }
      if (s < c.steps) step<M>(c, s, p, shift, weight, sum[0], square[0], low[0], high[0]);
      for (int h = 0; h < 2; ++h) flagged[p + h] = weight[h];
      for (int odd = 0; odd < 2; ++odd)
        for (int h = 0; h < 2; ++h) {
          for (int k = 0; k < K::size; ++k) {
            to[odd].sum[k][p + h] = sum[odd][k][h];
            to[odd].square[k][p + h] = square[odd][k][h];
            to[odd].low[k][p + h] = low[odd][k][h];
            to[odd].high[k][p + h] = high[odd][k][h];
          }
        }
    }
  }

  /// The mean of what the lanes hold first, in the first steps; false where they hold nothing.
  bool guess(T* shift) const {
    V value[all_series][all_packs], weight[all_packs];
    mask_of<V> have[all_packs];
    const V zero = math::constant<V>(0), one = math::constant<V>(1);
    if (pieces_ > 0 && piece_[0].first < steps_of_guess && piece_[0].masked == lanes_masked::no) {
      // The first step there is has a number in every lane.
      V x[all_series], w = one;
      mask_of<V> counted = one > zero;
      for (V& of : x) of = zero;
      for (int p = 0; p < packs; ++p) {
        read<lanes_masked::no>(piece_[0], p * math::width<V>, x, w, counted);
        for (int k = 0; k < K::size; ++k) value[k][p] = x[k];
      }
      for (int k = 0; k < K::size; ++k)
        shift[k] = static_cast<T>(tree_of_lanes(value[k]) / static_cast<double>(virtual_lanes));
      return true;
    }
    for (int p = 0; p < packs; ++p) {
      have[p] = zero > zero;
      for (int k = 0; k < K::size; ++k) value[k][p] = zero;
    }
    bool all = false;
    for (int c = 0; c < pieces_ && piece_[c].first < steps_of_guess && !all; ++c)
      for (index s = 0; s < piece_[c].steps && piece_[c].first + s < steps_of_guess && !all; ++s) {
        all = true;
        for (int p = 0; p < packs; ++p) {
          const index at = s * virtual_lanes + p * math::width<V>;
          V x[all_series], w = one;
          for (V& of : x) of = zero;
          mask_of<V> counted = one > zero;
          switch (piece_[c].masked) {
            case lanes_masked::no:
              read<lanes_masked::no>(piece_[c], at, x, w, counted);
              break;
            case lanes_masked::by_flags:
              read<lanes_masked::by_flags>(piece_[c], at, x, w, counted);
              break;
            case lanes_masked::by_weights:
              read<lanes_masked::by_weights>(piece_[c], at, x, w, counted);
              break;
          }
          const mask_of<V> fresh = counted & !have[p];
          for (int k = 0; k < K::size; ++k) value[k][p] = math::select(fresh, x[k], value[k][p]);
          have[p] = have[p] | counted;
          all = all && math::all(have[p]);
        }
      }
    for (int p = 0; p < packs; ++p) weight[p] = math::select(have[p], one, zero);
    const double found = tree_of_lanes(weight);
    for (int k = 0; k < K::size; ++k)
      shift[k] = found > 0 ? static_cast<T>(tree_of_lanes(value[k]) / found) : T(0);
    return found > 0;
  }

  /// The sum of weights, in double: it says how much the flush counts beside others.
  RLHF_NOINLINE double weigh() const {
    double lane[virtual_lanes] = {};
    for (int c = 0; c < pieces_; ++c) {
      if (piece_[c].masked != lanes_masked::by_weights) continue;
      for (index s = 0; s < piece_[c].steps; ++s)
        for (index l = 0; l < virtual_lanes; ++l)
          lane[l] += static_cast<double>(piece_[c].weights[s * virtual_lanes + l]);
    }
    return sum_lanes<virtual_lanes>(lane);
  }

  /// f(piece, token of it) for each counted token, one by one in order, while it returns true.
  template <class F>
  void each_counted(const F& f) const {
    for (int c = 0; c < pieces_; ++c) {
      const piece& a = piece_[c];
      for (index j = 0; j < a.steps * virtual_lanes; ++j) {
        if (a.masked == lanes_masked::by_flags && a.flags[j] == 0) continue;
        if (a.masked == lanes_masked::by_weights && !(a.weights[j] > T(0))) continue;
        if (!f(a, j)) return;
      }
    }
  }

  /// Tokens with a NaN or an infinity among their inputs.
  RLHF_NOINLINE double count_nonfinite() const {
    double found = 0;
    each_counted([&](const piece& a, index j) {
      bool finite = true;
      for (int k = 0; k < K::inputs; ++k) finite = finite && math::is_finite(a.in[k][j]);
      found += finite ? 0 : 1;
      return true;
    });
    return found;
  }

  /// Series k of the flush's first counted token.
  T first_counted(int k) const {
    using S = math::scalar_lane<T>;
    S x[all_series] = {};
    each_counted([&](const piece& a, index j) {
      S in[all_inputs];
      for (int i = 0; i < K::inputs; ++i) in[i] = math::constant<S>(a.in[i][j]);
      kernel_(static_cast<const S*>(in), x);
      return false;
    });
    return math::first(x[k]);
  }

  /// The figures of the flush, measured from `shift` on; false where squares are not finite.
  RLHF_INLINE bool measure(const T* from, moment_totals<K>& t) const {
    T shift[all_series];
    for (int k = 0; k < K::size; ++k) shift[k] = from[k];
    shifted_sums s[all_series];
    sweep_sums lanes[2];
    for (int sweep = 0; sweep < most_sweeps; ++sweep) {
      V about[all_series];
      for (int k = 0; k < K::size; ++k) about[k] = math::constant<V>(shift[k]);
      for (sweep_sums& l : lanes)
        for (int p = 0; p < packs; ++p) {
          for (int k = 0; k < K::size; ++k) {
            l.sum[k][p] = l.square[k][p] = math::constant<V>(0);
            l.low[k][p] = math::constant<V>(__builtin_inf());
            l.high[k][p] = math::constant<V>(-__builtin_inf());
          }
        }
      double counted = 0;
      V flagged[all_packs];
      for (V& f : flagged) f = math::constant<V>(0);
      bool weighted = false;
      for (int c = 0; c < pieces_; ++c) switch (piece_[c].masked) {
          case lanes_masked::no:
            counted += static_cast<double>(piece_[c].steps * virtual_lanes);
            sweep_piece<lanes_masked::no>(piece_[c], about, lanes, flagged);
            break;
          case lanes_masked::by_flags:
            sweep_piece<lanes_masked::by_flags>(piece_[c], about, lanes, flagged);
            break;
          case lanes_masked::by_weights:
            weighted = true;
            sweep_piece<lanes_masked::by_weights>(piece_[c], about, lanes, flagged);
            break;
        }
      const double weight = weighted ? weigh() : counted + tree_of_lanes(flagged);
      bool far = false;
      for (int k = 0; k < K::size; ++k) {
        V x[all_packs], y[all_packs];
        for (int p = 0; p < packs; ++p) {
          x[p] = lanes[0].sum[k][p] + lanes[1].sum[k][p];
          y[p] = lanes[0].square[k][p] + lanes[1].square[k][p];
        }
        s[k] = {weight, tree_of_lanes(x), tree_of_lanes(y)};
        far = far || s[k].far();
      }
      if (!far || sweep + 1 == most_sweeps) break;
      for (int k = 0; k < K::size; ++k)
        if (s[k].far()) shift[k] = static_cast<T>(static_cast<double>(shift[k]) + s[k].mean());
    }
    bool finite = true;
    for (int k = 0; k < K::size; ++k) {
      t.series[k] =
          s[k].template about<series_moments<typename K::moments>>(static_cast<double>(shift[k]));
      finite = finite && math::is_finite(s[k].square);
      if constexpr (K::ranged) {
        T low[virtual_lanes], high[virtual_lanes];
        for (int p = 0; p < packs; ++p) {
          math::store(low + p * math::width<V>,
                      (math::min)(lanes[0].low[k][p], lanes[1].low[k][p]));
          math::store(high + p * math::width<V>,
                      (math::max)(lanes[0].high[k][p], lanes[1].high[k][p]));
        }
        for (index l = 0; l < virtual_lanes; ++l) {
          const auto below = static_cast<double>(low[l]), above = static_cast<double>(high[l]);
          if (below < t.series[k].low) t.series[k].low = below;
          if (above > t.series[k].high) t.series[k].high = above;
        }
      }
    }
    return finite;
  }

  /// What is to be done where squares are not finite.
  RLHF_NOINLINE void measure_again(T* shift, bool guessed, moment_totals<K>& t) const {
    bool blind = false;
    for (int k = 0; k < K::size; ++k) {
      if (guessed && math::is_finite(shift[k])) continue;
      shift[k] = first_counted(k);
      blind = true;
    }
    if (blind && measure(shift, t)) return;
    t.nonfinite = count_nonfinite();
  }

  void flush() {
    moment_totals<K> t;
    T shift[all_series];
    const bool guessed = guess(shift);
    if (!measure(shift, t)) [[unlikely]]
      measure_again(shift, guessed, t);
    flushed_.push(t);
    pieces_ = 0;
    filled_ = 0;
  }

 public:
  explicit moment_flush(const K& kernel) : kernel_(kernel) {}

  index room() const { return steps_per_flush - filled_; }

  /// `steps` steps of row i from token `from`, of which n are there and the others masked. At most
  /// room(); n is a multiple of 16 or less than 16.
  template <class Space>
  void take(const token_arguments<K, Space>& a, index i, index from, index n, index steps) {
    const token_domain<Space>& domain = a.domain;
    const index begin = domain.begin(i), at = filled_ * virtual_lanes;
    const index whole = steps * virtual_lanes;
    piece c{{}, nullptr, nullptr, lanes_masked::no, filled_, steps};
    const piece* const last = piece_ + (pieces_ > 0 ? pieces_ - 1 : 0);
    // Whether it goes on where the last piece ends, in steps as in memory: a row without a token is
    // a step that no memory holds.
    bool beside = pieces_ > 0 && last->first + last->steps == filled_;
    for (int k = 0; k < K::inputs; ++k) {
      const token_input<T>& x = a.in[k];
      const T* const first = x.data + i * x.per_row + begin * x.per_begin + from * x.stride;
      if (x.stride == 1 && n == whole) {
        c.in[k] = first;
      } else {
        for (index j = 0; j < n; ++j) in_[k][at + j] = first[j * x.stride];
        for (index j = n; j < whole; ++j) in_[k][at + j] = T(0);
        c.in[k] = in_[k] + at;
      }
      beside = beside && c.in[k] == last->in[k] + last->steps * virtual_lanes;
    }
    const mask_view<Space>& mask = domain.mask;
    const index stride = domain.mask_stride(), origin = domain.mask_offset(i) + from * stride;
    if (mask.kind() == mask_kind::weight32 || mask.kind() == mask_kind::weight64) {
      for (index j = 0; j < n; ++j) weight_[at + j] = static_cast<T>(mask.at(origin + j * stride));
      for (index j = n; j < whole; ++j) weight_[at + j] = T(0);
      c.weights = weight_ + at;
      c.masked = lanes_masked::by_weights;
    } else if (mask.kind() == mask_kind::flag && stride == 1 && n == whole) {
      c.flags = static_cast<const std::uint8_t*>(mask.data()) + origin;
      c.masked = lanes_masked::by_flags;
    } else if (mask.kind() == mask_kind::flag || n < whole) {
      const auto* const given = static_cast<const std::uint8_t*>(mask.data());
      for (index j = 0; j < n; ++j)
        flag_[at + j] = mask.kind() == mask_kind::flag ? given[origin + j * stride] : 1;
      for (index j = n; j < whole; ++j) flag_[at + j] = 0;
      c.flags = flag_ + at;
      c.masked = lanes_masked::by_flags;
    }
    beside = beside && c.masked == last->masked &&
             (c.flags == nullptr || c.flags == last->flags + last->steps * virtual_lanes);
    if (beside)
      piece_[pieces_ - 1].steps += steps;
    else
      piece_[pieces_++] = c;
    filled_ += steps;
    if (filled_ == steps_per_flush) flush();
  }

  /// Copies what lies elsewhere: that memory is to be used again.
  RLHF_NOINLINE void settle() {
    for (int c = 0; c < pieces_; ++c) {
      piece& p = piece_[c];
      const index at = p.first * virtual_lanes;
      const auto n = static_cast<std::size_t>(p.steps * virtual_lanes);
      for (int k = 0; k < K::inputs; ++k) {
        if (p.in[k] != in_[k] + at) __builtin_memcpy(in_[k] + at, p.in[k], n * sizeof(T));
        p.in[k] = in_[k] + at;
      }
      if (p.flags == nullptr) continue;
      if (p.flags != flag_ + at) __builtin_memcpy(flag_ + at, p.flags, n);
      p.flags = flag_ + at;
    }
  }

  /// Steps without a token.
  void skip(index steps) {
    filled_ += steps;
    if (filled_ == steps_per_flush) flush();
  }

  moment_totals<K> finish() {
    if (filled_ > 0) flush();
    return flushed_.finish();
  }
};

/// Steps [first, last) of the rows [row, row_end), as run_group takes them; `panel`, where there is
/// one, is what `a` is on.
template <class V, class K, class Space>
moment_totals<K> moments_of_group(const K& kernel, const token_arguments<K, Space>& a, index row,
                                  index row_end, index first, index last,
                                  row_panel<typename K::scalar_type>* panel = nullptr) {
  moment_flush<V, K> flush(kernel);
  const bool masked = a.domain.mask.kind() != mask_kind::none;
  const bool padded_flags =
      a.domain.kind != arrangement::packed && a.domain.mask.kind() == mask_kind::flag;
  index passed = 0;  // steps of earlier rows
  for (index i = row; i < row_end && passed < last; ++i) {
    if (panel != nullptr && !panel->holds(i)) {
      flush.settle();
      panel->enter(i);
    }
    const index length = masked ? last_counted(a.domain, i) : a.domain.length(i);
    const index steps = steps_of(length);
    const index from = first > passed ? first - passed : 0;
    const index to = last - passed < steps ? last - passed : steps;
    passed += steps;
    if (from >= to) continue;
    if (length == 0) {
      flush.skip(1);
      continue;
    }
    // Slots behind the last valid one are masked by flags: they may fill its step.
    const index whole = steps * virtual_lanes;
    const index there = padded_flags && whole <= a.domain.length(i) ? whole : length;
    for (index s = from; s < to;) {
      index n = flush.room() < to - s ? flush.room() : to - s;
      // A step that is not full goes alone, so that the full ones need no copy.
      const bool ragged = (s + n) * virtual_lanes > there;
      if (ragged && n > 1) --n;
      const index at = s * virtual_lanes;
      flush.take(a, i, at, there - at < n * virtual_lanes ? there - at : n * virtual_lanes, n);
      s += n;
    }
  }
  return flush.finish();
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
