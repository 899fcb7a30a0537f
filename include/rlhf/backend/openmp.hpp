#pragma once

#if !defined(_OPENMP)
#error "rlhf/backend/openmp.hpp needs OpenMP: compile with -fopenmp, or link rlhf::openmp"
#endif

#include <omp.h>

#include "rlhf/backend/host.hpp"

namespace rlhf::inline v1 {

/// The threads of OpenMP for parallel{pool}: `threads` of them, or as many as OpenMP would take.
/// Inside a parallel region it is one thread, unless nested parallelism is on.
///
///     const rlhf::openmp_pool pool;
///     auto r = rlhf::dpo_loss<float>({...}, {...}, {...}, rlhf::parallel{pool});
struct openmp_pool {
  int threads = 0;

  template <class F>
  void parallel_for(index n, const F& f) const {
    const int count = static_cast<int>(concurrency());
    // Units differ in size, so they are dealt out in small shares.
    const index share = n / (index{8} * count) + 1;
#pragma omp parallel for schedule(dynamic, share) num_threads(count)
    for (index i = 0; i < n; ++i) f(i);
  }
  index concurrency() const { return threads > 0 ? threads : omp_get_max_threads(); }
};

}  // namespace rlhf::inline v1
