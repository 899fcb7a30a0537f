#pragma once

#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/distribution/policy_from_logits.hpp"
#include "rlhf/distribution/token_log_prob.hpp"
#include "tests/thrust/place.hpp"

namespace thrust_test {

/// Rows of logits in three arrangements: [tokens, classes], [batch, time, classes] with lengths and
/// a mask, packed.
template <class L>
struct logits_problem {
  using T = rlhf::compute_of<L>;
  index rows, columns, classes;
  bool loose, packed;
  rlhf::shape tokens, shape;
  std::vector<L> logits;
  std::vector<std::int64_t> label;
  std::vector<std::uint8_t> flag;
  std::vector<std::int32_t> length, offset;
  std::vector<T> a, b;

  logits_problem(int kind, index r, index c, index v) : rows(r), columns(c), classes(v) {
    loose = kind == 0;
    packed = kind == 2;
    numbers random(51);
    offset.push_back(0);
    for (index i = 0; i < rows; ++i) {
      length.push_back(static_cast<std::int32_t>(random.below(columns + 1)));
      offset.push_back(offset.back() + length.back());
    }
    const index n = packed ? static_cast<index>(offset.back()) : rows * columns;
    tokens = loose || packed ? rlhf::shape(n) : rlhf::shape(rows, columns);
    shape = loose || packed ? rlhf::shape(n, v) : rlhf::shape(rows, columns, v);
    for (index k = 0; k < n * v; ++k) {
      const double peak = random.below(200) == 0 ? 12 : 0;
      logits.push_back(static_cast<L>(static_cast<T>(random.uniform(-4, 4) + peak)));
    }
    for (index k = 0; k < n; ++k) {
      label.push_back(random.below(9) == 0 ? -100 : random.below(v));
      flag.push_back(random.below(5) != 0 ? 1 : 0);
    }
    a = random.many<T>(n, -6, 0);
    b = random.many<T>(n, -2, 2);
    if (n > 4 && v > 3) {
      logits[1] = static_cast<L>(-std::numeric_limits<float>::infinity());
      logits[static_cast<std::size_t>(2 * v)] =
          static_cast<L>(std::numeric_limits<float>::quiet_NaN());
    }
  }

  template <class Place>
  struct given {
    tensor<Place, L> logits;
    tensor<Place, std::int64_t> label_data;
    tensor<Place, std::uint8_t> flag;
    typename Place::template vector<std::int32_t> length, offset;
    tensor<Place, T> a, b;
    rlhf::index_view<typename Place::space> label;
    rlhf::sequence_layout<typename Place::space> layout;

