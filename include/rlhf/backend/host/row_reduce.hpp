#pragma once

#include "rlhf/backend/host/map_reduce.hpp"
#include "rlhf/math/exp.hpp"
#include "rlhf/math/log.hpp"
#include "rlhf/primitive/row_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

inline constexpr index row_tile = 1024;

/// The packs of one step of 16 lanes.
template <class V>
inline constexpr int packs_per_step = static_cast<int>(virtual_lanes) / math::width<V>;
template <class V>
using step_of = V[static_cast<std::size_t>(packs_per_step<V>)];

/// Tiles of a row, the last of which may be short.
RLHF_HOST_DEVICE constexpr index row_tiles(index classes) {
  return (classes + row_tile - 1) / row_tile;
}

/// One tile of a row, contiguous, in the type of computation, whole steps of 16 lanes long: where
/// it is, or copied, with -inf behind its end.
template <class V, storage L>
const compute_of<L>* gather_tile(const L* at, index step, index n, compute_of<L>* buffer) {
  using T = compute_of<L>;
  const index whole = (n + virtual_lanes - 1) / virtual_lanes * virtual_lanes;
  if constexpr (scalar<L>)
    if (step == 1 && n == whole) return at;
  index v = 0;
  if (step == 1)
    for (; v + math::width<V> <= n; v += math::width<V>)
      math::store(buffer + v, math::load_storage<V>(at + v));
  for (; v < n; ++v) buffer[v] = math::widen(at + v * step);
  for (; v < whole; ++v) buffer[v] = static_cast<T>(-__builtin_inf());
  return buffer;
}

/// The largest of n elements, n a multiple of 16. Anything where one is NaN: its exponential shows.
template <class V>
scalar_of<V> largest_of(const scalar_of<V>* x, index n) {
  using T = scalar_of<V>;
  constexpr int packs = packs_per_step<V>;
  step_of<V> most[2];
  for (auto& step : most)
    for (V& m : step) m = math::constant<V>(-__builtin_inf());
  index v = 0;
  for (; v + 2 * virtual_lanes <= n; v += 2 * virtual_lanes)
    for (int h = 0; h < 2; ++h)
      for (int p = 0; p < packs; ++p)
        most[h][p] =
            (math::max)(math::load<V>(x + v + h * virtual_lanes + p * math::width<V>), most[h][p]);
  for (; v < n; v += virtual_lanes)
    for (int p = 0; p < packs; ++p)
      most[0][p] = (math::max)(math::load<V>(x + v + p * math::width<V>), most[0][p]);
  T lane[virtual_lanes];
  for (int p = 0; p < packs; ++p)
    math::store(lane + p * math::width<V>, (math::max)(most[0][p], most[1][p]));
  T top = lane[0];
  for (const T l : lane) top = l > top ? l : top;
  return top;
}

/// The first position of `value` among n elements, n a multiple of 16; n where there is none.
template <class V>
index first_of(const scalar_of<V>* x, index n, scalar_of<V> value) {
  const V wanted = math::constant<V>(value);
  for (index v = 0; v < n; v += math::width<V>) {
    if (!math::any(math::load<V>(x + v) == wanted)) continue;
    for (; v < n; ++v)
      if (x[v] == value) return v;
  }
  return n;
}

/// From here down, e^d is taken for 0: it is nothing beside the 1 of the tile's maximum.
template <class T>
inline constexpr T vanishing = sizeof(T) == sizeof(float) ? T(-87) : T(-708);
/// A number there whose power of two math::exp_bounded takes for 0 by itself.
template <class T>
inline constexpr T vanished = sizeof(T) == sizeof(float) ? T(-88) : T(-709);

