/* What a C trainer sees of the library: the calls it wants, with plain pointers. */
#ifndef C_SHIM_H
#define C_SHIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* [interface] */
struct ppo_figures {
  double loss, clip_fraction, approx_kl, tokens;
};

/* PPO's loss over log-probs [batch, time], of which row i has length[i] tokens. `tokens` divides
   it: the count of the whole optimiser step. d_log_prob is overwritten. */
struct ppo_figures ppo_loss(const float* log_prob, const float* old_log_prob,
                            const float* advantage, const int32_t* length, ptrdiff_t batch,
                            ptrdiff_t time, double tokens, float* d_log_prob);

/* Called with a sentence when an argument is wrong, before anything is written; must not return. */
void ppo_on_mistake(void (*handler)(const char* sentence));
/* [interface] */

#ifdef __cplusplus
}
#endif
#endif
