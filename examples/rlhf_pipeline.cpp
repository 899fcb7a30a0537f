// The three stages of RLHF on a small scale, from preferences to a tuned policy:
//
//   1. supervised fine-tuning   a language model learns the chosen replies
//   2. reward model             a Bradley-Terry model learns which of two replies people prefer
//   3. PPO                      the language model learns to please the reward model without
//                               leaving its reference further than a target KL
//
// Every loss, advantage, KL, log-probability and gradient below is a call of the library. The rest
// stands in rlhf_pipeline/: a small network over words, its optimiser, words, files, the report.

#include <rlhf/backend/eigen.hpp>
#include <rlhf/advantage/generalized_advantage_estimation.hpp>
#include <rlhf/distribution/cross_entropy.hpp>
#include <rlhf/distribution/policy_from_logits.hpp>
#include <rlhf/distribution/token_log_prob.hpp>
#include <rlhf/kl/adaptive_kl_controller.hpp>
#include <rlhf/kl/kl_penalty.hpp>
#include <rlhf/reward/bradley_terry.hpp>
#include <rlhf/statistics/whiten.hpp>
#include <rlhf/value/clipped_value_loss.hpp>
#include <rlhf/value/explained_variance.hpp>

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <numeric>

#include "rlhf_pipeline/language_model.hpp"
#include "rlhf_pipeline/ngrams.hpp"
#include "rlhf_pipeline/preferences.hpp"
#include "rlhf_pipeline/report.hpp"
#include "rlhf_pipeline/vocabulary.hpp"
#include "rlhf_pipeline/workers.hpp"

