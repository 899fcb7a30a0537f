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
        if (is_left_out(size.rows * size.columns)) continue;
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

enum class scan_holes { none, lengths, packed, skip, zero, count, weights };
inline constexpr scan_holes all_scan_holes[] = {
    scan_holes::none, scan_holes::lengths, scan_holes::packed,  scan_holes::skip,
    scan_holes::zero, scan_holes::count,   scan_holes::weights,
};

struct scan_case {
  index rows, columns;
  scan_holes how;
  bool episodes = false;
  int valid_in_8 = 6;                    // of 8 tokens
  index skew = 0, beyond = 0, step = 1;  // elements before the rows, after each, and between tokens
};

/// Advantages, and returns that are added to, of rows that lie as the case says.
template <class T>
void compare_scan(const scan_case& c) {
  CAPTURE(c.rows);
  CAPTURE(c.columns);
  CAPTURE(static_cast<int>(c.how));
  CAPTURE(c.step);
  numbers random(static_cast<std::uint64_t>(c.rows * 1000 + c.columns));
  const bool is_packed = c.how == scan_holes::packed;
  std::vector<std::int64_t> length, offset(1, 0);
  for (index i = 0; i < c.rows; ++i) {
    const bool whole = random.below(4) == 0;
    length.push_back(whole ? c.columns : random.below(c.columns + 1));
    offset.push_back(offset.back() + length.back());
  }
  const index row = c.columns * c.step + c.beyond;
  const index n = is_packed ? offset.back() : c.rows * row + c.skew;
  const auto reward = random.many<T>(n, -1, 1), value = random.many<T>(n, -1, 1);
  const auto last = random.many<T>(c.rows, -1, 1);
  std::vector<std::uint8_t> flag, ends;
  std::vector<float> weight;
  for (index k = 0; k < n; ++k) {
    const bool counts = random.below(8) < c.valid_in_8;
    flag.push_back(counts ? 1 : 0);
    weight.push_back(counts ? 0.5f : 0.0f);
    ends.push_back(random.below(50) == 0 ? 1 : 0);
  }
  compare<T>([&]<class Place>(Place& place, trace& to) {
    using space = typename Place::space;
    const rlhf::shape tokens = is_packed ? rlhf::shape(n) : rlhf::shape(c.rows, c.columns);
    const rlhf::shape strides = is_packed ? rlhf::shape(index{1}) : rlhf::shape(row, c.step);
    const rlhf::shape all(n);
    tensor<Place, T> r(reward, all), v(value, all), end(last, rlhf::shape(c.rows));
    tensor<Place, T> advantage(T(7), all), returns(T(7), all), discounted(T(7), all);
    tensor<Place, std::uint8_t> f(flag, all), e(ends, all);
    tensor<Place, float> w(weight, all);
    const typename Place::template vector<std::int64_t> lengths(length.begin(), length.end());
    const typename Place::template vector<std::int64_t> offsets(offset.begin(), offset.end());
    const index skew = is_packed ? 0 : c.skew;
    const auto view = [&]<class X>(tensor<Place, X>& x) {
      return rlhf::view<X, space>(thrust::raw_pointer_cast(x.data.data()) + skew, tokens, strides);
    };
    const auto mask_of = [&]<class X>(tensor<Place, X>& x) {
      return rlhf::mask_view<space>(view(x));
    };
    rlhf::mask_view<space> mask, terminated;
    rlhf::sequence_layout<space> layout;
    auto holes = rlhf::hole_mode::skip;
    if (c.how == scan_holes::lengths) layout = rlhf::lengths(lengths);
    if (c.how == scan_holes::packed) layout = rlhf::packed(offsets);
    if (c.how == scan_holes::zero) holes = rlhf::hole_mode::zero;
    if (c.how == scan_holes::count) holes = rlhf::hole_mode::count;
    if (c.how == scan_holes::weights)
      mask = mask_of(w);
    else if (c.how >= scan_holes::skip)
      mask = mask_of(f);
    if (c.episodes) terminated = mask_of(e);
    const auto a = rlhf::generalized_advantage_estimation<T>(
        {.reward = view(r),
         .value = view(v),
         .bootstrap_value = end.view(),
         .terminated = terminated,
         .mask = mask,
         .layout = layout},
        {.advantage = view(advantage), .returns = rlhf::add_to(view(returns))},
        {.gamma = 0.999, .lambda = 0.97, .holes = holes}, place.exec);
    read_result(Place::get(a), to);
    const auto d = rlhf::discounted_returns<T>(
        {.reward = view(r), .bootstrap_value = end.view(), .mask = mask, .layout = layout},
        {.returns = view(discounted)}, {.gamma = c.episodes ? 0.0 : 1.0, .holes = holes},
        place.exec);
    read_result(Place::get(d), to);
    advantage.read(to);
    returns.read(to);
    discounted.read(to);
  });
}

