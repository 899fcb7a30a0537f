#include "rlhf_pipeline/language_model.hpp"

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace demo {

packed_replies::packed_replies(std::vector<const exchange*> exchanges)
    : sources(std::move(exchanges)) {
  for (const exchange* e : sources) {
    label.insert(label.end(), e->reply.begin(), e->reply.end());
    offsets.push_back(static_cast<std::int64_t>(label.size()));
  }
}

packed_replies::packed_replies(std::span<const exchange> exchanges)
    : packed_replies([&] {
        std::vector<const exchange*> pointers;
        for (const exchange& e : exchanges) pointers.push_back(&e);
        return pointers;
      }()) {}

packed_replies packed_replies::part(index first, index last) const {
  return packed_replies(
      std::vector<const exchange*>(sources.begin() + first, sources.begin() + last));
}

template <class Vector>
struct context_network::parts {
  using plain = std::conditional_t<std::is_const_v<Vector>, const matrix, matrix>;
  using block = Eigen::Map<plain>;
  using row = Eigen::Map<
      std::conditional_t<std::is_const_v<Vector>, const Eigen::RowVectorXf, Eigen::RowVectorXf>>;
  block embedding, hidden;
  row hidden_bias;
  block output;
  row output_bias;

  parts(Vector& v, const sizes& s)
      : embedding(v.data(), s.vocabulary, s.embedding),
        hidden(embedding.data() + embedding.size(), s.inputs(), s.hidden),
        hidden_bias(hidden.data() + hidden.size(), s.hidden),
        output(hidden_bias.data() + hidden_bias.size(), s.hidden, s.outputs),
        output_bias(output.data() + output.size(), s.outputs) {}
};

namespace {

double uniform(std::mt19937_64& random) { return static_cast<double>(random() >> 11) * 0x1p-53; }

/// The token `back` places before position t of a reply: of the reply, of its start, of the prompt.
token look_back(const exchange& e, index t, index back) {
  const index at = t - back;
  if (at >= 0) return e.reply[static_cast<std::size_t>(at)];
  if (at == -1) return vocabulary::start;
  const index in_prompt = static_cast<index>(e.prompt.size()) + at + 1;
  return in_prompt >= 0 ? e.prompt[static_cast<std::size_t>(in_prompt)] : vocabulary::start;
}

template <class Embedding>
Eigen::RowVectorXf mean_embedding(const Embedding& embedding, const tokens& text) {
  Eigen::RowVectorXf sum = Eigen::RowVectorXf::Zero(embedding.cols());
  for (const token t : text) sum += embedding.row(t);
  return sum / static_cast<float>(std::max<std::size_t>(text.size(), 1));
}

/// What the network reads before position t.
template <class Embedding, class Row>
void read_context(const Embedding& embedding, const exchange& e, index t,
                  const Eigen::RowVectorXf& prompt_mean, const Eigen::RowVectorXf& reply_sum,
                  Row&& input) {
  const index width = embedding.cols();
  constexpr index window = context_network::window;
  for (index back = 1; back <= window; ++back)
    input.segment((back - 1) * width, width) = embedding.row(look_back(e, t, back));
  input.segment(window * width, width) = prompt_mean;
  input.segment((window + 1) * width, width) =
      reply_sum / static_cast<float>(std::max<index>(t, 1));
}

}  // namespace

context_network::context_network(const sizes& s, std::mt19937_64& random)
    : parameters(column::Zero(s.parameters())), sizes_(s) {
  parts<column> p(parameters, s);
  const auto fill = [&](auto& block, double deviation) {
    std::normal_distribution<double> normal(0, deviation);
    for (index i = 0; i < block.size(); ++i) block.data()[i] = static_cast<float>(normal(random));
  };
  fill(p.embedding, 0.3);
  fill(p.hidden, 1 / std::sqrt(static_cast<double>(s.inputs())));
  fill(p.output, 0.1 / std::sqrt(static_cast<double>(s.hidden)));
}

void context_network::hidden_and_output(activations& a) const {
  const parts<const column> p(parameters, sizes_);
  a.hidden.noalias() = a.input * p.hidden;
  a.hidden.rowwise() += p.hidden_bias;
  a.hidden = a.hidden.array().tanh().matrix();
  a.output.noalias() = a.hidden * p.output;
  a.output.rowwise() += p.output_bias;
}

void context_network::forward(const packed_replies& replies, activations& a) const {
  const parts<const column> p(parameters, sizes_);
  a.input.resize(replies.rows(), sizes_.inputs());
  index row = 0;
  for (const exchange* e : replies.sources) {
    const Eigen::RowVectorXf prompt_mean = mean_embedding(p.embedding, e->prompt);
    Eigen::RowVectorXf reply_sum = Eigen::RowVectorXf::Zero(sizes_.embedding);
    for (index t = 0; t < static_cast<index>(e->reply.size()); ++t, ++row) {
      read_context(p.embedding, *e, t, prompt_mean, reply_sum, a.input.row(row));
      reply_sum += p.embedding.row(e->reply[static_cast<std::size_t>(t)]);
    }
  }
  hidden_and_output(a);
}

void context_network::backward(const packed_replies& replies, const activations& a,
                               const matrix& d_output, column& d_parameters) const {
  const parts<const column> p(parameters, sizes_);
  parts<column> d(d_parameters, sizes_);
  d.output.noalias() += a.hidden.transpose() * d_output;
  d.output_bias += d_output.colwise().sum();
  matrix d_hidden = d_output * p.output.transpose();
  d_hidden.array() *= 1 - a.hidden.array().square();
  d.hidden.noalias() += a.input.transpose() * d_hidden;
  d.hidden_bias += d_hidden.colwise().sum();
  const matrix d_input = d_hidden * p.hidden.transpose();

  // The chain rule of read_context, from the last position to the first: a token takes its share
  // of every later mean it is part of.
  const index width = sizes_.embedding;
  for (index r = 0; r < replies.count(); ++r) {
    const exchange& e = *replies.sources[static_cast<std::size_t>(r)];
    const index first = replies.first_row(r);
    Eigen::RowVectorXf d_prompt_mean = Eigen::RowVectorXf::Zero(width);
    Eigen::RowVectorXf d_reply_sum = Eigen::RowVectorXf::Zero(width);
    for (index t = static_cast<index>(e.reply.size()); t-- > 0;) {
      const auto row = d_input.row(first + t);
      d.embedding.row(e.reply[static_cast<std::size_t>(t)]) += d_reply_sum;
      for (index back = 1; back <= window; ++back)
        d.embedding.row(look_back(e, t, back)) += row.segment((back - 1) * width, width);
      d_prompt_mean += row.segment(window * width, width);
      d_reply_sum +=
          row.segment((window + 1) * width, width) / static_cast<float>(std::max<index>(t, 1));
    }
    const float share = 1 / static_cast<float>(std::max<std::size_t>(e.prompt.size(), 1));
    for (const token t : e.prompt) d.embedding.row(t) += share * d_prompt_mean;
  }
}

std::vector<exchange> context_network::sample(std::span<const tokens* const> prompts, index longest,
                                              std::mt19937_64& random) const {
  const parts<const column> p(parameters, sizes_);
  std::vector<exchange> result;
  std::vector<Eigen::RowVectorXf> prompt_mean, reply_sum;
  for (const tokens* prompt : prompts) {
    result.push_back({.prompt = *prompt, .reply = {}});
    prompt_mean.push_back(mean_embedding(p.embedding, *prompt));
    reply_sum.emplace_back(Eigen::RowVectorXf::Zero(sizes_.embedding));
  }
  std::vector<std::size_t> open(result.size());  // replies that have not ended
  for (std::size_t i = 0; i < open.size(); ++i) open[i] = i;

  activations a;
  column weight(sizes_.outputs);
  for (index t = 0; t < longest && !open.empty(); ++t) {
    a.input.resize(static_cast<index>(open.size()), sizes_.inputs());
    for (std::size_t k = 0; k < open.size(); ++k)
      read_context(p.embedding, result[open[k]], t, prompt_mean[open[k]], reply_sum[open[k]],
                   a.input.row(static_cast<index>(k)));
    hidden_and_output(a);

    std::vector<std::size_t> still_open;
    for (std::size_t k = 0; k < open.size(); ++k) {
      const auto logits = a.output.row(static_cast<index>(k)).transpose().array();
      weight = (logits - logits.maxCoeff()).exp();
      double left = uniform(random) * static_cast<double>(weight.sum());
      index drawn = 0;
      while (drawn + 1 < weight.size() && left >= static_cast<double>(weight[drawn]))
        left -= static_cast<double>(weight[drawn++]);
      result[open[k]].reply.push_back(static_cast<token>(drawn));
      reply_sum[open[k]] += p.embedding.row(drawn);
      if (drawn != vocabulary::end) still_open.push_back(open[k]);
    }
    open = std::move(still_open);
  }
  return result;
}

void adam::step(column& parameters, column gradient, double rate, double largest_norm) {
  constexpr float keep_mean = 0.9f, keep_square = 0.999f, floor = 1e-8f;
  const double norm = static_cast<double>(gradient.matrix().norm());
  if (norm > largest_norm) gradient *= static_cast<float>(largest_norm / norm);
  ++steps_;
  mean_ = keep_mean * mean_ + (1 - keep_mean) * gradient;
  square_ = keep_square * square_ + (1 - keep_square) * gradient.square();
  const float mean_scale = 1 / (1 - std::pow(keep_mean, static_cast<float>(steps_)));
  const float square_scale = 1 / (1 - std::pow(keep_square, static_cast<float>(steps_)));
  parameters -=
      static_cast<float>(rate) * mean_scale * mean_ / ((square_scale * square_).sqrt() + floor);
}

learner::worker& learner::forward(const shard& s) {
  worker& w = workers[s.worker];
  network.forward(s.replies, w.a);
  w.d_output.resizeLike(w.a.output);
  return w;
}

void learner::backward(const shard& s) {
  worker& w = workers[s.worker];
  w.gradient.setZero(network.parameters.size());
  network.backward(s.replies, w.a, w.d_output, w.gradient);
}

void learner::step(double rate) {
  optimiser.step(network.parameters, workers[0].gradient + workers[1].gradient, rate);
}

}  // namespace demo
