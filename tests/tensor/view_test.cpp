#include "rlhf/tensor/view.hpp"

#include <doctest/doctest.h>

#include <array>
#include <span>
#include <vector>

#include "rlhf/distribution/token_log_prob.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/reward/ensemble.hpp"
#include "rlhf/statistics/masked_mean.hpp"
#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::aggregation;

TEST_CASE("view: what a field takes, and the shape it sees") {
  std::vector<float> v(6);
  const std::array<float, 6> a{};
  float c[2][3] = {};
  float deep[2][3][4] = {};
  CHECK(rlhf::view<const float>(v).shape() == rlhf::shape(6));
  CHECK(rlhf::view<const float>(a).shape() == rlhf::shape(6));
  CHECK(rlhf::view<const float>(std::span<const float>(v)).shape() == rlhf::shape(6));
  CHECK(rlhf::view<float>(c).shape() == rlhf::shape(2, 3));
  CHECK(rlhf::view<float>(deep).shape() == rlhf::shape(2, 3, 4));
  CHECK(rlhf::view<float>(deep).stride(0) == 12);
  CHECK(rlhf::view<float>(v, {2, 3}).shape() == rlhf::shape(2, 3));
  CHECK(rlhf::view<float>(v.data(), {2, 2}, {3, 1}).stride(0) == 3);
  CHECK(!rlhf::view<float>());
  CHECK(rlhf::view<float>(v.data(), {0, 3}));  // empty is given
}

TEST_CASE("view: a shape that does not fit its range, and strides that do not fit their shape") {
  // The view has no name for itself: the call that is given it says which field it is.
  std::vector<float> v(6), none;
  float matrix[2][3] = {};
  const auto said = [](const rlhf::view<float>& x) {
    return message_of([&] {
      rlhf::reinforce_loss<float>({.log_prob = x, .advantage = x}, {},
                                  {.over = aggregation::token_sum()});
    });
  };
  CHECK(said({v, {2, 3}}) == "");
  CHECK(said({v, {2, 4}}) ==
        "reinforce_loss: log_prob: expected a range of 8 elements for its shape [2, 4], received "
        "one of 6");
  CHECK(said({v, {0, 3}}) ==
        "reinforce_loss: log_prob: expected a range of 0 elements for its shape [0, 3], received "
        "one of 6");
  // a product that wraps around to 0 is not the length of an empty vector
  CHECK(said({none, {std::ptrdiff_t{1} << 40, std::ptrdiff_t{1} << 40}}) ==
        "reinforce_loss: log_prob: expected a number of elements that fits 63 bits, received "
        "[1099511627776, 1099511627776]");
  CHECK(said({v, {}}) ==
        "reinforce_loss: log_prob: expected rank 2, [batch, time]; rank 1 needs .layout = "
        "packed(offsets), received [0]");
  CHECK(said({matrix, {2, 3}}) ==
        "reinforce_loss: log_prob: expected a contiguous range of rank 1 before a shape, received "
        "rank 2");
  const rlhf::view<float> every_other(v.data(), rlhf::shape(3), rlhf::shape(2));
  CHECK(said({every_other, {1, 3}}) ==
        "reinforce_loss: log_prob: expected a contiguous range of rank 1 before a shape, received "
        "one with gaps");
  CHECK(said({v.data(), rlhf::shape(2, 3), rlhf::shape(3)}) ==
        "reinforce_loss: log_prob: expected a stride for each extent of [2, 3], received 1");
}

