#pragma once

#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/advantage/leave_one_out_advantage.hpp"
#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/preference/dpo.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/statistics/masked_mean.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "rlhf/value/clipped_value_loss.hpp"
#include "tests/thrust/batch.hpp"

namespace thrust_test {

/// The device, with a count of what it is given to run.
struct counting_executor : device_executor {
  mutable int launches = 0;

  explicit counting_executor(const device_executor& exec) : device_executor(exec) {}
  rlhf::device_run<counting_executor> begin(const char* function) const {
    return {*this, function};
  }
  template <class F>
  void launch(index n, const F& f) const {
    ++launches;
    device_executor::launch(n, f);
  }
  template <class F>
  void launch_lanes(index n, const F& f) const {
    ++launches;
    device_executor::launch_lanes(n, f);
  }
  template <class F>
  void launch_team(index n, const F& f) const {
    ++launches;
    device_executor::launch_team(n, f);
  }
};

/// How many kernels a call enqueues. One that is added here is a cost of every small batch: the
/// numbers are documented ones.
struct launches_of {
  device_place place;
  counting_executor exec{place.exec};

  template <class Call>
  int operator()(const Call& call) {
    exec.launches = 0;
    call(exec).get();
    exec.reset();
    return exec.launches;
  }
};

using on_device = batch_of<float>::given<device_place>;

/// Any value: a known normaliser.
inline const auto known = rlhf::aggregation::token_mean(1000);
inline const auto local = rlhf::aggregation::token_mean(rlhf::local);

TEST_CASE("device: one launch for a loss over tokens whose normaliser is known") {
  launches_of count;
  struct expected {
    arranged how;
    int known, local;
  };
  // What a normaliser counts comes before the pass. A mask is read before it as well, for the
  // length of its rows; weights in the order of their rows.
  for (const expected& e : {expected{arranged::padded, 1, 2}, expected{arranged::lengths, 1, 2},
                            expected{arranged::packed, 1, 2}, expected{arranged::flags, 2, 2},
                            expected{arranged::weights, 2, 2}}) {
    CAPTURE(static_cast<int>(e.how));
    const batch_of<float> batch(e.how, 70, 60, 3);
    on_device x(batch);
    tensor<device_place, float> d(0.0f, batch.shape), d_entropy(0.0f, batch.shape);
    for (const bool is_local : {false, true}) {
      const auto& by = is_local ? local : known;
      const int launches = is_local ? e.local : e.known;
      CHECK(count([&](const auto& exec) {
              return rlhf::clipped_surrogate_loss<float>({.log_prob = x.a.view(),
                                                          .old_log_prob = x.b.view(),
                                                          .advantage = x.d.view(),
                                                          .mask = x.mask,
                                                          .layout = x.layout},
                                                         {.d_log_prob = d.view()}, {.over = by},
                                                         exec);
            }) == launches);
      CHECK(count([&](const auto& exec) {
              return rlhf::clipped_surrogate_loss<float>(
                  {.log_prob = x.a.view(),
                   .old_log_prob = x.b.view(),
                   .ref_log_prob = x.c.view(),
                   .entropy = x.c.view(),
                   .advantage = rlhf::per_sequence(x.row.view()),
                   .mask = x.mask,
                   .layout = x.layout},
                  {.d_log_prob = d.view(), .d_entropy = d_entropy.view()},
                  {.over = by, .kl = {.coefficient = 0.1}, .entropy = {.coefficient = 0.01}}, exec);
            }) == launches);
      CHECK(count([&](const auto& exec) {
              return rlhf::reinforce_loss<float>({.log_prob = x.a.view(),
                                                  .advantage = x.d.view(),
                                                  .mask = x.mask,
                                                  .layout = x.layout},
                                                 {.d_log_prob = d.view()}, {.over = by}, exec);
            }) == launches);
      CHECK(count([&](const auto& exec) {
              return rlhf::clipped_value_loss<float>({.value = x.a.view(),
                                                      .old_value = x.b.view(),
                                                      .returns = x.c.view(),
                                                      .mask = x.mask,
                                                      .layout = x.layout},
                                                     {.d_value = d.view()}, {.over = by}, exec);
            }) == launches);
      CHECK(count([&](const auto& exec) {
              return rlhf::kl_estimate<float>({.log_prob = x.a.view(),
                                               .ref_log_prob = x.b.view(),
                                               .mask = x.mask,
                                               .layout = x.layout},
                                              {.d_log_prob = d.view()}, {.over = by}, exec);
            }) == launches);
    }
  }
}

TEST_CASE("device: two launches where each sequence has a weight of its own") {
  launches_of count;
  // counts of rows, their reciprocals, the pass
  const int launches = 3;
  for (const arranged how : {arranged::lengths, arranged::flags}) {
    const batch_of<float> batch(how, 70, 60, 3);
    on_device x(batch);
    tensor<device_place, float> d(0.0f, batch.shape);
    CHECK(
        count([&](const auto& exec) {
          return rlhf::reinforce_loss<float>(
              {.log_prob = x.a.view(), .advantage = x.d.view(), .mask = x.mask, .layout = x.layout},
              {.d_log_prob = d.view()}, {.over = rlhf::aggregation::sequence_mean_token_mean(64)},
              exec);
        }) == launches);
  }
}

TEST_CASE("device: launches of moments and whitening") {
  launches_of count;
  struct expected {
    arranged how;
    int mean, moments, white;
  };
  for (const expected& e :
       {expected{arranged::padded, 2, 1, 2}, expected{arranged::lengths, 2, 1, 2},
        expected{arranged::packed, 2, 1, 2}, expected{arranged::flags, 2, 2, 3},
        expected{arranged::weights, 2, 2, 3}}) {
    const batch_of<float> batch(e.how, 70, 60, 3);
    on_device x(batch);
    tensor<device_place, float> y(0.0f, batch.shape);
    CAPTURE(static_cast<int>(batch.how));
    CHECK(count([&](const auto& exec) {
            return rlhf::masked_mean<float>(
                {.value = x.a.view(), .mask = x.mask, .layout = x.layout}, {}, {}, exec);
          }) == e.mean);
    CHECK(count([&](const auto& exec) {
            return rlhf::masked_moments<float>(
                {.value = x.a.view(), .mask = x.mask, .layout = x.layout}, {}, {}, exec);
          }) == e.moments);
    CHECK(count([&](const auto& exec) {
            return rlhf::whiten<float>({.value = x.a.view(), .mask = x.mask, .layout = x.layout},
                                       {.whitened = y.view()}, {}, exec);
          }) == e.white);
  }
}

TEST_CASE("device: launches of pairs and groups") {
  launches_of count;
  const index n = 600;
  numbers random(9);
  tensor<device_place, float> a(random.many<float>(n, -2, 2), rlhf::shape(n));
  tensor<device_place, float> b(random.many<float>(n, -2, 2), rlhf::shape(n));
  tensor<device_place, float> d(0.0f, rlhf::shape(n)), e(0.0f, rlhf::shape(n));
  std::vector<std::int32_t> ids;
  for (index k = 0; k < n; ++k) ids.push_back(static_cast<std::int32_t>(k / 7));
  const thrust::device_vector<std::int32_t> id(ids.begin(), ids.end());
  CHECK(count([&](const auto& exec) {
          return rlhf::bradley_terry_loss<float>(
              {.chosen_reward = a.view(), .rejected_reward = b.view()},
              {.d_chosen_reward = d.view(), .d_rejected_reward = e.view()},
              {.over = rlhf::reduction::mean(n)}, exec);
        }) == 1);
  CHECK(count([&](const auto& exec) {
          return rlhf::group_relative_advantage<float>({.reward = a.view()},
                                                       {.advantage = d.view()},
                                                       {.group_size = rlhf::group_size(4)}, exec);
        }) == 1);
  CHECK(count([&](const auto& exec) {
          return rlhf::group_relative_advantage<float>({.reward = a.view(), .group_id = id},
                                                       {.advantage = d.view()}, {}, exec);
        }) == 3);
  CHECK(count([&](const auto& exec) {
          return rlhf::leave_one_out_advantage<float>({.reward = a.view()}, {.advantage = d.view()},
                                                      {.group_size = rlhf::group_size(4)}, exec);
        }) == 1);
}

}  // namespace thrust_test
