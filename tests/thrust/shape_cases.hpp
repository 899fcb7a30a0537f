#pragma once

#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/statistics/masked_mean.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "rlhf/value/explained_variance.hpp"
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
  [[maybe_unused]] const index per_row = packed ? 0 : (columns + gap) * stride;  // nvcc sees no use
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

/// Moments of one series with its range, of three without, and numbers whitened by them, of rows
/// that begin `shift` elements into their memory, every `stride`-th element a number.
template <class T>
void compare_moments(arranged how, index rows, index columns, const std::vector<index>& lengths,
                     index shift, index stride, double mean, double outlier) {
  numbers random(static_cast<std::uint64_t>(rows * 31 + columns + shift));
  std::vector<std::int64_t> offset{0};
  std::vector<std::int32_t> length;
  for (const index n : lengths) {
    length.push_back(static_cast<std::int32_t>(n));
    offset.push_back(offset.back() + n);
  }
  const bool packed = how == arranged::packed;
  const index slots = packed ? static_cast<index>(offset.back()) : rows * columns;
  const index held = shift + slots * stride + 1;
  auto values = random.many<T>(held, mean - 1, mean + 1);
  const auto others = random.many<T>(held, mean - 2, mean + 1);
  // So that a flush which begins with one is measured again.
  for (std::size_t k = 0; k < values.size(); k += 3000) values[k] += static_cast<T>(outlier);
  std::vector<std::uint8_t> flag;
  std::vector<float> weight;
  for (index k = 0; k < slots + shift; ++k) {
    const bool counts = random.below(5) != 0 && k / 700 % 3 != 1;
    flag.push_back(counts ? 1 : 0);
    weight.push_back(counts ? static_cast<float>(random.uniform(0.1, 2)) : 0.0f);
  }
  compare<T>([&]<class Place>(Place& place, trace& to) {
    using Space = typename Place::space;
    const typename Place::template vector<T> x(values.begin(), values.end());
    const typename Place::template vector<T> y(others.begin(), others.end());
    typename Place::template vector<T> z(static_cast<std::size_t>(slots), T(7));
    const typename Place::template vector<std::int64_t> offsets(offset.begin(), offset.end());
    const typename Place::template vector<std::int32_t> counts(length.begin(), length.end());
    const typename Place::template vector<std::uint8_t> flags(flag.begin(), flag.end());
    const typename Place::template vector<float> weights(weight.begin(), weight.end());
    const rlhf::shape shape = packed ? rlhf::shape(slots) : rlhf::shape(rows, columns);
    const rlhf::shape strides =
        packed ? rlhf::shape(stride) : rlhf::shape(columns * stride, stride);
    const auto of = [&](const auto& v) {
      return rlhf::view<const T, Space>{thrust::raw_pointer_cast(v.data()) + shift, shape, strides};
    };
    rlhf::sequence_layout<Space> layout;
    if (how == arranged::lengths) layout = rlhf::lengths(counts);
    if (packed) layout = rlhf::packed(offsets);
    rlhf::mask_view<Space> mask;
    if (how == arranged::flags) mask = {thrust::raw_pointer_cast(flags.data()) + shift, shape};
    if (how == arranged::weights) mask = {thrust::raw_pointer_cast(weights.data()) + shift, shape};
    const rlhf::masked_values<T, Space> given{.value = of(x), .mask = mask, .layout = layout};
    read_result(Place::get(rlhf::masked_moments<T>(given, {}, {}, place.exec)), to);
    read_result(Place::get(rlhf::explained_variance<T>(
                    {.value = of(x), .returns = of(y), .mask = mask, .layout = layout}, {}, {},
                    place.exec)),
                to);
    read_result(Place::get(rlhf::whiten<T>(given, {.whitened = {z, shape}}, {}, place.exec)), to);
    const thrust::host_vector<T> copy = z;
    for (const T& v : copy) to.push_back(static_cast<double>(v));
  });
}

