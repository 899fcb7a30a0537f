#include "bench/cuda/measure.hpp"

#include "rlhf/advantage/discounted_returns.hpp"
#include "rlhf/advantage/generalized_advantage_estimation.hpp"

namespace rlhf_bench {

namespace {

// Read reward, value; write advantage, returns: 16. A mask: 1 more.
constexpr double gae_bytes = 16;

struct gae_set {
  index rows, columns;
  uniform reward, value;
  array<float> advantage, returns;
  array<std::uint8_t> mask;
  bool masked;
  gae_set(index r, index c, bool m, std::uint32_t seed)
      : rows(r),
        columns(c),
        reward(r * c, -1, 1, 2 * seed),
        value(r * c, -1, 1, 2 * seed + 1),
        advantage(r * c),
        returns(r * c),
        mask(m ? r * c : 1),
        masked(m) {
    if (m) fill_holes(mask.data(), r * c, 0.2f, seed);
  }
  rlhf::mask_view<rlhf::device_space> flags() const {
    if (!masked) return {};
    return {mask.data(), rlhf::shape(rows, columns)};
  }
  template <class Exec>
  void call(const Exec& exec) const {
    const rlhf::shape shape(rows, columns);
    rlhf::generalized_advantage_estimation<float>(
        {.reward = {reward.data(), shape}, .value = {value.data(), shape}, .mask = flags()},
        {.advantage = {advantage.data(), shape}, .returns = {returns.data(), shape}},
        {.gamma = 0.99, .lambda = 0.95}, exec);
  }
};

// Read reward; write returns: 8.
constexpr double returns_bytes = 8;

struct returns_set {
  index rows, columns;
  uniform reward;
  array<float> returns;
  returns_set(index r, index c, std::uint32_t seed)
      : rows(r), columns(c), reward(r * c, -1, 1, seed), returns(r * c) {}
  template <class Exec>
  void call(const Exec& exec) const {
    const rlhf::shape shape(rows, columns);
    rlhf::discounted_returns<float>({.reward = {reward.data(), shape}},
                                    {.returns = {returns.data(), shape}}, {.gamma = 0.99}, exec);
  }
};

}  // namespace

void scans(table& to) {
  const index all = index{1} << 24;
  for (const index columns : {8, 64, 512, 8192, 1 << 18, 1 << 20}) {
    const index rows = all / columns;
    const std::string size = std::to_string(rows) + "x" + std::to_string(columns);
    const auto items = static_cast<double>(all);
    to.add(
        {.family = "scans",
         .operation = "generalized_advantage_estimation",
         .size = size,
         .items = items,
         .bytes_per_item = gae_bytes,
         .goal = 0.85},
        [=](std::uint32_t seed) { return std::make_shared<gae_set>(rows, columns, false, seed); });
    if (to.quick()) continue;
    to.add(
        {.family = "scans",
         .operation = "  with a u8 mask of 20 % holes",
         .size = size,
         .items = items,
         .bytes_per_item = gae_bytes + 1},
        [=](std::uint32_t seed) { return std::make_shared<gae_set>(rows, columns, true, seed); });
    to.add({.family = "scans",
            .operation = "discounted_returns",
            .size = size,
            .items = items,
            .bytes_per_item = returns_bytes},
           [=](std::uint32_t seed) { return std::make_shared<returns_set>(rows, columns, seed); });
  }
}

}  // namespace rlhf_bench
