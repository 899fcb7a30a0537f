// Every slope that a formula writes out against the one that dual numbers find in its loss, in each
// kind of lane, over random numbers and extremes.

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "rlhf/kl/kl_estimator.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/preference/dpo.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/value/clipped_value_loss.hpp"
#include "tests/support/backends.hpp"

using namespace rlhf_test;
namespace formula = rlhf::formula;
namespace math = rlhf::math;

namespace {

// Each formula here: `inputs` numbers, the first `slopes` of them differentiable. kink(x) says
// where the loss has none, or where its pieces meet.

struct reinforce {
  static constexpr int inputs = 2, slopes = 1;
  template <class T>
  static bool kink(const T*) {
    return false;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const auto t = formula::reinforce(x[0], x[1]);
    d[0] = t.d_log_prob;
    return t.loss;
  }
};

/// Of log_prob, old_log_prob, advantage.
template <int Dual>
struct clipped_surrogate {
  static constexpr int inputs = 3, slopes = 1;
  template <class T>
  static bool kink(const T* x) {
    return std::abs(x[0] - x[1]) >= 80;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const V ratio = math::exp(math::bounded(x[0] - x[1]));
    const auto t = formula::clipped_surrogate(
        ratio, x[2], math::constant<V>(0.8), math::constant<V>(1.28),
        math::constant<V>(Dual == 0 ? infinite : static_cast<double>(Dual)));
    d[0] = t.d_log_prob;
    return t.loss;
  }
};

/// Of log_prob, ref_log_prob, old_log_prob. The slope is the loss's for `plain` and `ratio` alone.
template <rlhf::kl_estimator Estimator, rlhf::kl_weighting Weighting, bool Clamped>
struct kl_estimate {
  static constexpr int inputs = 3, slopes = 1;
  template <class T>
  static bool kink(const T* x) {
    const T delta = x[0] - x[1];
    return std::abs(x[0] - x[2]) >= 80 || delta <= -80 || delta == 0;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const V ratio = math::exp(math::bounded(x[0] - x[2]));
    const auto t = formula::kl_estimate<V>(x[0] - x[1], ratio, Estimator, Weighting,
                                           Clamped ? 0.75 : 0, Clamped ? 0.5 : 0);
    d[0] = t.d_log_prob;
    return t.value;
  }
};

struct squared_error {
  static constexpr int inputs = 2, slopes = 1;
  template <class T>
  static bool kink(const T*) {
    return false;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const auto t = formula::squared_error(x[0], x[1]);
    d[0] = t.d_value;
    return t.loss;
  }
};

/// Of value, old_value, returns.
struct clipped_squared_error {
  static constexpr int inputs = 3, slopes = 1;
  template <class T>
  static bool kink(const T*) {
    return false;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const auto t = formula::clipped_squared_error(x[0], x[1], x[2], math::constant<V>(0.25));
    d[0] = t.d_value;
    return t.loss;
  }
};

struct bradley_terry {
  static constexpr int inputs = 3, slopes = 2;
  template <class T>
  static bool kink(const T*) {
    return false;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const auto t = formula::bradley_terry(x[0], x[1], x[2]);
    d[0] = t.d_chosen_reward;
    d[1] = t.d_rejected_reward;
    return t.loss;
  }
};

struct bradley_terry_soft {
  static constexpr int inputs = 3, slopes = 2;
  template <class T>
  static bool kink(const T* x) {
    return x[0] - x[1] - x[2] == 0;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const auto t = formula::bradley_terry_soft(x[0], x[1], x[2], math::constant<V>(0.875));
    d[0] = t.d_chosen_reward;
    d[1] = t.d_rejected_reward;
    return t.loss;
  }
};

/// Of z; conservative, or robust with a negative weight.
template <int Sign>
struct dpo {
  static constexpr int inputs = 1, slopes = 1;
  template <class T>
  static bool kink(const T*) {
    return false;
  }
  template <rlhf::lane V>
  static V loss(const V* x, V* d) {
    const auto t = formula::dpo(x[0], math::constant<V>(0.875), math::constant<V>(Sign * 0.125));
    d[0] = t.d_margin;
    return t.loss;
  }
};

/// The loss at x, its tangents by dual numbers, and the slopes it writes itself.
template <class F, rlhf::lane V>
V slopes_of(const V* x, V* written, V* found) {
  using D = math::dual<V>;
  const V loss = F::template loss<V>(x, written);
  for (int k = 0; k < F::slopes; ++k) {
    D lifted[F::inputs], ignored[F::slopes];
    for (int i = 0; i < F::inputs; ++i) lifted[i] = D{x[i], math::constant<V>(i == k ? 1 : 0)};
    found[k] = F::template loss<D>(lifted, ignored).tangent;
  }
  return loss;
}

constexpr int batch = 64;
using number_rows = std::array<std::array<double, 3>, batch>;

template <class F, rlhf::lane V>
void check_lanes(const number_rows& numbers) {
  using T = rlhf::scalar_of<V>;
  constexpr int width = math::width<V>;
  using lanes = std::array<T, static_cast<std::size_t>(width)>;
  const double tolerance = sizeof(T) == 8 ? 1e-12 : 1e-4;
  for (int first = 0; first + width <= batch; first += width) {
    V x[F::inputs], written[F::slopes], found[F::slopes];
    for (int i = 0; i < F::inputs; ++i) {
      lanes lane;
      for (int l = 0; l < width; ++l)
        lane[static_cast<std::size_t>(l)] = static_cast<T>(
            numbers[static_cast<std::size_t>(first + l)][static_cast<std::size_t>(i)]);
      x[i] = math::load<V>(lane.data());
    }
    const V loss = slopes_of<F, V>(x, written, found);
    for (int l = 0; l < width; ++l) {
      T at[3] = {0, 0, 0};
      for (int i = 0; i < F::inputs; ++i) at[i] = math::lane_at(x[i], l);
      if (F::kink(at)) continue;
      CAPTURE(at[0]);
      CAPTURE(at[1]);
      CAPTURE(at[2]);
      for (int k = 0; k < F::slopes; ++k) {
        const auto a = static_cast<double>(math::lane_at(written[k], l));
        const auto b = static_cast<double>(math::lane_at(found[k], l));
        // Where terms of the loss's size cancel, dual numbers are no better than its rounding.
        const double size =
            std::max({1.0, std::abs(b), std::abs(static_cast<double>(math::lane_at(loss, l)))});
        CHECK((a == b || std::abs(a - b) <= tolerance * size));
      }
    }
  }
}

template <class F>
void check_formula() {
  constexpr std::array extremes = {0.0, 1e-300, -1e-300, 1e-8,  -1e-8, 0.25,  -0.25, 1.0, -1.0,
                                   3.5, -3.5,   20.0,    -20.0, 39.0,  -39.0, 1e4,   -1e4};
  random_numbers random(81);
  number_rows numbers;
  for (int round = 0; round < 200; ++round) {
    for (auto& row : numbers)
      for (double& x : row) {
        if (random.chance(round % 2 == 0 ? 0.0 : 0.7))
          x = extremes[static_cast<std::size_t>(
              random.below(static_cast<std::ptrdiff_t>(extremes.size())))];
        else
          x = random.uniform(-3, 3);
      }
    check_lanes<F, double>(numbers);
    check_lanes<F, float>(numbers);
#if RLHF_PACK_BYTES > 0
    check_lanes<F, math::pack<double>>(numbers);
    check_lanes<F, math::pack<float>>(numbers);
#endif
  }
}

template <rlhf::kl_weighting Weighting, bool Clamped>
void check_kl() {
  using rlhf::kl_estimator;
  check_formula<kl_estimate<kl_estimator::k1, Weighting, Clamped>>();
  check_formula<kl_estimate<kl_estimator::k2, Weighting, Clamped>>();
  check_formula<kl_estimate<kl_estimator::k3, Weighting, Clamped>>();
  check_formula<kl_estimate<kl_estimator::absolute, Weighting, Clamped>>();
}

}  // namespace

TEST_CASE("policy formulas write the slope that dual numbers find") {
  check_formula<reinforce>();
  check_formula<clipped_surrogate<0>>();
  check_formula<clipped_surrogate<3>>();
}

TEST_CASE("KL estimates, plain and weighted by the ratio, write the slope that dual numbers find") {
  check_kl<rlhf::kl_weighting::plain, false>();
  check_kl<rlhf::kl_weighting::plain, true>();
  check_kl<rlhf::kl_weighting::ratio, false>();
  check_kl<rlhf::kl_weighting::ratio, true>();
}

TEST_CASE("value formulas write the slope that dual numbers find") {
  check_formula<squared_error>();
  check_formula<clipped_squared_error>();
}

TEST_CASE("pair formulas write the slope that dual numbers find") {
  check_formula<bradley_terry>();
  check_formula<bradley_terry_soft>();
  check_formula<dpo<1>>();
  check_formula<dpo<-1>>();
}