/// exponentials(), `Scaled` where the temperature is not 1.
template <class V, bool Scaled, storage L>
RLHF_INLINE void exponentials_at(const scalar_of<V>* x, index n, scalar_of<V> top,
                                 scalar_of<V> inverse, const L* ahead, scalar_of<V>* e,
                                 scalar_of<V>* sum, scalar_of<V>* weighted) {
  constexpr index line = 64 / static_cast<index>(sizeof(L));
  constexpr int packs = packs_per_step<V>;
  const V zero = math::constant<V>(0);
  const V m = math::constant<V>(top), scale = math::constant<V>(inverse);
  const V lowest = math::constant<V>(vanishing<scalar_of<V>>);
  const V beyond = math::constant<V>(vanished<scalar_of<V>>);
  step_of<V> s, w;
  for (int p = 0; p < packs; ++p) s[p] = w[p] = zero;
  for (index v = 0; v < n; v += virtual_lanes) {
    for (index at = v; at < v + virtual_lanes; at += line) __builtin_prefetch(ahead + at);
    for (int p = 0; p < packs; ++p) {
      const index at = v + p * math::width<V>;
      V d = math::load<V>(x + at) - m;
      if constexpr (Scaled) d = d * scale;
      d = math::select(d <= lowest, beyond, d);  // NaN comes through
      V y = math::exp_bounded(d);
      math::detail::keep_rounding(y);  // its product is not fused with the sum
      math::store(e + at, y);
      s[p] = s[p] + y;
      w[p] = math::fma(y, d, w[p]);
    }
  }
  for (int p = 0; p < packs; ++p) {
    math::store(sum + p * math::width<V>, s[p]);
    math::store(weighted + p * math::width<V>, w[p]);
  }
}

/// e = exp(d) and the lane sums of e and e·d, d = (x − top) / temperature <= 0. Meanwhile what
/// stands at `ahead`, as many elements again, comes into the cache. `e` may be x.
template <class V, storage L>
RLHF_NOINLINE void exponentials(const scalar_of<V>* x, index n, scalar_of<V> top,
                                scalar_of<V> inverse, const L* ahead, scalar_of<V>* e,
                                scalar_of<V>* sum, scalar_of<V>* weighted) {
  if (inverse == 1)
    exponentials_at<V, false>(x, n, top, inverse, ahead, e, sum, weighted);
  else
    exponentials_at<V, true>(x, n, top, inverse, ahead, e, sum, weighted);
}

template <class T>
RLHF_NOINLINE double add_lanes(const T* lane) {
  return sum_virtual_lanes(lane);
}

/// Arithmetic between tiles, in double: products that strict mode does not fuse.
RLHF_HOST_DEVICE inline double product(double a, double b) {
  return math::detail::rounded_product(a, b);
}
RLHF_HOST_DEVICE inline double exp_of(double x) {
  return math::first(math::exp(math::constant<math::scalar_lane<double>>(x)));
}
RLHF_HOST_DEVICE inline double expm1_of(double x) {
  return math::first(math::expm1(math::constant<math::scalar_lane<double>>(x)));
}
RLHF_HOST_DEVICE inline double log1p_of(double x) {
  return math::first(math::log1p(math::constant<math::scalar_lane<double>>(x)));
}

/// Sum of e².
template <class V>
double add_squares(const scalar_of<V>* e, index n) {
  using T = scalar_of<V>;
  constexpr int packs = packs_per_step<V>;
  step_of<V> q;
  for (V& x : q) x = math::constant<V>(0);
  for (index v = 0; v < n; v += virtual_lanes)
    for (int p = 0; p < packs; ++p) {
      const V y = math::load<V>(e + v + p * math::width<V>);
      q[p] = math::fma(y, y, q[p]);
    }
  T lane[virtual_lanes];
  for (int p = 0; p < packs; ++p) math::store(lane + p * math::width<V>, q[p]);
  return add_lanes(lane);
}

