#include "bench/support/pool.hpp"

#if defined(RLHF_BENCH_TBB)

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

namespace rlhf_bench {

bool pool::available() { return true; }
pool::pool(int threads) : arena_(new tbb::task_arena(threads)), threads_(threads) {}
pool::~pool() { delete static_cast<tbb::task_arena*>(arena_); }
void pool::run(std::ptrdiff_t n, const void* f, range call) const {
  static_cast<tbb::task_arena*>(arena_)->execute([&] {
    tbb::parallel_for(tbb::blocked_range<std::ptrdiff_t>(0, n),
                      [&](const auto& part) { call(f, part.begin(), part.end()); });
  });
}

}  // namespace rlhf_bench

#else

namespace rlhf_bench {

bool pool::available() { return false; }
pool::pool(int threads) : arena_(nullptr), threads_(threads) {}
pool::~pool() = default;
void pool::run(std::ptrdiff_t n, const void* f, range call) const { call(f, 0, n); }

}  // namespace rlhf_bench

#endif
