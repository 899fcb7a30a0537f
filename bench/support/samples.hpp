#pragma once

#include "bench/support/line.hpp"

namespace rlhf_bench {

/// Numbers of a batch of samples: pairs, or the sequences of groups.
class sample_data {
  index samples_;

 public:
  tensors store;
  std::function<void()> prepare;

  explicit sample_data(index samples) : samples_(samples) {}

  index samples() const { return samples_; }
  rlhf::view<const float> input(const char* name, float low, float high) {
    return input(name, low, high, {samples_});
  }
  rlhf::view<const float> input(const char* name, float low, float high,
                                const std::vector<index>& shape) {
    const rlhf::view<float> v = add(name, false, shape);
    const index n = v.shape().elements();
    for (index k = 0; k < n; ++k) v.data()[k] = store.random()(low, high);
    return v;
  }
  rlhf::view<float> output(const char* name) { return add(name, true, {samples_}); }
  rlhf::view<float> output(const char* name, const std::vector<index>& shape) {
    return add(name, true, shape);
  }
  /// The group of each sample, `size` in a row to one group.
  rlhf::index_view<> group_id(index size) {
    auto* const id = store.add<std::int32_t>("group_id", false, {samples_});
    for (index i = 0; i < samples_; ++i) id[i] = static_cast<std::int32_t>(i / size);
    return {id, rlhf::shape(samples_)};
  }

 private:
  rlhf::view<float> add(const char* name, bool is_output, const std::vector<index>& shape) {
    float* const data = store.add<float>(name, is_output, shape);
    return shape.size() == 1 ? rlhf::view<float>(data, rlhf::shape(shape[0]))
                             : rlhf::view<float>(data, rlhf::shape(shape[0], shape[1]));
  }
};

/// One operation over samples.
struct sample_operation {
  const char* family;
  const char* name;
  const char* variant;
  const char* item;  ///< "pair" or "sequence"
  double bytes;      ///< minimal reads and writes of one
  std::vector<index> sizes;
  target (*goal)(index samples) = [](index) { return target{}; };  ///< on one thread
};

/// Registers every line of an operation: each size on one thread, the largest on two as well.
/// make(sample_data&) returns the call: f(executor).
template <class Make>
registration sample_lines(const sample_operation& operation, const Make& make) {
  return registration([operation, make](const settings&) {
    const auto add = [&](index n, int threads) {
      const std::string name = std::string(operation.family) + "/" + operation.name + "/" +
                               operation.variant + "/" + std::to_string(n) + "/" +
                               std::to_string(threads);
      const target goal = threads == 1 ? operation.goal(n) : target{};
      const work of{.item = operation.item,
                    .items = static_cast<double>(n),
                    .bytes = operation.bytes * static_cast<double>(n),
                    .goal = goal.ns,
                    .goal_ratio = goal.ratio,
                    .threads = threads};
      add_line(name, [make, n, name, of](benchmark::State& state) {
        sample_data data(n);
        run_line(state, name, data, make, of);
      });
    };
    for (const index n : operation.sizes) add(n, 1);
    if (pool::available()) add(operation.sizes.back(), 2);
  });
}

}  // namespace rlhf_bench
