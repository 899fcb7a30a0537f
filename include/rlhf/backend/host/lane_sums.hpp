#pragma once

#include <cstddef>
#include <cstdint>

#include "rlhf/math/pack.hpp"
#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// The figures of some tokens; they merge.
template <class K>
struct totals {
  double sum[K::sums + 1];
  double low[at_least_one(K::ranges)];
  double high[at_least_one(K::ranges)];

  static totals none() {
    totals t;
    for (double& s : t.sum) s = 0;
    for (double& x : t.low) x = __builtin_inf();
    for (double& x : t.high) x = -__builtin_inf();
    return t;
  }
  static totals merge(const totals& a, const totals& b) {
    totals t;
    for (int k = 0; k <= K::sums; ++k) t.sum[k] = a.sum[k] + b.sum[k];
    for (int k = 0; k < K::ranges; ++k) {
      t.low[k] = a.low[k] < b.low[k] ? a.low[k] : b.low[k];
      t.high[k] = a.high[k] > b.high[k] ? a.high[k] : b.high[k];
    }
    return t;
  }
  void write(double* to) const {
    for (int k = 0; k <= K::sums; ++k) to[k] = sum[k];
    for (int k = 0; k < K::ranges; ++k) {
      to[sums_of<K>::low + k] = low[k];
      to[sums_of<K>::high + k] = high[k];
    }
  }
};

/// A binary tree over values that come one by one; the split is at the largest power of two, so
/// aligned subtrees may be formed anywhere and pushed as one. It holds up to 2^Levels − 1 values.
template <class X, std::size_t Levels = 40>
class binary_tree {
  X level_[Levels];
  std::uint64_t count_ = 0;

 public:
  void push(X carry) {
    int at = 0;
    for (std::uint64_t n = count_; (n & 1) != 0; n >>= 1, ++at) carry = X::merge(level_[at], carry);
    level_[at] = carry;
    ++count_;
  }
  X finish() const {
    X r = X::none();
    bool first = true;
    int at = 0;
    for (std::uint64_t n = count_; n != 0; n >>= 1, ++at)
      if ((n & 1) != 0) {
        r = first ? level_[at] : X::merge(level_[at], r);
        first = false;
      }
    return r;
  }
};

/// The same tree for figures whose number is known at run time: sums, low ends, high ends, as in
/// totals<K>. `level` is memory for levels() of them; after a push it begins with what was pushed.
class figure_tree {
  double* level_;
  int sums_, ranges_;
  std::uint64_t count_ = 0;

  /// to = merge(from, to).
  RLHF_NOINLINE void merge(const double* from, double* to) const {
    for (int k = 0; k < sums_; ++k) to[k] = from[k] + to[k];
    for (int k = sums_; k < sums_ + ranges_; ++k) to[k] = from[k] < to[k] ? from[k] : to[k];
    for (int k = sums_ + ranges_; k < size(); ++k) to[k] = from[k] > to[k] ? from[k] : to[k];
  }

 public:
  static constexpr std::size_t levels = 40;

  figure_tree(double* level, int sums, int ranges) : level_(level), sums_(sums), ranges_(ranges) {}

  int size() const { return sums_ + 2 * ranges_; }
  void clear() { count_ = 0; }

  /// Where the next figures go, before they are pushed.
  double* next() const { return level_ + __builtin_ctzll(~count_) * size(); }
  /// Takes what stands in next().
  RLHF_NOINLINE void push() {
    double* const to = next();
    for (const double* from = level_; from != to; from += size()) merge(from, to);
    ++count_;
  }
  RLHF_NOINLINE void finish(double* to) const {
    if (count_ == 0) {
      for (int k = 0; k < size(); ++k)
        to[k] = k < sums_ ? 0 : k < sums_ + ranges_ ? __builtin_inf() : -__builtin_inf();
      return;
    }
    std::uint64_t left = count_ & (count_ - 1);  // without the lowest subtree, which begins
    const double* from = level_ + __builtin_ctzll(count_) * size();
    __builtin_memcpy(to, from, static_cast<std::size_t>(size()) * sizeof(double));
    for (; left != 0; left &= left - 1) merge(level_ + __builtin_ctzll(left) * size(), to);
  }
};

/// The tree over N lanes, in double: lane l takes l + N/2, then l + N/4, ..., l + 1.
template <std::size_t N, class T>
RLHF_INLINE double sum_lanes(const T* lane) {
  if constexpr (N == 1) {
    return static_cast<double>(lane[0]);
  } else {
    double half[N / 2];
    for (std::size_t l = 0; l < N / 2; ++l)
      half[l] = static_cast<double>(lane[l]) + static_cast<double>(lane[l + N / 2]);
    return sum_lanes<N / 2>(half);
  }
}

