#pragma once

#include <future>

namespace demo {

/// The models' work is cut in two whatever the machine has: sums then have one order, and the run
/// depends on its seed alone.
inline constexpr int worker_count = 2;

/// Runs work(0) and work(1) side by side; what either throws comes out here.
template <class Work>
void run_workers(const Work& work) {
  std::future<void> other = std::async(std::launch::async, [&] { work(1); });
  work(0);
  other.get();
}

/// Where the share of worker k of n things begins; it ends where that of k + 1 begins.
template <class Integer>
constexpr Integer share_begin(Integer n, int k) {
  return n * static_cast<Integer>(k) / static_cast<Integer>(worker_count);
}

}  // namespace demo
