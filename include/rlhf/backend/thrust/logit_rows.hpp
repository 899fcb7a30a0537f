#pragma once

#include "rlhf/backend/host/row_reduce.hpp"
#include "rlhf/backend/thrust/token_pass.hpp"

// row_reduce on a device: 16 threads take one row of logits, thread = lane, with the arithmetic of
// the host's pass in the same order. Exponentials are computed again for the gradient: that costs
// less than the memory that would hold them.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Where the tokens of a row begin among all counted ones. One thread.
struct rank_of_rows {
  const double* counts;  // as count_lanes leaves them
  index rows;
  index* first;  // rows + 1
  RLHF_HOST_DEVICE void operator()(index) const {
    index n = 0;
    for (index i = 0; i < rows; ++i) {
      first[i] = n;
      n += static_cast<index>(counts[3 * i + 1]);
    }
    first[rows] = n;
  }
};

/// The rank of each counted token, in memory order.
template <class Space>
struct rank_of_tokens {
  token_domain<Space> domain;
  const index* first;
  index slots;
  index* rank;
  RLHF_HOST_DEVICE void operator()(index i) const {
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    const index slot = domain.kind == arrangement::packed ? domain.begin(i) : i * domain.columns;
    index n = first[i];
    for (index j = 0; j < domain.length(i); ++j)
      if (domain.mask.at(at + j * step) > 0) {
        rank[slot + j] = n < slots ? n : slots - 1;  // offsets that overlap are refused later
        ++n;
      }
  }
};

template <class K, storage L, class Space>
struct logit_pass {
  using T = compute_of<L>;
  K kernel;
  row_arguments<L, Space> a;
  const index* rank;  // null: the slot itself
  double* tops;       // the maximum of each tile, where a gradient is wanted
  double* partial;    // by rank, in the order of figure_row

  template <class Lanes>
  RLHF_HOST_DEVICE void operator()(const Lanes& lanes, index k) const {
    row_token<K> t;
    t.place = place(k);
    const row_place& at = t.place;
    t.weight = 0;
    if (at.position >= 0 && at.position < a.domain.length(at.sequence))
      t.weight = a.domain.mask.at(a.domain.mask_offset(at.sequence) +
                                  at.position * a.domain.mask_stride());
    L* const gradient =
        a.gradient.data != nullptr ? a.gradient.at(at.sequence, at.begin, at.position) : nullptr;
    if (!(t.weight > 0)) {
      lanes.first([&] { kernel.masked(at); });
      if (gradient != nullptr && !a.accumulate) fill(lanes, gradient, T(0));
      return;
    }
    row_of<Lanes> row{*this, lanes, a.logits.at(at.sequence, at.begin, at.position),
                      tops != nullptr ? tops + k * row_tiles(a.classes) : nullptr,
                      a.label ? a.label_of(at) : -1};
    t.of = row.read();
    lanes.first([&] {
      kernel(t);
      const figure_row figures{K::sums + 1, K::ranges};
      double* const to = partial + (rank == nullptr ? k : rank[k]) * figures.size();
      for (int s = 0; s < K::sums; ++s) to[s] = t.sum[s];
      to[K::sums] = t.nonfinite;
      for (int s = 0; s < K::ranges; ++s)
        to[K::sums + 1 + s] = to[K::sums + 1 + K::ranges + s] = t.range[s];
    });
    if (gradient == nullptr) return;
    const row_slopes slope{lanes.share(t.slope.label), lanes.share(t.slope.p),
                           lanes.share(t.slope.p_log_p), lanes.share(t.slope.uniform)};
    lanes.sync();  // the row is read by all before any writes it
    row.write(gradient, t.of, slope);
  }

 private:
  RLHF_HOST_DEVICE row_place place(index k) const {
    const token_domain<Space>& domain = a.domain;
    if (domain.kind != arrangement::packed) return {k / domain.columns, 0, k % domain.columns};
    index low = 0, high = domain.rows;  // the last sequence that begins at or before k
    while (high - low > 1) {
      const index middle = low + (high - low) / 2;
      (domain.begin(middle) <= k ? low : high) = middle;
    }
    return {low, domain.begin(low), k - domain.begin(low)};
  }

  RLHF_HOST_DEVICE void put(L* to, T x) const {
    math::narrow(to, a.accumulate ? math::widen(to) + x : x);
  }
  template <class Lanes>
  RLHF_HOST_DEVICE void fill(const Lanes& lanes, L* to, T value) const {
    if (a.accumulate && value == T(0)) return;
    lanes.each([&](int l) {
      for (index v = l; v < a.classes; v += virtual_lanes) put(to + v * a.gradient.step, value);
    });
  }

  template <class Lanes>
  struct row_of {
    const logit_pass& pass;
    const Lanes& lanes;
    const L* row;
    double* tops;
    index label;

