// xtensor: containers, adapted memory and views of them.

//! [include]
#include <rlhf/advantage/group_relative_advantage.hpp>
#include <rlhf/backend/xtensor.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#if __has_include(<xtensor/views/xview.hpp>)  // xtensor 0.26 and later
#include <xtensor/views/xview.hpp>
#else
#include <xtensor/xview.hpp>
#endif
//! [include]

#include <cstdint>
#include <cstdio>

int main() {
  //! [call]
  // Two prompts with two answers each: advantages from the scores of each prompt's group.
  const xt::xtensor<float, 1> score = {1.0f, 0.0f, 0.5f, 0.5f};
  xt::xtensor<float, 1> advantage = xt::zeros<float>({4});
  rlhf::group_relative_advantage<float>({.reward = score}, {.advantage = advantage},
                                        {.group_size = rlhf::group_size{2}});

  const xt::xtensor<float, 2> old_log_prob = -xt::ones<float>({4, 3});
  const xt::xtensor<float, 2> log_prob = old_log_prob + 0.05f;
  const xt::xtensor<std::uint8_t, 2> mask = {{1, 1, 1}, {1, 1, 0}, {1, 0, 1}, {1, 1, 1}};
  xt::xtensor<float, 2> d_log_prob = xt::zeros<float>({4, 3});
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = mask},
      {.d_log_prob = d_log_prob},
      {.over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local)});
  //! [call]
  std::printf("loss %.4f  tokens %g  sequences %g\n", r.loss, r.tokens, r.sequences);
  for (std::size_t i = 0; i < 4; ++i)
    std::printf("advantage %7.4f  d_log_prob %7.4f %7.4f %7.4f\n",
                static_cast<double>(advantage(i)), static_cast<double>(d_log_prob(i, 0)),
                static_cast<double>(d_log_prob(i, 1)), static_cast<double>(d_log_prob(i, 2)));

  //! [view]
  // A view with memory behind it is a tensor too: the first prompt alone.
  const auto lp = xt::view(log_prob, xt::range(0, 2), xt::all());
  const auto old = xt::view(old_log_prob, xt::range(0, 2), xt::all());
  const auto adv = xt::view(advantage, xt::range(0, 2));
  const auto first =
      rlhf::clipped_surrogate_loss<float>({.log_prob = lp, .old_log_prob = old, .advantage = adv},
                                          {}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
  //! [view]
  std::printf("first prompt: tokens %g\n", first.tokens);
}
