#pragma once

#include "rlhf/advantage/discounted_returns.hpp"
#include "rlhf/distribution/token_log_prob.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/preference/dpo.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "tests/thrust/batch.hpp"

namespace thrust_test {

using batch_on_device = rlhf::policy_batch<float, rlhf::device_space>;

/// A clipped surrogate over [rows, columns] zeros, whatever layout and mask it is given.
struct zeros_on_device {
  device_place place;
  rlhf::shape shape;
  thrust::device_vector<float> zero, advantage, gradient;

  zeros_on_device(const rlhf::shape& s, index rows)
      : shape(s),
        zero(count(s), 0.0f),
        advantage(static_cast<std::size_t>(rows), 1.0f),
        gradient(count(s), 7.0f) {}

  static std::size_t count(const rlhf::shape& s) {
    return static_cast<std::size_t>(s.size[0] * (s.rank == 2 ? s.size[1] : 1));
  }
  auto call(const rlhf::sequence_layout<rlhf::device_space>& layout,
            const rlhf::mask_view<rlhf::device_space>& mask = {},
            const rlhf::aggregation& over = rlhf::aggregation::token_mean(rlhf::local)) {
    return rlhf::clipped_surrogate_loss<float>({.log_prob = {zero, shape},
                                                .old_log_prob = {zero, shape},
                                                .advantage = rlhf::per_sequence(advantage),
                                                .mask = mask,
                                                .layout = layout},
                                               {.d_log_prob = {gradient, shape}}, {.over = over},
                                               place.exec);
  }
};

template <class Pending>
std::string refusal_of(const Pending& pending) {
  try {
    pending.get();
  } catch (const rlhf::contract_violation& e) {
    return e.what();
  }
  return "";
}

TEST_CASE("device: a length that does not fit is an empty row, and get() says so") {
  zeros_on_device batch(rlhf::shape(3, 4), 3);
  const thrust::device_vector<std::int32_t> length(std::vector<std::int32_t>{2, 5, -1});
  const auto pending = batch.call(rlhf::lengths(length));
  CHECK(refusal_of(pending) ==
        "clipped_surrogate_loss: layout: lengths: expected 0 <= length <= columns, received 2 that "
        "are "
        "not");
  // -A / 2 tokens in the good row, +0 everywhere else
  const thrust::host_vector<float> gradient = batch.gradient;
  CHECK(gradient == std::vector<float>{-0.5f, -0.5f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("device: offsets that do not fit leave what is around them alone") {
  const char* const sentence =
      "clipped_surrogate_loss: layout: packed(cu_seqlens): expected offsets that begin with 0, do "
      "not decrease and end with the number of tokens, received ";
  const std::vector<std::vector<std::int64_t>> wrong = {
      {0, 4, 3, 6}, {1, 2, 3, 6}, {0, 2, 3, 5}, {0, 900, -900, 6}, {-5, 70, 80, 6}};
  for (const auto& offsets : wrong) {
    zeros_on_device batch(rlhf::shape(6), 3);
    batch.zero.resize(64, 0.0f);
    batch.gradient.resize(64, 7.0f);
    const thrust::device_vector<std::int64_t> offset(offsets);
    const auto pending = rlhf::clipped_surrogate_loss<float>(
        {.log_prob = {batch.zero.data(), rlhf::shape(6)},
         .old_log_prob = {batch.zero.data(), rlhf::shape(6)},
         .advantage = rlhf::per_sequence(batch.advantage),
         .layout = rlhf::packed(offset)},
        {.d_log_prob = {batch.gradient.data(), rlhf::shape(6)}},
        {.over = rlhf::aggregation::token_mean(rlhf::local)}, batch.place.exec);
    CHECK(refusal_of(pending).substr(0, std::strlen(sentence)) == sentence);
    const thrust::host_vector<float> gradient = batch.gradient;
    for (std::size_t k = 6; k < 64; ++k) CHECK(gradient[k] == 7.0f);
  }
}

TEST_CASE("device: weights that are no weights, and a forgotten count") {
  zeros_on_device batch(rlhf::shape(1, 4), 1);
  const float bad[] = {1, -2, INFINITY, NAN};
  const thrust::device_vector<float> weight(bad, bad + 4);
  CHECK(
      refusal_of(batch.call({}, {weight, rlhf::shape(1, 4)})) ==
      "clipped_surrogate_loss: mask: expected weights of 0, or from 1e-30 to 1e30, received 3 that "
      "are not");
  CHECK(refusal_of(batch.call({}, {}, rlhf::aggregation::token_mean(0))) ==
        "clipped_surrogate_loss: over: expected a count > 0, because tokens count, received 0");
  CHECK(refusal_of(batch.call({})) == "");
}

TEST_CASE("device: weights and lengths of pairs go by the names of their fields") {
  device_place place;
  const float bad[] = {1, -2};
  const thrust::device_vector<float> weight(bad, bad + 2), two(2, 0.0f), tokens(6, 0.0f);
  const thrust::device_vector<std::int32_t> length(std::vector<std::int32_t>{2, 5});
  const auto over = rlhf::reduction::mean(rlhf::local);
  const rlhf::shape shape(2, 3);
  CHECK(refusal_of(rlhf::bradley_terry_loss<float>(
            {.chosen_reward = two, .rejected_reward = two, .weight = weight}, {}, {.over = over},
            place.exec)) ==
        "bradley_terry_loss: weight: expected weights of 0, or from 1e-30 to 1e30, received 1 that "
        "is not");
  const auto dpo = [&](rlhf::mask_view<rlhf::device_space> chosen,
                       rlhf::mask_view<rlhf::device_space> rejected,
                       rlhf::sequence_layout<rlhf::device_space> layout,
                       rlhf::mask_view<rlhf::device_space> pairs) {
    return refusal_of(rlhf::dpo_loss<float>({.chosen_log_prob = {tokens, shape},
                                             .rejected_log_prob = {tokens, shape},
                                             .weight = pairs,
                                             .chosen_mask = chosen,
                                             .rejected_mask = rejected,
                                             .rejected_layout = layout},
                                            {}, {.reference_free = true, .over = over},
                                            place.exec));
  };
  const thrust::device_vector<float> negative(6, -1.0f);
  const std::string rest =
      ": expected weights of 0, or from 1e-30 to 1e30, received 6 that are not";
  CHECK(dpo({negative, shape}, {}, {}, {}) == "dpo_loss: chosen_mask" + rest);
  CHECK(dpo({}, {negative, shape}, {}, {}) == "dpo_loss: rejected_mask" + rest);
  CHECK(dpo({}, {}, rlhf::lengths(length), {}) ==
        "dpo_loss: rejected_layout: lengths: expected 0 <= length <= columns, received 1 that is "
        "not");
  CHECK(dpo({}, {}, {}, weight) ==
        "dpo_loss: weight: expected weights of 0, or from 1e-30 to 1e30, received 1 that is not");
}

TEST_CASE("device: a scan over offsets that do not fit comes back, and get() says so") {
  // The third group of rows plans its slots in the middle of the first row's pieces.
  const index rows = 192, tokens = 40000;
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(rows) + 1, tokens);
  offsets[0] = 0;
  for (std::size_t k = 128; k < offsets.size(); ++k) offsets[k] = 0;
  const thrust::device_vector<std::int64_t> offset(offsets);
  device_place place;
  thrust::device_vector<float> reward(static_cast<std::size_t>(tokens), 1.0f), returns(reward);
  const auto pending = rlhf::discounted_returns<float>(
      {.reward = {reward.data(), rlhf::shape(tokens)}, .layout = rlhf::packed(offset)},
      {.returns = {returns.data(), rlhf::shape(tokens)}}, {.gamma = 0.99}, place.exec);
  CHECK(refusal_of(pending).substr(0, 41) == "discounted_returns: layout: packed(cu_seq");
}

TEST_CASE("device: a label that is no class reads nothing, and get() says so") {
  device_place place;
  const thrust::device_vector<float> logits(6, 0.0f);
  const thrust::device_vector<std::int64_t> label(std::vector<std::int64_t>{1, 3000000000});
  thrust::device_vector<float> log_prob(2, 7.0f);
  const auto pending =
      rlhf::token_log_prob<float>({.logits = {logits, rlhf::shape(2, 3)}, .label = label},
                                  {.log_prob = log_prob}, {}, place.exec);
  CHECK(refusal_of(pending) ==
        "token_log_prob: label: expected 0 <= label < classes, or ignore_index, received 1 that is "
        "not");
  const thrust::host_vector<float> to = log_prob;
  CHECK(to[0] == doctest::Approx(-std::log(3.0)));  // three equal logits
  CHECK(to[1] == 0);
}

TEST_CASE("device: weights of rows of logits that are no weights, and get() says so") {
  const float good = 1, bad[] = {1, INFINITY, -1, NAN, 1e-31f, 0};
  const thrust::device_vector<std::int64_t> label(6, 1);
  const thrust::device_vector<std::int64_t> offset(std::vector<std::int64_t>{0, 2, 6});
  const thrust::device_vector<float> logits(18, 0.0f), some(bad, bad + 6), same(6, good);
  for (const int kind : {0, 1, 2}) {
    CAPTURE(kind);
    device_place place;
    thrust::device_vector<float> log_prob(6, 7.0f);
    const auto call = [&](const thrust::device_vector<float>& weight) {
      const rlhf::shape each = kind == 1 ? rlhf::shape(2, 3) : rlhf::shape(6);
      const rlhf::shape all = kind == 1 ? rlhf::shape(2, 3, 3) : rlhf::shape(6, 3);
      rlhf::sequence_layout<rlhf::device_space> layout;
      if (kind == 2) layout = rlhf::packed(offset);
      return rlhf::token_log_prob<float>({.logits = {logits, all},
                                          .label = {label, each},
                                          .mask = {weight, each},
                                          .layout = layout},
                                         {.log_prob = {log_prob, each}}, {}, place.exec);
    };
    CHECK(refusal_of(call(some)) ==
          "token_log_prob: mask: expected weights of 0, or from 1e-30 to 1e30, received 4 that "
          "are not");
    const thrust::host_vector<float> to = log_prob;
    CHECK(to[0] == doctest::Approx(-std::log(3.0)));  // three equal logits
    for (std::size_t k = 1; k < 6; ++k) CHECK(to[k] == 0);
    CHECK(refusal_of(call(same)) == "");
  }
}

TEST_CASE("device: a score at no column of its row is left out, and get() says so") {
  device_place place;
  const rlhf::shape shape(3, 2);
  const thrust::device_vector<float> zero(6, 0.0f), score(3, 5.0f);
  thrust::device_vector<float> reward(64, 7.0f);
  const auto call = [&](const thrust::device_vector<std::int64_t>& at) {
    return rlhf::kl_penalty<float>({.log_prob = {zero, shape},
                                    .ref_log_prob = {zero, shape},
                                    .score = rlhf::per_sequence(score),
                                    .score_index = at},
                                   {.reward = {reward.data(), shape}},
                                   {.coefficient = 0.1, .score_at = rlhf::score_position::by_index},
                                   place.exec);
  };
  const thrust::device_vector<std::int64_t> some(std::vector<std::int64_t>{1, 2, -1});
  CHECK(refusal_of(call(some)) ==
        "kl_penalty: score_index: expected a column of its row, received 2 that are not");
  const thrust::host_vector<float> to = reward;
  const float expected[] = {0, 5, 0, 0, 0, 0, 7};  // the score in the row whose column is one
  for (std::size_t k = 0; k < 7; ++k) CHECK(to[k] == expected[k]);
  const thrust::device_vector<std::int64_t> good(std::vector<std::int64_t>{1, 0, 1});
  CHECK(call(good).get().unplaced == 0);
}

TEST_CASE("device: the workspace that is asked for is enough, and one byte less is refused") {
  const batch_of<float> batch(arranged::flags, 130, 40, 3);
  const batch_of<float>::given<device_place> x(batch);
  thrust::device_vector<float> gradient(x.a.data.size());
  const auto call = [&](const auto& exec) {
    return rlhf::clipped_surrogate_loss<float>(
        {.log_prob = {x.a.data, batch.shape},
         .old_log_prob = {x.b.data, batch.shape},
         .advantage = rlhf::per_sequence(x.row.data),
         .mask = x.mask},
        {.d_log_prob = {gradient, batch.shape}},
        {.over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local)}, exec);
  };
  const std::size_t bytes = rlhf::device_workspace_bytes(call);
  device_place roomy, exact(bytes),
      tight(bytes - 257);  // 256 of them are for memory that is not aligned
  const double loss = call(roomy.exec).get().loss;
  CHECK(call(exact.exec).get().loss == loss);
  CHECK_THROWS_AS(call(tight.exec), rlhf::contract_violation);
  // A second result needs room of its own, until the first one is given up.
  CHECK_THROWS_AS(call(exact.exec), rlhf::contract_violation);
  exact.exec.reset();
  CHECK(call(exact.exec).get().loss == loss);
}

TEST_CASE("device: many calls may be under way, and each result is its own") {
  zeros_on_device batch(rlhf::shape(2, 3), 2);
  const thrust::device_vector<std::int32_t> one(std::vector<std::int32_t>{1, 0});
  const auto first = batch.call(rlhf::lengths(one));
  const auto second = batch.call({});
  CHECK(second.get().tokens == 6);
  CHECK(first.get().tokens == 1);
  CHECK(first.device_sums() != second.device_sums());
  CHECK(first.size() > 3);
}

TEST_CASE("device: tensors are vectors, pointers of Thrust and plain pointers with their shape") {
  device_place place;
  thrust::device_vector<float> x(6, 0.0f), d(6, 0.0f);
  const thrust::device_vector<std::uint8_t> mask(6, 1);
  const thrust::device_vector<float> advantage(2, 1.0f);
  const rlhf::shape shape(2, 3);
  const auto pending = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {thrust::raw_pointer_cast(x.data()), shape},
       .old_log_prob = {x.data(), shape},
       .advantage = advantage,
       .mask = {mask.data(), shape}},
      {.d_log_prob = {d, shape}}, {.over = rlhf::aggregation::token_mean(rlhf::local)}, place.exec);
  CHECK(pending.get().loss == doctest::Approx(-1));  // ratio 1, A 1
  static_assert(rlhf::tensor<thrust::device_vector<float>>);
  static_assert(
      std::is_same_v<rlhf::tensor_space<thrust::device_vector<float>>, rlhf::device_space>);
  static_assert(std::is_same_v<rlhf::tensor_space<thrust::host_vector<float>>, rlhf::host_space>);
}

}  // namespace thrust_test