    double inverse = 1 / pass.a.temperature;
    T inverse_narrow = static_cast<T>(1 / pass.a.temperature);
    double top = -__builtin_inf();
    double others = 0, weighted_sum = 0, squares = 0, offsets = 0, counted = 0;
    bool broken = false;
    index best = -1;
    double best_sum = 0;
    typename Lanes::template each_lane<T> best_lane = {};
    double rest = 0;
    double mean_d = 0;

    RLHF_HOST_DEVICE T logit(index v) const { return math::widen(row + v * pass.a.logits.step); }
    RLHF_HOST_DEVICE index tile_end(index t) const {
      const index end = (t + 1) * row_tile;
      return end < pass.a.classes ? end : pass.a.classes;
    }
    RLHF_HOST_DEVICE T distance(index v, T tile_top) const {
      const T lowest = sizeof(T) == sizeof(float) ? T(-87) : T(-708);
      return (math::max)((logit(v) - tile_top) * inverse_narrow, lowest);  // NaN comes through
    }
    RLHF_HOST_DEVICE static T exponential(T d) {
      const T lowest = sizeof(T) == sizeof(float) ? T(-87) : T(-708);
      if (d <= lowest) return T(0);
      return math::first(math::exp_bounded(math::constant<math::scalar_lane<T>>(d)));
    }

    RLHF_HOST_DEVICE row_statistics read() {
      const bool mean_wanted = pass.a.mean_wanted, squares_wanted = pass.a.squares_wanted;
      for (index t = 0; t < row_tiles(pass.a.classes); ++t) {
        const index from = t * row_tile, end = tile_end(t);
        const T tile_top = lanes.largest([&](int l) {
          T most = static_cast<T>(-__builtin_inf());
          for (index v = from + l; v < end; v += virtual_lanes) {
            const T x = logit(v);
            most = x > most ? x : most;
          }
          return most;
        });
        const auto wide_top = static_cast<double>(tile_top);
        if (tops != nullptr) lanes.each([&](int) { tops[t] = wide_top; });
        if (!(wide_top > -__builtin_inf())) {
          // Nothing, or a NaN beside nothing.
          broken = lanes.sum([&](int l) {
            double nans = 0;
            for (index v = from + l; v < end; v += virtual_lanes)
              nans += logit(v) != logit(v) ? 1 : 0;
            return nans;
          }) > 0 || broken;
          continue;
        }
        typename Lanes::template each_lane<T> sum, weighted, square;
        lanes.each([&](int l) {
          T s = T(0), w = T(0), q = T(0);
          for (index v = from + l; v < end; v += virtual_lanes) {
            const T d = distance(v, tile_top);
            const T e = exponential(d);
            s = s + e;
            w = math::fma(e, d, w);
            q = math::fma(e, e, q);
          }
          sum[l] = s, weighted[l] = w, square[l] = q;
        });
        const double s = lanes.sum([&](int l) { return sum[l]; });
        const double w = lanes.sum([&](int l) { return weighted[l]; });
        const double q = squares_wanted ? lanes.sum([&](int l) { return square[l]; }) : 0;
        double away = 0, number = 0;
        if (mean_wanted) {
          lanes.each([&](int l) {
            T apart = T(0), n = T(0);
            for (index v = from + l; v < end; v += virtual_lanes) {
              const T x = logit(v);
              const bool absent = x == static_cast<T>(-__builtin_inf());
              apart = apart + (absent ? T(0) : x - tile_top);
              n = n + (absent ? T(0) : T(1));
            }
            weighted[l] = apart, square[l] = n;
          });
          away = lanes.sum([&](int l) { return weighted[l]; });
          number = lanes.sum([&](int l) { return square[l]; });
        }
        if (wide_top > top || best < 0) {
          if (best >= 0) {
            const double shift = product(top - wide_top, inverse);
            const double factor = exp_of(shift);
            weighted_sum = product(factor, weighted_sum + product(others + best_sum, shift));
            others = product(factor, others + best_sum);
            squares = product(squares, factor * factor);
            offsets += product(counted, shift);
          }
          top = wide_top;
          best = t;
          best_sum = s;
          lanes.each([&](int l) { best_lane[l] = sum[l]; });
          weighted_sum += w;
          squares += q;
          offsets += product(away, inverse);
        } else {
          const double shift = product(wide_top - top, inverse);
          const double factor = exp_of(shift);
          others += product(factor, s);
          weighted_sum += product(factor, w + product(s, shift));
          squares += product(factor * factor, q);
          offsets += product(away, inverse) + product(number, shift);
        }
        counted += number;
      }
      return finish(mean_wanted);
    }

