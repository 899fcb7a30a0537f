#pragma once

#include "rlhf/primitive/group_reduce.hpp"
#include "rlhf/statistics/metric.hpp"
#include "rlhf/statistics/moments.hpp"
#include "rlhf/statistics/whiten.hpp"

/// What the estimators over the samples of a prompt share: inputs, result, and the statistics of
/// one group.

namespace rlhf::inline v1 {

/// The advantage of a sample that is alone with its prompt: nothing to compare it with.
enum class single_group : unsigned char {
  zero,  ///< 0: no information
  raw    ///< its reward, as with a baseline of 0
};

template <scalar T, class Space = host_space>
struct group_advantage_batch {
  named_only use_designators = named_only();
  view<const T, Space> reward = {};  ///< [batch], one per sample; NaN: unscorable
  index_view<Space> group_id = {};   ///< [batch], which prompt a sample answers; any order
};

template <scalar T, class Space = host_space>
struct group_advantage_output {
  named_only use_designators = named_only();
  output<T, Space> advantage = {};  ///< [batch]
  output<T, Space> baseline = {};   ///< [batch], what was subtracted from the reward
  output<T, Space> deviation = {};  ///< [batch], the standard deviation it was divided by, before
                                    ///< epsilon; 0 where there was none
};

/// Results of micro-batches and ranks add up, as long as no group is split between them.
struct group_advantage_result {
  moments reward;  ///< of scorable samples
  moments advantage;
  range rewards;  ///< smallest and largest
  range advantages;
  metric group_deviation;        ///< standard deviation of the rewards of each group of two or more
  double groups = 0;             ///< with a scorable sample
  double degenerate_groups = 0;  ///< of these, all rewards equal: no signal; groups of one as well
  double single_groups = 0;      ///< of these, groups of one scorable sample
  double all_low_groups = 0;     ///< all rewards are the smallest of the batch: nothing solved
  double all_high_groups = 0;    ///< all rewards are the largest of the batch: all solved
  double unscorable = 0;         ///< samples whose reward is NaN
  double nonfinite = 0;          ///< samples whose reward is NaN or infinite

  static constexpr int size = 19;

  RLHF_HOST_DEVICE friend group_advantage_result operator+(const group_advantage_result& a,
                                                           const group_advantage_result& b) {
    group_advantage_result r;
    r.reward = a.reward + b.reward;
    r.advantage = a.advantage + b.advantage;
    r.rewards = wider(a.rewards, b.rewards);
    r.advantages = wider(a.advantages, b.advantages);
    r.group_deviation = {a.group_deviation.sum + b.group_deviation.sum,
                         a.group_deviation.count + b.group_deviation.count};
    r.groups = a.groups + b.groups;
    r.degenerate_groups = a.degenerate_groups + b.degenerate_groups;
    r.single_groups = a.single_groups + b.single_groups;
    r.all_low_groups = (a.rewards.low <= b.rewards.low ? a.all_low_groups : 0) +
                       (b.rewards.low <= a.rewards.low ? b.all_low_groups : 0);
    r.all_high_groups = (a.rewards.high >= b.rewards.high ? a.all_high_groups : 0) +
                        (b.rewards.high >= a.rewards.high ? b.all_high_groups : 0);
    r.unscorable = a.unscorable + b.unscorable;
    r.nonfinite = a.nonfinite + b.nonfinite;
    return r;
  }

  RLHF_HOST_DEVICE void write(double* to) const {
    const double all[size] = {reward.count,    reward.mean,         reward.m2,
                              advantage.count, advantage.mean,      advantage.m2,
                              rewards.low,     rewards.high,        advantages.low,
                              advantages.high, group_deviation.sum, group_deviation.count,
                              groups,          degenerate_groups,   single_groups,
                              all_low_groups,  all_high_groups,     unscorable,
                              nonfinite};
    for (int k = 0; k < size; ++k) to[k] = all[k];
  }
  static group_advantage_result read(const double* f) {
    group_advantage_result r;
    r.reward = {f[0], f[1], f[2]};
    r.advantage = {f[3], f[4], f[5]};
    r.rewards = {f[6], f[7]};
    r.advantages = {f[8], f[9]};
    r.group_deviation = {f[10], f[11]};
    r.groups = f[12];
    r.degenerate_groups = f[13];
    r.single_groups = f[14];
    r.all_low_groups = f[15];
    r.all_high_groups = f[16];
    r.unscorable = f[17];
    r.nonfinite = f[18];
    return r;
  }