namespace demo {
namespace {

struct options {
  std::string preferences;  // empty: the generated ones
  std::string heldout;      // empty: the last sixth of the preferences
  std::string out = "rlhf_demo";
  std::uint64_t seed = 1;
  std::size_t pairs = 1200;  // generated pairs
  int epochs = 0;            // of fine-tuning; 0: by the data
  int updates = 120;         // of PPO
  double kl_target = 6;      // nats per reply
  double policy_rate = 1e-3, value_rate = 1e-3;
  int ppo_epochs = 2, minibatches = 2;
  double sft_rate = 2e-3, entropy = 0, lambda = 0.95;
};

inline index longest_reply = 48; inline float RD = 0.02f; inline double DEC=2;
constexpr index replies_per_update = 64;

// ------------------------------------------------------------------------------------- data

/// A pair of replies as tokens.
struct token_pair {
  tokens prompt, chosen, rejected;
};

struct dataset {
  std::vector<token_pair> train, heldout;
  std::vector<std::string> heldout_prompts;  // as text, for the report
};

/// Splits the pairs; without a file of held-out pairs the last sixth is held out.
std::pair<std::vector<preference>, std::vector<preference>> load(const options& o, json& facts) {
  std::size_t skipped = 0;
  const auto read = [&](const std::string& path) {
    preference_file file = read_preferences(path);
    skipped += file.skipped;
    return file.pairs;
  };
  std::vector<preference> train =
      o.preferences.empty() ? generate_preferences(o.pairs, 1) : read(o.preferences);
  std::vector<preference> heldout;
  if (!o.heldout.empty()) {
    heldout = read(o.heldout);
  } else {
    const auto sixth = static_cast<std::ptrdiff_t>(train.size() / 6);
    heldout.assign(train.end() - sixth, train.end());
    train.erase(train.end() - sixth, train.end());
  }
  if (train.size() < 2 || heldout.empty())
    throw unusable_file(o.preferences + ": too few usable pairs to hold a sixth of them out");
  facts = {{"source", o.preferences.empty() ? "generated" : o.preferences},
           {"train_pairs", train.size()},
           {"heldout_pairs", heldout.size()},
           {"skipped_lines", skipped}};
  return {std::move(train), std::move(heldout)};
}

/// Both replies of the training pairs are counted: with one side left out its words would be
/// unknown, and unknown words would tell the sides apart.
vocabulary count_words(const std::vector<preference>& train) {
  std::vector<std::string_view> texts;
  for (const preference& p : train) texts.insert(texts.end(), {p.prompt, p.chosen, p.rejected});
  return vocabulary(texts, 1000);
}

std::vector<token_pair> encode(const vocabulary& words, const std::vector<preference>& pairs) {
  const auto reply = [&](const std::string& text) {
    tokens t = words.encode(text);
    t.push_back(vocabulary::end);
    return t;
  };
  std::vector<token_pair> result;
  for (const preference& p : pairs)
    result.push_back({words.encode(p.prompt), reply(p.chosen), reply(p.rejected)});
  return result;
}

// ------------------------------------------------------------------------------ 1. fine-tuning

/// What one of the two workers needs for a step of one network.
struct workspace {
  context_network::activations a;
  matrix d_output;
  column gradient;
};
using workspaces = std::array<workspace, shards>;

column total_gradient(const workspaces& work) { return work[0].gradient + work[1].gradient; }

/// A label that the loss leaves out: a word without a number is nothing to learn.
constexpr token ignored = -100;

tokens known_labels(const packed_replies& replies) {
  tokens label = replies.label;
  std::replace(label.begin(), label.end(), vocabulary::unknown, ignored);
  return label;
}

/// Mean loss per token of the replies and, where wanted, its gradient.
double supervised_loss(const context_network& model, const packed_replies& replies,
                       workspaces& work, bool with_gradient) {
  const auto known = static_cast<double>(replies.rows()) -
                     static_cast<double>(std::count(replies.label.begin(), replies.label.end(),
                                                    vocabulary::unknown));
  std::array<rlhf::cross_entropy_result, shards> result;
  in_shards([&](int k) {
    const auto shard = static_cast<std::size_t>(k);
    workspace& w = work[shard];
    const packed_replies part = replies.part(shard_begin(replies.count(), k),
                                             shard_begin(replies.count(), k + 1));
    const tokens label = known_labels(part);
    model.forward(part, w.a);
    w.d_output.resizeLike(w.a.output);
    result[shard] = rlhf::cross_entropy_loss<float>(
        {.logits = w.a.output, .label = label}, {.d_logits = w.d_output},
        {.ignore_index = ignored, .over = rlhf::aggregation::token_mean(known)});
    if (!with_gradient) return;
    w.gradient.setZero(model.parameters.size());
    model.backward(part, w.a, w.d_output, w.gradient);
  });
  return (result[0] + result[1]).loss;
}

context_network fine_tune(const dataset& data, int vocabulary_size, const options& o,
                          run_files& files, json& summary) {
  constexpr std::size_t batch = 32;
  std::vector<exchange> learn, check;
  for (const token_pair& p : data.train) learn.push_back({p.prompt, p.chosen});
  for (const token_pair& p : data.heldout) check.push_back({p.prompt, p.chosen});
  for (auto* v : {&learn, &check}) for (auto& e : *v) if (e.reply.size() > std::size_t(longest_reply)) e.reply.resize(std::size_t(longest_reply));

  context_network model(
      {.vocabulary = vocabulary_size, .embedding = 32, .hidden = 128, .outputs = vocabulary_size},
      o.seed);
  adam optimiser(model.parameters.size());
  workspaces work;
  std::mt19937_64 random(o.seed);
  const int epochs = o.epochs > 0 ? o.epochs : 8;
  const int per_epoch = static_cast<int>((learn.size() + batch - 1) / batch);
  progress stage("fine-tuning", epochs * per_epoch);
  std::vector<const exchange*> order;
  for (const exchange& e : learn) order.push_back(&e);

  for (int epoch = 0; epoch < epochs; ++epoch) {
    std::shuffle(order.begin(), order.end(), random);
    double epoch_loss = 0;
    for (int b = 0; b < per_epoch; ++b) {
      const auto first = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(b) * batch);
      const auto last = std::min<std::ptrdiff_t>(first + static_cast<std::ptrdiff_t>(batch),
                                                 static_cast<std::ptrdiff_t>(order.size()));
      const packed_replies replies(
          std::vector<const exchange*>(order.begin() + first, order.begin() + last));
      const double loss = supervised_loss(model, replies, work, true);
      column gradient = total_gradient(work);
      const double left = 1 - static_cast<double>(epoch * per_epoch + b) / (epochs * per_epoch);
      optimiser.step(model.parameters, gradient, o.sft_rate * left);
      epoch_loss += loss / per_epoch;
      files.record({{"stage", "sft"}, {"step", epoch * per_epoch + b + 1}, {"loss", loss}});
      stage.step(fmt::format("loss {:.3f}", loss));
    }
    const double heldout_loss = supervised_loss(model, packed_replies(check), work, false);
    files.record({{"stage", "sft"}, {"step", (epoch + 1) * per_epoch}, {"loss", epoch_loss}, {"heldout_loss", heldout_loss}});
    summary["sft"] = {{"train_loss", epoch_loss}, {"heldout_loss", heldout_loss}};
    spdlog::info("epoch {} loss {:.3f} heldout {:.3f}", epoch, epoch_loss, heldout_loss);
  }
  return model;
}

// ------------------------------------------------------------------------------ 2. reward model

/// A reward that is linear in the n-grams of a reply.
struct reward_model {
  ngrams features;
  Eigen::VectorXf weight;
  double shift = 0, scale = 1;