TEST_CASE("view: the same of masks, ids, labels, lengths, and rank-1 and transposed tensors") {
  const float x[2][2] = {{-1, -1}, {-1, -1}}, advantage[2] = {1, 1};
  const std::vector<std::uint8_t> flags(3);
  const std::vector<std::int64_t> ids(3);
  std::vector<float> v(6);
  const auto over = aggregation::group_mean_token_mean(1);
  const auto said = [&](rlhf::mask_view<> mask, rlhf::sequence_layout<> layout,
                        rlhf::index_view<> id) {
    return message_of([&] {
      rlhf::reinforce_loss<float>(
          {.log_prob = x, .advantage = advantage, .group_id = id, .mask = mask, .layout = layout},
          {}, {.over = over});
    });
  };
  CHECK(said({flags, {2, 2}}, {}, ids) ==
        "reinforce_loss: mask: expected a range of 4 elements for its shape [2, 2], received one "
        "of 3");
  CHECK(said({flags.data(), {2, 2}, {2}}, {}, ids) ==
        "reinforce_loss: mask: expected a stride for each extent of [2, 2], received 1");
  CHECK(said({}, {}, {ids, {2}}) ==
        "reinforce_loss: group_id: expected a range of 2 elements for its shape [2], received one "
        "of 3");
  CHECK(said({}, {rlhf::arrangement::lengths, {ids, {2}}}, ids) ==
        "reinforce_loss: layout: lengths: expected a range of 2 elements for its shape [2], "
        "received one of 3");
  CHECK(message_of([&] {
          rlhf::token_log_prob<float>({.logits = {v, {2, 3}}, .label = {ids, {2}}}, {});
        }) ==
        "token_log_prob: label: expected a range of 2 elements for its shape [2], received one of "
        "3");
  CHECK(message_of([&] {
          rlhf::masked_mean<float>({.value = {v, {5}}});
        }) ==
        "masked_mean: value: expected a range of 5 elements for its shape [1, 5], received one of "
        "6");
  CHECK(message_of([&] {
          rlhf::ensemble_reward<float>({.reward = {v, {2, 4}}}, {},
                                       {.combine = rlhf::ensemble::mean});
        }) ==
        "ensemble_reward: reward: expected a range of 8 elements for its shape [2, 4], received "
        "one of 6");
  CHECK(message_of([&] {
          rlhf::bradley_terry_loss<float>({.chosen_reward = {v, {1}}, .rejected_reward = {v, {1}}},
                                          {}, {.over = rlhf::reduction::sum()});
        }) ==
        "bradley_terry_loss: chosen_reward: expected a range of 1 element for its shape [1], "
        "received one of 6");
}

TEST_CASE("view: extents whose product or scratch memory does not fit are refused") {
  float x = 0;
  const auto huge = std::ptrdiff_t{1} << 40;
  const auto call = [&](rlhf::view<const float> v, rlhf::nonfinite_policy policy) {
    return message_of([&] {
      rlhf::reinforce_loss<float>({.log_prob = v, .advantage = v}, {},
                                  {.over = aggregation::token_sum(), .nonfinite = policy});
    });
  };
  CHECK(call({&x, {huge, huge}}, rlhf::nonfinite_policy::propagate) ==
        "reinforce_loss: log_prob: expected a number of elements that fits 63 bits, received "
        "[1099511627776, 1099511627776]");
  const auto wide = std::ptrdiff_t{1} << 61;
  CHECK(call({&x, {std::ptrdiff_t{1}, wide}, {std::ptrdiff_t{0}, std::ptrdiff_t{0}}},
             rlhf::nonfinite_policy::drop_token) ==
        "reinforce_loss: workspace: expected a batch whose scratch memory fits the address space, "
        "received one that does not");
}

TEST_CASE(
    "view: outputs that lie on inputs, masks or each other are refused; blocks beside them not") {
  float matrix[2][12] = {};
  float weight[2][3] = {{1, 1, 1}, {1, 1, 1}};
  float other[2][3] = {};
  const auto block = [&](std::ptrdiff_t at) {
    return rlhf::view<float>(&matrix[0][at], {2, 3}, {12, 1});
  };
  const auto call = [&](rlhf::output<float> gradient) {
    return message_of([&] {
      rlhf::reinforce_loss<float>({.log_prob = block(0), .advantage = other, .mask = weight},
                                  {.d_log_prob = gradient}, {.over = aggregation::token_sum()});
    });
  };
  CHECK(call(block(3)) == "");
  CHECK(call(block(9)) == "");
  CHECK(call(block(2)).find("overlaps log_prob") != std::string::npos);
  CHECK(call(block(0)).find("overlaps log_prob") != std::string::npos);
  CHECK(call(weight).find("overlaps mask") != std::string::npos);
  CHECK(call(other).find("overlaps advantage") != std::string::npos);
}

