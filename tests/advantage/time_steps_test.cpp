#include "rlhf/advantage/time_steps.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

namespace parts = rlhf::RLHF_COMPUTE::detail;
using rlhf::hole_mode;
using rlhf::hole_reward;
using rlhf::shape;
using domain = rlhf::token_domain<rlhf::host_space>;
using bytes = std::vector<std::uint8_t>;
using numbers = std::vector<double>;

domain padded(const bytes& mask, index rows) {
  domain d;
  d.rows = rows, d.columns = static_cast<index>(mask.size()) / rows;
  d.mask = rlhf::mask_view<>(mask, shape(d.rows, d.columns));
  return d;
}

TEST_CASE("time_steps: a hole's reward goes to the valid token before it, else to the first") {
  const bytes mask{0, 1, 0, 0, 1, 0, /**/ 0, 0, 0, 0, 0, 0};
  const numbers reward{1, 2, 4, 8, 16, 32, /**/ 1, 1, 1, 1, 1, 1};
  numbers to(12, 7);
  const parts::move_rewards<double, rlhf::host_space> move{
      padded(mask, 2), {reward.data(), 6, 0, 1, 0}, to.data()};
  move(0), move(1);
  // 1 + 2 + 4 + 8 and 16 + 32; a row without a valid token has nobody to take it.
  CHECK(to == numbers{0, 15, 0, 0, 48, 0, /**/ 0, 0, 0, 0, 0, 0});
}

TEST_CASE("time_steps: packed rewards move inside their row, and any stride is read") {
  const bytes mask{1, 0, 1, 0, 0};
  const std::vector<std::int32_t> offset{0, 2, 5};
  domain d;
  d.rows = 2, d.columns = 5, d.kind = rlhf::arrangement::packed;
  d.indices = rlhf::index_view<>(offset), d.mask = rlhf::mask_view<>(mask);
  const numbers reward{1, -1, 2, -1, 4, -1, 8, -1, 16, -1};  // every second one
  numbers to(5, 7);
  const parts::move_rewards<double, rlhf::host_space> move{
      d, {reward.data(), 0, 2, 2, 0}, to.data()};
  move(0), move(1);
  CHECK(to == numbers{3, 0, 28, 0, 0});
}

TEST_CASE("time_steps: rewards are moved only where a mask may hide some") {
  const bytes mask{1, 0};
  const numbers reward{1, 2};
  const rlhf::token_input<double> given{reward.data(), 2, 0, 1, 0};
  const rlhf::serial exec;
  auto run = exec.begin("f");
  const domain masked = padded(mask, 1);
  domain whole = masked;
  whole.mask = {};
  CHECK(parts::rewards_of_valid(run, masked, given, hole_reward::drop).data == reward.data());
  CHECK(parts::rewards_of_valid(run, whole, given, hole_reward::to_previous).data == reward.data());
  const auto moved = parts::rewards_of_valid(run, masked, given, hole_reward::to_previous);
  CHECK(moved.data[0] == 3);
  CHECK(moved.data[moved.stride] == 0);
  CHECK(moved.per_row == 2);
}

TEST_CASE("time_steps: a hole that is a step of its own keeps its reward") {
  CHECK(message_of([] {
          parts::check_holes("f", hole_mode::count, hole_reward::to_previous);
        }).find("f: reward_at_hole: expected drop") == 0);
  parts::check_holes("f", hole_mode::count, hole_reward::drop);
  parts::check_holes("f", hole_mode::zero, hole_reward::to_previous);
}

TEST_CASE("time_steps: a truncated token wants the value that follows, unless it is the last") {
  // Valid: 0 1 3. Truncated: 1, the hole 2, 3; and 0, which is terminated as well.
  const bytes mask{1, 1, 0, 1, 0}, truncated{1, 1, 1, 1, 1}, terminated{1, 0, 0, 0, 0};
  const auto flags = [](const bytes& f) { return rlhf::token_flags{f.data(), 5, 0, 1}; };
  const auto cuts = [&](const rlhf::token_flags& ends, bool last_is_given) {
    double found = -1;
    parts::count_cuts<rlhf::host_space>{padded(mask, 1), ends, flags(truncated), last_is_given,
                                        &found}(0);
    return found;
  };
  CHECK(cuts(flags(terminated), false) == 2);
  CHECK(cuts(flags(terminated), true) == 1);
  CHECK(cuts({}, true) == 2);

  const rlhf::serial exec;
  auto run = exec.begin("f");
  const std::string said =
      message_of([&] { parts::refuse_cuts(run, padded(mask, 1), {}, flags(truncated), false); });
  CHECK(said.find("f: next_value: expected a tensor, or truncated tokens that are last") == 0);
  const bytes last{0, 0, 0, 1, 0};
  parts::refuse_cuts(run, padded(mask, 1), {}, flags(last), true);
}

