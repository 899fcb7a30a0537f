#include "rlhf/primitive/group_reduce.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

using rlhf::group_size;

/// Writes to each sample the first row of its group and its place in it; adds up groups and
/// samples.
struct census {
  index* first;
  index* place;
  struct partial {
    double groups = 0, samples = 0;
    friend partial operator+(const partial& a, const partial& b) {
      return {a.groups + b.groups, a.samples + b.samples};
    }
    void write(double* to) const { to[0] = groups, to[1] = samples; }
  };
  partial operator()(const rlhf::sample_group& group) const {
    for (index k = 0; k < group.size(); ++k) first[group[k]] = group[0], place[group[k]] = k;
    return {1, static_cast<double>(group.size())};
  }
};

template <class I, class Exec>
void check_ids(const std::vector<I>& id, const Exec& exec) {
  std::map<I, std::vector<index>> wanted;
  for (std::size_t i = 0; i < id.size(); ++i) wanted[id[i]].push_back(static_cast<index>(i));
  std::vector<index> first(id.size(), -1), place(id.size(), -1);
  double figures[2] = {7, 7};
  const auto groups =
      rlhf::bind_groups<rlhf::host_space>("test", static_cast<index>(id.size()), {}, id);
  exec.begin("test").group_reduce(groups, census{first.data(), place.data()}, figures);
  CHECK(figures[0] == static_cast<double>(wanted.size()));
  CHECK(figures[1] == static_cast<double>(id.size()));
  bool right = true;
  for (const auto& [name, members] : wanted)
    for (std::size_t k = 0; k < members.size(); ++k)
      right = right && first[static_cast<std::size_t>(members[k])] == members[0] &&
              place[static_cast<std::size_t>(members[k])] == static_cast<index>(k);
  CHECK(right);
}

TEST_CASE(
    "group_reduce: ids in any order, of any value, put samples together in the order of their "
    "rows") {
  const thread_pool pool{3};
  const auto check = [&](const auto& id) {
    check_ids(id, rlhf::serial{});
    check_ids(id, rlhf::parallel{pool});
  };
  check(std::vector<std::int32_t>{});
  check(std::vector<std::int32_t>{5});
  check(std::vector<std::int32_t>{1, 1, 2, 2, 2, 9});
  check(std::vector<std::int32_t>{9, 9, 3, -1, -1});
  check(std::vector<std::int32_t>{3, 3, 9, 9, 1});     // runs, no id comes back
  check(std::vector<std::int32_t>{3, 1, 3, 1, 2, 3});  // some do
  check(std::vector<std::int64_t>{INT64_MAX, INT64_MIN, INT64_MAX, 0, INT64_MIN});
  random_numbers random(1);
  for (int round = 0; round < 40; ++round) {
    std::vector<std::int64_t> id;
    const index n = random.below(700), names = 1 + random.below(90);
    while (static_cast<index>(id.size()) < n) {
      const std::int64_t name = static_cast<std::int64_t>(random.below(names)) * 1000003 - 50000;
      for (index k = random.below(4); k >= 0 && static_cast<index>(id.size()) < n; --k)
        id.push_back(name);
    }
    check(id);
  }
}

TEST_CASE("group_reduce: groups of one size lie side by side") {
  std::vector<index> first(12), place(12);
  double figures[2];
  const auto groups = rlhf::bind_groups<rlhf::host_space>("test", 12, group_size{4}, {});
  rlhf::serial{}.begin("test").group_reduce(groups, census{first.data(), place.data()}, figures);
  CHECK(figures[0] == 3);
  for (std::size_t i = 0; i < 12; ++i) {
    CHECK(first[i] == static_cast<index>(i / 4 * 4));
    CHECK(place[i] == static_cast<index>(i % 4));
  }
}

TEST_CASE("group_reduce: one of a size and ids, fit for the batch") {
  const std::vector<std::int32_t> id{1, 2, 3};
  const auto says = [&](const char* what, const auto& call) {
    const std::string message = message_of(call);
    INFO(message);
    CHECK(message.find(what) != std::string::npos);
  };
  using rlhf::bind_groups;
  using rlhf::host_space;
  says("group_id", [&] { bind_groups<host_space>("test", 3, {}, {}); });
  says("group_id", [&] { bind_groups<host_space>("test", 4, {}, id); });
  says("group_id", [&] { bind_groups<host_space>("test", 3, group_size{3}, id); });
  says("group_size", [&] { bind_groups<host_space>("test", 4, group_size{3}, {}); });
  says("group_size", [&] { bind_groups<host_space>("test", 3, group_size{-3}, {}); });
}

}  // namespace
}  // namespace rlhf_test
