// The only C++ file of a C trainer. Built without exceptions and RTTI, linked by the C compiler.

#include "c_shim.h"

//! [shim]
#include <rlhf/backend/host.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

extern "C" ppo_figures ppo_loss(const float* log_prob, const float* old_log_prob,
                                const float* advantage, const std::int32_t* length,
                                std::ptrdiff_t batch, std::ptrdiff_t time, double tokens,
                                float* d_log_prob) {
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {log_prob, {batch, time}},
       .old_log_prob = {old_log_prob, {batch, time}},
       .advantage = {advantage, {batch}},
       .layout = rlhf::lengths(length, {batch})},
      {.d_log_prob = {d_log_prob, {batch, time}}}, {.over = rlhf::aggregation::token_mean(tokens)});
  return {r.loss, r.clip_fraction.mean(), r.approx_kl_k3.mean(), r.tokens};
}

extern "C" void ppo_on_mistake(void (*handler)(const char*)) {
  rlhf::set_contract_handler(handler);
}
//! [shim]

//! [memory]
// A call without a workspace takes its scratch memory from these. A C++ program has them; a C
// program that is linked without libstdc++ gets them here.
#include <cstdlib>
#include <new>

void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto a = static_cast<std::size_t>(alignment);
  void* const memory = std::aligned_alloc(a, (bytes + a - 1) / a * a);
  if (memory == nullptr) std::abort();
  return memory;
}
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
//! [memory]
