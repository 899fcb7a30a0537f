// The three stages of RLHF on a small scale, from preferences to a tuned policy:
//
//   1. fine-tuning     a language model learns the replies that people chose
//   2. reward model    a Bradley-Terry model learns which of two replies people prefer
//   3. PPO             the language model learns to please the reward model, at a KL from where it
//                      started that a controller keeps on target
//
// Every loss, advantage, KL, log-probability and gradient is a call of the library; all of them are
// in this file. The rest is in rlhf_pipeline/: a small network over words and its optimiser, the
// vocabulary, n-grams, files, and the report.

#include <rlhf/advantage/generalized_advantage_estimation.hpp>
#include <rlhf/backend/eigen.hpp>
#include <rlhf/distribution/cross_entropy.hpp>
#include <rlhf/distribution/policy_from_logits.hpp>
#include <rlhf/distribution/token_log_prob.hpp>
#include <rlhf/kl/adaptive_kl_controller.hpp>
#include <rlhf/kl/kl_penalty.hpp>
#include <rlhf/reward/bradley_terry.hpp>
#include <rlhf/statistics/whiten.hpp>
#include <rlhf/value/clipped_value_loss.hpp>
#include <rlhf/value/explained_variance.hpp>

#include <spdlog/fmt/fmt.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>

#include "rlhf_pipeline/dataset.hpp"
#include "rlhf_pipeline/language_model.hpp"
#include "rlhf_pipeline/report.hpp"
#include "rlhf_pipeline/reward_model.hpp"

namespace demo {
namespace {

struct options {
  std::string preferences, heldout;
  std::string out = "rlhf_demo";
  std::uint64_t seed = 1;
  std::size_t pairs = 1200;
  int epochs = 12;
  int updates = 120;
  double kl_target = 6;
};

constexpr std::size_t vocabulary_size = 1000;
constexpr index longest_reply = 48;

/// What a run carries from stage to stage.
struct session {
  options o;
  dataset data;
  run_files files;
  json summary, samples;

