#include "rlhf_pipeline/reward_model.hpp"

#include <algorithm>
#include <cmath>

namespace demo {

double mean(const column& x) { return x.size() == 0 ? 0 : x.cast<double>().mean(); }

double deviation(const column& x) {
  const auto n = static_cast<double>(x.size());
  return std::sqrt((x.cast<double>() - mean(x)).square().sum() / std::max(1.0, n - 1));
}

double reward_model::operator()(std::span<const token> reply) const {
  return (static_cast<double>(features.of(reply).dot(weight.matrix())) - shift) / scale;
}

column reward_model::operator()(std::span<const exchange> replies) const {
  column result(static_cast<index>(replies.size()));
  for (index i = 0; i < result.size(); ++i)
    result[i] = static_cast<float>((*this)(replies[static_cast<std::size_t>(i)].reply));
  return result;
}

void reward_model::standardise(std::span<const exchange> replies) {
  shift = 0, scale = 1;
  const column reward = (*this)(replies);
  const double spread = deviation(reward);
  shift = mean(reward);
  scale = spread > 0 ? spread : 1;
}

}  // namespace demo
