// DPO learns from preferences alone the policy that RL with a KL penalty would reach:
//
//     pi(answer) ~ ref(answer) exp(reward(answer) / beta)
//
// Three answers to one prompt have hidden rewards. People compare them two at a time, and prefer i
// to j with the probability sigmoid(reward_i − reward_j).

#include <rlhf/backend/eigen.hpp>
#include <rlhf/preference/dpo.hpp>

#include <cmath>
#include <cstdio>

namespace {

using answers = Eigen::Array3d;

answers normalised(const answers& log_weight) {
  const answers p = (log_weight - log_weight.maxCoeff()).exp();
  return p / p.sum();
}

}  // namespace

int main() {
  constexpr double beta = 0.5;
  const answers reward(1, 0, -0.5);  // nobody tells the learner
  const answers ref(0.2, 0.5, 0.3);

  // Every ordered pair, weighted by how often it is seen.
  constexpr int pairs = 6;
  const int chosen[pairs] = {0, 1, 0, 2, 1, 2};
  const int rejected[pairs] = {1, 0, 2, 0, 2, 1};
  Eigen::Array<double, pairs, 1> weight, ref_chosen, ref_rejected;
  for (int k = 0; k < pairs; ++k) {
    weight[k] = 1 / (1 + std::exp(reward[rejected[k]] - reward[chosen[k]]));
    ref_chosen[k] = std::log(ref[chosen[k]]);
    ref_rejected[k] = std::log(ref[rejected[k]]);
  }

  answers logits = ref.log();
  std::printf("step   loss    policy\n");
  for (int step = 0; step <= 40; ++step) {
    const answers p = normalised(logits);
    Eigen::Array<double, pairs, 1> chosen_log_prob, rejected_log_prob, d_chosen, d_rejected;
    for (int k = 0; k < pairs; ++k) {
      chosen_log_prob[k] = std::log(p[chosen[k]]);
      rejected_log_prob[k] = std::log(p[rejected[k]]);
    }
    const auto r =
        rlhf::dpo_loss<double>({.chosen_log_prob = chosen_log_prob,
                                .rejected_log_prob = rejected_log_prob,
                                .ref_chosen_log_prob = ref_chosen,
                                .ref_rejected_log_prob = ref_rejected,
                                .weight = weight},
                               {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
                               {.beta = beta, .over = rlhf::reduction::mean(rlhf::local)});
    if (step % 10 == 0) std::printf("%4d  %.4f   %.3f %.3f %.3f\n", step, r.loss, p[0], p[1], p[2]);

    // d log p_a / d logit_b = [a == b] − p_b
    answers d_logits = -p * (d_chosen.sum() + d_rejected.sum());
    for (int k = 0; k < pairs; ++k) {
      d_logits[chosen[k]] += d_chosen[k];
      d_logits[rejected[k]] += d_rejected[k];
    }
    logits -= 8 * d_logits;
  }
  const answers best = normalised(ref.log() + reward / beta);
  std::printf("optimum of RL  %.3f %.3f %.3f\n", best[0], best[1], best[2]);
}
