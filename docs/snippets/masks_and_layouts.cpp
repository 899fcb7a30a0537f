// Masks, layouts and normalisers: which number belongs to which token, and what divides the sum.

#include <rlhf/backend/eigen.hpp>
#include <rlhf/distribution/token_log_prob.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

namespace {

template <class T>
using rows = Eigen::Array<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// A model without a body: the logits that follow token x are a row of a table.
std::vector<float> logits_after(const rows<std::int32_t>& token, int classes) {
  std::vector<float> logits;
  for (const std::int32_t x : token.reshaped<Eigen::RowMajor>())
    for (int v = 0; v < classes; ++v)
      logits.push_back(v == (x + 1) % classes ? 2.0f : 0.1f * static_cast<float>(v));
  return logits;
}

void causal_shift() {
  //! [shift]
  // The batch of the drawing: prompt, answer, end token (9), padding (0).
  const Eigen::Index batch = 2, time = 8, classes = 10;
  rows<std::int32_t> token(batch, time);
  token << 5, 6, 7, 1, 2, 3, 9, 0,                                 // the answer 1 2 3 9
      5, 6, 7, 4, 9, 0, 0, 0;                                      // and 4 9, shorter by two
  const std::vector<float> logits = logits_after(token, classes);  // [batch, time, classes]

  // Slot j of everything below belongs to token j + 1: the logits at j have predicted it.
  const Eigen::Index slots = time - 1;
  rows<float> log_prob(batch, slots);
  rows<std::uint8_t> mask(batch, slots);
  mask << 0, 0, 1, 1, 1, 1, 0,  // slots 2 to 5: tokens 3 to 6
      0, 0, 1, 1, 0, 0, 0;
  const auto r = rlhf::token_log_prob<float>(
      {.logits = {logits.data(), {batch, slots, classes}, {time * classes, classes, 1}},
       .label = token.rightCols(slots),
       .mask = mask},
      {.log_prob = log_prob});
  //! [shift]
  std::printf("tokens %g  mean log-prob %.3f\n", r.tokens, r.log_prob.mean());
  for (Eigen::Index i = 0; i < batch; ++i) {
    for (Eigen::Index j = 0; j < slots; ++j)
      std::printf(" %6.3f", static_cast<double>(log_prob(i, j)));
    std::printf("\n");
  }
}

template <class A, class B>
bool same_bits(const A& a, const B& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

void one_batch_three_layouts() {
  rows<float> log_prob(2, 4), old_log_prob(2, 4), d_log_prob(2, 4);
  log_prob << -1.0f, -0.7f, -2.0f, -0.4f, -0.9f, -1.1f, 0, 0;
  old_log_prob << -1.2f, -1.1f, -2.0f, -0.5f, -0.5f, -1.0f, 0, 0;
  const Eigen::Array2f advantage(1.0f, -0.5f);
  const rlhf::clipped_surrogate_config config{.over = rlhf::aggregation::token_mean(rlhf::local)};

  //! [layouts]
  // Padded, with lengths: the fast path.
  const Eigen::Array2i length(4, 2);
  const auto by_length = rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                                              .old_log_prob = old_log_prob,
                                                              .advantage = advantage,
                                                              .layout = rlhf::lengths(length)},
                                                             {.d_log_prob = d_log_prob}, config);

  // Padded, with a mask: bool, uint8_t, or weights in float or double. It may have holes.
  rows<std::uint8_t> mask(2, 4);
  mask << 1, 1, 1, 1, 1, 1, 0, 0;
  const auto by_mask = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage, .mask = mask},
      {.d_log_prob = d_log_prob}, config);

  // Packed: one sequence after the other, sequence i in [cu_seqlens[i], cu_seqlens[i + 1]). A
  // number per sequence says so, because rank 1 means one per token here.
  const std::vector<float> flat = {-1.0f, -0.7f, -2.0f, -0.4f, -0.9f, -1.1f};
  const std::vector<float> old_flat = {-1.2f, -1.1f, -2.0f, -0.5f, -0.5f, -1.0f};
  const std::vector<std::int32_t> cu_seqlens = {0, 4, 6};
  std::vector<float> d_flat(6);
  const auto by_offsets =
      rlhf::clipped_surrogate_loss<float>({.log_prob = flat,
                                           .old_log_prob = old_flat,
                                           .advantage = rlhf::per_sequence(advantage),
                                           .layout = rlhf::packed(cu_seqlens)},
                                          {.d_log_prob = d_flat}, config);
  //! [layouts]
  bool same = same_bits(by_length.loss, by_mask.loss) && same_bits(by_length.loss, by_offsets.loss);
  for (int j = 0; j < 4; ++j) same = same && same_bits(d_log_prob(0, j), d_flat[std::size_t(j)]);
  std::printf("loss %.6f three ways: %s\n", by_length.loss, same ? "the same bits" : "different");
}

void two_micro_batches() {
  rows<float> log_prob(2, 4), old_log_prob(2, 4), d_whole(2, 4), d_parts(2, 4);
  log_prob << -1.0f, -0.7f, -2.0f, -0.4f, -0.9f, -1.1f, 0, 0;
  old_log_prob << -1.2f, -1.1f, -2.0f, -0.5f, -0.5f, -1.0f, 0, 0;
  const Eigen::Array2f advantage(1.0f, -0.5f);
  const Eigen::Array2i length(4, 2);
  const auto whole = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::lengths(length)},
      {.d_log_prob = d_whole}, {.over = rlhf::aggregation::token_mean(rlhf::local)});

  //! [micro]
  // The count of the whole optimiser step, summed over micro-batches and ranks beforehand.
  const auto over = rlhf::aggregation::token_mean(6);
  rlhf::policy_result sum;
  for (Eigen::Index i = 0; i < 2; ++i) {
    auto d_row = d_parts.row(i);
    sum = sum + rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob.middleRows(i, 1),
                                                     .old_log_prob = old_log_prob.middleRows(i, 1),
                                                     .advantage = advantage.segment(i, 1),
                                                     .layout = rlhf::lengths(length.segment(i, 1))},
                                                    {.d_log_prob = {d_row.data(), {1, 4}}},
                                                    {.over = over});
  }
  //! [micro]
  std::printf("whole %.6f  parts %.6f  gradients %s\n", whole.loss, sum.loss,
              (d_whole == d_parts).all() ? "equal" : "different");

  //! [means]
  const auto loss_over = [&](const rlhf::aggregation& mean) {
    return rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                                .old_log_prob = old_log_prob,
                                                .advantage = advantage,
                                                .layout = rlhf::lengths(length)},
                                               {}, {.over = mean})
        .loss;
  };
  const double token_mean = loss_over(rlhf::aggregation::token_mean(6));
  const double sequence_mean = loss_over(rlhf::aggregation::sequence_mean_token_mean(2));
  const double dr_grpo = loss_over(rlhf::aggregation::sequence_mean_token_sum_norm(2, 4));
  //! [means]
  std::printf("token mean %.4f  sequence mean %.4f  horizon norm %.4f\n", token_mean, sequence_mean,
              dr_grpo);
}

}  // namespace

int main() {
  causal_shift();
  one_batch_three_layouts();
  two_micro_batches();
}
