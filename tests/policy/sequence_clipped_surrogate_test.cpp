#include "rlhf/policy/sequence_clipped_surrogate.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::sequence_clipped_surrogate_loss;
using rlhf::sequence_form;
using rlhf::sequence_ratio;

TEST_CASE_TEMPLATE("sequence_clipped_surrogate_loss: values by hand", B, RLHF_TEST_BACKENDS) {
  // u = (0.1 + 0.3) / 2 = 0.2, A = 1, kept (ceiling 1.5) | u = -0.5, A = -1: cut at 0.9 | empty
  const auto log_prob = rows<B>({{-1, -1, not_a_number},
                                 {-1.5, not_a_number, not_a_number},
                                 {not_a_number, not_a_number, not_a_number}});
  const auto old = rows<B>({{-1.1, -1.3, not_a_number},
                            {-1, not_a_number, not_a_number},
                            {not_a_number, not_a_number, not_a_number}});
  const auto mask = flags<B>({{1, 1, 0}, {1, 0, 0}, {0, 0, 0}});
  const double advantage[3] = {1, -1, 5};
  auto gradient = rows<B>({{7, 7, 7}, {7, 7, 7}, {7, 7, 7}});
  double sequence_loss[3] = {7, 7, 7};
  const auto r = sequence_clipped_surrogate_loss<double>(
      {.log_prob = log_prob.tensor(),
       .old_log_prob = old.tensor(),
       .advantage = advantage,
       .mask = mask.tensor()},
      {.d_log_prob = gradient.tensor(), .sequence_loss = sequence_loss},
      {.clip_low = 0.1,
       .clip_high = 0.5,
       .over = aggregation::sequence_mean_token_mean(rlhf::local)});
  const double s = std::exp(0.2);
  CHECK(r.loss == doctest::Approx((-s + 0.9) / 2));
  CHECK(gradient(0, 0) == doctest::Approx(-s / 2 / 2));
  CHECK(gradient(0, 1) == doctest::Approx(-s / 2 / 2));
  CHECK(gradient(0, 2) == 0);
  CHECK(gradient(1, 0) == 0);
  CHECK(gradient(2, 0) == 0);
  CHECK(sequence_loss[0] == doctest::Approx(-s));
  CHECK(sequence_loss[1] == doctest::Approx(0.9));
  CHECK(sequence_loss[2] == 0);
  CHECK(r.ratio_max == doctest::Approx(s));
  CHECK(r.ratio_min == doctest::Approx(std::exp(-0.5)));
  CHECK(r.clip_fraction_low.mean() == doctest::Approx(1.0 / 3));
  CHECK(r.sequences == 2);
  CHECK(r.tokens == 3);
}

TEST_CASE("sequence_clipped_surrogate_loss: the sum is the ratio of the whole answer") {
  const double log_prob[1][2] = {{-1, -1}}, old[1][2] = {{-1.1, -1.3}}, advantage[1] = {2};
  double gradient[1][2];
  const auto r = sequence_clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage}, {.d_log_prob = gradient},
      {.clip_low = 0.5,
       .clip_high = 1,
       .ratio = sequence_ratio::sum,
       .over = aggregation::sequence_mean_token_mean(1)});
  CHECK(r.loss == doctest::Approx(-2 * std::exp(0.4)));
  CHECK(gradient[0][0] == doctest::Approx(-2 * std::exp(0.4)));
  CHECK(gradient[0][1] == doctest::Approx(-2 * std::exp(0.4)));
}

TEST_CASE("sequence_clipped_surrogate_loss: both forms agree for one advantage per sequence") {
  random_numbers random(3);
  host_matrix<double> now(4, 6), old(4, 6), a(4, 6), b(4, 6);
  double advantage[4];
  for (std::ptrdiff_t i = 0; i < 4; ++i) {
    advantage[i] = random.uniform(-1, 1);
    for (std::ptrdiff_t j = 0; j < 6; ++j) {
      now(i, j) = random.uniform(-3, 0);
      old(i, j) = now(i, j) + random.uniform(-0.3, 0.3);
    }
  }
  const auto call = [&](sequence_form form, host_matrix<double>& gradient) {
    return sequence_clipped_surrogate_loss<double>(
        {.log_prob = now.tensor(), .old_log_prob = old.tensor(), .advantage = advantage},
        {.d_log_prob = gradient.tensor()},
        {.clip_low = 0.05,
         .clip_high = 0.05,
         .form = form,
         .over = aggregation::sequence_mean_token_mean(4)});
  };
  CHECK(call(sequence_form::sequence, a).loss ==
        doctest::Approx(call(sequence_form::token, b).loss).epsilon(1e-14));
  for (std::size_t k = 0; k < a.data.size(); ++k)
    CHECK(a.data[k] == doctest::Approx(b.data[k]).epsilon(1e-13));
}

