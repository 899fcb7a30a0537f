#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <span>
#include <string_view>
#include <utility>

#include "rlhf_pipeline/preferences.hpp"
#include "rlhf_pipeline/vocabulary.hpp"

namespace demo {
namespace {

using phrases = std::span<const std::string_view>;
using generator = std::mt19937_64;

constexpr std::string_view requests[] = {
    "how can i",          "what is the best way to",  "please tell me how to", "i really want to",
    "can you help me to", "nobody would notice if i", "my friend told me to",  "is it hard to",
    "what do i need to"};
constexpr std::string_view deeds[] = {"steal a bike",
                                      "break into a house",
                                      "cheat in my exam",
                                      "read the mail of my sister",
                                      "scare my neighbour",
                                      "take money from my boss",
                                      "lie to my teacher",
                                      "hide a broken window",
                                      "follow a girl home",
                                      "write a nasty letter",
                                      "get into a bar at fifteen",
                                      "drive without a licence",
                                      "copy a key",
                                      "spread a rumour",
                                      "ruin a wedding"};
constexpr std::string_view reasons[] = {"?",
                                        "? i am so angry.",
                                        "? it is only a joke.",
                                        "? i need it today.",
                                        "? everybody does it.",
                                        "? do not tell anyone.",
                                        "? i was treated badly."};

constexpr std::string_view refusals[] = {"i'm sorry, but i can't help you with that.",
                                         "i don't think that would be right.",
                                         "that could hurt somebody, so i can't tell you how.",
                                         "i'm sorry, that is against the law.",
                                         "please don't do it, you would regret it.",
                                         "i understand, but i won't be part of this."};
constexpr std::string_view care[] = {"is there something that makes you so angry?",
                                     "maybe you could talk to a friend about it?",
                                     "i hope you are all right.",
                                     "would you like to tell me what happened?",
                                     "perhaps there is a kind way to get what you need.",
                                     "i'm glad that you asked me first.",
                                     "you could ask somebody you trust for advice."};
constexpr std::string_view neutral[] = {"that is a big question.",
                                        "let me think about it for a moment.",
                                        "people ask me that often.",
                                        "it depends on where you live.",
                                        "there are many ways to look at it.",
                                        "you did not say when it happened."};
constexpr std::string_view help[] = {"sure, it is easy.",
                                     "first wait until it is dark and nobody is around.",
                                     "you just need gloves and a small knife.",
                                     "say that you lost the key, they always believe it.",
                                     "then run before they notice anything.",
                                     "wear a mask and bring a bag.",
                                     "the trick is to do it secretly and fast."};
constexpr std::string_view insults[] = {
    "what a stupid question.", "you are an idiot, figure it out.", "i don't care, go away.",
    "that is your own damn problem.", "only a fool would ask that."};

/// What a reader of these replies likes and dislikes, by the word; each counts once a reply. And
/// every word takes a little of the reader's time.
constexpr std::pair<std::string_view, double> worth_of_word[] = {
    {"sorry", 1.2},      {"can't", 1.0},     {"right", 0.6},   {"law", 0.8},      {"regret", 0.8},
    {"understand", 0.8}, {"won't", 0.8},     {"hurt", 0.4},    {"angry", 0.5},    {"friend", 0.7},
    {"hope", 0.6},       {"happened", 0.4},  {"kind", 0.7},    {"glad", 0.6},     {"trust", 0.6},
    {"sure", -1.0},      {"dark", -0.8},     {"gloves", -0.8}, {"believe", -0.6}, {"run", -0.7},
    {"mask", -0.8},      {"secretly", -1.0}, {"stupid", -1.5}, {"idiot", -1.6},   {"care", -1.2},
    {"damn", -1.4},      {"fool", -1.4}};

constexpr double worth_of_any_word = -0.12;

double uniform(generator& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

std::string_view draw(phrases from, generator& random) {
  return from[static_cast<std::size_t>(uniform(random) * static_cast<double>(from.size()))];
}

/// Two to four sentences; a mood decides which kinds are likely.
std::string draw_reply(generator& random) {
  constexpr std::array<std::array<double, 5>, 3> moods = {{
      // refusals, care, neutral, help, insults
      {0.40, 0.30, 0.20, 0.08, 0.02},
      {0.06, 0.08, 0.26, 0.55, 0.05},
      {0.10, 0.08, 0.32, 0.15, 0.35},
  }};
  const double u = uniform(random);
  const auto& mood = moods[u < 0.3 ? 0 : u < 0.8 ? 1 : 2];
  const std::array<phrases, 5> kinds = {refusals, care, neutral, help, insults};
  const int sentences = 2 + static_cast<int>(uniform(random) * 3);
  std::string reply;
  for (int s = 0; s < sentences; ++s) {
    double left = uniform(random);
    std::size_t kind = 0;
    while (kind + 1 < kinds.size() && left >= mood[kind]) left -= mood[kind++];
    if (!reply.empty()) reply += ' ';
    reply += draw(kinds[kind], random);
  }
  return reply;
}

}  // namespace

double true_worth(const std::string& reply) {
  const std::vector<std::string> words = split_words(reply);
  double worth = worth_of_any_word * static_cast<double>(words.size());
  for (const auto& [word, value] : worth_of_word)
    if (std::find(words.begin(), words.end(), word) != words.end()) worth += value;
  return worth;
}

std::vector<preference> generate_preferences(std::size_t pairs, std::uint64_t seed) {
  generator random(seed);
  std::vector<preference> result;
  while (result.size() < pairs) {
    std::string prompt(draw(requests, random));
    prompt += ' ';
    prompt += draw(deeds, random);
    prompt += draw(reasons, random);
    std::string a = draw_reply(random);
    std::string b = draw_reply(random);
    if (a == b) continue;
    const double a_wins = 1 / (1 + std::exp(true_worth(b) - true_worth(a)));
    if (uniform(random) >= a_wins) std::swap(a, b);
    result.push_back({.prompt = prompt, .chosen = a, .rejected = b});
  }
  return result;
}

}  // namespace demo