    RLHF_HOST_DEVICE row_statistics finish(bool mean_wanted) {
      row_statistics r;
      r.finite = !broken && best >= 0 && math::is_finite(others + best_sum);
      if (!r.finite) {
        r.log_prob = r.entropy = r.log_sum_exp = r.mean_log_prob = r.sum_p_squared =
            __builtin_nan("");
        return r;
      }
      rest = others + (best_sum - 1);
      double label_logit = 0;
      if (label >= 0) label_logit = static_cast<double>(logit(label));
      const bool tied = label >= 0 && label_logit == top;
      // A lane that holds the 1 of the maximum has lost digits of what else it holds.
      const bool few = rest < 16;
      if (tied || few) {
        const auto narrow_top = static_cast<T>(top);
        const index end = tile_end(best);
        const index largest = lanes.least([&](int l) {
          index v = best * row_tile + l;
          while (v < end && !(logit(v) == narrow_top)) v += virtual_lanes;
          return v < end ? v : end;
        });
        r.label_is_largest = label >= 0 && largest == label;
        if (few) rest = others + best_rest(largest);
      }
      const double log_sum = log1p_of(rest);
      mean_d = weighted_sum / (1 + rest);
      r.log_prob = label >= 0 ? product(label_logit - top, inverse) - log_sum : 0;
      r.entropy = log_sum - mean_d;
      r.log_sum_exp = product(top, inverse) + log_sum;
      r.sum_p_squared = squares / ((1 + rest) * (1 + rest));
      if (mean_wanted) {
        r.classes = counted;
        r.mean_log_prob = offsets / counted - log_sum;
      }
      return r;
    }

    /// The maximum's own lane, summed again without it.
    RLHF_HOST_DEVICE double best_rest(index largest) {
      const int lane = static_cast<int>((largest - best * row_tile) % virtual_lanes);
      double other_lanes = 0, own_lane = 0;
      for (int l = 0; l < static_cast<int>(virtual_lanes); ++l) {
        const T x = lanes.at(best_lane, l);
        if (l != lane) other_lanes += static_cast<double>(x);
      }
      const auto narrow_top = static_cast<T>(top);
      for (index v = best * row_tile + lane; v < tile_end(best); v += virtual_lanes)
        if (v != largest) own_lane += static_cast<double>(exponential(distance(v, narrow_top)));
      return other_lanes + own_lane;
    }

    /// The gradient of the row; `to` may be the row itself: a thread reads a class before it writes
    /// it, and no other thread reads it.
    RLHF_HOST_DEVICE void write(L* to, const row_statistics& r, const row_slopes& slope) {
      const bool silent =
          slope.label == 0 && slope.p == 0 && slope.p_log_p == 0 && slope.uniform == 0;
      if (!r.finite || silent) {
        pass.fill(lanes, to, r.finite ? T(0) : static_cast<T>(__builtin_nan("")));
        return;
      }
      double at_label = 0;
      if (label >= 0 && r.log_prob > -__builtin_inf()) {
        // 1 − p from the log-probability: no digits are lost where p is near 1.
        const double p = exp_of(r.log_prob);
        const double label_part = product(slope.label, -expm1_of(r.log_prob));
        const double p_part = product(slope.label + slope.p, p);
        const double spread = product(slope.p_log_p * p, r.log_prob + r.entropy);
        at_label = (label_part + p_part + spread + slope.uniform) * inverse + 0.0;
      }
      const bool full = slope.p_log_p != 0 || slope.uniform != 0;
      const T log_slope = static_cast<T>(slope.p_log_p * inverse);
      const T uniform = static_cast<T>(product(slope.uniform, inverse) + 0.0);  // never −0
      for (index t = 0; t < row_tiles(pass.a.classes); ++t) {
        const double wide_top = tops[t];
        const bool nothing = !(wide_top > -__builtin_inf());
        const double shift = nothing ? 0 : product(wide_top - top, inverse);
        const T scale = static_cast<T>(exp_of(shift) / (1 + rest));
        // log p + H = d − mean d: the logarithm of the sum drops out.
        const T p_slope =
            static_cast<T>((slope.p + product(slope.p_log_p, shift - mean_d)) * inverse);
        const auto tile_top = static_cast<T>(wide_top);
        lanes.each([&](int l) {
          for (index v = t * row_tile + l; v < tile_end(t); v += virtual_lanes) {
            T g = T(0);
            if (v == label) {
              g = static_cast<T>(at_label);
            } else if (!nothing) {
              const T x = logit(v);
              const T d = distance(v, tile_top);
              const T p = exponential(d) * scale;
              const T beside = x == static_cast<T>(-__builtin_inf()) ? T(0) : uniform;
              g = full ? math::fma(p, math::fma(log_slope, d, p_slope), beside)
                       : math::fma(p, p_slope, uniform);
            }
            pass.put(to + v * pass.a.gradient.step, g);
          }
        });
      }
    }
  };
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