  /// Random numbers of one purpose do not depend on how many another one draws.
  enum purpose : std::uint64_t {
    initial_weights,
    shuffling,
    prompts,
    sampling,
    scaling,
    before,
    after
  };
  std::mt19937_64 random(purpose what, int worker = 0) const {
    std::seed_seq seeds{o.seed, static_cast<std::uint64_t>(what),
                        static_cast<std::uint64_t>(worker)};
    return std::mt19937_64(seeds);
  }
};

// ---------------------------------------------------------------------------- 1. fine-tuning

/// Labels of words outside the vocabulary are replaced by this: there is nothing to learn.
constexpr token ignored = -100;

/// The chosen replies, cut to what the model may say.
std::vector<exchange> chosen_replies(const std::vector<token_pair>& pairs) {
  std::vector<exchange> result;
  for (const token_pair& p : pairs) {
    result.push_back({.prompt = p.prompt, .reply = p.chosen});
    tokens& reply = result.back().reply;
    reply.resize(std::min<std::size_t>(reply.size(), longest_reply));
  }
  return result;
}

/// Mean loss per known word of the batch; its gradient stays with the learner's workers.
double supervised_loss(learner& model, const packed_replies& batch) {
  tokens label = batch.label;
  std::replace(label.begin(), label.end(), vocabulary::unknown, ignored);
  const auto known =
      label.size() - static_cast<std::size_t>(std::count(label.begin(), label.end(), ignored));

  std::array<rlhf::cross_entropy_result, worker_count> result;
  in_shards(batch, [&](const shard& s) {
    learner::worker& w = model.forward(s);
    const auto labels = std::span<const token>(label).subspan(static_cast<std::size_t>(s.first_row),
                                                              s.replies.label.size());
    result[s.worker] = rlhf::cross_entropy_loss<float>(
        {.logits = w.a.output, .label = labels}, {.d_logits = w.d_output},
        {.ignore_index = ignored, .over = rlhf::aggregation::token_mean(known)});
    model.backward(s);
  });
  return (result[0] + result[1]).loss;
}

context_network fine_tune(session& run) {
  constexpr std::size_t batch_size = 32;
  constexpr double rate = 3e-3;  // falls to 0 over the stage
  const std::vector<exchange> replies = chosen_replies(run.data.train);
  const std::vector<exchange> heldout = chosen_replies(run.data.heldout);
  const index words = run.data.words.size();
  std::mt19937_64 weights = run.random(session::initial_weights);
  std::mt19937_64 shuffling = run.random(session::shuffling);
  learner model(context_network(
      {.vocabulary = words, .embedding = 32, .hidden = 128, .outputs = words}, weights));

  std::vector<const exchange*> order;
  for (const exchange& e : replies) order.push_back(&e);
  const std::size_t batches = (order.size() + batch_size - 1) / batch_size;
  const int steps = run.o.epochs * static_cast<int>(batches);
  progress bar("1 fine-tuning", steps);
  double heldout_loss = 0, epoch_loss = 0;
  for (int step = 0; step < steps; ++step) {
    const std::size_t b = static_cast<std::size_t>(step) % batches;
    if (b == 0) {
      std::shuffle(order.begin(), order.end(), shuffling);
      epoch_loss = 0;
    }
    const std::span<const exchange*> rest = std::span(order).subspan(b * batch_size);
    const auto batch = rest.first(std::min(batch_size, rest.size()));
    const double loss = supervised_loss(model, packed_replies({batch.begin(), batch.end()}));
    model.step(rate * (1 - static_cast<double>(step) / steps));

    epoch_loss += loss / static_cast<double>(batches);
    json line = {{"stage", "sft"}, {"step", step + 1}, {"loss", loss}};
    if (b + 1 == batches) {
      heldout_loss = supervised_loss(model, packed_replies(heldout));
      line["heldout_loss"] = heldout_loss;
      run.summary["sft"] = {{"train_loss", epoch_loss}, {"heldout_loss", heldout_loss}};
    }
    run.files.record(line);
    bar.step(heldout_loss > 0 ? fmt::format("loss {:.2f}  held out {:.2f}", loss, heldout_loss)
                              : fmt::format("loss {:.2f}", loss));
  }
  return model.network;
}

// --------------------------------------------------------------------------- 2. reward model

/// Which reply of a pair would the model choose?
rlhf::bradley_terry_result judge_pairs(const reward_model& model,
                                       const std::vector<token_pair>& pairs) {
  column chosen(static_cast<index>(pairs.size())), rejected(chosen.size());
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    chosen[static_cast<index>(i)] = static_cast<float>(model(pairs[i].chosen));
    rejected[static_cast<index>(i)] = static_cast<float>(model(pairs[i].rejected));
  }
  return rlhf::bradley_terry_loss<float>({.chosen_reward = chosen, .rejected_reward = rejected}, {},
                                         {.over = rlhf::reduction::mean(pairs.size())});
}

reward_model fit_reward_model(session& run, const std::string& name,
                              const std::vector<token_pair>& pairs) {
  constexpr int steps = 200, least_count = 2;
  constexpr double rate = 0.02;
  constexpr float decay = 0.03f;  // of the L2 term; both by cross-validation on training pairs
  std::vector<tokens> chosen, rejected, all;
  for (const token_pair& p : pairs) {
    chosen.push_back(p.chosen);
    rejected.push_back(p.rejected);
    all.insert(all.end(), {p.chosen, p.rejected});
  }
  reward_model model{.features = ngrams(all, least_count), .weight = {}};
  model.weight.setZero(model.features.size());
  const ngrams::rows chosen_counts = model.features.of(chosen);
  const ngrams::rows rejected_counts = model.features.of(rejected);

  adam optimiser(model.weight.size());
  progress bar("2 reward model", steps);
  for (int step = 1; step <= steps; ++step) {
    const column chosen_reward = chosen_counts * model.weight.matrix();
    const column rejected_reward = rejected_counts * model.weight.matrix();
    column d_chosen(chosen_reward.size()), d_rejected(rejected_reward.size());
    const auto r = rlhf::bradley_terry_loss<float>(
        {.chosen_reward = chosen_reward, .rejected_reward = rejected_reward},
        {.d_chosen_reward = d_chosen, .d_rejected_reward = d_rejected},
        {.over = rlhf::reduction::mean(pairs.size())});
    const column d_weight = chosen_counts.transpose() * d_chosen.matrix() +
                            rejected_counts.transpose() * d_rejected.matrix();
    optimiser.step(model.weight, d_weight + decay * model.weight, rate);

    run.files.record({{"stage", "reward_model"},
                      {"pairs", name},
                      {"step", step},
                      {"loss", r.loss},
                      {"accuracy", r.accuracy.mean()},
                      {"margin", r.margin.mean()}});
    bar.step(fmt::format("{}: accuracy {:.3f}  margin {:.2f}", name, r.accuracy.mean(),
                         r.margin.mean()));
  }
  return model;
}

struct reward_models {
  reward_model optimised;  ///< PPO works for this one
  reward_model judge;      ///< and never sees this one
};

/// The model whose accuracy counts learns from all pairs. PPO needs two that share no pair: what
/// rises under both is no weakness of one of them.
reward_models fit_reward_models(session& run) {
  std::array<std::vector<token_pair>, 2> half;
  for (std::size_t i = 0; i < run.data.train.size(); ++i) half[i % 2].push_back(run.data.train[i]);
  const reward_model full = fit_reward_model(run, "all pairs", run.data.train);
  reward_models models{fit_reward_model(run, "one half", half[0]),
                       fit_reward_model(run, "other half", half[1])};

  const auto heldout = judge_pairs(full, run.data.heldout);
  const auto heldout_optimised = judge_pairs(models.optimised, run.data.heldout);
  const auto heldout_judge = judge_pairs(models.judge, run.data.heldout);
  run.summary["reward_model"] = {
      {"train_accuracy", judge_pairs(full, run.data.train).accuracy.mean()},
      {"heldout_accuracy", heldout.accuracy.mean()},
      {"heldout_margin", heldout.margin.mean()},
      {"heldout_accuracy_optimised_half", heldout_optimised.accuracy.mean()},
      {"heldout_accuracy_judge_half", heldout_judge.accuracy.mean()}};
  return models;
}

// ------------------------------------------------------------------------------------ 3. PPO

using generators = std::array<std::mt19937_64, worker_count>;

/// Replies to the prompts, each worker sampling its share.
std::vector<exchange> sample_replies(const context_network& policy,
                                     std::span<const tokens* const> prompts, generators& random) {
  std::array<std::vector<exchange>, worker_count> part;
  run_workers([&](int k) {
    const std::size_t first = share_begin(prompts.size(), k);
    const std::size_t last = share_begin(prompts.size(), k + 1);
    const auto worker = static_cast<std::size_t>(k);
    part[worker] =
        policy.sample(prompts.subspan(first, last - first), longest_reply, random[worker]);
  });
  std::vector<exchange> replies = std::move(part[0]);
  std::move(part[1].begin(), part[1].end(), std::back_inserter(replies));
  return replies;
}

/// The log-probability of every token of the replies under a model.
column log_probs(const context_network& model, const packed_replies& replies) {
  column log_prob(replies.rows());
  in_shards(replies, [&](const shard& s) {
    context_network::activations a;
    model.forward(s.replies, a);
    rlhf::token_log_prob<float>({.logits = a.output, .label = s.replies.label},
                                {.log_prob = s.of(log_prob)}, {});
  });
  return log_prob;
}

/// Replies of one policy with all that its update needs, one number per token.
struct rollout {
  std::vector<exchange> replies;
  packed_replies packed;
  column score;  // per reply
  column log_prob, value, advantage, returns;
  rlhf::kl_penalty_result penalty;
  double explained_variance;
};

rollout roll_out(const context_network& policy, const context_network& reference, learner& critic,
                 const reward_model& reward, std::span<const tokens* const> prompts,
                 generators& random, double kl_coefficient) {
  rollout r;
  r.replies = sample_replies(policy, prompts, random);
  r.packed = packed_replies(r.replies);
  r.score = reward(r.replies);
  r.log_prob = log_probs(policy, r.packed);
  const column ref_log_prob = log_probs(reference, r.packed);
  r.value.resize(r.packed.rows());
  in_shards(r.packed, [&](const shard& s) { s.of(r.value) = critic.forward(s).a.output.array(); });

  // The reward of a token is its share of the KL; the last one also gets the score of the reply.
  const auto layout = rlhf::packed(r.packed.offsets);
  column token_reward(r.packed.rows());
  r.penalty = rlhf::kl_penalty<float>({.log_prob = r.log_prob,
                                       .ref_log_prob = ref_log_prob,
                                       .score = rlhf::per_sequence(r.score),
                                       .layout = layout},
                                      {.reward = token_reward}, {.coefficient = kl_coefficient});
  // lambda = 1: with a score at the end alone, a young critic's bias would teach to end early.
  r.advantage.resize(r.packed.rows());
  r.returns.resize(r.packed.rows());
  rlhf::generalized_advantage_estimation<float>(
      {.reward = token_reward, .value = r.value, .layout = layout},
      {.advantage = r.advantage, .returns = r.returns}, {.gamma = 1, .lambda = 1});
  const column raw_advantage = r.advantage;
  rlhf::whiten<float>({.value = raw_advantage, .layout = layout}, {.whitened = r.advantage}, {});
  r.explained_variance =
      rlhf::explained_variance<float>({.value = r.value, .returns = r.returns, .layout = layout})
          .explained_variance();
  return r;
}

struct step_result {
  rlhf::clipped_surrogate_result policy;
  rlhf::clipped_value_result critic;
};

/// One step of both networks on the replies [first, last) of a rollout.
step_result improve(learner& policy, learner& critic, const rollout& r, index first, index last,
                    double policy_rate, double critic_rate) {
  const index batch_tokens = r.packed.first_row(last) - r.packed.first_row(first);
  const auto over = rlhf::aggregation::token_mean(batch_tokens);  // of both workers together
  std::array<rlhf::clipped_surrogate_result, worker_count> policy_result;
  std::array<rlhf::clipped_value_result, worker_count> critic_result;
  in_shards(r.packed, first, last, [&](const shard& s) {
    const auto layout = rlhf::packed(s.replies.offsets);
    learner::worker& p = policy.forward(s);
    policy_result[s.worker] = rlhf::clipped_surrogate_from_logits<float>(
        {.logits = p.a.output,
         .label = s.replies.label,
         .old_log_prob = s.of(r.log_prob),
         .advantage = s.of(r.advantage),
         .layout = layout},
        {.d_logits = p.d_output},
        {.clip_low = 0.2, .clip_high = 0.2, .over = over, .entropy = {.coefficient = 1e-3}});
    policy.backward(s);

    learner::worker& c = critic.forward(s);
    critic_result[s.worker] = rlhf::clipped_value_loss<float>({.value = c.a.output.col(0),
                                                               .old_value = s.of(r.value),
                                                               .returns = s.of(r.returns),
                                                               .layout = layout},
                                                              {.d_value = c.d_output.col(0)},
                                                              {.clip = 0.2, .over = over});
    critic.backward(s);
  });
  policy.step(policy_rate);
  critic.step(critic_rate);
  return {policy_result[0] + policy_result[1], critic_result[0] + critic_result[1]};
}

context_network tune(session& run, const context_network& reference, const reward_models& models) {
  constexpr index replies_per_update = 64;
  constexpr int epochs = 2, batches = 4;
  constexpr double policy_rate = 7e-4, critic_rate = 1e-3;
  const index words = run.data.words.size();
  std::mt19937_64 weights = run.random(session::initial_weights, 1);
  learner policy(reference);
  learner critic(
      context_network({.vocabulary = words, .embedding = 16, .hidden = 64, .outputs = 1}, weights));
  std::mt19937_64 draw = run.random(session::prompts);
  generators random = {run.random(session::sampling, 0), run.random(session::sampling, 1)};

  // Ziegler et al. 2019: the coefficient changes by a fifth of the relative error with each update.
  rlhf::adaptive_kl_controller kl({.coefficient = 0.3,
                                   .target = run.o.kl_target,
                                   .horizon = replies_per_update / 0.2,
                                   .clip = 0.2});
  progress bar("3 PPO", run.o.updates);
  rlhf::metric last_kl;  // over the last twenty updates
  for (int update = 1; update <= run.o.updates; ++update) {
    std::vector<const tokens*> prompts;
    for (index i = 0; i < replies_per_update; ++i)
      prompts.push_back(&run.data.train[draw() % run.data.train.size()].prompt);
    const rollout r = roll_out(policy.network, reference, critic, models.optimised, prompts, random,
                               kl.coefficient());

    // The rate falls in the second half, so that the policy comes to rest on its target.
    const double rate = std::min(1.0, 2 - 2.0 * (update - 1) / run.o.updates);
    step_result total;
    for (int step = 0; step < epochs * batches; ++step) {
      const index b = step % batches;
      const step_result now =
          improve(policy, critic, r, replies_per_update * b / batches,
                  replies_per_update * (b + 1) / batches, rate * policy_rate, critic_rate);
      total = {total.policy + now.policy, total.critic + now.critic};
    }

    const rlhf::metric update_kl = r.penalty.kl_per_sequence;
    if (update > run.o.updates - 20) last_kl = last_kl + update_kl;
    const double reply_tokens = r.penalty.tokens / r.penalty.sequences;
    run.files.record({{"stage", "ppo"},
                      {"step", update},
                      {"reward", r.penalty.score.mean()},
                      {"judge", mean(models.judge(r.replies))},
                      {"kl_per_sequence", update_kl.mean()},
                      {"kl_target", run.o.kl_target},
                      {"kl_coefficient", kl.coefficient()},
                      {"clip_fraction", total.policy.clip_fraction.mean()},
                      {"entropy", total.policy.entropy.mean()},
                      {"value_loss", total.critic.loss / (epochs * batches)},
                      {"explained_variance", r.explained_variance},
                      {"reply_tokens", reply_tokens}});
    bar.step(fmt::format("reward {:+.2f}  KL {:.1f}  coefficient {:.2f}  tokens {:.0f}",
                         r.penalty.score.mean(), update_kl.mean(), kl.coefficient(), reply_tokens));
    kl.update(r.penalty, static_cast<double>(r.replies.size()));
  }
  run.summary["ppo"]["kl_target"] = run.o.kl_target;
  run.summary["ppo"]["kl_per_sequence_last_updates"] = last_kl.mean();
  return policy.network;
}

// ------------------------------------------------------------------------------- the whole story

/// Replies to the prompts of these pairs, each as often as it takes for 600 or more.
std::vector<exchange> answer(const session& run, const context_network& policy,
                             const std::vector<token_pair>& pairs, session::purpose what) {
  std::vector<const tokens*> prompts;
  while (prompts.size() < 600)
    for (const token_pair& p : pairs) prompts.push_back(&p.prompt);
  generators random = {run.random(what, 0), run.random(what, 1)};
  return sample_replies(policy, prompts, random);
}

double mean_worth(const session& run, std::span<const exchange> replies) {
  double sum = 0;
  for (const exchange& e : replies) sum += true_worth(run.data.words.decode(e.reply));
  return sum / static_cast<double>(replies.size());
}

void compare(session& run, const context_network& reference, const context_network& policy,
             const reward_models& models, std::span<const exchange> before,
             std::span<const exchange> after) {
  const packed_replies packed(after);
  const column delta = log_probs(policy, packed) - log_probs(reference, packed);
  const auto replies = static_cast<double>(after.size());
  const auto unended = [](std::span<const exchange> all) {
    const auto n = std::count_if(all.begin(), all.end(), [](const auto& e) { return !e.ended(); });
    return static_cast<double>(n) / static_cast<double>(all.size());
  };
  const column reward_before = models.optimised(before), judge_before = models.judge(before);
  json& ppo = run.summary["ppo"];
  ppo["kl_per_sequence"] = static_cast<double>(delta.sum()) / replies;
  ppo["reward_before"] = mean(reward_before);
  ppo["reward_after"] = mean(models.optimised(after));
  ppo["reward_std_before"] = deviation(reward_before);
  ppo["judge_before"] = mean(judge_before);
  ppo["judge_after"] = mean(models.judge(after));
  ppo["judge_std_before"] = deviation(judge_before);
  ppo["reply_tokens_before"] = static_cast<double>(packed_replies(before).rows()) / replies;
  ppo["reply_tokens"] = static_cast<double>(packed.rows()) / replies;
  ppo["without_end_before"] = unended(before);
  ppo["without_end"] = unended(after);
  ppo["heldout_replies"] = after.size();
  if (run.data.generated) {
    double clear = 0;
    for (const preference& p : run.data.heldout_text)
      clear += true_worth(p.chosen) > true_worth(p.rejected) ? 1 : 0;
    run.summary["truth"] = {
        {"accuracy_of_true_worth", clear / static_cast<double>(run.data.heldout_text.size())},
        {"worth_before", mean_worth(run, before)},
        {"worth_after", mean_worth(run, after)}};
  }

  const std::size_t shown = std::min<std::size_t>(16, run.data.heldout_text.size());
  for (std::size_t i = 0; i < shown; ++i)
    run.samples.push_back({{"prompt", run.data.heldout_text[i].prompt},
                           {"before", run.data.words.decode(before[i].reply)},
                           {"after", run.data.words.decode(after[i].reply)}});
}

void tell(const session& run) {
  const json& reward = run.summary["reward_model"];
  const json& ppo = run.summary["ppo"];
  const auto number = [](const json& group, const char* key) { return group[key].get<double>(); };
  const auto gain = [&](const std::string& name) {
    return (ppo[name + "_after"].get<double>() - ppo[name + "_before"].get<double>()) /
           ppo[name + "_std_before"].get<double>();
  };
  fmt::print("reward model   {:.1f} % of held-out pairs, {:.1f} % of those it learned from\n",
             100 * number(reward, "heldout_accuracy"), 100 * number(reward, "train_accuracy"));
  fmt::print("reward         {:+.1f} deviations of the replies before\n", gain("reward"));
  fmt::print("judge          {:+.1f} deviations, by a reward model that PPO never saw\n",
             gain("judge"));
  fmt::print("KL             {:.1f} nats a reply from the reference, target {:.1f}\n",
             number(ppo, "kl_per_sequence"), number(ppo, "kl_target"));
  fmt::print("replies        {:.0f} tokens, {:.0f} % cut short at {}\n",
             number(ppo, "reply_tokens"), 100 * number(ppo, "without_end"), longest_reply);
  fmt::print("\nprompt         {}\n", run.samples[0]["prompt"].get<std::string>());
  fmt::print("before         {}\n", run.samples[0]["before"].get<std::string>());
  fmt::print("after          {}\n", run.samples[0]["after"].get<std::string>());
}

void run_stages(session& run) {
  const context_network reference = fine_tune(run);
  reward_models models = fit_reward_models(run);

  // The scale of a reward is free: replies of the untuned model get mean 0 and deviation 1.
  const std::vector<exchange> untuned = answer(run, reference, run.data.train, session::scaling);
  models.optimised.standardise(untuned);
  models.judge.standardise(untuned);

  const std::vector<exchange> before = answer(run, reference, run.data.heldout, session::before);
  const context_network policy = tune(run, reference, models);
  const std::vector<exchange> after = answer(run, policy, run.data.heldout, session::after);
  compare(run, reference, policy, models, before, after);
}

int run_demo(const options& o) {
  const auto began = std::chrono::steady_clock::now();
  session run{.o = o,
              .data = load_dataset(o.preferences, o.heldout, o.pairs, vocabulary_size),
              .files = run_files(o.out),
              .summary = {},
              .samples = json::array()};
  run.summary["data"] = {{"source", run.data.source},
                         {"train_pairs", run.data.train.size()},
                         {"heldout_pairs", run.data.heldout.size()},
                         {"skipped_lines", run.data.skipped_lines}};
  bool complete = false;
  catch_interrupts();
  try {
    run_stages(run);
    complete = true;
  } catch (const interrupted&) {
    spdlog::warn("interrupted; what is known by now is written");
  }
  run.summary["seed"] = o.seed;
  run.summary["interrupted"] = !complete;
  run.summary["seconds"] =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  run.files.finish(run.summary, run.samples);
  if (complete) tell(run);
  fmt::print("\n{0}/report.html  {0}/summary.json  {0}/metrics.jsonl\n", o.out);
  return complete ? 0 : 130;
}

}  // namespace
}  // namespace demo

