#pragma once

#include <cstring>

#include "bench/support/line.hpp"

namespace rlhf_bench {

struct logit_case {
  index rows, classes;
  int threads = 1;
};

/// Rows of logits in a storage type, with labels.
template <class L>
class logit_data {
  logit_case of_;

 public:
  tensors store;
  std::function<void()> prepare;
  rlhf::index_view<> label;

 private:
  L* logits_;

 public:
  explicit logit_data(const logit_case& of)
      : of_(of), logits_(store.add<L>("logits", false, {of.rows, of.classes})) {
    const auto n = static_cast<std::size_t>(of.rows * of.classes);
    for (std::size_t k = 0; k < n; ++k) logits_[k] = static_cast<L>(store.random()(-6, 6));
    auto* const labels = store.add<std::int32_t>("label", false, {of.rows});
    for (index i = 0; i < of.rows; ++i)
      labels[i] = static_cast<std::int32_t>(i * 7919 % of.classes);
    label = {labels, rlhf::shape(of.rows)};
  }

  index rows() const { return of_.rows; }
  rlhf::shape shape() const { return {of_.rows, of_.classes}; }
  rlhf::view<const L> logits() const { return {logits_, shape()}; }
  /// A copy of the logits, made anew before each call, that the gradient may overwrite.
  rlhf::view<L> logits_to_overwrite() {
    L* const copy = store.add<L>("d_logits", true, {of_.rows, of_.classes});
    const auto bytes = static_cast<std::size_t>(of_.rows * of_.classes) * sizeof(L);
    prepare = [copy, bytes, from = logits_] { std::memcpy(copy, from, bytes); };
    return {copy, shape()};
  }
  /// One number per row.
  rlhf::view<const float> input(const char* name, float low, float high) {
    float* const data = store.add<float>(name, false, {of_.rows});
    for (index i = 0; i < of_.rows; ++i) data[i] = store.random()(low, high);
    return {data, of_.rows};
  }
  rlhf::view<float> output(const char* name) {
    return {store.add<float>(name, true, {of_.rows}), of_.rows};
  }
};

/// One operation over rows of logits.
struct logit_operation {
  const char* family;
  const char* name;
  double reads;     ///< of a logit
  double writes;    ///< of a logit
  double goal = 0;  ///< ns per logit in float on one thread
  bool growth = false;
};

std::vector<logit_case> cases_of(const logit_operation& operation, const settings& s,
                                 std::size_t element);

/// Registers every line of an operation, in float and in bfloat16. make(logit_data<L>&) returns the
/// call: f(executor).
template <class Make>
registration logit_lines(const logit_operation& operation, const Make& make) {
  const auto lines_in = [operation, make]<class L>(const settings& s, L) {
    for (const logit_case& c : cases_of(operation, s, sizeof(L))) {
      const std::string name = std::string(operation.family) + "/" + operation.name + "/" +
                               name_of_type<L>() + "/" + std::to_string(c.rows) + "x" +
                               std::to_string(c.classes) + "/" + std::to_string(c.threads);
      const double items = static_cast<double>(c.rows * c.classes);
      const bool goal = c.threads == 1 && sizeof(L) == 4;
      const work of{.item = "logit",
                    .items = items,
                    .bytes = items * sizeof(L) * (operation.reads + operation.writes),
                    .goal = goal ? operation.goal : 0,
                    .goal_speedup = 1.6,
                    .exponentials = true,
                    .threads = c.threads};
      add_line(name, [make, c, name, of](benchmark::State& state) {
        logit_data<L> data(c);
        run_line(state, name, data, make, of);
      });
    }
  };
  return registration([operation, make, lines_in](const settings& s) {
    lines_in(s, float());
    lines_in(s, rlhf::bfloat16());
    if (!operation.growth) return;
    const logit_case base{256, 65536};
    for (const auto& [name, large] :
         {std::pair("rows/256x65536_to_512x65536", logit_case{512, 65536}),
          {"classes/256x65536_to_256x131072", logit_case{256, 131072}}})
      add_line(std::string("growth/") + operation.name + "/" + name + "/1",
               [make, base, large = large](benchmark::State& state) {
                 logit_data<float> small_data(base), large_data(large);
                 run_growth(state, small_data, large_data, make, 1.8, 2.3);
               });
  });
}

}  // namespace rlhf_bench
