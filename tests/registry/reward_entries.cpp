#include <algorithm>

#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/reward/ensemble.hpp"
#include "tests/registry/pairs.hpp"

namespace rlhf_test {
namespace {

/// Variants: plain; margin; margin and target; smoothing; centering; sum instead of mean.
struct bradley_terry {
  static double smoothing(int v) { return v == 3 ? 0.1 : 0; }
  static double centering(int v) { return v == 4 ? 0.01 : 0; }
  static entry describe() {
    entry e = pair_entry("bradley_terry_loss");
    e.variants = 6;
    e.convex = true;
    e.inputs = [](int v) {
      std::vector<input_spec> s{{"chosen_reward", extent::token, -4, 4, "d_chosen_reward"},
                                {"rejected_reward", extent::token, -4, 4, "d_rejected_reward"}};
      if (v == 1 || v == 2) s.push_back({"margin", extent::token, 0, 2, nullptr, true});
      if (v == 2) s.push_back({"target", extent::token, 0, 1, nullptr, true});
      return s;
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"d_chosen_reward"}, {"d_rejected_reward"}};
      if (v % 2 == 0) s.push_back({"pair_loss"});
      return s;
    };
    e.refused = {{"label_smoothing", {-0.1, 0.6, not_a_number}},
                 {"centering", {-1, not_a_number, infinite}}};
    e.reference = [](const problem& p, const quad_inputs& x) {
      return pair_reference(p, p.variant != 5, [&](index i) {
        const quad chosen = quad_at(p, x, "chosen_reward", i, 0);
        const quad rejected = quad_at(p, x, "rejected_reward", i, 0);
        const quad margin = quad_at(p, x, "margin", i, 0);
        const quad flipped = smoothing(p.variant);
        const quad target =
            (p.has("target") ? quad_at(p, x, "target", i, 0) : 1) * (1 - 2 * flipped) + flipped;
        const quad sum = chosen + rejected;
        const quad z = chosen - rejected - margin;
        return target * quad_softplus(-z) + (1 - target) * quad_softplus(z) +
               static_cast<quad>(centering(p.variant)) * sum * sum;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::bradley_terry_loss<T>(
        {.chosen_reward = a.in("chosen_reward"),
         .rejected_reward = a.in("rejected_reward"),
         .margin = a.in("margin"),
         .target = a.in("target"),
         .weight = a.mask()},
        {.d_chosen_reward = a.out("d_chosen_reward"),
         .d_rejected_reward = a.out("d_rejected_reward"),
         .pair_loss = a.out("pair_loss"),
         .upstream = a.upstream()},
        {.label_smoothing = a.number("label_smoothing", smoothing(v)),
         .centering = a.number("centering", centering(v)),
         .over = reduction_of(a, v != 5),
         .nonfinite = a.nonfinite},
        exec);
  }
  static figures read(const rlhf::bradley_terry_result& r) { return read_pairs(r); }
};

/// Variant = how the members are combined; 5: again the standard deviation, ddof 1. The gradient is
/// that of the sum over the batch of upstream · combined.
struct ensemble {
  static rlhf::ensemble how(int v) { return static_cast<rlhf::ensemble>(v < 5 ? v : 4); }
  static double coefficient(int v) { return v >= 3 ? 0.5 : 0; }
  static double ddof(int v) { return v == 5 ? 1 : 0; }
  static entry describe() {
    entry e;
    e.name = "ensemble_reward";
    e.variants = 6;
    e.tokens = e.masked = e.screens = false;
    e.nan_is_data = true;
    e.inputs = [](int) {
      return std::vector<input_spec>{{"reward", extent::member, -2, 2, "d_reward"}};
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"combined", extent::row}, {"disagreement", extent::row}};
      s.push_back({"d_reward", extent::member, v == 3 ? 1 : 0});
      return s;
    };
    e.homogeneous = [](int v) {
      return v == 3 ? std::vector<std::string>{} : std::vector<std::string>{"reward"};
    };
    e.refused = {{"coefficient", {-1, not_a_number, infinite}, 4},
                 {"coefficient", {0.5}, 0},
                 {"ddof", {-1, 2, not_a_number}, 4}};
    e.reference = [](const problem& p, const quad_inputs& x) {
      quad total = 0;
      for (index b = 0; b < p.rows; ++b) {
        quad r[problem_members];
        quad mean = 0, squares = 0;
        for (index k = 0; k < problem_members; ++k) mean += r[k] = quad_at(p, x, "reward", b, k);
        mean /= problem_members;
        for (const quad y : r) squares += (y - mean) * (y - mean);
        const quad variance = squares / (problem_members - static_cast<quad>(ddof(p.variant)));
        const quad c = coefficient(p.variant);
        switch (how(p.variant)) {
          case rlhf::ensemble::mean:
            total += mean;
            break;
          case rlhf::ensemble::worst_case:
            total += *std::min_element(r, r + problem_members);
            break;
          case rlhf::ensemble::median:
            std::sort(r, r + problem_members);
            total += r[problem_members / 2];
            break;
          case rlhf::ensemble::uncertainty_weighted:
            total += mean - c * variance;
            break;
          case rlhf::ensemble::mean_minus_std:
            total += mean - c * sqrtq(variance);
            break;
        }
      }
      return total;
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::ensemble_reward<T>({.reward = a.in("reward")},
                                    {.combined = a.out("combined"),
                                     .disagreement = a.out("disagreement"),
                                     .d_reward = a.out("d_reward"),
                                     .upstream = a.upstream()},
                                    {.combine = how(v),
                                     .coefficient = a.number("coefficient", coefficient(v)),
                                     .ddof = a.number("ddof", ddof(v))},
                                    exec);
  }
  static figures read(const rlhf::ensemble_result& r) {
    figures f;
    put(f, "combined", r.combined);
    put(f, "disagreement", r.disagreement);
    put(f, "unscorable", r.unscorable);
    put(f, "missing", r.missing);
    put(f, "sequences", r.sequences);
    return f;
  }
};

const registrar a(make_entry<bradley_terry>());
const registrar b(make_entry<ensemble>());

}  // namespace
}  // namespace rlhf_test
