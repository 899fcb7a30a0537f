#pragma once

// How every figure of the table is taken.
//
// A set is the inputs and outputs of one call. As many sets are made as fill the L2 cache more than
// twice, and calls go round them, so that every call finds its data in device memory: the cold
// figure, and the one that counts. The warm figure takes one set again and again. Calls are captured
// in a graph and the graph is timed with events; `launches` is the number of kernels and copies that
// one call leaves in it. The copy beside it moves the same bytes in the same way, half read and half
// written, by cudaMemcpyAsync and by a kernel with 16-byte accesses: the faster one counts. Beside an
// operation that only reads stands a kernel that only reads. Sets are 512 at most, so batches below a
// quarter of a megabyte stay in the cache.
//
//     fraction   time of the copy over time of the call
//     single_us  one call launched alone on an idle stream, cold

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/cuda/line.hpp"
#include "rlhf/backend/thrust.hpp"

namespace rlhf_bench {

using rlhf::index;

/// Ends the program with a sentence when a call of the CUDA runtime fails.
void check(cudaError_t code, const char* doing);

/// Memory of the device.
template <class T>
class array {
  T* data_ = nullptr;
  index size_ = 0;

 public:
  explicit array(index n) : size_(n) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), static_cast<std::size_t>(n) * sizeof(T)),
          "cudaMalloc");
  }
  array(const array&) = delete;
  array& operator=(const array&) = delete;
  ~array() { cudaFree(data_); }
  T* data() const { return data_; }
  index size() const { return size_; }
};

void fill_uniform(float* to, index n, float low, float high, std::uint32_t seed);
void fill_uniform(rlhf::bfloat16* to, index n, float low, float high, std::uint32_t seed);
/// 0 in `share` of the places, 1 elsewhere.
void fill_holes(std::uint8_t* to, index n, float share, std::uint32_t seed);
/// The same value everywhere, and base, base + step, ...
void fill_steps(std::int32_t* to, index n, std::int32_t base, std::int32_t step);
void fill_labels(std::int32_t* to, index n, std::int32_t classes, std::uint32_t seed);

struct uniform : array<float> {
  uniform(index n, float low, float high, std::uint32_t seed) : array(n) {
    fill_uniform(data(), n, low, high, seed);
  }
};

/// A call on a stream over one of several sets.
struct operation {
  std::function<void(int set, const rlhf::cuda::stream&)> call;
  std::function<std::size_t(int set)> workspace_bytes;
};

class table {
  std::vector<line> lines_;
  bool quick_;

 public:
  explicit table(bool quick) : quick_(quick) {}
  bool quick() const { return quick_; }
  const std::vector<line>& lines() const { return lines_; }

  /// How many sets of so many bytes fill the cache more than twice.
  static int sets_for(double bytes);
  void measure(line about, int sets, const operation& op);

  /// `make(k)` returns a shared pointer to set k, whose call(executor) is the call.
  template <class Make>
  void add(line about, const Make& make) {
    const int sets = sets_for(about.items * about.bytes_per_item);
    std::vector<decltype(make(std::uint32_t{0}))> all;
    for (int k = 0; k < sets; ++k) all.push_back(make(static_cast<std::uint32_t>(k + 1)));
    measure(
        std::move(about), sets,
        {[&](int k, const rlhf::cuda::stream& on) { all[static_cast<std::size_t>(k)]->call(on); },
         [&](int k) {
           const auto& set = *all[static_cast<std::size_t>(k)];
           return rlhf::device_workspace_bytes([&](const auto& exec) { set.call(exec); });
         }});
  }
};

void token_losses(table& to);
void scans(table& to);
void logits(table& to);
void small_batches(table& to);

}  // namespace rlhf_bench
