/* A trainer in C whose loss comes from the library. The model is one table of logits: what matters
   is where the loss stood before, and what stands there now. */

#include "c_shim.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { batch = 2, time = 3, classes = 4 };

static float logits[batch * time][classes];
static const int32_t target[batch * time] = {0, 1, 2, 3, 0, 0};

/* Log-probs of the targets; the softmax stays in probability for the backward pass. */
static void forward(float* log_prob, float probability[][classes]) {
  for (int t = 0; t < batch * time; ++t) {
    float sum = 0;
    for (int v = 0; v < classes; ++v) sum += expf(logits[t][v]);
    for (int v = 0; v < classes; ++v) probability[t][v] = expf(logits[t][v]) / sum;
    log_prob[t] = logf(probability[t][target[t]]);
  }
}

/* [handler] */
static void stop(const char* sentence) {
  fprintf(stderr, "trainer: %s\n", sentence);
  exit(EXIT_FAILURE);
}
/* [handler] */

int main(int arguments, char** argument) {
  (void)argument;
  float old_log_prob[batch * time], log_prob[batch * time], probability[batch * time][classes];
  float d_log_prob[batch * time];
  const float advantage[batch] = {1.0f, -0.5f};
  int32_t length[batch] = {3, 2};
  if (arguments > 1) length[1] = 4; /* a row of four tokens in a batch three wide */
  ppo_on_mistake(stop);
  forward(old_log_prob, probability);

  for (int step = 0; step < 3; ++step) {
    forward(log_prob, probability);
    /* [seam] */
    const struct ppo_figures figures =
        ppo_loss(log_prob, old_log_prob, advantage, length, batch, time, 5.0, d_log_prob);
    /* The backward of a cross-entropy takes one number per token, d loss / d (-log_prob), often
       1 / (batch * time), and writes (softmax - onehot) times it. It is handed -d_log_prob. */
    for (int t = 0; t < batch * time; ++t) {
      const float d_nll = -d_log_prob[t];
      for (int v = 0; v < classes; ++v)
        logits[t][v] -= 2.0f * d_nll * (probability[t][v] - (v == target[t] ? 1.0f : 0.0f));
    }
    /* [seam] */
    printf("step %d  loss %7.4f  clipped %.1f  tokens %g\n", step, figures.loss,
           figures.clip_fraction, figures.tokens);
  }
  return 0;
}