/// Sum of x − top over the elements that are not -inf, and their number.
struct offsets_of_row {
  double sum = 0;
  double count = 0;
};
template <class V>
offsets_of_row add_offsets(const scalar_of<V>* x, index n, scalar_of<V> top) {
  using T = scalar_of<V>;
  constexpr int packs = packs_per_step<V>;
  const V zero = math::constant<V>(0), one = math::constant<V>(1);
  const V m = math::constant<V>(top), nothing = math::constant<V>(-__builtin_inf());
  step_of<V> s, c;
  for (int p = 0; p < packs; ++p) s[p] = c[p] = zero;
  for (index v = 0; v < n; v += virtual_lanes)
    for (int p = 0; p < packs; ++p) {
      const V y = math::load<V>(x + v + p * math::width<V>);
      const mask_of<V> absent = y == nothing;
      s[p] = s[p] + math::select(absent, zero, y - m);
      c[p] = c[p] + math::select(absent, zero, one);
    }
  T sums[virtual_lanes], counts[virtual_lanes];
  for (int p = 0; p < packs; ++p) {
    math::store(sums + p * math::width<V>, s[p]);
    math::store(counts + p * math::width<V>, c[p]);
  }
  return {add_lanes(sums), add_lanes(counts)};
}

/// Scratch of one row whose gradient is wanted.
template <class T>
struct row_scratch {
  T* e = nullptr;         // exp(d) of each class, relative to its tile's maximum; null: see read()
  double* top = nullptr;  // maximum of each tile
};

/// Whether the exponentials of a row may wait where its gradient will be.
template <storage L, class Space>
constexpr bool waits_in_gradient(const row_arguments<L, Space>& a) {
  return scalar<L> && a.plain_slopes && !a.mean_wanted && !a.accumulate && a.gradient.step == 1 &&
         a.logits.step == 1;
}

/// A row on its way: tiles go in, statistics come out, gradients go back. Sums are relative to the
/// maximum so far. The tile that holds it keeps its lanes, so that the sum of all others is known
/// without the 1 of the maximum: log-probabilities near 0 keep their digits.
template <class V, storage L>
class row_pass {
  using T = compute_of<L>;

  const L* row_;
  index step_, classes_;
  double inverse_;
  T inverse_narrow_;
  row_scratch<T> scratch_;

  double top_ = -__builtin_inf();
  double others_ = 0;    // sum of e over all tiles but the best
  double product_ = 0;   // sum of e·d over all
  double squares_ = 0;   // sum of e²
  double offsets_ = 0;   // sum of d over the classes that are not -inf
  double counted_ = 0;   // their number
  bool broken_ = false;  // a tile of NaN and -inf
  index best_ = -1;
  double best_sum_ = 0;
  T best_lane_[virtual_lanes];
  const T* best_e_ = nullptr;
  T* home_ = nullptr;

  double rest_ = 0;  // sum of e over all but the maximum
  double mean_d_ = 0;

  alignas(64) T tile_[row_tile];
  alignas(64) T spare_[2][row_tile];  // forward: e of this tile and of the best; else see place()

  index tile_size(index t) const {
    const index n = classes_ - t * row_tile;
    return n < row_tile ? n : row_tile;
  }
  static index whole(index n) { return (n + virtual_lanes - 1) / virtual_lanes * virtual_lanes; }
  const T* gather(index t) {
    return gather_tile<V>(row_ + t * row_tile * step_, step_, tile_size(t), tile_);
  }
  /// Where the exponentials of a tile wait for its gradient.
  T* place(index t) {
    if (home_ == nullptr) return scratch_.e + t * row_tile;
    // A tile that ends within a step would write beyond the row.
    return tile_size(t) % virtual_lanes == 0 ? home_ + t * row_tile : spare_[1];
  }
  /// The logits of the best tile.
  const T* best_tile() { return home_ != nullptr ? spare_[0] : gather(best_); }

  /// The maximum's own lane, summed again without it.
  double best_rest(index largest) const {
    const index at = largest - best_ * row_tile;
    const index lane = at % virtual_lanes;
    double other_lanes = 0, own_lane = 0;
    for (index l = 0; l < virtual_lanes; ++l)
      if (l != lane) other_lanes += static_cast<double>(best_lane_[l]);
    for (index v = lane; v < whole(tile_size(best_)); v += virtual_lanes)
      if (v != at) own_lane += static_cast<double>(best_e_[v]);
    return other_lanes + own_lane;
  }

