#pragma once

#include "rlhf/primitive/count.hpp"
#include "rlhf/primitive/reverse_scan.hpp"
#include "rlhf/statistics/nonfinite.hpp"

namespace rlhf::inline v1 {

/// What becomes of a reward that lies on a masked token: a tool's output, the slot after the last
/// token, a row's padding.
enum class hole_reward : unsigned char {
  drop,        ///< it is not read
  to_previous  ///< added, undiscounted, to the last valid token before it, else to the first;
               ///< rewards are then read in all of the layout's length
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE::detail {

inline void check_holes(const char* function, hole_mode holes, hole_reward reward) {
  if (holes == hole_mode::count && reward == hole_reward::to_previous)
    fail(function, "reward_at_hole",
         "drop with hole_mode::count, which reads them at their own step", "to_previous");
}

/// Rewards of one row with those at holes moved to a valid token.
template <class T, class Space>
struct move_rewards {
  token_domain<Space> domain;
  token_input<T> reward;
  T* to;  // [rows, columns] or packed like the domain

  RLHF_HOST_DEVICE void operator()(index i) const {
    const index begin = domain.begin(i), n = domain.length(i);
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    const T* const from = reward.data + i * reward.per_row + begin * reward.per_begin;
    T* const row = to + (domain.kind == arrangement::packed ? begin : i * domain.columns);
    index open = -1;  // the valid token that takes what comes
    double sum = 0;
    for (index j = 0; j < n; ++j) {
      const double r = static_cast<double>(from[j * reward.stride]);
      row[j] = T(0);
      if (domain.mask.at(at + j * step) > 0) {
        if (open >= 0) {
          row[open] = static_cast<T>(sum);
          sum = 0;
        }
        open = j;
      }
      sum += r;
    }
    if (open >= 0) row[open] = static_cast<T>(sum);
  }
};

template <class T, class Run, class Space>
RLHF_NOINLINE token_input<T> rewards_of_valid(Run& run, const token_domain<Space>& domain,
                                              const token_input<T>& reward, hole_reward rule) {
  if (rule == hole_reward::drop || !domain.mask) return reward;
  const bool packed = domain.kind == arrangement::packed;
  T* const moved = run.template allocate<T>(packed ? domain.columns : domain.rows * domain.columns);
  run.for_each(domain.rows, move_rewards<T, Space>{domain, reward, moved});
  return {moved, packed ? 0 : domain.columns, packed ? 1 : 0, 1, T(0)};
}

/// Truncated tokens of each row whose following value nobody gave.
template <class Space>
struct count_cuts {
  token_domain<Space> domain;
  token_flags terminated, truncated;
  bool last_is_given;
  double* to;

  RLHF_HOST_DEVICE bool set(const token_flags& f, index i, index j) const {
    return f.data != nullptr &&
           f.data[i * f.per_row + domain.begin(i) * f.per_begin + j * f.stride] != 0;
  }
  RLHF_HOST_DEVICE void operator()(index i) const {
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    double bad = 0;
    bool given = last_is_given;
    for (index j = domain.length(i); j-- > 0;) {
      if (!(domain.mask.at(at + j * step) > 0)) continue;
      if (!given && set(truncated, i, j) && !set(terminated, i, j)) bad += 1;
      given = false;
    }
    to[i] = bad;
  }
};

/// A contract violation where a truncated token has no following value.
template <class Run, class Space>
RLHF_NOINLINE void refuse_cuts(Run& run, const token_domain<Space>& domain,
                               const token_flags& terminated, const token_flags& truncated,
                               bool last_is_given) {
  double* const per_row = run.template allocate<double>(domain.rows);
  double* const total = run.template allocate<double>(1);
  run.for_each(domain.rows,
               count_cuts<Space>{domain, terminated, truncated, last_is_given, per_row});
  run.for_each(1, add_rows{per_row, domain.rows, total});
  run.refuse(total, "next_value",
             "a tensor, or truncated tokens that are last in their row and have a bootstrap_value");
}

/// What every estimator over time is given, besides inputs and outputs of its own.
template <class T>
struct time_steps {
  token_input<T> reward, next_value, bootstrap;
  token_flags terminated, truncated;
  bool has_terminated, has_truncated, has_next_value, has_bootstrap;
};

template <class T, class Batch, class Space>
time_steps<T> bind_time_steps(token_binder<Space>& bind, const Batch& batch,
                              const token_input<T>& reward) {
  time_steps<T> s;
  s.reward = reward;
  s.has_terminated = bool(batch.terminated);
  s.has_truncated = bool(batch.truncated);
  s.has_next_value = bool(batch.next_value);
  s.has_bootstrap = bool(batch.bootstrap_value);
  s.next_value = bind.token("next_value", batch.next_value, T(0));
  if (s.has_bootstrap) s.bootstrap = bind.sequence("bootstrap_value", batch.bootstrap_value);
  s.terminated = bind_flags(bind, "terminated", batch.terminated, batch.reward.shape());
  s.truncated = bind_flags(bind, "truncated", batch.truncated, batch.reward.shape());
  return s;
}

/// Counts the tokens and scans them: with `plain` where no episode ends inside a row, else with
/// `episodes`, which reads next values and flags as well. own(arguments) adds what belongs to the
/// estimator. Returns the figures of count, and then those of the scan.
template <class Plain, class Episodes, class Run, class T, class Space, std::size_t N, class Config,
          class Own>
double* scan_time_steps(Run& run, const token_domain<Space>& given, const time_steps<T>& steps,
                        const token_input<T> (&observed)[N], const Config& config,
                        const Plain& plain, const Episodes& episodes, const Own& own) {
  double* const figures =
      run.template allocate<double>(token_counts::size + scan_figures<Plain>::size);
  double* const scan_to = figures + token_counts::size;
  run.count(given, figures);
  const auto screened = screen_nonfinite<T>(run, given, observed, config.nonfinite);
  const token_domain<Space>& domain = screened.domain;
  if (steps.has_truncated && !steps.has_next_value)
    refuse_cuts(run, domain, steps.terminated, steps.truncated, steps.has_bootstrap);
  const auto rewards = rewards_of_valid(run, domain, steps.reward, config.reward_at_hole);

  const auto scan = [&](const auto& kernel, auto a) {
    a.domain = domain;
    a.holes = config.holes;
    a.in[0] = rewards;
    a.after = steps.bootstrap;
    own(a);
    run.reverse_scan(kernel, a, scan_to);
  };
  if (!steps.has_terminated && !steps.has_truncated && !steps.has_next_value &&
      (config.holes == hole_mode::skip || !domain.mask)) {
    scan(plain, scan_arguments<Plain, Space>{});
  } else {
    scan_arguments<Episodes, Space> a;
    a.in[Episodes::next_value] = steps.next_value;
    a.flag[Episodes::terminated] = steps.terminated;
    a.flag[Episodes::truncated] = steps.truncated;
    scan(episodes, a);
  }
  if (screened.dropped != nullptr)
    run.for_each(1, add_dropped{screened.dropped, scan_to + scan_figures<Plain>::nonfinite});
  return figures;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