#if RLHF_PACK_BYTES > 0
/// sum_lanes of the lanes of N packs.
template <std::size_t N>
RLHF_INLINE double sum_packs(const math::pack<double>* x) {
  if constexpr (N > 1) {
    math::pack<double> half[N / 2];
    for (std::size_t p = 0; p < N / 2; ++p) half[p] = x[p] + x[p + N / 2];
    return sum_packs<N / 2>(half);
  } else {
    constexpr auto width = static_cast<std::size_t>(math::width<math::pack<double>>);
    double lane[width];
    math::store(lane, x[0]);
    return sum_lanes<width>(lane);
  }
}
template <std::size_t N>
RLHF_INLINE double sum_packs(const math::pack<float>* x) {
  math::pack<double> half[N];
  for (std::size_t p = 0; p < N / 2; ++p) {
    half[2 * p] = math::widen_low(x[p]) + math::widen_low(x[p + N / 2]);
    half[2 * p + 1] = math::widen_high(x[p]) + math::widen_high(x[p + N / 2]);
  }
  return sum_packs<N>(half);
}
#endif
template <std::size_t N, class V>
RLHF_INLINE double sum_packs(const V* x) {
  scalar_of<V> lane[N];
  for (std::size_t p = 0; p < N; ++p) math::store(lane + p, x[p]);
  return sum_lanes<N>(lane);
}

/// How many lanes of V the virtual lanes are.
template <class V>
inline constexpr std::size_t packs_of_lanes = static_cast<std::size_t>(virtual_lanes) /
                                              static_cast<std::size_t>(math::width<V>);

/// sum_lanes of the 16 virtual lanes.
template <class T>
RLHF_INLINE double sum_virtual_lanes(const T* lane) {
  using V = math::native_lane<T>;
  constexpr std::size_t packs = packs_of_lanes<V>;
  V x[packs];
  for (std::size_t p = 0; p < packs; ++p)
    x[p] = math::load<V>(lane + p * static_cast<std::size_t>(math::width<V>));
  return sum_packs<packs>(x);
}

/// The 16 virtual lanes of one group, and what has left them for double precision.
template <class T>
class lane_sums {
  T* lanes_;  // 16 of each figure
  figure_tree flushed_;
  int sums_, ranges_;
  index filled_ = 0;  // steps since the last flush; before the first one the lanes hold anything

  RLHF_NOINLINE void clear() {
    const index sums = sums_ * virtual_lanes, ranges = ranges_ * virtual_lanes;
    for (index j = 0; j < sums; ++j) lanes_[j] = T(0);
    for (index j = 0; j < ranges; ++j) {
      lanes_[sums + j] = static_cast<T>(__builtin_inf());
      lanes_[sums + ranges + j] = static_cast<T>(-__builtin_inf());
    }
  }

  RLHF_NOINLINE void flush() {
    double* const to = flushed_.next();
    for (int k = 0; k < sums_; ++k) to[k] = sum_virtual_lanes(lanes_ + k * virtual_lanes);
    for (int k = 0; k < ranges_; ++k) {
      const T* const low = lanes_ + (sums_ + k) * virtual_lanes;
      const T* const high = low + ranges_ * virtual_lanes;
      T lowest = low[0], highest = high[0];
      for (int l = 1; l < virtual_lanes; ++l) {
        lowest = low[l] < lowest ? low[l] : lowest;
        highest = high[l] > highest ? high[l] : highest;
      }
      to[sums_ + k] = static_cast<double>(lowest);
      to[sums_ + ranges_ + k] = static_cast<double>(highest);
    }
    flushed_.push();
    filled_ = 0;
  }

 public:
  lane_sums(T* lanes, double* level, int sums, int ranges)
      : lanes_(lanes), flushed_(level, sums, ranges), sums_(sums), ranges_(ranges) {}

  /// To be called before steps are taken, in lanes() or, when nothing in them counts, nowhere.
  void begin() {
    if (filled_ == 0) clear();
  }
  T* lanes() const { return lanes_; }
  index room() const { return steps_per_flush - filled_; }
  void advance(index steps) {
    filled_ += steps;
    if (filled_ == steps_per_flush) flush();
  }
  /// The figures of the group; the next one starts afresh.
  void finish(double* to) {
    if (filled_ > 0) flush();
    flushed_.finish(to);
    flushed_.clear();
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