 public:
  row_pass(index step, index classes, double temperature, row_scratch<T> scratch)
      : row_(nullptr),
        step_(step),
        classes_(classes),
        inverse_(1 / temperature),
        inverse_narrow_(static_cast<T>(1 / temperature)),
        scratch_(scratch) {}

  /// Where there is scratch for maxima and none for exponentials, these wait in `home`, where the
  /// gradient will be, which may be the row itself.
  row_statistics read(const L* row, const index* label, bool mean_wanted, bool squares_wanted,
                      T* home) {
    row_ = row;
    home_ = home;
    const bool waits = scratch_.top != nullptr;
    const double label_logit =
        label != nullptr ? static_cast<double>(math::widen(row_ + *label * step_)) : 0;
    top_ = -__builtin_inf();
    others_ = product_ = squares_ = offsets_ = counted_ = best_sum_ = 0;
    best_ = -1;
    broken_ = false;
    T sum[virtual_lanes], weighted[virtual_lanes];
    int spare = 0;
    const index tiles = row_tiles(classes_);
    for (index t = 0; t < tiles; ++t) {
      const index n = whole(tile_size(t));
      const T* const x = gather(t);
      const T top = largest_of<V>(x, n);
      const auto wide_top = static_cast<double>(top);
      if (waits) scratch_.top[t] = wide_top;
      if (!(wide_top > -__builtin_inf())) {
        // Nothing, or a NaN beside nothing.
        for (index v = 0; v < n; ++v) broken_ = broken_ || x[v] != x[v];
        continue;
      }
      const bool best = wide_top > top_ || best_ < 0;
      if (home != nullptr && best)
        __builtin_memcpy(spare_[0], x, static_cast<std::size_t>(n) * sizeof(T));
      const offsets_of_row o = mean_wanted ? add_offsets<V>(x, n, top) : offsets_of_row{};
      T* const e = waits ? place(t) : spare_[spare];
      const L* const here = row_ + t * row_tile * step_;
      const L* const ahead = t + 1 < tiles && step_ == 1 ? here + row_tile : here;
      exponentials<V>(x, n, top, inverse_narrow_, ahead, e, sum, weighted);
      const double s = add_lanes(sum), w = add_lanes(weighted);
      const double q = squares_wanted ? add_squares<V>(e, n) : 0;
      if (best) {
        if (best_ >= 0) {
          const double shift = product(top_ - wide_top, inverse_);
          const double factor = exp_of(shift);
          product_ = product(factor, product_ + product(others_ + best_sum_, shift));
          others_ = product(factor, others_ + best_sum_);
          squares_ = product(squares_, factor * factor);
          offsets_ += product(counted_, shift);
        }
        top_ = wide_top;
        best_ = t;
        best_sum_ = s;
        for (index l = 0; l < virtual_lanes; ++l) best_lane_[l] = sum[l];
        best_e_ = e;
        spare ^= 1;
        product_ += w;
        squares_ += q;
        offsets_ += product(o.sum, inverse_);
      } else {
        const double shift = product(wide_top - top_, inverse_);
        const double factor = exp_of(shift);
        others_ += product(factor, s);
        product_ += product(factor, w + product(s, shift));
        squares_ += product(factor * factor, q);
        offsets_ += product(o.sum, inverse_) + product(o.count, shift);
      }
      counted_ += o.count;
    }
    return finish(label, label_logit, mean_wanted);
  }