    explicit given(const logits_problem& p)
        : logits(p.logits, p.shape),
          label_data(p.label, p.tokens),
          flag(p.flag, p.tokens),
          length(p.length.begin(), p.length.end()),
          offset(p.offset.begin(), p.offset.end()),
          a(p.a, p.tokens),
          b(p.b, p.tokens),
          label(label_data.data, p.tokens) {
      if (p.packed) layout = rlhf::packed(offset);
      if (!p.packed && !p.loose) layout = rlhf::lengths(length);
    }
    given(const given&) = delete;
  };
};

struct logit_extents {
  index rows, columns, classes;
};
struct precise_exp2 {
  RLHF_HOST_DEVICE float operator()(float x) const {
    return static_cast<float>(exp2(static_cast<double>(x)));
  }
};

TEST_CASE("device: the exponential by 2^x is within a unit of the last place") {
  double worst = 0;
  for (int k = 0; k < 200000; ++k) {
    const float d = -87.0f * static_cast<float>(k) / 200000.0f;
    const float y = rlhf::RLHF_COMPUTE::detail::exp_by_exp2(d, precise_exp2());
    const double exact = std::exp(static_cast<double>(d));
    const double unit = std::ldexp(1.0, std::ilogb(exact) - 23);
    worst = std::fmax(worst, std::fabs(static_cast<double>(y) - exact) / unit);
  }
  CHECK(worst <= 1.1);
  CHECK(worst > 0.4);
}

inline constexpr logit_extents logit_sizes[] = {{2, 5, 7}, {3, 40, 130}, {1, 3, 5000}, {4, 20, 1}};

TEST_CASE_TEMPLATE("device: log-probabilities of labels and their gradient", L, float, double,
                   rlhf::bfloat16, rlhf::half) {
  using T = rlhf::compute_of<L>;
  for (const int kind : {0, 1, 2})
    for (const logit_extents size : logit_sizes) {
      if (is_left_out(size.rows * size.columns * size.classes)) continue;
      CAPTURE(kind);
      CAPTURE(size.classes);
      const logits_problem<L> problem(kind, size.rows, size.columns, size.classes);
      compare<T>([&]<class Place>(Place& place, trace& to) {
        typename logits_problem<L>::template given<Place> x(problem);
        tensor<Place, T> log_prob(T(7), problem.tokens), entropy(T(7), problem.tokens);
        tensor<Place, T> total(T(7), problem.tokens), squares(T(7), problem.tokens);
        tensor<Place, L> d_logits(static_cast<L>(T(7)), problem.shape);
        const auto r = rlhf::token_log_prob<L>({.logits = x.logits.view(),
                                                .label = x.label,
                                                .mask = x.flag.mask(),
                                                .layout = x.layout},
                                               {.log_prob = log_prob.view(),
                                                .entropy = entropy.view(),
                                                .log_sum_exp = total.view(),
                                                .sum_p_squared = squares.view()},
                                               {.temperature = 0.7}, place.exec);
        read_result(Place::get(r), to);
        log_prob.read(to);
        entropy.read(to);
        total.read(to);
        squares.read(to);
        // Added to memory of its own, then in place.
        const auto d = rlhf::token_log_prob_backward<L>({.logits = x.logits.view(),
                                                         .label = x.label,
                                                         .d_log_prob = x.a.view(),
                                                         .d_entropy = x.b.view(),
                                                         .mask = x.flag.mask(),
                                                         .layout = x.layout},
                                                        {.d_logits = rlhf::add_to(d_logits.view())},
                                                        {.temperature = 0.7}, place.exec);
        const auto e =
            rlhf::token_log_prob_backward<L>({.logits = x.logits.view(),
                                              .label = x.label,
                                              .d_log_prob = x.a.view(),
                                              .layout = x.layout},
                                             {.d_logits = x.logits.view()}, {}, place.exec);
        read_result(Place::get(d), to);
        read_result(Place::get(e), to);
        d_logits.read(to);
        x.logits.read(to);
      });
    }
}

TEST_CASE_TEMPLATE("device: losses on logits", L, float, rlhf::bfloat16) {
  using T = rlhf::compute_of<L>;
  for (const int kind : {0, 1, 2}) {
    CAPTURE(kind);
    const logits_problem<L> problem(kind, 5, 30, 1500);
    compare<T>([&]<class Place>(Place& place, trace& to) {
      typename logits_problem<L>::template given<Place> x(problem);
      tensor<Place, L> d_logits(static_cast<L>(T(7)), problem.shape);
      tensor<Place, T> token_loss(T(7), problem.tokens);
      const auto c = rlhf::cross_entropy_loss<L>(
          {.logits = x.logits.view(), .label = x.label, .layout = x.layout},
          {.d_logits = d_logits.view(), .token_loss = token_loss.view()},
          {.label_smoothing = 0.1,
           .z_loss = 1e-4,
           .over = rlhf::aggregation::token_mean(rlhf::local)},
          place.exec);
      read_result(Place::get(c), to);
      d_logits.read(to);
      token_loss.read(to);
      if (problem.loose) return;
      const auto p = rlhf::clipped_surrogate_from_logits<L>(
          {.logits = x.logits.view(),
           .label = x.label,
           .old_log_prob = x.a.view(),
           .advantage = x.b.view(),
           .mask = x.flag.mask(),
           .layout = x.layout},
          {.d_logits = x.logits.view(), .token_loss = token_loss.view()},
          {.over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local),
           .entropy = {.coefficient = 0.01}},
          place.exec);
      read_result(Place::get(p), to);
      x.logits.read(to);
      token_loss.read(to);
    });
  }
}

