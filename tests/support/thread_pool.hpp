#pragma once

#include <atomic>
#include <cstddef>
#include <thread>
#include <vector>

namespace rlhf_test {

/// The smallest pool there is: threads are made for each call and take the next index when free, so
/// the order of the work differs from run to run.
struct thread_pool {
  std::ptrdiff_t threads;

  std::ptrdiff_t concurrency() const { return threads; }
  template <class F>
  void parallel_for(std::ptrdiff_t n, const F& f) const {
    std::atomic<std::ptrdiff_t> next{0};
    const auto work = [&] {
      for (std::ptrdiff_t i = next++; i < n; i = next++) f(i);
    };
    std::vector<std::thread> others;
    for (std::ptrdiff_t t = 1; t < threads; ++t) others.emplace_back(work);
    work();
    for (auto& t : others) t.join();
  }
};

}  // namespace rlhf_test