TEST_CASE("sequence_clipped_surrogate_loss: sequences of one token are the token loss") {
  const double log_prob[3][1] = {{-1}, {-2}, {-0.5}}, old[3][1] = {{-1.3}, {-1.8}, {-0.5}};
  const double advantage[3] = {1, -2, 3};
  double by_sequence[3][1], by_token[3][1];
  const auto a = sequence_clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage},
      {.d_log_prob = by_sequence},
      {.clip_low = 0.2, .clip_high = 0.2, .over = aggregation::token_mean(3)});
  const auto b = rlhf::clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage}, {.d_log_prob = by_token},
      {.over = aggregation::token_mean(3)});
  CHECK(a.loss == doctest::Approx(b.loss).epsilon(1e-15));
  for (int i = 0; i < 3; ++i)
    CHECK(by_sequence[i][0] == doctest::Approx(by_token[i][0]).epsilon(1e-15));
}

TEST_CASE("sequence_clipped_surrogate_loss: one number per sequence is that number per token") {
  random_numbers random(5);
  constexpr std::ptrdiff_t rows = 5, columns = 40;
  host_matrix<double> now(rows, columns), old(rows, columns), each(rows, columns);
  double advantage[rows];
  std::vector<std::uint8_t> flag;
  std::vector<float> weight;
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    advantage[i] = random.uniform(-1, 1);
    for (std::ptrdiff_t j = 0; j < columns; ++j) {
      now(i, j) = random.uniform(-3, 0);
      old(i, j) = now(i, j) + random.uniform(-0.1, 0.1);
      each(i, j) = advantage[i];
      flag.push_back(i == 3 || random.uniform(0, 1) < 0.3 ? 0 : 1);
      weight.push_back(flag.back() == 0 ? 0 : static_cast<float>(random.uniform(0, 2)));
    }
  }
  const rlhf::shape shape(rows, columns);
  const rlhf::mask_view<> masks[] = {
      {}, rlhf::mask_view<>(flag.data(), shape), rlhf::mask_view<>(weight.data(), shape)};
  for (const auto form : {sequence_form::sequence, sequence_form::token})
    for (const auto ratio : {sequence_ratio::mean, sequence_ratio::sum})
      for (const auto& mask : masks)
        for (const double beta : {0.0, 0.1}) {
          advantage[3] = mask ? not_a_number : each(3, 0);  // masked: of no token
          struct outcome {
            rlhf::policy_result result;
            host_matrix<double> gradient = host_matrix<double>(rows, columns);
            double loss[rows];
          };
          const auto call = [&](const rlhf::signal<const double>& a) {
            outcome o;
            rlhf::view<const double> ref;
            if (beta > 0) ref = old.tensor();
            o.result = sequence_clipped_surrogate_loss<double>(
                {.log_prob = now.tensor(),
                 .old_log_prob = old.tensor(),
                 .ref_log_prob = ref,
                 .advantage = a,
                 .mask = mask},
                {.d_log_prob = o.gradient.tensor(), .sequence_loss = o.loss},
                {.clip_low = 0.02,
                 .clip_high = 0.02,
                 .ratio = ratio,
                 .form = form,
                 .over = aggregation::token_mean(rlhf::local),
                 .kl = {.coefficient = beta}});
            return o;
          };
          const outcome a = call(advantage), b = call(each.tensor());
          CHECK(a.result.loss == b.result.loss);
          CHECK(a.result.clip_fraction.sum == b.result.clip_fraction.sum);
          CHECK(a.result.ratio.sum == b.result.ratio.sum);
          CHECK(a.result.nonfinite == 0);
          for (std::size_t i = 0; i < rows; ++i)
            CHECK(a.loss[i] == doctest::Approx(b.loss[i]).epsilon(1e-14));
          for (std::size_t k = 0; k < a.gradient.data.size(); ++k)
            CHECK(a.gradient.data[k] == doctest::Approx(b.gradient.data[k]).epsilon(1e-14));
        }
}

