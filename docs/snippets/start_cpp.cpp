// Plain C++: what a trainer without a tensor library hands to a call.

//! [include]
#include <rlhf/backend/host.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>
#include <rlhf/preference/dpo.hpp>
//! [include]

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <span>
#include <vector>

namespace {

void first_call() {
  //! [first]
  // Two answers of up to three tokens, one after the other in one vector; the second has two.
  const std::vector<float> log_prob = {-1.0f, -0.7f, -2.0f, -0.9f, -1.1f, 0.0f};
  const std::vector<float> old_log_prob = {-1.2f, -1.1f, -2.0f, -0.5f, -1.0f, 0.0f};
  const std::vector<float> advantage = {1.0f, -0.5f};  // one per answer
  const std::vector<std::int32_t> length = {3, 2};
  std::vector<float> d_log_prob(6);

  const rlhf::shape tokens(2, 3);  // batch, time
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {log_prob, tokens},
       .old_log_prob = {old_log_prob, tokens},
       .advantage = advantage,
       .layout = rlhf::lengths(length)},
      {.d_log_prob = {d_log_prob, tokens}}, {.over = rlhf::aggregation::token_mean(rlhf::local)});

  std::printf("loss %.4f  clipped %.2f  tokens %g\n", r.loss, r.clip_fraction.mean(), r.tokens);
  //! [first]
  for (const float d : d_log_prob) std::printf(" %7.4f", static_cast<double>(d));
  std::printf("\n");
}

void ways_to_name_memory() {
  const float one[6] = {-1, -2, -3, -4, -5, -6};
  const float columns_first[6] = {-1, -4, -2, -5, -3, -6};
  const std::vector<float> flat(one, one + 6);
  //! [memory]
  const float grid[2][3] = {{-1, -2, -3}, {-4, -5, -6}};  // a C array has its shape
  const rlhf::view<const float> a = grid;
  const rlhf::view<const float> b = {flat, {2, 3}};  // a vector, span or std::array is given one
  const rlhf::view<const float> c = {one, {2, 3}};   // and a pointer must be given one
  const rlhf::view<const float> d = {columns_first, {2, 3}, {1, 2}};  // strides, in elements
  const rlhf::view<const float> e = std::span(flat).first(4);         // rank 1: one per answer
  //! [memory]
  bool same = e.rank() == 1 && e.size(0) == 4;
  for (const auto& v : {a, b, c, d})
    for (rlhf::index i = 0; i < 2; ++i)
      for (rlhf::index j = 0; j < 3; ++j)
        same =
            same && v.rank() == 2 && v.data()[i * v.stride(0) + j * v.stride(1)] == one[i * 3 + j];
  std::printf("one batch, four ways to name it: %s\n", same ? "equal" : "different");
}

void mistakes() {
  const std::vector<float> log_prob(6), old_log_prob(6), advantage(3);
  std::vector<float> d_log_prob(6, 7.0f);
  const rlhf::shape tokens(2, 3);
  //! [mistake]
  try {
    rlhf::clipped_surrogate_loss<float>({.log_prob = {log_prob, tokens},
                                         .old_log_prob = {old_log_prob, tokens},
                                         .advantage = advantage},  // three numbers for two answers
                                        {.d_log_prob = {d_log_prob, tokens}},
                                        {.over = rlhf::aggregation::token_mean(rlhf::local)});
  } catch (const rlhf::contract_violation& e) {
    std::printf("%s\n", e.what());
  }
  //! [mistake]
  std::printf("d_log_prob[0] is still %g\n", static_cast<double>(d_log_prob[0]));
}

void own_memory() {
  const std::vector<double> chosen = {-10, -12}, rejected = {-14, -11};
  const std::vector<double> ref_chosen = {-11, -12}, ref_rejected = {-13, -12};
  std::vector<double> d_chosen(2), d_rejected(2);
  //! [workspace]
  const auto call = [&](const auto& exec) {
    return rlhf::dpo_loss<double>(
        {.chosen_log_prob = chosen,
         .rejected_log_prob = rejected,
         .ref_chosen_log_prob = ref_chosen,
         .ref_rejected_log_prob = ref_rejected},
        {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
        {.beta = 0.1, .over = rlhf::reduction::mean(rlhf::local)}, exec);
  };
  std::vector<std::byte> memory(rlhf::workspace_bytes(call));       // once
  const auto r = call(rlhf::serial{memory.data(), memory.size()});  // every step: no allocation
  //! [workspace]
  std::printf("DPO loss %.4f  d_chosen %.4f %.4f\n", r.loss, d_chosen[0], d_chosen[1]);
}

}  // namespace

int main() {
  first_call();
  ways_to_name_memory();
  mistakes();
  own_memory();
}
