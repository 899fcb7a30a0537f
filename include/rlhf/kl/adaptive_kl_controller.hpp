#pragma once

#include "rlhf/core/contract.hpp"
#include "rlhf/statistics/metric.hpp"

namespace rlhf::inline v1 {

/// What one unit of the measured KL is. Targets differ by the length of an answer: 6 nats per
/// sequence (Ziegler) or 0.1 nats per token (verl).
enum class kl_unit : unsigned char {
  per_sequence,  ///< mean over sequences of the sum over their tokens
  per_token      ///< mean over tokens
};

/// What an update did.
struct kl_update {
  double coefficient = 0;  ///< after the update
  double error = 0;        ///< clip(kl / target − 1, ±clip)
  bool ignored = false;    ///< kl was NaN, or a mean of nothing: the state is unchanged
  bool at_bound = false;   ///< the coefficient stands on min or max
};

/// A constant KL coefficient with the interface of the adaptive one.
class fixed_kl_controller {
  double coefficient_;

 public:
  explicit fixed_kl_controller(double coefficient) : coefficient_(coefficient) {
    expects(coefficient >= 0 && coefficient <= 1.7976931348623157e308, "fixed_kl_controller",
            "coefficient", "a number that is finite and >= 0", coefficient);
  }
  double coefficient() const { return coefficient_; }
  kl_update update(double, double) { return {.coefficient = coefficient_}; }
  template <class R>
    requires requires(const R& r) { r.kl_per_sequence; }
  kl_update update(const R&, double) { return {.coefficient = coefficient_}; }
};

struct adaptive_kl_config {
  double coefficient = 0.2;  ///< of the first step, within [min, max], > 0
  double target = 6;         ///< wanted KL, > 0, in `unit`
  double horizon = 10000;    ///< episodes over which the coefficient may change by `clip`, > 0
  double clip = 0.2;         ///< the error is cut here, > 0
  double min = 0;
  double max = __builtin_inf();
  kl_unit unit = kl_unit::per_sequence;
};

/// KL coefficient that steers the measured KL to a target.
///
///     error        = clip(kl / target − 1, −clip, clip)
///     coefficient *= 1 + error · episodes / horizon, then kept within [min, max]
///
/// Feed it the KL of the batch that was sampled and penalised with the present coefficient(), once
/// per batch, before the next one is sampled.
///
/// Units     kl: nats per sequence or per token, as `unit` says; episodes: answers in the step,
///           over all ranks
/// Requires  target, horizon, clip and coefficient finite and > 0; 0 <= min <= coefficient <= max;
///           0 <= episodes < horizon / clip, so that the factor stays > 0
/// Throws    contract_violation when a requirement is broken; the state is unchanged then
/// Edges     kl == target changes nothing; a negative kl (k1 can be) counts like any other; ±inf is
///           cut like a large error; NaN, or a metric that counted nothing, leaves the state
///           unchanged and is reported in .ignored
/// Source    Ziegler et al. 2019, arXiv:1909.08593, section 2.2
/// Elsewhere lm-human-preferences AdaptiveKLController, verl and OpenRLHF of the same name
class adaptive_kl_controller {
  adaptive_kl_config config_;

  static bool positive(double x) { return x > 0 && x <= 1.7976931348623157e308; }

 public:
  explicit adaptive_kl_controller(const adaptive_kl_config& config) : config_(config) {
    const char* const function = "adaptive_kl_controller";
    expects(positive(config.target), function, "target", "finite and > 0", config.target);
    expects(positive(config.horizon), function, "horizon", "finite and > 0", config.horizon);
    expects(positive(config.clip), function, "clip", "finite and > 0", config.clip);
    expects(positive(config.coefficient), function, "coefficient", "finite and > 0",
            config.coefficient);
    expects(config.min >= 0, function, "min", ">= 0", config.min);
    expects(config.coefficient >= config.min, function, "coefficient", "at least min",
            config.coefficient);
    expects(config.coefficient <= config.max, function, "coefficient", "at most max",
            config.coefficient);
  }

  double coefficient() const { return config_.coefficient; }
  const adaptive_kl_config& config() const { return config_; }

  kl_update update(double kl, double episodes) {
    expects(episodes >= 0 && episodes * config_.clip < config_.horizon, "adaptive_kl_controller",
            "episodes", "0 <= episodes < horizon / clip", episodes);
    kl_update u;
    u.coefficient = config_.coefficient;
    u.ignored = kl != kl;
    if (!u.ignored) {
      const double error = kl / config_.target - 1;
      u.error = error > config_.clip ? config_.clip : error < -config_.clip ? -config_.clip : error;
      double next = config_.coefficient * (1 + u.error * episodes / config_.horizon);
      if (next > config_.max) next = config_.max;
      if (next < config_.min) next = config_.min;
      if (next > 1.7976931348623157e308) next = 1.7976931348623157e308;
      if (next < 2.2250738585072014e-308) next = 2.2250738585072014e-308;
      u.coefficient = config_.coefficient = next;
    }
    u.at_bound = u.coefficient == config_.min || u.coefficient == config_.max;
    return u;
  }

  /// Takes the mean in this controller's unit from the result of kl_penalty or kl_estimate.
  template <class R>
    requires requires(const R& r) { r.kl_per_sequence; }
  kl_update update(const R& result, double episodes) {
    const metric m = config_.unit == kl_unit::per_sequence ? result.kl_per_sequence : result.kl;
    return update(m.count > 0 ? m.mean() : __builtin_nan(""), episodes);
  }
};

}  // namespace rlhf::inline v1
