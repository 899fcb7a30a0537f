#pragma once

#include "bench/support/line.hpp"

namespace rlhf_bench {

/// How the tokens of a line lie.
enum class token_layout {
  dense,         ///< [rows, columns], neither lengths nor mask
  lengths,       ///< the same, with lengths, all of them full
  mask,          ///< the same, with a mask of flags, 20 % holes at random
  padded,        ///< lengths between 20 % and 100 % of a row
  packed,        ///< those rows, one after the other
  column_major,  ///< as `lengths`, columns contiguous
};
const char* name_of(token_layout layout);

struct token_case {
  token_layout layout;
  index rows, columns;
  int threads = 1;
  std::string name() const;  ///< layout/rows x columns/threads
};

/// The inputs and outputs of one operation in one case.
class token_data {
  token_case of_;
  index tokens_ = 0, counted_ = 0;

  rlhf::view<float> add(const char* name, bool is_output);

 public:
  tensors store;
  std::function<void()> prepare;
  rlhf::mask_view<> mask;
  rlhf::sequence_layout<> layout;

  explicit token_data(const token_case& of);

  /// One number per token, uniform in [low, high).
  rlhf::view<const float> input(const char* name, float low, float high);
  /// `other` and up to `spread` more or less.
  rlhf::view<const float> input_near(const char* name, const rlhf::view<const float>& other,
                                     float spread);
  /// One number per row.
  rlhf::view<const float> row_input(const char* name, float low, float high);
  rlhf::view<float> output(const char* name) { return add(name, true); }

  /// Tokens of the layout: a hole counts, padding does not.
  double tokens() const { return static_cast<double>(tokens_); }
  /// Tokens that count: neither holes nor padding. What divides a loss.
  double counted() const { return static_cast<double>(counted_); }
  /// Places in memory: padding counts.
  double slots() const;
};

/// One operation over tokens.
struct token_operation {
  const char* family;
  const char* name;
  double read;   ///< bytes that have to be read for one token
  double write;  ///< bytes that have to be written for one place
  target (*goal)(const token_case&) = [](const token_case&) { return target{}; };  ///< one thread
  bool scan = false;    ///< also measured on short and on long rows
  bool growth = false;  ///< also measured for growth
  int answers = 1;      ///< tokens that stand at one place: 2 where pairs lie side by side
};

/// Every case of an operation that a run measures.
std::vector<token_case> cases_of(const token_operation& operation, const settings& s);
work work_of(const token_operation& operation, const token_case& of, const token_data& data);

struct growth_case {
  std::string name;
  token_case small, large;
  double low, high;
};
std::vector<growth_case> growth_cases(const token_operation& operation);

/// Registers every line of an operation. make(token_data&) returns the call: f(executor).
template <class Make>
registration token_lines(const token_operation& operation, const Make& make) {
  return registration([operation, make](const settings& s) {
    const std::string stem = std::string(operation.family) + "/" + operation.name + "/";
    for (const token_case& c : cases_of(operation, s)) {
      const std::string name = stem + c.name();
      add_line(name, [operation, make, c, name](benchmark::State& state) {
        token_data data(c);
        const auto call = make(data);  // fills the data, so that its bytes are known
        run_line(
            state, name, data, [&](token_data&) { return call; }, work_of(operation, c, data));
      });
    }
    for (const growth_case& g : growth_cases(operation))
      add_line(std::string("growth/") + operation.name + "/" + g.name, [make, g](auto& state) {
        token_data small(g.small), large(g.large);
        run_growth(state, small, large, make, g.low, g.high);
      });
  });
}

}  // namespace rlhf_bench
