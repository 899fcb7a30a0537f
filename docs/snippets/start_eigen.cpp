// Eigen: arrays, maps and blocks as they are, row- or column-major.

//! [include]
#include <rlhf/advantage/generalized_advantage_estimation.hpp>
#include <rlhf/backend/eigen.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>
//! [include]

#include <iostream>

int main() {
  const Eigen::IOFormat format(4, 0, " ", "\n", "  ");
  //! [call]
  // Three answers of up to four tokens. Eigen is column-major by default; the call does not mind.
  Eigen::ArrayXXd reward(3, 4), value(3, 4);
  reward << 0, 0, 0, 1, 0, -1, 0, 0, 0, 0, 2, 0;  // a score where each answer ends
  value.setConstant(0.25);
  const Eigen::Array3i length(4, 2, 3);
  Eigen::ArrayXXd advantage(3, 4), returns(3, 4);

  rlhf::generalized_advantage_estimation<double>(
      {.reward = reward, .value = value, .layout = rlhf::lengths(length)},
      {.advantage = advantage, .returns = returns}, {.gamma = 1, .lambda = 0.5});
  std::cout << "advantage\n" << advantage.format(format) << "\n";
  //! [call]

  //! [block]
  // A micro-batch is a block: its gradient is written straight into the big array.
  Eigen::ArrayXXd log_prob = Eigen::ArrayXXd::Constant(3, 4, -1.0);
  const Eigen::ArrayXXd old_log_prob = Eigen::ArrayXXd::Constant(3, 4, -1.1);
  Eigen::ArrayXXd d_log_prob = Eigen::ArrayXXd::Zero(3, 4);
  rlhf::policy_result whole;
  for (Eigen::Index row = 0; row < 3; ++row) {
    auto gradient = d_log_prob.middleRows(row, 1);
    whole = whole + rlhf::clipped_surrogate_loss<double>(
                        {.log_prob = log_prob.middleRows(row, 1),
                         .old_log_prob = old_log_prob.middleRows(row, 1),
                         .advantage = advantage.middleRows(row, 1),
                         .layout = rlhf::lengths(length.segment(row, 1))},
                        {.d_log_prob = gradient},
                        {.over = rlhf::aggregation::token_mean(length.sum())});
  }
  std::cout << "loss " << whole.loss << "  tokens " << whole.tokens << "\n"
            << d_log_prob.format(format) << "\n";
  //! [block]

  //! [expression]
  // An expression has no memory. This does not compile, and a sentence says what to do:
  //     {.log_prob = 2 * log_prob, ...}
  const Eigen::ArrayXXd doubled = 2 * log_prob;  // or (2 * log_prob).eval(), named
  //! [expression]
  return doubled.sum() == 2 * log_prob.sum() ? 0 : 1;
}