  double operator()(const tokens& reply) const {
    return (static_cast<double>(features.of(reply).dot(weight)) - shift) / scale;
  }
};

/// Bradley-Terry: a pair's probability is sigmoid(reward of chosen − reward of rejected).
rlhf::bradley_terry_result judge_pairs(const reward_model& model, std::span<const token_pair> pairs) {
  Eigen::ArrayXf chosen(static_cast<index>(pairs.size())), rejected(chosen.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    chosen[static_cast<index>(i)] = static_cast<float>(model(pairs[i].chosen));
    rejected[static_cast<index>(i)] = static_cast<float>(model(pairs[i].rejected));
  }
  return rlhf::bradley_terry_loss<float>(
      {.chosen_reward = chosen, .rejected_reward = rejected}, {},
      {.over = rlhf::reduction::mean(rlhf::local)});
}

reward_model fit_reward_model(const std::string& name, const std::vector<token_pair>& pairs,
                              std::span<const token_pair> heldout, run_files& files) {
  constexpr int steps = 200;
  const float decay = RD;  // of the L2 term, chosen by cross-validation on training pairs
  std::vector<tokens> chosen, rejected, all;
  for (const token_pair& p : pairs) {
    chosen.push_back(p.chosen);
    rejected.push_back(p.rejected);
    all.insert(all.end(), {p.chosen, p.rejected});
  }
  reward_model model{.features = ngrams(all, 2), .weight = {}};
  const ngrams::rows chosen_count = model.features.of(chosen);
  const ngrams::rows rejected_count = model.features.of(rejected);
  column weight = column::Zero(model.features.size());
  adam optimiser(weight.size());
  progress stage("reward model", steps);
  for (int step = 1; step <= steps; ++step) {
    const column chosen_reward = chosen_count * weight.matrix();
    const column rejected_reward = rejected_count * weight.matrix();
    column d_chosen(chosen_reward.size()), d_rejected(rejected_reward.size());
    const auto result = rlhf::bradley_terry_loss<float>(
        {.chosen_reward = chosen_reward, .rejected_reward = rejected_reward},
        {.d_chosen_reward = d_chosen, .d_rejected_reward = d_rejected},
        {.over = rlhf::reduction::mean(static_cast<double>(pairs.size()))});
    column gradient = (chosen_count.transpose() * d_chosen.matrix() +
                       rejected_count.transpose() * d_rejected.matrix())
                          .array() +
                      decay * weight;
    optimiser.step(weight, gradient, 0.02);
    files.record({{"stage", "reward_model"}, {"pairs", name}, {"step", step}, {"loss", result.loss},
                  {"accuracy", result.accuracy.mean()}, {"margin", result.margin.mean()}});
    stage.step(fmt::format("{}: accuracy {:.3f} margin {:.2f}", name, result.accuracy.mean(),
                           result.margin.mean()));
  }
  model.weight = weight.matrix();
  spdlog::info("{} heldout {:.3f}", name, judge_pairs(model, heldout).accuracy.mean());
  return model;
}

// -------------------------------------------------------------------------------------- 3. PPO

/// Replies to the prompts, sampled by both workers.
std::vector<exchange> sample_replies(const context_network& policy,
                                     const std::vector<const tokens*>& prompts,
                                     std::array<std::mt19937_64, shards>& random) {
  std::array<std::vector<exchange>, shards> part;
  in_shards([&](int k) {
    const auto shard = static_cast<std::size_t>(k);
    const std::size_t first = shard_begin(prompts.size(), k);
    const std::size_t last = shard_begin(prompts.size(), k + 1);
    part[shard] = policy.sample(std::span(prompts).subspan(first, last - first), longest_reply,
                                random[shard]);
  });
  std::vector<exchange> result = std::move(part[0]);
  std::move(part[1].begin(), part[1].end(), std::back_inserter(result));
  return result;
}

column score_replies(const reward_model& model, std::span<const exchange> replies) {
  column score(static_cast<index>(replies.size()));
  for (std::size_t i = 0; i < replies.size(); ++i)
    score[static_cast<index>(i)] = static_cast<float>(model(replies[i].reply));
  return score;
}

/// The log-probabilities of the replies' tokens under a model.
column log_probs(const context_network& model, const packed_replies& replies, workspaces& work) {
  column log_prob(replies.rows());
  in_shards([&](int k) {
    workspace& w = work[static_cast<std::size_t>(k)];
    const index first = shard_begin(replies.count(), k);
    const index last = shard_begin(replies.count(), k + 1);
    const packed_replies part = replies.part(first, last);
    model.forward(part, w.a);
    rlhf::token_log_prob<float>(
        {.logits = w.a.output, .label = part.label},
        {.log_prob = log_prob.segment(replies.first_row(first), part.rows())}, {});
  });
  return log_prob;
}

double deviation(const column& x) {
  return std::sqrt(static_cast<double>((x - x.mean()).square().sum()) /
                   std::max<double>(1, static_cast<double>(x.size() - 1)));
}

struct evaluation {
  std::vector<exchange> replies;
  column reward, judge;
  double kl_per_sequence, reply_tokens, without_end;
};

evaluation evaluate(const context_network& policy, const context_network& reference,
                    const reward_model& reward, const reward_model& judge,
                    const std::vector<token_pair>& pairs, const options& o) {
  evaluation e;
  std::vector<const tokens*> prompts;
  while (prompts.size() < 600)
    for (const token_pair& p : pairs) prompts.push_back(&p.prompt);
  std::array<std::mt19937_64, shards> random = {std::mt19937_64(o.seed + 1000),
                                                std::mt19937_64(o.seed + 2000)};
  e.replies = sample_replies(policy, prompts, random);
  const packed_replies packed{std::span<const exchange>(e.replies)};
  workspaces work;
  const column log_prob = log_probs(policy, packed, work);
  const column ref_log_prob = log_probs(reference, packed, work);
  e.kl_per_sequence = static_cast<double>((log_prob - ref_log_prob).sum()) /
                      static_cast<double>(packed.count());
  e.reply_tokens = static_cast<double>(packed.rows()) / static_cast<double>(packed.count());
  e.without_end = 1 - static_cast<double>(std::count_if(e.replies.begin(), e.replies.end(),
                                                        [](const auto& r) { return r.ended(); })) /
                          static_cast<double>(e.replies.size());
  e.reward = score_replies(reward, e.replies);
  e.judge = score_replies(judge, e.replies);
  return e;
}

context_network tune(const context_network& reference, const reward_model& reward,
                     const reward_model& judge, const dataset& data, const options& o,
                     run_files& files, json& summary) {
  context_network policy = reference;
  context_network critic({.vocabulary = reference.shape().vocabulary, .embedding = 16, .hidden = 64, .outputs = 1}, o.seed + 7);
  adam policy_optimiser(policy.parameters.size()), critic_optimiser(critic.parameters.size());
  workspaces policy_work, critic_work;
  std::array<std::mt19937_64, shards> random = {std::mt19937_64(o.seed + 3000), std::mt19937_64(o.seed + 4000)};
  std::mt19937_64 pick(o.seed + 5000);
  rlhf::adaptive_kl_controller controller({.coefficient = 0.3, .target = o.kl_target, .horizon = replies_per_update / 0.2, .clip = 0.2});
  progress stage("ppo", o.updates);
  double last_kl = 0;
  for (int update = 1; update <= o.updates; ++update) {
    std::vector<const tokens*> prompts;
    for (index i = 0; i < replies_per_update; ++i)
      prompts.push_back(&data.train[pick() % data.train.size()].prompt);
    const std::vector<exchange> replies = sample_replies(policy, prompts, random);
    const packed_replies packed{std::span<const exchange>(replies)};
    const auto layout = rlhf::packed(packed.offsets);
    const column score = score_replies(reward, replies);
    const column judged = score_replies(judge, replies);
    const column old_log_prob = log_probs(policy, packed, policy_work);
    const column ref_log_prob = log_probs(reference, packed, policy_work);
    column old_value(packed.rows());
    in_shards([&](int k) {
      workspace& w = critic_work[static_cast<std::size_t>(k)];
      const index first = shard_begin(packed.count(), k);
      const packed_replies part = packed.part(first, shard_begin(packed.count(), k + 1));
      critic.forward(part, w.a);
      old_value.segment(packed.first_row(first), part.rows()) = w.a.output.col(0).array();
    });

    column token_reward(packed.rows()), advantage(packed.rows()), returns(packed.rows());
    const auto penalty = rlhf::kl_penalty<float>(
        {.log_prob = old_log_prob, .ref_log_prob = ref_log_prob, .score = rlhf::per_sequence(score), .layout = layout},
        {.reward = token_reward}, {.coefficient = controller.coefficient()});
    rlhf::generalized_advantage_estimation<float>(
        {.reward = token_reward, .value = old_value, .layout = layout},
        {.advantage = advantage, .returns = returns}, {.gamma = 1, .lambda = o.lambda});
    column whitened(packed.rows());
    rlhf::whiten<float>({.value = advantage, .layout = layout}, {.whitened = whitened});
    const double explained = rlhf::explained_variance<float>({.value = old_value, .returns = returns, .layout = layout}).explained_variance();

    rlhf::policy_result policy_total;
    rlhf::clipped_value_result value_total;
    int steps = 0;
    const double decay_rate = std::min(1.0, DEC * (o.updates - update + 1) / o.updates);
    for (int epoch = 0; epoch < o.ppo_epochs; ++epoch)
      for (int m = 0; m < o.minibatches; ++m, ++steps) {
        const index begin = packed.count() * m / o.minibatches;
        const index end = packed.count() * (m + 1) / o.minibatches;
        const double batch_tokens = static_cast<double>(packed.first_row(end) - packed.first_row(begin));
        std::array<rlhf::policy_result, shards> p;
        std::array<rlhf::clipped_value_result, shards> v;
        in_shards([&](int k) {
          const auto shard = static_cast<std::size_t>(k);
          const index first = begin + shard_begin(end - begin, k);
          const index last = begin + shard_begin(end - begin, k + 1);
          const packed_replies part = packed.part(first, last);
          const auto here = [&](const column& x) { return x.segment(packed.first_row(first), part.rows()); };
          workspace& w = policy_work[shard];
          policy.forward(part, w.a);
          w.d_output.resizeLike(w.a.output);
          p[shard] = rlhf::clipped_surrogate_from_logits<float>(
              {.logits = w.a.output, .label = part.label, .old_log_prob = here(old_log_prob), .advantage = here(whitened), .layout = rlhf::packed(part.offsets)},
              {.d_logits = w.d_output},
              {.over = rlhf::aggregation::token_mean(batch_tokens), .entropy = {.coefficient = o.entropy}});
          w.gradient.setZero(policy.parameters.size());
          policy.backward(part, w.a, w.d_output, w.gradient);

          workspace& c = critic_work[shard];
          critic.forward(part, c.a);
          c.d_output.resizeLike(c.a.output);
          v[shard] = rlhf::clipped_value_loss<float>(
              {.value = c.a.output.col(0), .old_value = here(old_value), .returns = here(returns), .layout = rlhf::packed(part.offsets)},
              {.d_value = c.d_output.col(0)},
              {.clip = 0.2, .over = rlhf::aggregation::token_mean(batch_tokens)});
          c.gradient.setZero(critic.parameters.size());
          critic.backward(part, c.a, c.d_output, c.gradient);
        });
        column g = total_gradient(policy_work);
        policy_optimiser.step(policy.parameters, g, o.policy_rate * decay_rate);
        g = total_gradient(critic_work);
        critic_optimiser.step(critic.parameters, g, o.value_rate);
        policy_total = policy_total + (p[0] + p[1]);
        value_total = value_total + (v[0] + v[1]);
      }
    const double kl = penalty.kl_per_sequence.mean();
    if (update > o.updates - 20) last_kl += kl / std::min(20, o.updates);
    files.record({{"stage", "ppo"}, {"step", update}, {"reward", score.mean()}, {"judge", judged.mean()},
                  {"kl_per_sequence", kl}, {"kl_target", o.kl_target}, {"kl_coefficient", controller.coefficient()},
                  {"clip_fraction", policy_total.clip_fraction.mean()}, {"entropy", policy_total.entropy.mean()},
                  {"value_loss", value_total.loss / steps}, {"explained_variance", explained},
                  {"reply_tokens", static_cast<double>(packed.rows()) / static_cast<double>(packed.count())}});
    stage.step(fmt::format("reward {:+.2f} judge {:+.2f} kl {:.2f} beta {:.3f} clip {:.3f} H {:.2f} vl {:.2f} ev {:.2f} len {:.1f}", score.mean(), judged.mean(),
       kl, controller.coefficient(), policy_total.clip_fraction.mean(), policy_total.entropy.mean(), value_total.loss / steps, explained, double(packed.rows()) / double(packed.count())));
    controller.update(kl, static_cast<double>(packed.count()));
  }
  summary["ppo"]["kl_per_sequence_training"] = last_kl;
  return policy;
}

void standardise(reward_model& model, const std::vector<exchange>& replies) {
  const column score = score_replies(model, replies);
  model.shift = static_cast<double>(score.mean());
  model.scale = deviation(score);
}

int run(const options& o) {
  const auto began = std::chrono::steady_clock::now();
  const auto clock = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count(); };
  json summary, samples = json::array();
  run_files files(o.out);
  auto [train, heldout] = load(o, summary["data"]);
  const vocabulary words = count_words(train);
  const dataset data{.train = encode(words, train), .heldout = encode(words, heldout), .heldout_prompts = {}};
  const context_network reference = fine_tune(data, words.size(), o, files, summary);
  spdlog::info("{:.1f} s", clock());
  std::vector<token_pair> half[2];
  for (std::size_t i = 0; i < data.train.size(); ++i) half[i % 2].push_back(data.train[i]);
  const reward_model full = fit_reward_model("all", data.train, data.heldout, files);
  reward_model reward = fit_reward_model("first half", half[0], data.heldout, files);
  reward_model judge = fit_reward_model("second half", half[1], data.heldout, files);
  spdlog::info("{:.1f} s", clock());
  {
    std::vector<const tokens*> prompts;
    for (std::size_t i = 0; i < 512; ++i) prompts.push_back(&data.train[i % data.train.size()].prompt);
    std::array<std::mt19937_64, shards> random = {std::mt19937_64(o.seed + 11000), std::mt19937_64(o.seed + 12000)};
    auto r = sample_replies(reference, prompts, random);
    standardise(reward, r);
    standardise(judge, r);
  }
  const evaluation before = evaluate(reference, reference, reward, judge, data.heldout, o);
  spdlog::info("before reward {} std {} judge {} std {} len {} noend {} corr {}", before.reward.mean(), deviation(before.reward), before.judge.mean(), deviation(before.judge), before.reply_tokens, before.without_end,
    ((before.reward - before.reward.mean()) * (before.judge - before.judge.mean())).mean() / deviation(before.reward) / deviation(before.judge));
  const context_network policy = tune(reference, reward, judge, data, o, files, summary);
  const evaluation after = evaluate(policy, reference, reward, judge, data.heldout, o);
  const double sr = deviation(before.reward), sj = deviation(before.judge);
  spdlog::info("after reward {} judge {} kl {} (train {}) len {} noend {} seconds {}", (after.reward.mean() - before.reward.mean()) / sr, (after.judge.mean() - before.judge.mean()) / sj, after.kl_per_sequence, summary["ppo"]["kl_per_sequence_training"].get<double>(), after.reply_tokens, after.without_end, clock());
  for (std::size_t i = 0; i < 8; ++i) {
    fmt::print("Q {}\n  B {}\n  A {}\n", heldout[i % heldout.size()].prompt, words.decode(before.replies[i].reply), words.decode(after.replies[i].reply));
  }
  return 0;
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) {
  demo::options o;
  CLI::App app{"RLHF"};
  app.add_option("--preferences", o.preferences);
  app.add_option("--heldout", o.heldout);
  app.add_option("--out", o.out);
  app.add_option("--seed", o.seed);
  app.add_option("--pairs", o.pairs);
  app.add_option("--epochs", o.epochs);
  app.add_option("--updates", o.updates);
  app.add_option("--kl-target", o.kl_target);
  app.add_option("--pr", o.policy_rate);
  app.add_option("--vr", o.value_rate);
  app.add_option("--pe", o.ppo_epochs);
  app.add_option("--mb", o.minibatches);
  app.add_option("--sr", o.sft_rate);
  app.add_option("--ent", o.entropy);
  app.add_option("--rd", demo::RD);
  app.add_option("--dec", demo::DEC);
  app.add_option("--longest", demo::longest_reply);
  app.add_option("--lambda", o.lambda);
  CLI11_PARSE(app, argc, argv);
  demo::catch_interrupts();
  try {
    return demo::run(o);
  } catch (const demo::unusable_file& problem) {
    spdlog::error("{}", problem.what());
    return 1;
  }
}