/// Which of its two kernels a scan has run, and with what.
struct plain_kernel {
  using scalar_type = double;
  static constexpr int inputs = 1, outputs = 1, flags = 0;
};
struct episode_kernel {
  using scalar_type = double;
  static constexpr int inputs = 2, outputs = 1, flags = 2;
  static constexpr int next_value = 1, terminated = 0, truncated = 1;
};
struct recorder {
  std::vector<numbers> memory;
  bool episodes = false;
  const std::uint8_t *terminated = nullptr, *truncated = nullptr;
  const double* next_value = nullptr;

  template <class T>
  T* allocate(index n) {
    memory.emplace_back(static_cast<std::size_t>(n));
    return memory.back().data();
  }
  void count(const domain&, double* to) { to[0] = 11; }
  template <class F>
  void for_each(index n, const F& f) {
    for (index i = 0; i < n; ++i) f(i);
  }
  void refuse(const double* count, const char* argument, const char*) {
    rlhf::expects(*count == 0, "scan", argument, "nothing to refuse", *count);
  }
  template <class A>
  void reverse_scan(const plain_kernel&, const A&, double* to) {
    to[rlhf::RLHF_COMPUTE::scan_figures<plain_kernel>::nonfinite] = 1;
  }
  template <class A>
  void reverse_scan(const episode_kernel&, const A& a, double*) {
    episodes = true;
    terminated = a.flag[episode_kernel::terminated].data;
    truncated = a.flag[episode_kernel::truncated].data;
    next_value = a.in[episode_kernel::next_value].data;
  }
};
struct scan_config {
  rlhf::nonfinite_policy nonfinite = rlhf::nonfinite_policy::propagate;
  hole_mode holes = hole_mode::skip;
  hole_reward reward_at_hole = hole_reward::drop;
};

struct scanned {
  recorder run;
  double tokens, nonfinite;
};
scanned scan(const domain& d, const parts::time_steps<double>& steps, const scan_config& config) {
  recorder run;
  const rlhf::token_input<double> observed[] = {steps.reward};
  bool asked = false;
  const double* const figures =
      parts::scan_time_steps(run, d, steps, observed, config, plain_kernel(), episode_kernel(),
                             [&](auto& a) { asked = a.domain.rows == d.rows; });
  CHECK(asked);
  return {run, figures[0], figures[rlhf::token_counts::size + 1]};
}

TEST_CASE("time_steps: the kernel with episodes is run only where one may end inside a row") {
  const bytes mask{1, 0}, flag{0, 0};
  const numbers reward{not_a_number, 2};
  const domain masked = padded(mask, 1);
  domain whole = masked;
  whole.mask = {};
  parts::time_steps<double> steps{};
  steps.reward = {reward.data(), 2, 0, 1, 0};
  CHECK(!scan(masked, steps, {}).run.episodes);
  CHECK(!scan(whole, steps, {.holes = hole_mode::zero}).run.episodes);
  CHECK(scan(masked, steps, {.holes = hole_mode::zero}).run.episodes);

  parts::time_steps<double> ends = steps;
  ends.has_terminated = true;
  ends.terminated = {flag.data(), 2, 0, 1};
  const recorder ended = scan(whole, ends, {}).run;
  CHECK(ended.episodes);
  CHECK(ended.terminated == flag.data());
  parts::time_steps<double> cut = steps;
  cut.has_truncated = true;
  cut.truncated = {flag.data(), 2, 0, 1};
  CHECK(scan(whole, cut, {}).run.truncated == flag.data());
  parts::time_steps<double> bootstrapped = ends;
  bootstrapped.has_terminated = false;
  bootstrapped.has_next_value = true;
  bootstrapped.next_value = steps.reward;
  CHECK(scan(whole, bootstrapped, {}).run.next_value == reward.data());

  const bytes cuts{1, 0};
  cut.truncated = {cuts.data(), 2, 0, 1};
  CHECK(message_of([&] { scan(whole, cut, {}); }).find("scan: next_value: ") == 0);
}

TEST_CASE("time_steps: counts stand before the figures of the scan, with what was dropped") {
  const bytes mask{1, 1};
  const numbers reward{not_a_number, 2};
  parts::time_steps<double> steps{};
  steps.reward = {reward.data(), 2, 0, 1, 0};
  const scanned kept = scan(padded(mask, 1), steps, {});
  CHECK(kept.tokens == 11);
  CHECK(kept.nonfinite == 1);  // the kernel's own
  CHECK(scan(padded(mask, 1), steps, {.nonfinite = rlhf::nonfinite_policy::drop_token}).nonfinite ==
        2);
}

}  // namespace
}  // namespace rlhf_test
