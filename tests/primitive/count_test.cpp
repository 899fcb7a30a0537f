#include "rlhf/primitive/count.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

using rlhf::arrangement;

struct counted {
  double tokens, positions, sequences;
  std::vector<double> row_weight;
  friend bool operator==(const counted&, const counted&) = default;
};

/// What the host counts, alone and on two threads.
counted count(const rlhf::token_domain<rlhf::host_space>& d) {
  const auto on = [&](const auto& exec) {
    auto run = exec.begin("count");
    double counts[rlhf::token_counts::size];
    std::vector<double> weight(static_cast<std::size_t>(d.rows), 7.0);
    run.count(d, counts, weight.data());
    return counted{counts[0], counts[1], counts[2], weight};
  };
  const thread_pool pool{2};
  const counted serial = on(rlhf::serial{});
  CHECK(on(rlhf::parallel<thread_pool>{pool}) == serial);
  return serial;
}

TEST_CASE("count: weights, tokens that have one, and rows that have such a token") {
  rlhf::token_domain<rlhf::host_space> d;
  d.rows = 3, d.columns = 4;
  CHECK(count(d) == counted{12, 12, 3, {4, 4, 4}});

  const std::vector<std::int32_t> length{3, 0, 4};
  d.kind = arrangement::lengths, d.indices = rlhf::index_view<>(length);
  CHECK(count(d) == counted{7, 7, 2, {3, 0, 4}});

  // Beyond a length a mask says nothing, not even NaN.
  const float weight[3][4] = {{0.5f, 0, 2, NAN}, {NAN, 1, 1, 1}, {0, 0, 0, 0}};
  d.mask = rlhf::mask_view<>(weight);
  CHECK(count(d) == counted{2.5, 2, 1, {2.5, 0, 0}});

  const std::uint8_t flags[3][4] = {{1, 0, 255, 1}, {1, 1, 1, 1}, {0, 0, 0, 1}};
  d.mask = rlhf::mask_view<>(flags);
  CHECK(count(d) == counted{3, 3, 2, {2, 0, 1}});

  const std::vector<std::int64_t> offset{0, 3, 3, 7};
  const double packed[] = {0.5, 0, 2, 0, 0, 0, 3};
  d.kind = arrangement::packed, d.indices = rlhf::index_view<>(offset), d.columns = 7;
  d.mask = rlhf::mask_view<>(packed);
  CHECK(count(d) == counted{5.5, 3, 2, {2.5, 0, 3}});

  d = {};
  CHECK(count(d) == counted{0, 0, 0, {}});
}

}  // namespace
}  // namespace rlhf_test