 private:
  RLHF_HOST_DEVICE static range wider(const range& a, const range& b) {
    return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high};
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE::detail {

/// Tensors with one number per sample, checked.
template <class Space>
class sample_binder {
  const char* function_;
  index samples_;
  byte_range seen_[6] = {};
  const char* name_[6] = {};
  bool written_[6] = {};
  int count_ = 0;

  template <class T>
  void note(const char* name, const view<T, Space>& v, bool written) {
    if (v.rank() != 1 || v.size(0) != samples_) [[unlikely]]
      fail_shape(function_, name, shape(samples_), v.shape());
    check_memory(function_, name, v);
    const byte_range bytes = bytes_of(v);
    for (int k = 0; k < count_; ++k)
      if ((written || written_[k]) && overlap(bytes, seen_[k])) [[unlikely]] {
        sentence s;
        s.add("memory that overlaps ").add(name_[k]);
        fail(function_, name, "memory of its own", s.c_str());
      }
    seen_[count_] = bytes, name_[count_] = name, written_[count_] = written;
    ++count_;
  }

 public:
  template <class T>
  sample_binder(const char* function, const char* name, const view<const T, Space>& leading)
      : function_(function), samples_(leading.size(0)) {
    if (!leading) [[unlikely]]
      fail(function, name, "a tensor: this input is required", "none");
    if (leading.rank() != 1) [[unlikely]]
      fail_shape(function, name, "rank 1, one number per sample", leading.shape());
  }
  index samples() const { return samples_; }

  template <class T>
  token_input<T> read(const char* name, const view<const T, Space>& v) {
    note(name, v, false);
    return {v.data(), v.stride(0), 0, 0, T(0)};
  }
  template <class T>
  token_output<T> written(const char* name, const output<T, Space>& v) {
    if (!v) return {};
    const auto& plain = static_cast<const view<T, Space>&>(v);
    note(name, plain, true);
    check_distinct(function_, name, plain);
    return {v.data(), v.stride(0), 0, 0, v.accumulate};
  }
};

/// The scorable rewards of one group. Moments are taken about the first of them, so that equal
/// rewards have m2 = 0 whatever they are.
struct group_rewards {
  moments all;
  double low = __builtin_inf(), high = -__builtin_inf();
  double at_low = 0, at_high = 0;  // how many are there
  double unscorable = 0, nonfinite = 0;

  RLHF_HOST_DEVICE bool equal() const { return low == high; }

  /// Moments of all but the one reward x.
  RLHF_HOST_DEVICE moments without(double x) const {
    const double n = all.count - 1;
    if (!(n > 0)) return {};
    // Equal others have no spread: the formula would leave rounding noise.
    if (x == low && at_high == n) return {n, high, 0};
    if (x == high && at_low == n) return {n, low, 0};
    const double apart = x - all.mean;
    const double m2 = math::fma(-apart * (all.count / n), apart, all.m2);
    return {n, all.mean - apart / n, m2 < 0 ? 0 : m2};
  }
};

template <class T>
RLHF_HOST_DEVICE group_rewards rewards_of(const token_input<T>& reward, const sample_group& group) {
  group_rewards r;
  double first = 0, sum = 0;
  for (index k = 0; k < group.size(); ++k) {
    const T given = reward.data[group[k] * reward.per_row];
    if (!math::is_finite(given)) r.nonfinite += 1;
    if (math::is_nan(given)) {
      r.unscorable += 1;
      continue;
    }
    const double x = static_cast<double>(given);
    if (!(r.all.count > 0)) first = x;
    r.all.count += 1;
    sum += x - first;
    r.at_low = x < r.low ? 1 : r.at_low + (x == r.low ? 1 : 0);
    r.at_high = x > r.high ? 1 : r.at_high + (x == r.high ? 1 : 0);
    r.low = x < r.low ? x : r.low;
    r.high = x > r.high ? x : r.high;
  }
  if (!(r.all.count > 0)) return r;
  const double shift = sum / r.all.count;
  r.all.mean = first + shift;
  if (r.equal()) return r;
  double square = 0, rest = 0;
  for (index k = 0; k < group.size(); ++k) {
    const T given = reward.data[group[k] * reward.per_row];
    if (math::is_nan(given)) continue;
    const double d = static_cast<double>(given) - first - shift;
    square = math::fma(d, d, square);
    rest += d;
  }
  r.all.m2 = math::fma(-rest, rest / r.all.count, square);
  return r;
}

template <class T>
RLHF_HOST_DEVICE void put(const token_output<T>& to, index sample, double value) {
  if (to.data == nullptr) return;
  T& slot = to.data[sample * to.per_row];
  slot = static_cast<T>(to.accumulate ? static_cast<double>(slot) + value : value + 0.0);
}

/// What a group's rewards alone say of it.
RLHF_HOST_DEVICE inline group_advantage_result group_figures(const group_rewards& r, double ddof) {
  group_advantage_result f;
  f.unscorable = r.unscorable;
  f.nonfinite = r.nonfinite;
  if (!(r.all.count > 0)) return f;
  f.reward = r.all;
  f.rewards = {r.low, r.high};
  f.groups = 1;
  f.single_groups = r.all.count > 1 ? 0 : 1;
  if (r.equal()) f.degenerate_groups = f.all_low_groups = f.all_high_groups = 1;
  if (r.all.count > 1) f.group_deviation = {math::sqrt(r.all.variance(ddof)), 1};
  return f;
}

/// Sums for the moments of advantages of one group, about their first.
struct advantage_figures {
  double count = 0, first = 0, sum = 0, square = 0;
  double low = __builtin_inf(), high = -__builtin_inf();
  RLHF_HOST_DEVICE void add(double x) {
    if (!(count > 0)) first = x;
    count += 1;
    const double d = x - first;
    sum += d;
    square = math::fma(d, d, square);
    low = x < low ? x : low;
    high = x > high ? x : high;
  }
  RLHF_HOST_DEVICE moments result() const {
    if (!(count > 0)) return {};
    const double mean = sum / count;
    const double m2 = math::fma(-sum, mean, square);
    return {count, first + mean, m2 < 0 ? 0 : m2};
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
