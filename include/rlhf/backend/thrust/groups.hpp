#pragma once

#include "rlhf/backend/host/group_reduce.hpp"

// group_reduce on a device: one thread finds the groups, one takes each group, one each unit of 64.

namespace rlhf::inline RLHF_COMPUTE::detail {

template <class Space>
struct find_all_groups {
  sample_groups<Space> groups;
  group_scratch scratch;
  found_groups* to;
  RLHF_HOST_DEVICE void operator()(index) const { *to = find_groups(groups, scratch); }
};

template <class K>
struct run_group_kernel {
  K kernel;
  const found_groups* found;
  typename K::partial* to;
  RLHF_HOST_DEVICE void operator()(index g) const {
    if (g < found->groups) to[g] = kernel(found->at(g));
  }
};

template <class Partial>
struct add_group_unit {
  const Partial* each;
  const found_groups* found;
  Partial* to;
  RLHF_HOST_DEVICE void operator()(index u) const {
    Partial sum;
    for (index g = u * groups_per_unit; g < found->groups && g < (u + 1) * groups_per_unit; ++g)
      sum = sum + each[g];
    to[u] = sum;
  }
};

template <class Partial>
struct add_group_units {
  const Partial* unit;
  const found_groups* found;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    Partial all;
    for (index u = 0; u * groups_per_unit < found->groups; ++u) all = all + unit[u];
    all.write(to);
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