TEST_CASE_TEMPLATE("device: a scan has the numbers of the host at any length", T, float, double) {
  for (const scan_holes how : all_scan_holes)
    for (const bool episodes : {false, true}) {
      for (const index columns : {1, 7, 8, 9, 15, 64, 65, 300})
        compare_scan<T>({150, columns, how, episodes});
      for (const index columns : {1000, 1024, 1025, 2048, 5000})
        compare_scan<T>({5, columns, how, episodes});
      compare_scan<T>({1, 20000, how, episodes});
    }
}

TEST_CASE_TEMPLATE("device: a scan of rows at any place", T, float, double) {
  for (const scan_holes how : all_scan_holes) {
    if (how == scan_holes::packed) continue;
    compare_scan<T>({70, 33, how, true, 6, 3, 2, 1});
    compare_scan<T>({3, 1500, how, false, 6, 1, 5, 2});
    compare_scan<T>({3, 9000, how, false, 6, 0, 1, 3});
  }
}

TEST_CASE("device: a scan of masks that are nearly empty, and of ones without a hole") {
  for (const scan_holes how : {scan_holes::skip, scan_holes::zero, scan_holes::count})
    for (const int valid : {0, 1, 8}) {
      compare_scan<float>({130, 40, how, false, valid});
      compare_scan<float>({2, 30000, how, true, valid});
    }
}

TEST_CASE("device: a scan of long rows, each by a block of its own") {
  compare_scan<float>({270, 4500, scan_holes::none});
  compare_scan<float>({265, 4200, scan_holes::lengths, true});
}

TEST_CASE("device: inputs that are not finite are counted as the host counts them") {
  for (const index columns : {3, 40, 1100, 9000}) {
    const index rows = 70;
    numbers random(4);
    auto reward = random.many<float>(rows * columns, -1, 1);
    auto value = random.many<float>(rows * columns, -1, 1);
    std::vector<float> last(static_cast<std::size_t>(rows), 0.5f);
    for (int k = 0; k < 9; ++k) {
      reward[static_cast<std::size_t>(random.below(rows * columns))] = std::nanf("");
      value[static_cast<std::size_t>(random.below(rows * columns))] = INFINITY;
    }
    last[5] = -INFINITY;
    compare<float>([&]<class Place>(Place& place, trace& to) {
      const rlhf::shape tokens(rows, columns);
      tensor<Place, float> r(reward, tokens), v(value, tokens), end(last, rlhf::shape(rows));
      tensor<Place, float> advantage(7.0f, tokens);
      const auto a = rlhf::generalized_advantage_estimation<float>(
          {.reward = r.view(), .value = v.view(), .bootstrap_value = end.view()},
          {.advantage = advantage.view()}, {}, place.exec);
      const auto figures = Place::get(a);
      CHECK(figures.nonfinite >= 10);
      read_result(figures, to);
      advantage.read(to);
    });
  }
}

}  // namespace thrust_test
