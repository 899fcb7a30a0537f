#include "bench/cuda/measure.hpp"

#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "rlhf/value/clipped_value_loss.hpp"

namespace rlhf_bench {

namespace {

enum class given { lengths, mask, packed };

/// Which tokens count, in one of three ways.
struct tokens {
  index rows, columns;
  given how;
  array<std::int32_t> length;
  array<std::uint8_t> mask;

  tokens(index r, index c, given h, std::uint32_t seed)
      : rows(r), columns(c), how(h), length(r + 1), mask(h == given::mask ? r * c : 1) {
    if (how == given::packed)
      fill_steps(length.data(), rows + 1, 0, static_cast<std::int32_t>(columns));
    else
      fill_steps(length.data(), rows, static_cast<std::int32_t>(columns), 0);
    if (how == given::mask) fill_holes(mask.data(), rows * columns, 0.2f, seed);
  }
  rlhf::shape shape() const {
    return how == given::packed ? rlhf::shape(rows * columns) : rlhf::shape(rows, columns);
  }
  rlhf::sequence_layout<rlhf::device_space> layout() const {
    using rlhf::device_space;
    if (how == given::lengths) return rlhf::lengths<device_space>(length.data(), rlhf::shape(rows));
    if (how == given::packed)
      return rlhf::packed<device_space>(length.data(), rlhf::shape(rows + 1));
    return {};
  }
  rlhf::mask_view<rlhf::device_space> flags() const {
    if (how != given::mask) return {};
    return {mask.data(), shape()};
  }
  double count() const { return static_cast<double>(rows * columns); }
};

// Read log_prob, old_log_prob, advantage; write d_log_prob: 16. A mask: 1 more.
constexpr double policy_bytes = 16;

struct policy_set : tokens {
  uniform log_prob, old_log_prob, advantage;
  array<float> gradient;
  policy_set(index r, index c, given h, std::uint32_t seed)
      : tokens(r, c, h, seed),
        log_prob(r * c, -3, 0, 3 * seed),
        old_log_prob(r * c, -3, 0, 3 * seed + 1),
        advantage(r * c, -1, 1, 3 * seed + 2),
        gradient(r * c) {}
  template <class Exec>
  void call(const Exec& exec) const {
    rlhf::clipped_surrogate_loss<float>({.log_prob = {log_prob.data(), shape()},
                                         .old_log_prob = {old_log_prob.data(), shape()},
                                         .advantage = {advantage.data(), shape()},
                                         .mask = flags(),
                                         .layout = layout()},
                                        {.d_log_prob = {gradient.data(), shape()}},
                                        {.over = rlhf::aggregation::token_mean(count())}, exec);
  }
};

// Read value, old_value, returns; write d_value: 16.
constexpr double value_bytes = 16;

struct value_set : tokens {
  uniform value, old_value, returns;
  array<float> gradient;
  value_set(index r, index c, given h, std::uint32_t seed)
      : tokens(r, c, h, seed),
        value(r * c, -1, 1, 3 * seed),
        old_value(r * c, -1, 1, 3 * seed + 1),
        returns(r * c, -1, 1, 3 * seed + 2),
        gradient(r * c) {}
  template <class Exec>
  void call(const Exec& exec) const {
    rlhf::clipped_value_loss<float>({.value = {value.data(), shape()},
                                     .old_value = {old_value.data(), shape()},
                                     .returns = {returns.data(), shape()},
                                     .mask = flags(),
                                     .layout = layout()},
                                    {.d_value = {gradient.data(), shape()}},
                                    {.over = rlhf::aggregation::token_mean(count())}, exec);
  }
};

// Read value twice, for the moments and for the result; write: 12. A mask is read twice too: 2.
constexpr double whiten_bytes = 12;

struct whiten_set : tokens {
  uniform value;
  array<float> whitened;
  whiten_set(index r, index c, given h, std::uint32_t seed)
      : tokens(r, c, h, seed), value(r * c, -1, 1, seed), whitened(r * c) {}
  template <class Exec>
  void call(const Exec& exec) const {
    rlhf::whiten<float>({.value = {value.data(), shape()}, .mask = flags(), .layout = layout()},
                        {.whitened = {whitened.data(), shape()}}, {}, exec);
  }
};

template <class Set>
void add(table& to, const char* name, index rows, index columns, given how, double bytes,
         double mask_bytes, double goal, double goal_us = 0) {
  const char* const suffix = how == given::mask     ? ", u8 mask"
                             : how == given::packed ? ", packed"
                                                    : ", lengths";
  to.add({.family = "token losses",
          .operation = std::string(name) + suffix,
          .size = std::to_string(rows) + "x" + std::to_string(columns),
          .items = static_cast<double>(rows * columns),
          .bytes_per_item = bytes + (how == given::mask ? mask_bytes : 0),
          .goal = goal,
          .goal_us = goal_us,
          .goal_launches = goal_us > 0 ? (how == given::mask ? 2 : 1) : 0},
         [=](std::uint32_t seed) { return std::make_shared<Set>(rows, columns, how, seed); });
}

}  // namespace

void token_losses(table& to) {
  for (const given how : {given::lengths, given::packed, given::mask}) {
    add<policy_set>(to, "clipped_surrogate_loss", 2048, 8192, how, policy_bytes, 1, 0.90);
    add<policy_set>(to, "clipped_surrogate_loss", 64, 1024, how, policy_bytes, 1, 0, 4);
    if (to.quick()) continue;
    add<policy_set>(to, "clipped_surrogate_loss", 1 << 20, 16, how, policy_bytes, 1, 0.90);
    add<policy_set>(to, "clipped_surrogate_loss", 16, 1 << 20, how, policy_bytes, 1, 0.90);
  }
  for (const given how : {given::lengths, given::mask}) {
    add<value_set>(to, "clipped_value_loss", 2048, 8192, how, value_bytes, 1, 0.90);
    add<whiten_set>(to, "whiten", 2048, 8192, how, whiten_bytes, 2, 0.90);
  }
}

}  // namespace rlhf_bench