TEST_CASE("view: lengths, ids and masks need memory and alignment like any tensor") {
  const float x[2][2] = {{-1, -1}, {-1, -1}}, advantage[2] = {1, 1};
  alignas(8) unsigned char bytes[64] = {};
  const auto call = [&](rlhf::mask_view<> mask, rlhf::sequence_layout<> layout,
                        rlhf::index_view<> id, aggregation over) {
    return message_of([&] {
      rlhf::reinforce_loss<float>(
          {.log_prob = x, .advantage = advantage, .group_id = id, .mask = mask, .layout = layout},
          {}, {.over = over});
    });
  };
  const auto sum = aggregation::token_sum();
  const auto by_group = aggregation::group_mean_token_mean(1);
  const int* const nothing = nullptr;
  CHECK(call({}, {}, {nothing, {2}}, by_group).find("its pointer is null") != std::string::npos);
  const auto* const odd = reinterpret_cast<const std::int64_t*>(bytes + 1);
  CHECK(
      call({}, rlhf::lengths(odd, {2}), {}, sum) ==
      "reinforce_loss: layout: lengths: expected a pointer aligned for its element type, received "
      "one 1 byte beyond a multiple of 8");
  CHECK(
      call({reinterpret_cast<const float*>(bytes + 2), {2, 2}}, {}, {}, sum) ==
      "reinforce_loss: mask: expected a pointer aligned for its element type, received one 2 bytes "
      "beyond a multiple of 4");
}

TEST_CASE("view: a device_scalar without an address is refused") {
  const float x[2][2] = {{-1, -1}, {-1, -1}}, advantage[2] = {1, 1};
  const rlhf::device_scalar none{nullptr};
  const auto said = [&](const rlhf::policy_output<float>& output,
                        const rlhf::reinforce_config& config) {
    return message_of([&] {
      rlhf::reinforce_loss<float>(
          {.log_prob = x, .ref_log_prob = x, .entropy = x, .advantage = advantage}, output, config);
    });
  };
  const std::string rest = ": expected an address in its device_scalar, received null";
  const auto sum = aggregation::token_sum();
  const rlhf::kl_term kl{.coefficient = 1};
  CHECK(said({}, {.over = sum, .kl = kl}) == "");
  CHECK(said({.upstream = none}, {.over = sum, .kl = kl}) == "reinforce_loss: upstream" + rest);
  CHECK(said({}, {.over = aggregation::token_mean(none), .kl = kl}) ==
        "reinforce_loss: over" + rest);
  CHECK(said({}, {.over = sum, .kl = {.coefficient = none}}) ==
        "reinforce_loss: kl.coefficient" + rest);
  CHECK(said({}, {.over = sum, .kl = kl, .entropy = {.coefficient = none}}) ==
        "reinforce_loss: entropy.coefficient" + rest);
  CHECK(message_of([&] {
          rlhf::kl_penalty<float>({.log_prob = x, .ref_log_prob = x}, {}, {.coefficient = none});
        }) == "kl_penalty: coefficient" + rest);
  CHECK(message_of([&] { rlhf::masked_mean<float>({.value = advantage}, {.upstream = none}); }) ==
        "masked_mean: upstream" + rest);
  CHECK(message_of([&] {
          rlhf::bradley_terry_loss<float>(
              {.chosen_reward = advantage, .rejected_reward = advantage}, {.upstream = none},
              {.over = rlhf::reduction::sum()});
        }) == "bradley_terry_loss: upstream" + rest);
  std::vector<float> rewards(4);
  CHECK(message_of([&] {
          rlhf::ensemble_reward<float>({.reward = {rewards, {2, 2}}}, {.upstream = none},
                                       {.combine = rlhf::ensemble::mean});
        }) == "ensemble_reward: upstream" + rest);
}

TEST_CASE("add_to: takes a pointer or a range with its shape") {
  const float x[1][2] = {{-1, -1}}, advantage[1] = {1};
  std::vector<float> a{10, 20};
  rlhf::reinforce_loss<float>({.log_prob = x, .advantage = advantage},
                              {.d_log_prob = rlhf::add_to(a, {1, 2})},
                              {.over = aggregation::token_sum()});
  rlhf::reinforce_loss<float>({.log_prob = x, .advantage = advantage},
                              {.d_log_prob = rlhf::add_to(a.data(), {1, 2})},
                              {.over = aggregation::token_sum()});
  CHECK((a[0] == 8 && a[1] == 18));
}

TEST_CASE("mask: may have strides, counted in elements") {
  const float x[1][2] = {{-1, -3}}, advantage[1] = {1};
  const std::uint8_t every_third[4] = {0, 9, 9, 1};
  const auto r = rlhf::reinforce_loss<float>(
      {.log_prob = x, .advantage = advantage, .mask = {every_third, {1, 2}, {6, 3}}}, {},
      {.over = aggregation::token_sum()});
  CHECK(r.loss == 3);
}
