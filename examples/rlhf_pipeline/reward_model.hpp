#pragma once

#include <span>
#include <vector>

#include "rlhf_pipeline/language_model.hpp"
#include "rlhf_pipeline/ngrams.hpp"

namespace demo {

double mean(const column& x);
double deviation(const column& x);

/// A reward that is linear in the n-grams of a reply. Only differences of rewards mean something to
/// a Bradley-Terry model, so PPO sees it shifted and scaled.
struct reward_model {
  ngrams features;
  column weight;
  double shift = 0, scale = 1;

  double operator()(std::span<const token> reply) const;
  column operator()(std::span<const exchange> replies) const;

  /// Makes the rewards of these replies have mean 0 and deviation 1.
  void standardise(std::span<const exchange> replies);
};

}  // namespace demo