TEST_CASE(
    "sequence_clipped_surrogate_loss: a log-ratio beyond 80, of token or sequence, is counted") {
  // Tokens of +100 and -100, whose mean is 0.
  const double log_prob[2][3] = {{-1, -101, -1}, {-1, -1, -1}};
  const double old[2][3] = {{-101, -1, -1}, {-1, -1, -1}};
  const double advantage[2] = {1, 1};
  const std::uint8_t flag[2][3] = {{1, 0, 0}, {1, 1, 1}};
  const auto saturated = [&](sequence_ratio ratio, const rlhf::mask_view<>& mask) {
    return sequence_clipped_surrogate_loss<double>(
               {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage, .mask = mask},
               {}, {.ratio = ratio, .over = aggregation::token_mean(rlhf::local)})
        .saturated;
  };
  CHECK(saturated(sequence_ratio::mean, {}) == 2);
  CHECK(saturated(sequence_ratio::sum, flag) == 1);
  // Tokens of 50, 50 and 0: their sum is beyond, so all three are.
  const double far[1][3] = {{-1, -1, -1}}, below[1][3] = {{-51, -51, -1}}, one[1] = {1};
  CHECK(sequence_clipped_surrogate_loss<double>(
            {.log_prob = far, .old_log_prob = below, .advantage = one}, {},
            {.ratio = sequence_ratio::sum, .over = aggregation::token_mean(rlhf::local)})
            .saturated == 3);
}

TEST_CASE("sequence_clipped_surrogate_loss: contracts") {
  const double x[1][2] = {{-1, -1}};
  double d[1][2] = {{7, 7}};
  const rlhf::policy_batch<double> batch{.log_prob = x, .old_log_prob = x, .advantage = x};
  CHECK(message_of([&] {
          sequence_clipped_surrogate_loss<double>(batch, {.d_log_prob = d},
                                                  {.over = aggregation::turn_mean(rlhf::local)});
        }) ==
        "sequence_clipped_surrogate_loss: over: expected an aggregation other than turn_mean, "
        "received turn_mean");
  CHECK(message_of([&] {
          sequence_clipped_surrogate_loss<double>(
              batch, {.d_log_prob = d}, {.clip_high = -1, .over = aggregation::token_sum()});
        }) == "sequence_clipped_surrogate_loss: clip_high: expected >= 0, received -1");
  CHECK(d[0][0] == 7);
}

TEST_CASE("sequence_clipped_surrogate_loss: a workspace too small leaves every output as it was") {
  const float x[2][3] = {{-1, -1, -1}, {-1, -1, -1}}, advantage[2] = {1, 1};
  float gradient[2][3] = {{7, 7, 7}, {7, 7, 7}}, sequence_loss[2] = {7, 7};
  const thread_pool pool{2};
  const auto call = [&](const auto& exec) {
    return sequence_clipped_surrogate_loss<float>(
        {.log_prob = x, .old_log_prob = x, .advantage = advantage},
        {.d_log_prob = gradient, .sequence_loss = sequence_loss},
        {.over = aggregation::token_sum()}, exec);
  };
  const std::size_t need = rlhf::workspace_bytes(call, 2);
  std::vector<std::byte> memory(need);
  for (std::size_t bytes = 64; bytes + 64 < need; bytes += 64) {
    CHECK(message_of([&] { call(rlhf::parallel<thread_pool>{pool, memory.data(), bytes}); }) != "");
    CHECK((sequence_loss[0] == 7 && sequence_loss[1] == 7));
    CHECK((gradient[0][0] == 7 && gradient[1][2] == 7));
  }
  call(rlhf::parallel<thread_pool>{pool, memory.data(), need});
  CHECK(sequence_loss[0] == -1);
}