 private:
  row_statistics finish(const index* label, double label_logit, bool mean_wanted) {
    constexpr double nan = __builtin_nan("");
    row_statistics r;
    r.finite = !broken_ && best_ >= 0 && math::is_finite(others_ + best_sum_);
    if (!r.finite) {
      r.log_prob = r.entropy = r.log_sum_exp = r.mean_log_prob = r.sum_p_squared = nan;
      return r;
    }
    rest_ = others_ + (best_sum_ - 1);
    const bool tied = label != nullptr && label_logit == top_;
    // A lane that holds the 1 of the maximum has lost digits of what else it holds.
    const bool few = rest_ < 16;
    if (tied || few) {
      const T* const x = best_tile();
      const index largest =
          best_ * row_tile + first_of<V>(x, whole(tile_size(best_)), static_cast<T>(top_));
      r.label_is_largest = label != nullptr && largest == *label;
      if (few) rest_ = others_ + best_rest(largest);
    }
    const double log_sum = log1p_of(rest_);
    mean_d_ = product_ / (1 + rest_);
    r.log_prob = label != nullptr ? product(label_logit - top_, inverse_) - log_sum : 0;
    r.entropy = log_sum - mean_d_;
    r.log_sum_exp = product(top_, inverse_) + log_sum;
    r.sum_p_squared = squares_ / ((1 + rest_) * (1 + rest_));
    if (mean_wanted) {
      r.classes = counted_;
      r.mean_log_prob = offsets_ / counted_ - log_sum;
    }
    return r;
  }

  /// Gradients of one tile: p (p_slope + log_slope d) + uniform, divided by the temperature.
  template <bool ReadLogits, class To>
  void gradients(const T* x, const T* e, index n, double top, const row_slopes& slope,
                 To* to) const {
    const V zero = math::constant<V>(0);
    const V nothing = math::constant<V>(-__builtin_inf());
    const double shift = product(top - top_, inverse_);
    const V scale = math::constant<V>(exp_of(shift) / (1 + rest_));
    // log p + H = d − mean d: the logarithm of the sum drops out.
    const V p_slope =
        math::constant<V>((slope.p + product(slope.p_log_p, shift - mean_d_)) * inverse_);
    const V log_slope = math::constant<V>(slope.p_log_p * inverse_);
    const V uniform = math::constant<V>(product(slope.uniform, inverse_) + 0.0);  // never −0
    const V m = math::constant<V>(top);
    const V inverse = math::constant<V>(inverse_);
    const V lowest = math::constant<V>(vanishing<T>);
    for (index v = 0; v < n; v += math::width<V>) {
      const V p = math::load<V>(e + v) * scale;
      if constexpr (ReadLogits) {
        const V y = math::load<V>(x + v);
        const V d = (math::max)((y - m) * inverse, lowest);  // finite, so that 0·d is 0
        const V beside = math::select(y == nothing, zero, uniform);
        math::store_storage(to + v, math::fma(p, math::fma(log_slope, d, p_slope), beside));
      } else {
        math::store_storage(to + v, math::fma(p, p_slope, uniform));
      }
    }
  }

  void put(L* to, index step, index n, const T* from, bool accumulate) const {
    index v = 0;
    if (step == 1) {
      for (; v + math::width<V> <= n; v += math::width<V>) {
        V y = math::load<V>(from + v);
        if (accumulate) y = math::load_storage<V>(to + v) + y;
        math::store_storage(to + v, y);
      }
    }
    for (; v < n; ++v) {
      L* const at = to + v * step;
      math::narrow(at, accumulate ? math::widen(at) + from[v] : from[v]);
    }
  }

 public:
  /// The gradient of the row last read. `to` may be the row itself.
  void write(L* to, index step, bool accumulate, const row_statistics& r, const row_slopes& slope,
             const index* label) {
    const bool silent =
        slope.label == 0 && slope.p == 0 && slope.p_log_p == 0 && slope.uniform == 0;
    if (!r.finite || silent) {
      fill(to, step, classes_, r.finite ? T(0) : static_cast<T>(__builtin_nan("")), accumulate);
      return;
    }
    double at_label = 0;
    if (label != nullptr && r.log_prob > -__builtin_inf()) {
      // 1 − p from the log-probability: no digits are lost where p is near 1.
      const double p = exp_of(r.log_prob);
      const double label_part = product(slope.label, -expm1_of(r.log_prob));
      const double p_part = product(slope.label + slope.p, p);
      const double spread = product(slope.p_log_p * p, r.log_prob + r.entropy);
      at_label = product(label_part + p_part + spread + slope.uniform, inverse_) + 0.0;
    }
    const bool read = home_ == nullptr && (slope.p_log_p != 0 || slope.uniform != 0);
    const auto put_tile = [&](index t, auto* out) {
      const index steps = whole(tile_size(t));
      const double top = scratch_.top[t];
      const T* const e = place(t);
      if (!(top > -__builtin_inf()))
        for (index v = 0; v < steps; ++v) math::narrow(out + v, T(0));
      else if (read)
        gradients<true>(gather(t), e, steps, top, slope, out);
      else
        gradients<false>(nullptr, e, steps, top, slope, out);
      if (label != nullptr && *label / row_tile == t)
        math::narrow(out + *label % row_tile, static_cast<T>(at_label));
    };
    const index tiles = row_tiles(classes_);
    for (index t = 0; t < tiles; ++t) {
      L* const home = to + t * row_tile * step;
      const index n = tile_size(t);
      if (step == 1 && !accumulate && n == whole(n)) {
        put_tile(t, home);
      } else {
        put_tile(t, spare_[0]);
        put(home, step, n, spare_[0], accumulate);
      }
    }
  }

