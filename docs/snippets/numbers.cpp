// What is promised about numbers, seen from outside.

#include <rlhf/backend/host.hpp>
#include <rlhf/distribution/token_log_prob.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <thread>
#include <vector>

//! [pool]
// A thread pool as `parallel` wants it: any that can call f(0) ... f(n - 1) and wait.
struct two_threads {
  static rlhf::index concurrency() { return 2; }
  template <class F>
  void parallel_for(rlhf::index n, const F& f) const {
    std::thread other([&] {
      for (rlhf::index i = 1; i < n; i += 2) f(i);
    });
    for (rlhf::index i = 0; i < n; i += 2) f(i);
    other.join();
  }
};
//! [pool]

namespace {

void same_bits() {
  const rlhf::index rows = 300, columns = 50;
  std::vector<float> log_prob, old_log_prob, advantage;
  for (int k = 0; k < rows * columns; ++k) {
    log_prob.push_back(-1.0f - 0.5f * std::sin(static_cast<float>(k)));
    old_log_prob.push_back(log_prob.back() + 0.1f * std::cos(static_cast<float>(3 * k)));
  }
  for (int k = 0; k < rows; ++k) advantage.push_back(k % 2 == 0 ? 1.0f : -1.0f);
  const rlhf::shape tokens(rows, columns);
  //! [threads]
  const auto call = [&](const auto& exec) {
    return rlhf::clipped_surrogate_loss<float>(
        {.log_prob = {log_prob, tokens},
         .old_log_prob = {old_log_prob, tokens},
         .advantage = advantage},
        {}, {.over = rlhf::aggregation::token_mean(rlhf::local)}, exec);
  };
  const two_threads pool;
  const double alone = call(rlhf::serial{}).loss;
  const double together = call(rlhf::parallel{pool}).loss;
  //! [threads]
  std::printf("one thread and two: %s\n",
              std::memcmp(&alone, &together, sizeof alone) == 0 ? "the same bits" : "different");
}

void odd_numbers() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double log_prob[1][4] = {{-1, nan, -1, 0}}, old_log_prob[1][4] = {{-1, -1, -1, -100}};
  const double advantage[1] = {1};
  double d_log_prob[1][4];
  //! [nonfinite]
  for (const auto policy : {rlhf::nonfinite_policy::propagate, rlhf::nonfinite_policy::drop_token,
                            rlhf::nonfinite_policy::drop_sequence}) {
    const auto r = rlhf::clipped_surrogate_loss<double>(
        {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage},
        {.d_log_prob = d_log_prob},
        {.clip_high = 1e40, .over = rlhf::aggregation::token_mean(4), .nonfinite = policy});
    std::printf("loss %11.4g  nonfinite %g  saturated %g\n", std::fabs(r.loss), r.nonfinite,
                r.saturated);
  }
  //! [nonfinite]
  //! [masked]
  // What lies in a masked slot is never read into arithmetic, and its gradient is +0.
  const bool mask[1][4] = {{true, false, true, false}};
  const auto r = rlhf::clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = mask},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
  //! [masked]
  std::printf("loss %.1f  nonfinite %g  gradients %g %g %g %g\n", r.loss, r.nonfinite,
              d_log_prob[0][0], d_log_prob[0][1], d_log_prob[0][2], d_log_prob[0][3]);
}

void sixteen_bits() {
  //! [bf16]
  // Logits may be stored in 16 bits; what is computed from them is float.
  const std::vector<rlhf::bfloat16> logits = {rlhf::bfloat16(1.0f), rlhf::bfloat16(2.0f),
                                              rlhf::bfloat16(3.0f)};
  const std::vector<std::int64_t> label = {2};
  std::vector<float> log_prob(1), entropy(1);
  rlhf::token_log_prob<rlhf::bfloat16>({.logits = {logits.data(), {1, 3}}, .label = label},
                                       {.log_prob = log_prob, .entropy = entropy});
  //! [bf16]
  std::printf("log-prob %.6f  entropy %.6f\n", static_cast<double>(log_prob[0]),
              static_cast<double>(entropy[0]));
}

}  // namespace

int main() {
  same_bits();
  odd_numbers();
  sixteen_bits();
}
