#pragma once

#include "rlhf/advantage/discounted_returns.hpp"
#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/advantage/leave_one_out_advantage.hpp"
#include "rlhf/statistics/masked_mean.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "tests/thrust/batch.hpp"

namespace thrust_test {

TEST_CASE_TEMPLATE("device: advantages of single episodes have the numbers of the host", T, float,
                   double) {
  for (const arranged how : arrangements)
    for (const extents size : sizes)
      for (const auto holes : {rlhf::hole_mode::skip, rlhf::hole_mode::zero}) {
        CAPTURE(static_cast<int>(how));
        CAPTURE(size.columns);
        const batch_of<T> batch(how, size.rows, size.columns, 5);
        compare<T>([&]<class Place>(Place& place, trace& to) {
          typename batch_of<T>::template given<Place> x(batch);
          tensor<Place, T> advantage(T(7), batch.shape), returns(T(7), batch.shape);
          const auto r = rlhf::generalized_advantage_estimation<T>(
              {.reward = x.a.view(),
               .value = x.b.view(),
               .bootstrap_value = x.row.view(),
               .mask = x.mask,
               .layout = x.layout},
              {.advantage = advantage.view(), .returns = rlhf::add_to(returns.view())},
              {.gamma = 0.99, .lambda = 0.95, .holes = holes}, place.exec);
          read_result(Place::get(r), to);
          advantage.read(to);
          returns.read(to);
        });
      }
}

TEST_CASE_TEMPLATE("device: advantages with ends of episodes, and returns", T, float, double) {
  for (const arranged how : arrangements)
    for (const auto reward_at : {rlhf::hole_reward::drop, rlhf::hole_reward::to_previous}) {
      CAPTURE(static_cast<int>(how));
      const batch_of<T> batch(how, 66, 150, 6);
      compare<T>([&]<class Place>(Place& place, trace& to) {
        typename batch_of<T>::template given<Place> x(batch);
        tensor<Place, T> advantage(T(7), batch.shape), returns(T(7), batch.shape);
        tensor<Place, T> discounted(T(7), batch.shape);
        const auto r = rlhf::generalized_advantage_estimation<T>(
            {.reward = x.a.view(),
             .value = x.b.view(),
             .next_value = x.c.view(),
             .terminated = x.rare.mask(),
             .truncated = x.rarer.mask(),
             .mask = x.mask,
             .layout = x.layout},
            {.advantage = advantage.view(), .returns = returns.view()},
            {.gamma = 0.99, .lambda = 0.9, .reward_at_hole = reward_at}, place.exec);
        const auto d = rlhf::discounted_returns<T>(
            {.reward = x.a.view(), .terminated = x.rare.mask(), .mask = x.mask, .layout = x.layout},
            {.returns = discounted.view()}, {.gamma = 0.5}, place.exec);
        read_result(Place::get(r), to);
        read_result(Place::get(d), to);
        advantage.read(to);
        returns.read(to);
        discounted.read(to);
      });
    }
}

TEST_CASE_TEMPLATE("device: moments, whitening and its backward", T, float, double) {
  for (const arranged how : arrangements) {
    CAPTURE(static_cast<int>(how));
    const batch_of<T> batch(how, 70, 60, 8);
    compare<T>([&]<class Place>(Place& place, trace& to) {
      typename batch_of<T>::template given<Place> x(batch);
      tensor<Place, T> whitened(T(7), batch.shape), d_value(T(7), batch.shape);
      const auto mean = rlhf::masked_mean<T>(
          {.value = x.a.view(), .mask = x.mask, .layout = x.layout}, {}, {}, place.exec);
      const auto spread = rlhf::masked_moments<T>(
          {.value = x.a.view(), .mask = x.mask, .layout = x.layout}, {}, {}, place.exec);
      const auto white = rlhf::whiten<T>({.value = x.a.view(), .mask = x.mask, .layout = x.layout},
                                         {.whitened = whitened.view()}, {}, place.exec);
      const auto back = rlhf::whiten_backward<T>(
          {.value = x.a.view(), .d_whitened = x.b.view(), .mask = x.mask, .layout = x.layout},
          {.d_value = d_value.view()}, {}, place.exec);
      read_result(Place::get(mean), to);
      read_result(Place::get(spread), to);
      read_result(Place::get(white), to);
      read_result(Place::get(back), to);
      whitened.read(to);
      d_value.read(to);
    });
  }
}

TEST_CASE_TEMPLATE("device: advantages within groups, by size and by id", T, float, double) {
  for (const bool by_id : {false, true})
    for (const auto scale : {rlhf::group_scale::group_std, rlhf::group_scale::batch_std}) {
      const index n = 600;
      numbers random(9);
      auto rewards = random.many<T>(n, -2, 2);
      for (int k = 0; k < 4; ++k) rewards[static_cast<std::size_t>(k)] = T(1);
      rewards[9] = std::numeric_limits<T>::quiet_NaN();
      std::vector<std::int64_t> ids;
      for (index k = 0; k < n; ++k) ids.push_back(random.below(140) * 1000 - 70000);
      compare<T>([&]<class Place>(Place& place, trace& to) {
        tensor<Place, T> reward(rewards, rlhf::shape(n)), advantage(T(7), rlhf::shape(n));
        tensor<Place, T> others(T(7), rlhf::shape(n));
        const typename Place::template vector<std::int64_t> id(ids.begin(), ids.end());
        rlhf::index_view<typename Place::space> group;
        if (by_id) group = id;
        const rlhf::group_size size = by_id ? rlhf::group_size() : rlhf::group_size(4);
        const auto r = rlhf::group_relative_advantage<T>(
            {.reward = reward.data, .group_id = group}, {.advantage = advantage.data},
            {.group_size = size, .scale = scale}, place.exec);
        const auto l = rlhf::leave_one_out_advantage<T>({.reward = reward.data, .group_id = group},
                                                        {.advantage = others.data},
                                                        {.group_size = size}, place.exec);
        read_result(Place::get(r), to);
        read_result(Place::get(l), to);
        advantage.read(to);
        others.read(to);
      });
    }
}

}  // namespace thrust_test
