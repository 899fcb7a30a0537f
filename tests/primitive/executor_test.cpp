#include "rlhf/primitive/executor.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <type_traits>
#include <vector>

#include "rlhf/policy/reinforce.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

struct later {
  double figures;
};
/// Knows only where memory lies and what a call returns: an executor to an algorithm's signature.
struct elsewhere {
  using space = rlhf::device_space;
  template <class R>
  using result = later;
};
struct no_executor {
  using space = rlhf::host_space;
};

TEST_CASE("executor: says where memory lies and what a call returns") {
  static_assert(rlhf::executor<rlhf::serial> && rlhf::executor<rlhf::parallel<thread_pool>>);
  static_assert(rlhf::executor<elsewhere> && !rlhf::executor<no_executor> && !rlhf::executor<int>);
  static_assert(std::is_same_v<rlhf::space_of<rlhf::serial>, rlhf::host_space>);
  static_assert(std::is_same_v<rlhf::space_of<elsewhere>, rlhf::device_space>);
  static_assert(std::is_same_v<rlhf::result_of<rlhf::serial, int>, int>);
  static_assert(std::is_same_v<rlhf::result_of<elsewhere, int>, later>);
}

TEST_CASE("executor: one call runs on each, the last argument, and left out it is serial") {
  const float log_prob[2][3] = {{-1, -2, -3}, {-1, -1, -2}}, advantage[2] = {1, -0.5f};
  const auto call = [&](const auto&... exec) {
    return rlhf::reinforce_loss<float>({.log_prob = log_prob, .advantage = advantage}, {},
                                       {.over = rlhf::aggregation::token_mean(6)}, exec...)
        .loss;
  };
  const thread_pool pool{2};
  std::vector<std::byte> memory(1 << 16);
  const double expected = (6 - 2) / 6.0;  // −(−6 · 1) and −(−4 · −0.5)
  CHECK(call() == doctest::Approx(expected).epsilon(1e-6));
  CHECK(call(rlhf::serial{}) == call());
  CHECK(call(rlhf::serial{memory.data(), memory.size()}) == call());
  CHECK(call(rlhf::parallel<thread_pool>{pool}) == call());
}

}  // namespace
}  // namespace rlhf_test
