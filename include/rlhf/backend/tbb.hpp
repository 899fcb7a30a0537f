#pragma once

#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

#include "rlhf/backend/host.hpp"

namespace rlhf::inline v1 {

/// The threads of oneTBB for parallel{pool}: those of the arena the call is made in.
///
///     const rlhf::tbb_pool pool;
///     auto r = rlhf::dpo_loss<float>({...}, {...}, {...}, rlhf::parallel{pool});
struct tbb_pool {
  template <class F>
  void parallel_for(index n, const F& f) const {
    tbb::parallel_for(index{0}, n, [&](index i) { f(i); });
  }
  static index concurrency() { return tbb::this_task_arena::max_concurrency(); }
};

}  // namespace rlhf::inline v1