  /// A value in every class, or added to it; adding 0 is left out.
  static void fill(L* to, index step, index classes, T value, bool accumulate) {
    if (accumulate && value == T(0)) return;
    if (step == 1 && value == T(0)) {
      // all bits 0 is +0 in every format
      __builtin_memset(static_cast<void*>(to), 0, static_cast<std::size_t>(classes) * sizeof(L));
      return;
    }
    for (index v = 0; v < classes; ++v) {
      L* const at = to + v * step;
      math::narrow(at, accumulate ? math::widen(at) + value : value);
    }
  }
};

/// Where token k of all slots stands, k counted through memory order.
template <class Space>
row_place place_of(const token_domain<Space>& domain, index k) {
  if (domain.kind != arrangement::packed) return {k / domain.columns, 0, k % domain.columns};
  index low = 0, high = domain.rows;  // the last sequence that begins at or before k
  while (high - low > 1) {
    const index middle = low + (high - low) / 2;
    (domain.begin(middle) <= k ? low : high) = middle;
  }
  return {low, domain.begin(low), k - domain.begin(low)};
}

/// All that row_reduce does with one token. Returns whether it counts; then `figures` are filled.
template <class V, class K, storage L, class Space>
bool run_row(const K& kernel, const row_arguments<L, Space>& a, index k, row_pass<V, L>& pass,
             totals<K>& figures) {
  row_token<K> t;
  t.place = place_of(a.domain, k);
  const row_place& at = t.place;
  t.weight = 0;
  if (at.position < a.domain.length(at.sequence))
    t.weight =
        a.domain.mask.at(a.domain.mask_offset(at.sequence) + at.position * a.domain.mask_stride());
  L* const gradient =
      a.gradient.data != nullptr ? a.gradient.at(at.sequence, at.begin, at.position) : nullptr;
  if (!(t.weight > 0)) {
    kernel.masked(at);
    if (gradient != nullptr && !a.accumulate)
      row_pass<V, L>::fill(gradient, a.gradient.step, a.classes, 0, false);
    return false;
  }
  const index label = a.label ? a.label_of(at) : 0;
  const index* const wanted = a.label ? &label : nullptr;
  compute_of<L>* home = nullptr;
  if constexpr (scalar<L>)
    if (waits_in_gradient(a)) home = gradient;
  t.of = pass.read(a.logits.at(at.sequence, at.begin, at.position), wanted, a.mean_wanted,
                   a.squares_wanted, home);
  kernel(t);
  if (gradient != nullptr)
    pass.write(gradient, a.gradient.step, a.accumulate, t.of, t.slope, wanted);
  // Rounded here: a product that is fused with the sum it goes to would depend on the pool.
  for (int s = 0; s < K::sums; ++s) figures.sum[s] = math::detail::opaque(t.sum[s]);
  figures.sum[K::sums] = t.nonfinite;
  for (int s = 0; s < K::ranges; ++s) figures.low[s] = figures.high[s] = t.range[s];
  return true;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
