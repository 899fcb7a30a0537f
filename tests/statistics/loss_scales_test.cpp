#include "rlhf/statistics/loss_scales.hpp"

#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using rlhf::aggregation;
using rlhf::RLHF_COMPUTE::check_over;
using rlhf::RLHF_COMPUTE::plan_loss;
using numbers = std::vector<double>;

/// Three rows of four tokens with 4, 1 and 0 counted ones.
struct rows_of_tokens {
  std::vector<double> value = std::vector<double>(12);
  std::vector<std::uint8_t> flag{1, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0};
  std::vector<std::int32_t> group{7, 7, 9};
  rlhf::token_binder<rlhf::host_space> bind{"f",
                                            "value",
                                            rlhf::view<const double>(value.data(), {3, 4}),
                                            {},
                                            rlhf::mask_view<>(flag, rlhf::shape(3, 4))};

  /// The factors of loss and gradient of each row.
  template <class Check>
  void plan(const aggregation& over, const rlhf::upstream_scale<double>& upstream,
            const rlhf::coefficient& factor, const Check& check) const {
    const rlhf::serial exec;
    auto run = exec.begin("f");
    double counts[3], row_weight[3];
    run.count(bind.domain(), counts, row_weight);
    const rlhf::index_view<> ids(group);
    const auto s = plan_loss<double>(run, bind.domain(), over, counts, row_weight, ids, upstream,
                                     {nullptr, 0, 0, 0, 1.0}, factor);
    numbers loss, gradient;
    for (index i = 0; i < 3; ++i) {
      loss.push_back(s.value.scale.at(i));
      gradient.push_back(s.gradient.at(i));
    }
    check(loss, gradient);
  }
  numbers loss(const aggregation& over) const {
    numbers r;
    plan(over, {}, 1, [&](const numbers& l, const numbers& g) {
      CHECK(l == g);  // no upstream: the gradient is that of the loss
      r = l;
    });
    return r;
  }
};

TEST_CASE("loss_scales: the factor of each row, by hand, for every aggregation") {
  const rows_of_tokens rows;
  CHECK(rows.loss(aggregation::token_mean(rlhf::local)) == numbers(3, 1.0 / 5));
  CHECK(rows.loss(aggregation::token_mean(20)) == numbers(3, 1.0 / 20));
  CHECK(rows.loss(aggregation::token_sum()) == numbers(3, 1));
  CHECK(rows.loss(aggregation::sequence_mean_token_sum(rlhf::local)) == numbers(3, 1.0 / 2));
  CHECK(rows.loss(aggregation::sequence_mean_token_sum_norm(4, 8)) == numbers(3, 1.0 / 32));
  CHECK(rows.loss(aggregation::sequence_mean_token_mean(2)) == numbers{1.0 / 8, 1.0 / 2, 0});
  // Rows 0 and 1 are one group of 5 tokens; row 2 has none.
  CHECK(rows.loss(aggregation::group_mean_token_mean(rlhf::local)) == numbers{1.0 / 5, 1.0 / 5, 0});
  CHECK(rows.loss(aggregation::none()) == numbers(3, 1));
}

TEST_CASE("loss_scales: upstream multiplies the gradient alone, a factor both") {
  const rows_of_tokens rows;
  rlhf::upstream_scale<double> half;
  half.number = 0.5;
  rows.plan(aggregation::token_mean(10), half, 3, [](const numbers& loss, const numbers& gradient) {
    for (std::size_t i = 0; i < 3; ++i) {
      CHECK(loss[i] == doctest::Approx(0.3));
      CHECK(gradient[i] == doctest::Approx(0.15));
    }
  });
  // One number per token is an input of the kernel: the factor is left alone.
  const numbers each(12, 4);
  const rlhf::upstream_scale<double> tensor = rlhf::view<const double>(each.data(), {3, 4});
  rows.plan(aggregation::sequence_mean_token_mean(1), tensor, 1,
            [](const numbers& loss, const numbers& gradient) { CHECK(loss == gradient); });
}

TEST_CASE("loss_scales: a count of 0 silences the loss, instead of dividing by it") {
  rows_of_tokens rows;
  rows.flag.assign(12, 0);
  CHECK(rows.loss(aggregation::token_mean(rlhf::local)) == numbers(3, 0));
  CHECK(rows.loss(aggregation::sequence_mean_token_mean(rlhf::local)) == numbers(3, 0));
}

TEST_CASE("scale_by: a number, or a number that lies where the executor reads it") {
  const double x = 3, at = 5;
  double y = 0;
  rlhf::RLHF_COMPUTE::detail::scale_by{&x, 2, nullptr, &y}(0);
  CHECK(y == 6);
  rlhf::RLHF_COMPUTE::detail::scale_by{&x, 2, &at, &y}(0);
  CHECK(y == 30);
}

TEST_CASE("check_over: group ids are wanted exactly where groups divide the loss") {
  const rows_of_tokens rows;
  const rlhf::index_view<> none, ids(rows.group);
  const std::vector<std::int32_t> two{1, 2};
  const auto message = [&](const aggregation& over, const rlhf::index_view<>& id) {
    return message_of([&] { check_over(rows.bind, over, id); });
  };
  CHECK(message(aggregation::token_mean(1), none).empty());
  CHECK(message(aggregation::group_mean_token_mean(1), ids).empty());
  CHECK(message(aggregation::token_mean(1), ids).find("f: group_id: expected to be left out") == 0);
  CHECK(message(aggregation::group_mean_token_mean(1), none).find("f: group_id") == 0);
  CHECK(message(aggregation::group_mean_token_mean(1), rlhf::index_view<>(two))
            .find("f: group_id: expected shape [3]") == 0);
  CHECK(message(aggregation::token_mean(-1), none).find("f: over") == 0);
  CHECK(message(aggregation::sequence_mean_token_sum_norm(1, 0), none).find("horizon") !=
        std::string::npos);
}

}  // namespace
}  // namespace rlhf_test
