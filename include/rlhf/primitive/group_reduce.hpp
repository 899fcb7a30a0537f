#pragma once

#include "rlhf/primitive/executor.hpp"
#include "rlhf/primitive/tokens.hpp"

namespace rlhf::inline v1 {

/// How many consecutive samples form a group. Left out of a config, groups are told by id.
class group_size {
  index value_ = 0;

 public:
  constexpr group_size() = default;
  template <std::integral I>
    requires(sizeof(I) > 0)  // chosen before the next one wherever both can be
  constexpr explicit group_size(I n) : value_(static_cast<index>(n)) {}
  /// For the sentence alone: .group_size = 3.
  template <std::integral I>
  constexpr group_size(I) {
    static_assert(sizeof(I) == 0, "rlhf: a size of groups is written rlhf::group_size{3}");
  }
  constexpr index value() const { return value_; }
};

/// Which samples belong together: `size` in a row, or, where size is 0, those that share an id.
template <class Space>
struct sample_groups {
  index samples = 0;
  index size = 0;
  index_view<Space> id = {};
};

/// Checks a call's choice of groups: exactly one of a size and ids, fit for so many samples.
template <class Space>
sample_groups<Space> bind_groups(const char* function, index samples, group_size size,
                                 const index_view<Space>& id) {
  if (size.value() != 0) {
    expects(size.value() > 0, function, "group_size", "> 0, or left out", size.value());
    expects(samples % size.value() == 0, function, "group_size",
            "a size that divides the number of samples", size.value());
    if (id) [[unlikely]]
      detail::fail(function, "group_id", "to be left out, because group_size is given", "one");
    return {samples, size.value(), {}};
  }
  if (!id) [[unlikely]]
    detail::fail(function, "group_id", "a tensor, or .group_size = group_size{n} in the config",
                 "neither");
  if (id.rank() != 1 || id.size(0) != samples) [[unlikely]]
    detail::fail_shape(function, "group_id", shape(samples), id.shape());
  detail::check_indices(function, "group_id", id);
  return {samples, 0, id};
}

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

/// The samples of one group, in the order of their rows.
struct sample_group {
  const index* order;  ///< null: samples lie side by side
  index begin, end;
  RLHF_HOST_DEVICE index size() const { return end - begin; }
  RLHF_HOST_DEVICE index operator[](index k) const {
    return order == nullptr ? begin + k : order[begin + k];
  }
};

/// The primitive of estimators over the samples of a prompt: run.group_reduce(groups, kernel, to)
/// calls the kernel once for each group, and adds up what it returns.
///
///     struct best_reward {
///       const float* reward;
///       struct partial {                      // default: of no group
///         double sum = 0;
///         RLHF_HOST_DEVICE friend partial operator+(const partial& a, const partial& b);
///         RLHF_HOST_DEVICE void write(double* to) const;   // partial::size numbers
///         static constexpr int size = 1;
///       };
///       RLHF_HOST_DEVICE partial operator()(const sample_group& group) const;
///     };
///
/// A kernel may write outputs of its samples. Groups told by id may lie in any order; ids are any
/// integers. Groups are added in one order: ascending ids, or that of the rows where each group's
/// samples already lie side by side.
inline constexpr index groups_per_unit = 64;

}  // namespace rlhf::inline RLHF_COMPUTE
