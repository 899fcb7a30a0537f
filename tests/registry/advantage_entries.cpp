#include "rlhf/advantage/discounted_returns.hpp"
#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/advantage/leave_one_out_advantage.hpp"
#include "tests/registry/registry.hpp"

namespace rlhf_test {
namespace {

/// What both estimators over time walk through.
struct time_variant {
  bool bootstrap = false, next_value = false, terminated = false, truncated = false;
  rlhf::hole_mode holes = rlhf::hole_mode::skip;
  rlhf::hole_reward reward = rlhf::hole_reward::drop;
};
constexpr int time_variants = 8;
inline time_variant time_variant_of(int v) {
  using rlhf::hole_mode;
  using rlhf::hole_reward;
  switch (v) {
    case 1:
      return {.bootstrap = true};
    case 2:
      return {.bootstrap = true, .terminated = true};
    case 3:
      return {.next_value = true, .terminated = true, .truncated = true};
    case 4:
      return {.bootstrap = true, .holes = hole_mode::zero};
    case 5:
      return {.terminated = true, .holes = hole_mode::count};
    case 6:
      return {.bootstrap = true, .reward = hole_reward::to_previous};
    case 7:
      return {.next_value = true, .truncated = true, .holes = hole_mode::zero};
    default:
      return {};
  }
}

entry estimator(const char* name, bool with_value) {
  entry e;
  e.name = name;
  e.variants = time_variants;
  e.weighs = e.scales = false;
  e.inputs = [with_value](int variant) {
    const time_variant v = time_variant_of(variant);
    std::vector<input_spec> s{{"reward", extent::token, -1, 1}};
    if (with_value) s.push_back({"value", extent::token, -1, 1});
    if (v.next_value) s.push_back({"next_value", extent::token, -1, 1, nullptr, true});
    if (v.bootstrap) s.push_back({"bootstrap_value", extent::row, -1, 1, nullptr, true});
    if (v.terminated) s.push_back({"terminated", extent::token, 0, 0.1, nullptr, true, kind::flag});
    if (v.truncated) s.push_back({"truncated", extent::token, 0, 0.1, nullptr, true, kind::flag});
    return s;
  };
  e.shape_inputs = [](problem& p, random_numbers&) {
    // Rewards of holes are read as far as the layout says there are tokens: nothing lies beyond.
    if (time_variant_of(p.variant).reward == rlhf::hole_reward::to_previous)
      for (index i = 0; i < p.rows; ++i)
        for (index j = p.length[static_cast<std::size_t>(i)]; j < p.columns; ++j)
          p.inputs["reward"][static_cast<std::size_t>(i * p.columns + j)] = 0;
  };
  e.homogeneous = [with_value](int variant) {
    const time_variant v = time_variant_of(variant);
    std::vector<std::string> s{"reward"};
    if (with_value) s.push_back("value");
    if (v.next_value) s.push_back("next_value");
    if (v.bootstrap) s.push_back("bootstrap_value");
    return s;
  };
  e.reads_holes = [](int variant) {
    const time_variant v = time_variant_of(variant);
    return v.holes == rlhf::hole_mode::count || v.reward == rlhf::hole_reward::to_previous;
  };
  e.refused = {{"gamma", {-0.1, 1.1, not_a_number}}};
  if (with_value) e.refused.push_back({"lambda", {-0.1, 1.1, not_a_number}});
  return e;
}

template <class Result>
figures read_estimate(const Result& r) {
  figures f;
  put(f, "returns", r.returns);
  put(f, "tokens", r.tokens);
  put(f, "positions", r.positions);
  put(f, "sequences", r.sequences);
  put(f, "nonfinite", r.nonfinite);
  return f;
}

struct discounted_returns {
  static entry describe() {
    entry e = estimator("discounted_returns", false);
    e.outputs = [](int) { return std::vector<output_spec>{{"returns"}}; };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const time_variant v = time_variant_of(a.p->variant);
    return rlhf::discounted_returns<T>({.reward = a.in("reward"),
                                        .next_value = a.in("next_value"),
                                        .bootstrap_value = a.in("bootstrap_value"),
                                        .terminated = a.flag("terminated"),
                                        .truncated = a.flag("truncated"),
                                        .mask = a.mask(),
                                        .layout = a.layout()},
                                       {.returns = a.out("returns")},
                                       {.gamma = a.number("gamma", 0.9375),
                                        .holes = v.holes,
                                        .reward_at_hole = v.reward,
                                        .nonfinite = a.nonfinite},
                                       exec);
  }
  static figures read(const rlhf::discounted_returns_result& r) { return read_estimate(r); }
};

struct generalized_advantage_estimation {
  static entry describe() {
    entry e = estimator("generalized_advantage_estimation", true);
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"advantage"}};
      if (v != 1) s.push_back({"returns"});
      return s;
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const time_variant v = time_variant_of(a.p->variant);
    return rlhf::generalized_advantage_estimation<T>(
        {.reward = a.in("reward"),
         .value = a.in("value"),
         .next_value = a.in("next_value"),
         .bootstrap_value = a.in("bootstrap_value"),
         .terminated = a.flag("terminated"),
         .truncated = a.flag("truncated"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.advantage = a.out("advantage"), .returns = a.out("returns")},
        {.gamma = a.number("gamma", 0.9375),
         .lambda = a.number("lambda", 0.875),
         .holes = v.holes,
         .reward_at_hole = v.reward,
         .nonfinite = a.nonfinite},
        exec);
  }
  static figures read(const rlhf::generalized_advantage_estimation_result& r) {
    figures f = read_estimate(r);
    put(f, "advantage", r.advantage);
    return f;
  }
};

entry group_estimator(const char* name) {
  entry e;
  e.name = name;
  e.tokens = e.masked = e.per_row = e.scales = e.screens = false;
  e.nan_is_data = true;
  e.inputs = [](int) { return std::vector<input_spec>{{"reward", extent::row, -2, 2}}; };
  e.shape_inputs = draw_groups;
  return e;
}
inline figures read_groups(const rlhf::group_advantage_result& r) {
  figures f;
  put(f, "reward", r.reward);
  put(f, "advantage", r.advantage);
  put(f, "min:reward", r.rewards.low);
  put(f, "max:reward", r.rewards.high);
  put(f, "min:advantage", r.advantages.low);
  put(f, "max:advantage", r.advantages.high);
  put(f, "group_deviation", r.group_deviation);
  put(f, "groups", r.groups);
  put(f, "degenerate_groups", r.degenerate_groups);
  put(f, "single_groups", r.single_groups);
  put(f, "own:all_low_groups", r.all_low_groups);
  put(f, "own:all_high_groups", r.all_high_groups);
  put(f, "unscorable", r.unscorable);
  put(f, "nonfinite", r.nonfinite);
  return f;
}

/// Variants: the scales, by all or by the others; epsilon 0.
struct group_relative_advantage {
  static rlhf::group_scale scale(int v) { return static_cast<rlhf::group_scale>(v % 3); }
  static entry describe() {
    entry e = group_estimator("group_relative_advantage");
    e.variants = 6;
    e.outputs = [](int v) {
      std::vector<output_spec> s{
          {"advantage", extent::row, scale(v) == rlhf::group_scale::none ? 1 : 0},
          {"baseline", extent::row}};
      if (v < 3) s.push_back({"deviation", extent::row});
      return s;
    };
    e.homogeneous = [](int v) {  // but for 3: two samples leave each other no spread to divide by
      return v == 3 ? std::vector<std::string>{} : std::vector<std::string>{"reward"};
    };
    e.refused = {{"epsilon", {-1, not_a_number, infinite}}, {"ddof", {-1, not_a_number, infinite}}};
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::group_relative_advantage<T>(
        {.reward = a.in("reward"), .group_id = a.id("group_id")},
        {.advantage = a.out("advantage"),
         .baseline = a.out("baseline"),
         .deviation = a.out("deviation")},
        {.scale = scale(v),
         .statistics = v < 3 ? rlhf::group_statistics::all : rlhf::group_statistics::leave_one_out,
         .epsilon = a.number("epsilon", 0),
         .ddof = a.number("ddof", v % 2)},
        exec);
  }
  static figures read(const rlhf::group_relative_advantage_result& r) { return read_groups(r); }
};

struct leave_one_out_advantage {
  static entry describe() {
    entry e = group_estimator("leave_one_out_advantage");
    e.variants = 2;
    e.outputs = [](int) {
      return std::vector<output_spec>{{"advantage", extent::row}, {"baseline", extent::row}};
    };
    e.homogeneous = [](int) { return std::vector<std::string>{"reward"}; };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::leave_one_out_advantage<T>(
        {.reward = a.in("reward"), .group_id = a.id("group_id")},
        {.advantage = a.out("advantage"), .baseline = a.out("baseline")},
        {.single = a.p->variant == 0 ? rlhf::single_group::zero : rlhf::single_group::raw}, exec);
  }
  static figures read(const rlhf::leave_one_out_advantage_result& r) { return read_groups(r); }
};

const registrar a(make_entry<discounted_returns>());
const registrar b(make_entry<generalized_advantage_estimation>());
const registrar c(make_entry<group_relative_advantage>());
const registrar d(make_entry<leave_one_out_advantage>());

}  // namespace
}  // namespace rlhf_test