/// Numbers whose squares overflow, though those of their distances do not, under a mask without
/// tokens in the first steps of some flushes: where no shift can be guessed.
template <class T>
void compare_large_moments(arranged how, index empty) {
  const index rows = 3, columns = 5000;
  const double large = sizeof(T) == sizeof(float) ? 1e25 : 1e200;
  numbers random(static_cast<std::uint64_t>(empty));
  auto values = random.many<T>(rows * columns, large, large * (1 + 1e-6));
  auto others = random.many<T>(rows * columns, -1, 1);
  std::vector<float> weight;
  std::vector<std::uint8_t> flag;
  for (index k = 0; k < rows * columns; ++k) {
    const bool counts = k % columns % 1024 >= empty && random.below(3) != 0;
    weight.push_back(counts ? static_cast<float>(random.uniform(0.1, 2)) : 0.0f);
    flag.push_back(counts ? 1 : 0);
  }
  values[900] = static_cast<T>(large * 3);
  values[4500] = -values[4500];
  if (empty == 100) others[static_cast<std::size_t>(columns + 700)] = T(INFINITY);
  compare<T>([&]<class Place>(Place& place, trace& to) {
    using Space = typename Place::space;
    const rlhf::shape shape(rows, columns);
    tensor<Place, T> x(values, shape), y(others, shape);
    tensor<Place, float> weights(weight, shape);
    tensor<Place, std::uint8_t> flags(flag, shape);
    const rlhf::mask_view<Space> mask = how == arranged::flags ? flags.mask() : weights.mask();
    for (auto* const of : {&x, &y})
      read_result(Place::get(rlhf::masked_moments<T>({.value = of->view(), .mask = mask}, {}, {},
                                                     place.exec)),
                  to);
    // Several series, of which only one overflows.
    read_result(Place::get(rlhf::explained_variance<T>(
                    {.value = x.view(), .returns = y.view(), .mask = mask}, {}, {}, place.exec)),
                to);
  });
}

TEST_CASE_TEMPLATE("device: squares that overflow before a shift is known", T, float, double) {
  for (const arranged how : {arranged::flags, arranged::weights})
    for (const index empty : {0, 50, 64, 100, 1000}) {
      CAPTURE(static_cast<int>(how));
      CAPTURE(empty);
      compare_large_moments<T>(how, empty);
    }
}

TEST_CASE_TEMPLATE("device: moments of any alignment and stride", T, float, double) {
  std::vector<index> lengths;
  for (index k = 0; k < 9; ++k) lengths.push_back(k * 13 % 70);
  for (const arranged how : arrangements)
    for (const index shift : {0, 1, 3})
      for (const index stride : {1, 2})
        for (const double mean : {0.0, 50.0}) {
          CAPTURE(static_cast<int>(how));
          CAPTURE(shift);
          CAPTURE(stride);
          CAPTURE(mean);
          compare_moments<T>(how, 9, 69, lengths, shift, stride, mean, 0);
        }
}

TEST_CASE_TEMPLATE("device: moments of many flushes, units and groups", T, float, double) {
  // Several flushes of a group in one unit, a last one that is not full, flushes without a token,
  // and outliers that make the first guess a bad one.
  for (const arranged how : {arranged::padded, arranged::flags, arranged::weights})
    for (const double outlier : {0.0, 3000.0}) {
      CAPTURE(static_cast<int>(how));
      CAPTURE(outlier);
      compare_moments<T>(how, 5, 3001, {}, 0, 1, 3, outlier);
      compare_moments<T>(how, 130, 260, {}, 0, 1, 3, outlier);
    }
  std::vector<index> lengths;
  for (index k = 0; k < 400; ++k)
    lengths.push_back(k == 150 ? 50000 : k == 151 ? 9000 : k / 64 == 4 ? 0 : k % 40);
  compare_moments<T>(arranged::packed, 400, 0, lengths, 0, 1, 3, 3000);
  // Groups without a token, and more than 64 groups.
  for (const arranged how : {arranged::packed, arranged::lengths}) {
    lengths.assign(70, 0);
    compare_moments<T>(how, 70, 21, lengths, 0, 1, 3, 0);
    lengths.clear();
    for (index k = 0; k < 4500; ++k) lengths.push_back(k / 64 % 3 == 1 ? 0 : k % 21);
    compare_moments<T>(how, 4500, 21, lengths, 1, 1, 3, 3000);
  }
}

TEST_CASE("device: moments in units of many flushes") {
  compare_moments<float>(arranged::padded, 3, 400001, {}, 0, 1, 3, 3000);
  compare_moments<float>(arranged::weights, 70, 90001, {}, 0, 1, 3, 3000);
  std::vector<index> lengths(200, 300);
  lengths[150] = 3500000;
  compare_moments<float>(arranged::packed, 200, 0, lengths, 0, 1, 3, 3000);
  compare_moments<double>(arranged::packed, 200, 0, lengths, 0, 1, 3, 3000);
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
