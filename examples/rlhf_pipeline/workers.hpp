#pragma once

#include <future>

namespace demo {

/// The model's work is cut in two whatever the machine has: sums then have one order, and the run
/// depends on its seed alone.
inline constexpr int shards = 2;

/// Runs work(0) and work(1) side by side; what either throws comes out here.
template <class Work>
void in_shards(const Work& work) {
  std::future<void> other = std::async(std::launch::async, [&] { work(1); });
  work(0);
  other.get();
}

/// Where shard k of n things begins; shard k ends where k + 1 begins.
template <class Integer>
constexpr Integer shard_begin(Integer n, int k) {
  return n * static_cast<Integer>(k) / static_cast<Integer>(shards);
}

}  // namespace demo
