#include "rlhf/preference/dpo.hpp"
#include "tests/registry/pairs.hpp"

namespace rlhf_test {
namespace {

/// Variants: sigmoid; with a margin; conservative; robust; without a reference; sum; and, per token,
/// 6: over the answer's length.
template <bool Tokens>
struct dpo {
  static rlhf::dpo_variant kind_of(int v) {
    using rlhf::dpo_variant;
    return v == 2 ? dpo_variant::conservative : v == 3 ? dpo_variant::robust : dpo_variant::sigmoid;
  }
  static double smoothing(int v) { return v == 2 || v == 3 ? 0.1 : 0; }
  static bool reference_free(int v) { return v == 4; }
  static bool normalised(int v) { return v == 6; }

  static entry describe() {
    entry e = pair_entry(Tokens ? "dpo_loss, per token" : "dpo_loss");
    e.tokens = Tokens;
    e.variants = Tokens ? 7 : 6;
    e.convex = !Tokens;
    if (Tokens) {
      e.mask_name = "chosen_mask";
      e.layout_name = "chosen_layout";
      e.weighs = false;  // the mask is of tokens, while figures are over pairs
    }
    e.inputs = [](int v) {
      const double low = Tokens ? -3 : -30, high = Tokens ? -0.1 : -10;
      std::vector<input_spec> s{
          {"chosen_log_prob", extent::token, low, high, "d_chosen_log_prob"},
          {"rejected_log_prob", extent::token, low, high, "d_rejected_log_prob"}};
      s[1].leads = Tokens;  // the two answers may differ in width
      if (!reference_free(v)) {
        s.push_back({"ref_chosen_log_prob", extent::token, low, high});
        s.push_back({"ref_rejected_log_prob", extent::token, low, high});
      }
      if (v == 1)
        s.push_back({"margin", Tokens ? extent::row : extent::token, 0, 1, nullptr, true});
      return s;
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"d_chosen_log_prob"}, {"d_rejected_log_prob"}};
      if (v % 2 == 0) s.push_back({"pair_loss", Tokens ? extent::row : extent::token});
      return s;
    };
    e.refused = {{"beta", {0, -1, not_a_number, infinite}},
                 {"label_smoothing", {0.1}, 0},
                 {"label_smoothing", {-0.1, 0.6, not_a_number}, 2},
                 {"label_smoothing", {0.5}, 3}};
    e.reference = [](const problem& p, const quad_inputs& x) {
      const int v = p.variant;
      const auto answer = [&](const char* name, index i) {
        quad sum = 0, n = 0;
        for (index j = 0; j < p.columns; ++j)
          if (p.w(i, j) > 0) {
            sum += (Tokens ? p.w(i, j) : 1) * quad_at(p, x, name, i, j);
            n += p.w(i, j);
          }
        return normalised(v) && n > 0 ? sum / n : sum;
      };
      problem pairs = p;
      if (Tokens) {  // one weight per pair
        pairs.columns = 1;
        pairs.weight.clear();
        for (index i = 0; i < p.rows; ++i)
          pairs.weight.push_back(p.counts_at(extent::row, i, 0) ? 1 : 0);
      }
      return pair_reference(pairs, v != 5, [&](index i) {
        const quad z = static_cast<quad>(0.25) *
                           ((answer("chosen_log_prob", i) - answer("ref_chosen_log_prob", i)) -
                            (answer("rejected_log_prob", i) - answer("ref_rejected_log_prob", i))) -
                       quad_at(p, x, "margin", i, 0);
        const quad flipped = smoothing(v), win = quad_softplus(-z), lose = quad_softplus(z);
        return kind_of(v) == rlhf::dpo_variant::robust
                   ? ((1 - flipped) * win - flipped * lose) / (1 - 2 * flipped)
                   : (1 - flipped) * win + flipped * lose;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    rlhf::dpo_batch<T> batch{.chosen_log_prob = a.in("chosen_log_prob"),
                             .rejected_log_prob = a.in("rejected_log_prob"),
                             .ref_chosen_log_prob = a.in("ref_chosen_log_prob"),
                             .ref_rejected_log_prob = a.in("ref_rejected_log_prob"),
                             .margin = a.in("margin"),
                             .weight = a.mask()};
    if (Tokens) {
      batch.weight = a.row_mask();
      batch.chosen_mask = batch.rejected_mask = a.mask();
      batch.chosen_layout = batch.rejected_layout = a.layout();
    }
    return rlhf::dpo_loss<T>(batch,
                             {.d_chosen_log_prob = a.out("d_chosen_log_prob"),
                              .d_rejected_log_prob = a.out("d_rejected_log_prob"),
                              .pair_loss = a.out("pair_loss"),
                              .upstream = a.upstream()},
                             {.beta = a.number("beta", 0.25),
                              .variant = kind_of(v),
                              .label_smoothing = a.number("label_smoothing", smoothing(v)),
                              .reference_free = reference_free(v),
                              .length_normalised = normalised(v),
                              .over = reduction_of(a, v != 5),
                              .nonfinite = a.nonfinite},
                             exec);
  }
  static figures read(const rlhf::dpo_result& r) { return read_pairs(r); }
};

/// A formula of the user's own over pairs, without slopes: dual numbers find them.
struct own_formula {
  static constexpr bool uses_reference = true;
  template <rlhf::lane V>
  V operator()(const rlhf::scored_pair<V>& p) const {
    const V z = (p.chosen - p.ref_chosen) - (p.rejected - p.ref_rejected) - p.margin;
    return p.target * rlhf::math::softplus(-z) + p.rejected * p.rejected;
  }
};
struct own_pair_loss {
  static entry describe() {
    entry e = pair_entry("pair_loss");
    e.convex = true;
    e.inputs = [](int) {
      return std::vector<input_spec>{{"chosen_score", extent::token, -3, 3, "d_chosen_score"},
                                     {"rejected_score", extent::token, -3, 3, "d_rejected_score"},
                                     {"ref_chosen_score", extent::token, -3, 3},
                                     {"ref_rejected_score", extent::token, -3, 3},
                                     {"margin", extent::token, 0, 1, nullptr, true},
                                     {"target", extent::token, 0, 1, nullptr, true}};
    };
    e.outputs = [](int) {
      return std::vector<output_spec>{{"d_chosen_score"}, {"d_rejected_score"}, {"pair_loss"}};
    };
    e.reference = [](const problem& p, const quad_inputs& x) {
      return pair_reference(p, true, [&](index i) {
        const auto at = [&](const char* name) { return quad_at(p, x, name, i, 0); };
        const quad rejected = at("rejected_score");
        const quad z = (at("chosen_score") - at("ref_chosen_score")) -
                       (rejected - at("ref_rejected_score")) - at("margin");
        return at("target") * quad_softplus(-z) + rejected * rejected;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::pair_loss<T>(own_formula(),
                              {.chosen_score = a.in("chosen_score"),
                               .rejected_score = a.in("rejected_score"),
                               .ref_chosen_score = a.in("ref_chosen_score"),
                               .ref_rejected_score = a.in("ref_rejected_score"),
                               .margin = a.in("margin"),
                               .target = a.in("target"),
                               .weight = a.mask()},
                              {.d_chosen_score = a.out("d_chosen_score"),
                               .d_rejected_score = a.out("d_rejected_score"),
                               .pair_loss = a.out("pair_loss"),
                               .upstream = a.upstream()},
                              {.over = reduction_of(a, true), .nonfinite = a.nonfinite}, exec);
  }
  static figures read(const rlhf::pair_result& r) { return read_pairs(r); }
};

const registrar a(make_entry<dpo<false>>());
const registrar b(make_entry<dpo<true>>());
const registrar c(make_entry<own_pair_loss>());

}  // namespace
}  // namespace rlhf_test
