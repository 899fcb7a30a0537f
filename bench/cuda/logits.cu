#include "bench/cuda/measure.hpp"

#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/distribution/token_log_prob.hpp"

namespace rlhf_bench {

namespace {

template <class L>
struct logit_set {
  index rows, classes;
  array<L> logits, gradient;
  array<std::int32_t> label;
  array<float> log_prob, entropy;
  logit_set(index r, index v, bool backward, std::uint32_t seed)
      : rows(r),
        classes(v),
        logits(r * v),
        gradient(backward ? r * v : 1),
        label(r),
        log_prob(r),
        entropy(r) {
    fill_uniform(logits.data(), r * v, -4, 4, seed);
    fill_labels(label.data(), r, static_cast<std::int32_t>(v), seed);
  }
  rlhf::index_view<rlhf::device_space> labels() const { return {label.data(), rlhf::shape(rows)}; }
};

// Read the logits once; what is written per row does not count.
template <class L>
struct forward_set : logit_set<L> {
  static constexpr double bytes = sizeof(L);
  static constexpr bool reads_only = true;
  forward_set(index r, index v, std::uint32_t seed) : logit_set<L>(r, v, false, seed) {}
  template <class Exec>
  void call(const Exec& exec) const {
    rlhf::token_log_prob<L>(
        {.logits = {this->logits.data(), rlhf::shape(this->rows, this->classes)},
         .label = this->labels()},
        {.log_prob = {this->log_prob.data(), rlhf::shape(this->rows)},
         .entropy = {this->entropy.data(), rlhf::shape(this->rows)}},
        {}, exec);
  }
};

// Read the logits once, write their gradient once.
template <class L>
struct gradient_set : logit_set<L> {
  static constexpr double bytes = 2 * sizeof(L);
  static constexpr bool reads_only = false;
  gradient_set(index r, index v, std::uint32_t seed) : logit_set<L>(r, v, true, seed) {}
  template <class Exec>
  void call(const Exec& exec) const {
    const rlhf::shape shape(this->rows, this->classes);
    rlhf::cross_entropy_loss<L>(
        {.logits = {this->logits.data(), shape}, .label = this->labels()},
        {.d_logits = {this->gradient.data(), shape}},
        {.over = rlhf::aggregation::token_mean(static_cast<double>(this->rows))}, exec);
  }
};

template <class Set>
void add(table& to, const char* name, index rows, index classes, double goal, double goal_us = 0) {
  to.add({.family = "logits",
          .operation = name,
          .size = std::to_string(rows) + "x" + std::to_string(classes),
          .items = static_cast<double>(rows * classes),
          .bytes_per_item = Set::bytes,
          .goal = goal,
          .goal_us = goal_us,
          .reads_only = Set::reads_only},
         [=](std::uint32_t seed) { return std::make_shared<Set>(rows, classes, seed); });
}

}  // namespace

void logits(table& to) {
  using rlhf::bfloat16;
  add<forward_set<bfloat16>>(to, "token_log_prob, entropy, bf16", 8192, 32000, 0.92);
  add<gradient_set<bfloat16>>(to, "cross_entropy_loss, gradient, bf16", 8192, 32000, 0.85, 290);
  add<forward_set<bfloat16>>(to, "token_log_prob, entropy, bf16", 8192, 128256, 0.92);
  add<gradient_set<bfloat16>>(to, "cross_entropy_loss, gradient, bf16", 8192, 128256, 0.85);
  add<forward_set<float>>(to, "token_log_prob, entropy, float", 8192, 32000, 0.92);
  add<gradient_set<float>>(to, "cross_entropy_loss, gradient, float", 8192, 32000, 0.85);
  if (to.quick()) return;
  add<forward_set<float>>(to, "token_log_prob, entropy, float", 2048, 262144, 0.92);
  add<gradient_set<float>>(to, "cross_entropy_loss, gradient, float", 2048, 262144, 0.85);
  add<gradient_set<bfloat16>>(to, "cross_entropy_loss, gradient, bf16", 1 << 18, 512, 0.85);
}

}  // namespace rlhf_bench