/// Forward, backward and in place for one number of classes. Rows begin `skew` elements after an
/// aligned place, `beyond` elements lie between them, and classes are `step` apart.
template <class L>
void compare_rows(index tokens, index classes, index skew, index beyond, index step) {
  using T = rlhf::compute_of<L>;
  CAPTURE(classes);
  CAPTURE(skew);
  CAPTURE(step);
  const index row = classes * step + beyond;
  numbers random(77);
  std::vector<L> values;
  for (index k = 0; k < skew + tokens * row; ++k) {
    const double peak = random.below(900) == 0 ? 20 : 0;
    values.push_back(static_cast<L>(static_cast<T>(random.uniform(-4, 4) + peak)));
  }
  std::vector<std::int64_t> labels;
  for (index k = 0; k < tokens; ++k) labels.push_back(random.below(classes));
  const auto slopes = random.many<T>(tokens, -1, 1);
  const auto at = [&](index token, index v) -> L& {
    return values[static_cast<std::size_t>(skew + token * row + v * step)];
  };
  if (tokens > 2) {
    at(1, classes - 1) = static_cast<L>(-std::numeric_limits<T>::infinity());
    for (index v = 0; v < classes; ++v)
      at(2, v) = static_cast<L>(-std::numeric_limits<T>::infinity());
    at(2, labels[2]) = static_cast<L>(T(3));  // certain: p is 1
  }
  compare<T>([&]<class Place>(Place& place, trace& to) {
    const rlhf::shape each(tokens), shape(tokens, classes), strides(row, step);
    typename Place::template vector<L> logits(values.begin(), values.end()), into = logits;
    const typename Place::template vector<std::int64_t> label(labels.begin(), labels.end());
    tensor<Place, T> up(slopes, each), log_prob(T(7), each), entropy(T(7), each);
    tensor<Place, T> loss(T(7), each);
    const rlhf::view<L, typename Place::space> x(thrust::raw_pointer_cast(logits.data()) + skew,
                                                 shape, strides);
    const rlhf::view<L, typename Place::space> y(thrust::raw_pointer_cast(into.data()) + skew,
                                                 shape, strides);
    const auto r = rlhf::token_log_prob<L>({.logits = x, .label = label},
                                           {.log_prob = log_prob.view(), .entropy = entropy.view()},
                                           {}, place.exec);
    read_result(Place::get(r), to);
    const auto c = rlhf::cross_entropy_loss<L>(
        {.logits = x, .label = label}, {.d_logits = rlhf::add_to(y), .token_loss = loss.view()},
        {.label_smoothing = 0.1, .over = rlhf::aggregation::token_mean(3)}, place.exec);
    read_result(Place::get(c), to);
    const auto b = rlhf::token_log_prob_backward<L>(
        {.logits = x, .label = label, .d_log_prob = up.view(), .d_entropy = up.view()},
        {.d_logits = x}, {.temperature = 1.3}, place.exec);
    read_result(Place::get(b), to);
    log_prob.read(to);
    entropy.read(to);
    loss.read(to);
    for (const auto* const memory : {&logits, &into}) {
      const thrust::host_vector<L> copy = *memory;
      for (const L& z : copy) to.push_back(static_cast<double>(static_cast<T>(z)));
    }
  });
}

TEST_CASE_TEMPLATE("device: rows of any number of classes, at any place", L, float, double,
                   rlhf::bfloat16) {
  for (const index classes : {1, 2, 15, 16, 17, 31, 1000, 1024, 1025, 2049}) {
    compare_rows<L>(37, classes, 0, 0, 1);
    compare_rows<L>(5, classes, 3, 5, 1);
  }
  compare_rows<L>(700, 40, 0, 0, 1);
  compare_rows<L>(4, 2100, 1, 3, 2);
}

TEST_CASE_TEMPLATE("device: rows that fit no shared memory", L, float, rlhf::bfloat16) {
  compare_rows<L>(3, 70000, 0, 0, 1);
  compare_rows<L>(3, 130001, 0, 0, 1);
}

TEST_CASE_TEMPLATE("device: rows of so many tiles that their slopes fit no shared memory", L,
                   double, rlhf::bfloat16) {
  const index classes = sizeof(L) == sizeof(double) ? 700000 : 1400000;
  if (!is_left_out(classes)) compare_rows<L>(1, classes, 0, 0, 1);
}

TEST_CASE("device: a block needs no more memory than any GPU has, whatever the classes") {
  using plan = rlhf::RLHF_COMPUTE::detail::logit_plan;
  constexpr std::size_t least = std::size_t{64} << 10, b16 = 2, b32 = 4, b64 = 8;
  for (const std::size_t element : {b16, b32, b64}) {
    CAPTURE(element);
    const std::size_t compute = element == b64 ? b64 : b32;
    const plan::sizes bytes{element, compute, 400, 3 * compute, 64};
    std::size_t most = 0;
    bool slopes_have_a_place = true;
    for (index classes = 1; classes < index{1} << 36; classes += classes / 3 + 1)
      for (const bool gradient : {false, true}) {
        const auto p = plan::over(classes, 1000, gradient, true, true, bytes, least);
        const bool apart = plan::slopes_apart(classes, gradient, bytes);
        most = p.shape.shared_bytes > most ? p.shape.shared_bytes : most;
        slopes_have_a_place = slopes_have_a_place && (p.slopes == p.tiles) == (gradient && !apart);
      }
    CHECK(most <= least);
    CHECK(most > least / 2);  // what is there is used
    CHECK(slopes_have_a_place);
  }
}

}  // namespace thrust_test
