#pragma once

#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/statistics/masked_mean.hpp"
#include "tests/thrust/batch.hpp"

// What decides how a device cuts a batch: sizes, offsets and addresses. The bits are the host's.

namespace thrust_test {

/// A sum and a gradient of one input: cheap enough for a million tokens on one thread.
template <class T>
struct square_kernel {
  using scalar_type = T;
  static constexpr int inputs = 1, outputs = 1, sums = 2, ranges = 1, scales = 1;
  static constexpr int observed = 1, scaled_sums = 1;
  template <class Token>
  RLHF_HOST_DEVICE void operator()(Token& t) const {
    t.sum[0] = t.in[0] * t.in[0] * t.scale[0];
    t.sum[1] = t.in[0];
    t.range[0] = t.in[0];
    t.out[0] = (t.in[0] + t.in[0]) * t.scale[0];
  }
};

struct squares {
  double figures[rlhf::token_counts::size + rlhf::sums_of<square_kernel<float>>::size];
};
inline squares read_squares(const double* figures) {
  squares s;
  std::memcpy(&s, figures, sizeof s);
  return s;
}

/// The primitive itself: counts and sums of squares of x, which begins `shift` elements into its
/// memory, with gaps of `gap` behind each row.
template <class T, class Place>
void run_squares(Place& place, trace& to, const std::vector<T>& values, index rows, index columns,
                 index shift, index gap, index stride,
                 const rlhf::token_domain<typename Place::space>& d) {
  using K = square_kernel<T>;
  using Space = typename Place::space;
  typename Place::template vector<T> x(values.begin(), values.end());
  typename Place::template vector<T> y(values.size(), T(7));
  const bool packed = d.kind == rlhf::arrangement::packed;
  rlhf::token_arguments<K, Space> a;
  a.domain = d;
  const index per_row = packed ? 0 : (columns + gap) * stride;
  a.in[0] = {thrust::raw_pointer_cast(x.data()) + shift, per_row, packed ? stride : 0, stride,
             T(0)};
  a.out[0] = {thrust::raw_pointer_cast(y.data()) + shift, per_row, packed ? stride : 0, stride,
              false};
  {
    auto run = place.exec.begin("squares");
    double* const figures =
        run.template allocate<double>(rlhf::token_counts::size + rlhf::sums_of<K>::size);
    run.count(a.domain, figures);
    a.scale[0] = run.scale({.count = static_cast<double>(rows) + 0.5});
    run.map_reduce(K{}, a, figures + rlhf::token_counts::size);
    read_result(Place::get(run.template finish<squares>(figures, &read_squares)), to);
  }
  const thrust::host_vector<T> copy = y;
  for (const T& v : copy) to.push_back(static_cast<double>(v));
}

template <class T>
void compare_squares(arranged how, index rows, index columns, const std::vector<index>& lengths,
                     index shift, index gap, index stride) {
  numbers random(static_cast<std::uint64_t>(rows * 31 + columns));
  std::vector<std::int64_t> offset{0};
  std::vector<std::int32_t> length;
  for (const index n : lengths) {
    length.push_back(static_cast<std::int32_t>(n));
    offset.push_back(offset.back() + n);
  }
  const bool packed = how == arranged::packed;
  const index slots = packed ? static_cast<index>(offset.back()) : rows * columns;
  const index held = shift + (packed ? slots : rows * (columns + gap)) * stride + 1;
  const auto values = random.many<T>(held, -1, 1);
  std::vector<std::uint8_t> flag;
  for (index k = 0; k < slots + shift; ++k) flag.push_back(random.below(9) == 0 ? 1 : 0);
  compare<T>([&]<class Place>(Place& place, trace& to) {
    typename Place::template vector<std::int64_t> offsets(offset.begin(), offset.end());
    typename Place::template vector<std::int32_t> counts(length.begin(), length.end());
    typename Place::template vector<std::uint8_t> flags(flag.begin(), flag.end());
    rlhf::token_domain<typename Place::space> d;
    d.rows = rows;
    d.columns = packed ? slots : columns;
    if (how == arranged::lengths) {
      d.kind = rlhf::arrangement::lengths;
      d.indices = counts;
    } else if (packed) {
      d.kind = rlhf::arrangement::packed;
      d.indices = offsets;
    } else if (how == arranged::flags) {
      d.mask = {thrust::raw_pointer_cast(flags.data()) + shift, rlhf::shape(rows, columns)};
    }
    run_squares<T>(place, to, values, rows, columns, shift, gap, stride, d);
  });
}

TEST_CASE_TEMPLATE("device: any alignment, gap and stride of rows", T, float, double) {
  std::vector<index> lengths;
  for (index k = 0; k < 9; ++k) lengths.push_back(k * 13 % 70);
  for (const arranged how :
       {arranged::padded, arranged::lengths, arranged::packed, arranged::flags})
    for (const index shift : {0, 1, 2, 3, 4})
      for (const index gap : {0, 1, 3})
        for (const index stride : {1, 2}) {
          CAPTURE(static_cast<int>(how));
          CAPTURE(shift);
          CAPTURE(gap);
          compare_squares<T>(how, 9, 69, lengths, shift, gap, stride);
        }
}

TEST_CASE("device: units of many flushes, and groups of many units") {
  // 1.2 M tokens: two flushes to a unit, over 500 units in one group
  compare_squares<float>(arranged::padded, 3, 400000, {}, 0, 0, 1);
  compare_squares<float>(arranged::flags, 3, 400001, {}, 0, 0, 1);
  // a long row among short and empty ones, in a group that is not the first
  std::vector<index> lengths;
  for (index k = 0; k < 400; ++k) lengths.push_back(k == 150 ? 500000 : k == 151 ? 90000 : k % 40);
  compare_squares<float>(arranged::packed, 400, 0, lengths, 0, 0, 1);
  // more groups than a team has threads
  lengths.assign(20000, 5);
  compare_squares<float>(arranged::packed, 20000, 0, lengths, 0, 0, 1);
  compare_squares<float>(arranged::lengths, 20000, 16, lengths, 0, 0, 1);
  // few tokens in long rows: units that only clear what is behind them
  lengths.assign(70, 3);
  compare_squares<double>(arranged::lengths, 70, 5001, lengths, 0, 0, 1);
}

TEST_CASE("device: groups of more samples than a team has threads, in any order of ids") {
  enum class order { rising, falling, apart, mixed };
  for (const order how : {order::rising, order::falling, order::apart, order::mixed})
    for (const index n : {1, 255, 256, 257, 70000}) {
      if (how == order::mixed && n == 70000) continue;  // slow on one thread
      numbers random(17);
      const auto rewards = random.many<float>(n, -2, 2);
      std::vector<std::int32_t> ids;
      for (index k = 0; k < n; ++k) {
        const auto run = static_cast<std::int32_t>(k / 3);
        ids.push_back(how == order::rising    ? run
                      : how == order::falling ? -run
                      : how == order::apart   ? run * 7919 % 65537
                                              : static_cast<std::int32_t>(random.below(40)));
      }
      CAPTURE(static_cast<int>(how));
      CAPTURE(n);
      compare<float>([&]<class Place>(Place& place, trace& to) {
        tensor<Place, float> reward(rewards, rlhf::shape(n)), advantage(7.0f, rlhf::shape(n));
        const typename Place::template vector<std::int32_t> id(ids.begin(), ids.end());
        const auto r = rlhf::group_relative_advantage<float>(
            {.reward = reward.data, .group_id = id}, {.advantage = advantage.data}, {}, place.exec);
        read_result(Place::get(r), to);
        advantage.read(to);
      });
    }
}

}  // namespace thrust_test
