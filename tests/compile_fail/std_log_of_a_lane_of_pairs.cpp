// expect: rlhf: a lane is no number: in a formula write rlhf::math::exp(x), log, min, ... for std::exp(x), and rlhf::math::constant<V>(2) for 2, with V the type of the lane
#include <cmath>
#include "rlhf/backend/host.hpp"

#include "rlhf/statistics/pair_loss.hpp"

void wrong() {
  const float score[2] = {};
  const rlhf::pair_batch<float> batch{.chosen_score = score, .rejected_score = score};
  const rlhf::pair_config config{.over = rlhf::reduction::sum()};
#if defined(RLHF_CONTROL)
  rlhf::pair_loss<float>([](const auto& p) { return -rlhf::math::log(p.chosen - p.rejected); },
                         batch, {}, config);
#else
  rlhf::pair_loss<float>([](const auto& p) { return -std::log(p.chosen - p.rejected); }, batch, {},
                         config);
#endif
}
