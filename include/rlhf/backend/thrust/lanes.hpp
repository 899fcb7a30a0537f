#pragma once

#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

RLHF_HOST_DEVICE inline double lower(double a, double b) { return b < a ? b : a; }
RLHF_HOST_DEVICE inline double higher(double a, double b) { return b > a ? b : a; }

/// The same for who merges figures of threads.
struct take_sum {
  RLHF_HOST_DEVICE double operator()(double x, double y) const { return x + y; }
};
struct take_lower {
  RLHF_HOST_DEVICE double operator()(double x, double y) const { return lower(x, y); }
};
struct take_higher {
  RLHF_HOST_DEVICE double operator()(double x, double y) const { return higher(x, y); }
};

/// What one of 16 threads contributes to a row of figures.
template <int Sums, int Ranges>
struct lane_figures {
  static constexpr int sums = Sums;
  static constexpr int ranges = Ranges;
  double sum[at_least_one(Sums)];
  double low[at_least_one(Ranges)];
  double high[at_least_one(Ranges)];

  RLHF_HOST_DEVICE lane_figures() {
    for (int k = 0; k < Sums; ++k) sum[k] = 0;
    for (int k = 0; k < Ranges; ++k) low[k] = __builtin_inf(), high[k] = -__builtin_inf();
  }
};

/// 16 threads of a device that work on one thing together, here one after the other. On a GPU they
/// are half a warp; this is the same interface on one thread:
///
///     each(f)         f(l) on thread l
///     sum(f)          tree over f(l) in double: l takes l + 8, then l + 4, l + 2, l + 1
///     largest(f)      of f(l), NaN left out
///     least(f)        of the integers f(l)
///     merge(f)        the tree over lane_figures f(l)
///     first(f)        f() on one thread
///     share(x)        x of that thread
///     at(x, l)        x of thread l
///     each_lane<X>    an X per thread, x[l] on thread l
///     sync()          memory written before is seen after
struct serial_lanes {
  static constexpr int width = static_cast<int>(virtual_lanes);

  template <class X>
  struct each_lane {
    X value[width];
    RLHF_HOST_DEVICE X& operator[](int l) { return value[l]; }
  };

  template <class F>
  RLHF_HOST_DEVICE void each(const F& f) const {
    for (int l = 0; l < width; ++l) f(l);
  }
  template <class F>
  RLHF_HOST_DEVICE double sum(const F& f) const {
    double x[width];
    for (int l = 0; l < width; ++l) x[l] = static_cast<double>(f(l));
    for (int half = width / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) x[l] += x[l + half];
    return x[0];
  }
  template <class F>
  RLHF_HOST_DEVICE auto largest(const F& f) const {
    auto top = f(0);
    for (int l = 1; l < width; ++l) {
      const auto x = f(l);
      top = x > top ? x : top;
    }
    return top;
  }
  template <class F>
  RLHF_HOST_DEVICE index least(const F& f) const {
    index r = f(0);
    for (int l = 1; l < width; ++l) {
      const index x = f(l);
      r = x < r ? x : r;
    }
    return r;
  }
  template <class F>
  RLHF_HOST_DEVICE auto merge(const F& f) const {
    using figures = decltype(f(0));
    figures lane[width];
    for (int l = 0; l < width; ++l) lane[l] = f(l);
    for (int half = width / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) {
        for (int k = 0; k < figures::sums; ++k) lane[l].sum[k] += lane[l + half].sum[k];
        for (int k = 0; k < figures::ranges; ++k) {
          lane[l].low[k] = lower(lane[l].low[k], lane[l + half].low[k]);
          lane[l].high[k] = higher(lane[l].high[k], lane[l + half].high[k]);
        }
      }
    return lane[0];
  }
  template <class F>
  RLHF_HOST_DEVICE void first(const F& f) const {
    f();
  }
  RLHF_HOST_DEVICE double share(double x) const { return x; }
  template <class X>
  RLHF_HOST_DEVICE X at(each_lane<X>& x, int l) const {
    return x[l];
  }
  RLHF_HOST_DEVICE void sync() const {}
};

/// f.store(i, tree over f.lane(i, l)): what counting and map_reduce are made of.
template <class F>
struct merged_lanes {
  F f;
  template <class Lanes>
  RLHF_HOST_DEVICE void operator()(const Lanes& lanes, index i) const {
    const auto r = lanes.merge([&](int l) { return f.lane(i, l); });
    lanes.first([&] { f.store(i, r); });
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
