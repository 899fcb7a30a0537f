// expect: rlhf: lengths, offsets, labels and group ids are int32 or int64
#include <cstdint>

#include "rlhf/backend/host.hpp"
#include "rlhf/distribution/token_log_prob.hpp"

void wrong() {
  const float logits[2][3] = {};
  float log_prob[2] = {};
#if defined(RLHF_CONTROL)
  const std::int64_t label[2] = {};
  rlhf::token_log_prob<float>({.logits = logits, .label = {&label[0], 2}}, {.log_prob = log_prob});
#else
  const std::uint64_t label[2] = {};
  rlhf::token_log_prob<float>({.logits = logits, .label = {&label[0], 2}}, {.log_prob = log_prob});
#endif
}