int main(int argc, char** argv) {
  demo::options o;
  CLI::App app{"The three stages of RLHF: fine-tuning, reward model, PPO"};
  app.add_option("--preferences", o.preferences,
                 "JSONL file, plain or gzipped, of {\"chosen\": ..., \"rejected\": ...} dialogues "
                 "with Human and Assistant turns; left out: generated ones");
  app.add_option("--heldout", o.heldout,
                 "another such file to judge by; left out: the last sixth of the preferences");
  app.add_option("--out", o.out, "folder for report.html, summary.json and metrics.jsonl")
      ->capture_default_str();
  app.add_option("--seed", o.seed, "the same seed gives the same summary")->capture_default_str();
  app.add_option("--pairs", o.pairs, "pairs to generate")
      ->check(CLI::Range(12, 1'000'000))
      ->capture_default_str();
  app.add_option("--epochs", o.epochs, "passes of fine-tuning over the chosen replies")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--updates", o.updates, "updates of PPO, 64 replies each")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--kl-target", o.kl_target, "KL to the untuned model, nats per reply")
      ->check(CLI::Range(0.01, 1000.0))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  // Progress goes to standard error, the result to standard output.
  spdlog::set_default_logger(spdlog::stderr_color_mt("rlhf_pipeline"));
  spdlog::set_pattern("%H:%M:%S %^%v%$");
  try {
    return demo::run_demo(o);
  } catch (const std::exception& problem) {
    spdlog::error("{}", problem.what());
    return 1;
  }
}
