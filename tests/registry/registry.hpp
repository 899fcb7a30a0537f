#pragma once

// One record for each public function. Every suite beside this file runs over all records, so a new
// function gets its gradient checked, its masks poisoned, its layouts compared, its contracts broken
// and its allocations counted from one entry.

#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "rlhf/statistics/aggregation.hpp"
#include "rlhf/statistics/moments.hpp"
#include "rlhf/statistics/nonfinite.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/quad.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {

/// How many numbers a tensor holds for each row of the problem, and where they lie.
enum class extent {
  token,   ///< [rows, columns], or packed; [rows] where an entry has no time
  row,     ///< [rows]
  logit,   ///< [rows, columns, classes], or [tokens, classes]
  member,  ///< [members, rows]
  none     ///< in the problem alone, never laid out
};
inline constexpr index problem_classes = 5, problem_members = 3;

enum class kind { number, flag, label };

struct input_spec {
  const char* name;
  extent size = extent::token;
  double low = -1, high = 1;
  const char* gradient = nullptr;  ///< the output that holds ∂loss/∂input
  bool optional = false;           ///< may be left out of the call
  rlhf_test::kind kind = rlhf_test::kind::number;
  bool leads = false;  ///< sets the shape of others, like the first input
};

struct output_spec {
  const char* name;
  extent size = extent::token;
  int degree = 1;  ///< of homogeneity in entry::homogeneous
};

/// One batch, independent of how it will lie in memory: row by row, dense.
struct problem {
  int variant = 0;
  index rows = 0, columns = 0;
  std::vector<index> length;                          // of each row
  std::vector<double> weight;                         // [rows, columns]; 0 beyond the length
  std::map<std::string, std::vector<double>> inputs;  // by name
  std::map<std::string, std::vector<index>> ids;      // rank 1, by name
  std::map<std::string, double> counts;               // normalisers given as numbers
  double upstream = 1;

  double w(index i, index j) const { return weight[static_cast<std::size_t>(i * columns + j)]; }
  bool has(const char* name) const { return inputs.count(name) != 0; }
  index width(extent size) const {
    switch (size) {
      case extent::row:
        return 1;
      case extent::logit:
        return columns * problem_classes;
      case extent::member:
        return problem_members;
      case extent::token:
      case extent::none:
        break;
    }
    return columns;
  }
  /// Does number c of row i count?
  bool counts_at(extent size, index i, index c) const {
    if (size == extent::token) return w(i, c) > 0;
    if (size == extent::logit) return w(i, c / problem_classes) > 0;
    for (index j = 0; j < columns; ++j)
      if (w(i, j) > 0) return true;
    return false;
  }
};

/// How a problem lies in memory.
enum class form { mask_u8, mask_float, mask_double, lengths, packed, strided, column_major };

/// The tensors of one call in scalar T: what an entry builds its aggregates from. Names are looked
/// up without making a std::string, because the allocation suite counts what a call takes.
template <class T>
class arguments {
 public:
  template <class V>
  using by_name = std::map<std::string, V, std::less<>>;

  const problem* p = nullptr;
  form shape_of_memory = form::mask_u8;
  bool tokens = true;  // else [rows] stands in the place of [rows, columns]
  bool accumulate = false;
  rlhf::nonfinite_policy nonfinite = rlhf::nonfinite_policy::propagate;
  by_name<std::vector<T>> memory;   // inputs
  by_name<std::vector<T>> written;  // outputs
  by_name<extent> sizes;
  by_name<std::vector<std::int64_t>> ids, labels;
  by_name<std::vector<std::uint8_t>> flags;
  std::vector<std::uint8_t> mask_u8, row_counts;
  std::vector<float> mask_float;
  std::vector<double> mask_double;
  std::vector<std::int32_t> lengths32;
  std::vector<std::int64_t> offsets;
  // One fault at a time, for the suites that break contracts.
  std::string left_out, wrong_shape, null_data, bent;
  std::function<void(rlhf::raw_view<T, rlhf::host_space>&)> bend;  // what happens to tensor `bent`
  by_name<std::string> alias;  // an output that is given another tensor's memory
  by_name<double> numbers;     // numbers of the config that differ from the entry's

  index step() const { return shape_of_memory == form::strided ? 3 : 1; }
  bool packed() const { return shape_of_memory == form::packed; }
  /// Whether the rows' numbers for one token lie side by side.
  bool time_major() const {
    return shape_of_memory == form::strided || shape_of_memory == form::column_major;
  }
  index packed_tokens() const { return offsets.empty() ? 0 : static_cast<index>(offsets.back()); }

  /// Where number c of row i lies, or -1 where this form has no place for it.
  index place(extent size, index i, index c) const {
    if (size == extent::row || (size == extent::token && !tokens)) return i * step();
    if (size == extent::member) return (c * p->rows + i) * step();
    const index classes = size == extent::logit ? problem_classes : 1;
    const index j = c / classes, k = c % classes;
    if (packed()) {
      if (j >= p->length[static_cast<std::size_t>(i)]) return -1;
      return (static_cast<index>(offsets[static_cast<std::size_t>(i)]) + j) * classes + k;
    }
    return (time_major() ? step() * (j * p->rows + i) : i * p->columns + j) * classes + k;
  }

  /// Strided: time-major, every third element (of rows of logits: every third row); masks, flags
  /// and labels are dense. Column-major: all but labels are.
  rlhf::raw_view<T, rlhf::host_space> raw(const char* name, T* data) const {
    if (null_data == name) data = nullptr;
    rlhf::raw_view<T, rlhf::host_space> r;
    r.data = data;
    const index extra = wrong_shape == name ? 1 : 0;
    const extent size = sizes.find(name)->second;
    const index classes = size == extent::logit ? problem_classes : 1;
    if (size == extent::row || (size == extent::token && !tokens)) {
      r = {data, 1, {p->rows + extra, 1, 1}, {step(), 0, 0}};
    } else if (size == extent::member) {
      r = {data, 2, {problem_members + extra, p->rows, 1}, {step() * p->rows, step(), 0}};
    } else if (packed()) {
      r = {data, 1, {packed_tokens() + extra, 1, 1}, {classes, 0, 0}};
    } else {
      r.data = data;
      r.rank = 2;
      r.size[0] = p->rows;
      r.size[1] = p->columns + extra;
      r.stride[0] = (time_major() ? step() : p->columns) * classes;
      r.stride[1] = (time_major() ? step() * p->rows : 1) * classes;
    }
    if (size == extent::logit) {
      r.size[r.rank] = classes;
      r.stride[r.rank] = 1;
      ++r.rank;
    }
    if (bend && bent == name) bend(r);
    return r;
  }
  bool given(const char* name) const {
    return memory.find(name) != memory.end() && left_out != name;
  }
  rlhf::signal<const T> in(const char* name) const {
    if (!given(name)) return {};
    const auto r = raw(name, const_cast<T*>(memory.find(name)->second.data()));
    rlhf::raw_view<const T, rlhf::host_space> c{
        r.data, r.rank, {r.size[0], r.size[1], r.size[2]}, {r.stride[0], r.stride[1], r.stride[2]}};
    rlhf::signal<const T> s{rlhf::view<const T>(c)};
    s.one_per_sequence = sizes.find(name)->second == extent::row;
    return s;
  }
  rlhf::output<T> out(const char* name) {
    const auto found = written.find(name);
    if (found == written.end() || left_out == name) return {};
    T* data = found->second.data();
    if (const auto other = alias.find(name); other != alias.end()) {
      const auto shared = written.find(other->second);
      data = shared != written.end() ? shared->second.data() : memory[other->second].data();
    }
    rlhf::output<T> o{rlhf::view<T>(raw(name, data))};
    o.accumulate = accumulate;
    return o;
  }
  rlhf::index_view<> id(const char* name) const {
    const auto found = ids.find(name);
    if (found == ids.end() || left_out == name) return {};
    return {found->second.data(), rlhf::shape(static_cast<index>(found->second.size()))};
  }
  /// The extents of everything that has one number per token.
  rlhf::shape token_shape(index extra = 0) const {
    if (!tokens) return rlhf::shape(p->rows + extra);
    if (packed()) return rlhf::shape(packed_tokens() + extra);
    return rlhf::shape(p->rows, p->columns + extra);
  }
  rlhf::index_view<> label(const char* name) const {
    const auto found = labels.find(name);
    if (found == labels.end() || left_out == name) return {};
    const auto* const data = null_data == name ? nullptr : found->second.data();
    return {data, token_shape(wrong_shape == name ? 1 : 0)};
  }
  rlhf::mask_view<> flag(const char* name) const {
    const auto found = flags.find(name);
    if (found == flags.end() || left_out == name) return {};
    const auto* const data = null_data == name ? nullptr : found->second.data();
    return flags_at(data, token_shape(wrong_shape == name ? 1 : 0));
  }
  rlhf::mask_view<> flags_at(const std::uint8_t* data, const rlhf::shape& s) const {
    if (shape_of_memory != form::column_major || s.rank != 2) return {data, s};
    return {data, s, rlhf::shape(index{1}, p->rows)};
  }
  rlhf::mask_view<> mask() const {
    if (!mask_u8.empty()) return flags_at(mask_u8.data(), token_shape());
    if (!mask_float.empty()) return {mask_float.data(), token_shape()};
    if (!mask_double.empty()) return {mask_double.data(), token_shape()};
    return {};
  }
  /// One flag per row: some token of it counts.
  rlhf::mask_view<> row_mask() const { return {row_counts.data(), rlhf::shape(p->rows)}; }
  rlhf::sequence_layout<> layout() const {
    if (shape_of_memory == form::lengths)
      return rlhf::lengths(lengths32.data(), rlhf::shape(static_cast<index>(lengths32.size())));
    if (packed())
      return rlhf::packed(offsets.data(), rlhf::shape(static_cast<index>(offsets.size())));
    return {};
  }
  rlhf::normaliser by(const char* count) const {
    const auto found = p->counts.find(count);
    if (found == p->counts.end()) return rlhf::local;
    return found->second;
  }
  double upstream() const { return p->upstream; }
  /// A number of the config: the entry's own, unless a suite wants another one.
  double number(const char* name, double usual) const {
    const auto found = numbers.find(name);
    return found == numbers.end() ? usual : found->second;
  }
};

/// What a call returned, as names and numbers. They add up over micro-batches, but for names that
/// begin with "min:" or "max:" and for "own:", which says something of one call alone.
using figures = std::map<std::string, double>;

inline bool begins(const std::string& name, const char* with) { return name.rfind(with, 0) == 0; }

inline void put(figures& f, const char* name, double x) { f[name] = x; }
template <class Metric>
  requires requires(const Metric& m) {
    m.sum;
    m.count;
  }
void put(figures& f, const char* name, const Metric& m) {
  f[std::string(name) + ".sum"] = m.sum;
  f[std::string(name) + ".count"] = m.count;
}
inline void put(figures& f, const char* name, const rlhf::moments& m) {
  f[std::string(name) + ".sum"] = m.mean * m.count;
  f[std::string(name) + ".count"] = m.count;
  f[std::string(name) + ".squares"] = m.m2 + m.mean * m.mean * m.count;
  f["own:" + std::string(name) + ".mean"] = m.mean;
  f["own:" + std::string(name) + ".m2"] = m.m2;
}

/// Values of one number of the config that the function refuses, and the name it says.
struct refused_number {
  const char* name;
  std::vector<double> values;
  int variant = 0;
};

using quad_inputs = std::map<std::string, std::vector<quad>>;

struct entry {
  std::string name;
  std::string mask_name = "mask", layout_name = "layout";
  int variants = 1;
  bool tokens = true;          ///< has a layout: [rows, columns]; else [rows]
  bool masked = true;          ///< has a mask, or one weight per row
  bool weighs = true;          ///< a weight of 2 counts like the token twice; else > 0 is a flag
  bool reduces = true;         ///< figures add up over micro-batches with given counts
  bool per_row = true;         ///< outputs of a row depend on that row and the counts alone
  bool scales = true;          ///< takes .upstream
  bool slope_of_loss = true;   ///< false: parts of the loss are constants by design; see reference
  bool screens = true;         ///< has a nonfinite_policy
  bool nan_is_data = false;    ///< NaN has a meaning of its own
  bool exact_add = true;       ///< add_to adds what would have been written, to the bit
  bool convex = false;         ///< in all its differentiable inputs together
  bool needs_outputs = false;  ///< a call without outputs is refused
  double float_error = 64;     ///< of outputs, in 2^-24 of the largest
  std::function<std::vector<input_spec>(int variant)> inputs;
  std::function<std::vector<output_spec>(int variant)> outputs;
  std::function<void(problem&, random_numbers&)> shape_inputs;  ///< after drawing; may be empty
  std::vector<std::string> count_names;  ///< normalisers that the counts suites give
  std::vector<refused_number> refused;
  /// Inputs that, scaled together, scale the loss and each output by their degree; may be empty.
  std::function<std::vector<std::string>(int variant)> homogeneous;
  int loss_degree = 1;
  /// Variants that read some masked slots by design.
  std::function<bool(int variant)> reads_holes;

  std::function<figures(arguments<double>&)> call_double;
  std::function<figures(arguments<float>&)> call_float;
  std::function<figures(arguments<double>&, const thread_pool&)> call_parallel;
  std::function<figures(arguments<double>&, void*, std::size_t)> call_in_workspace;
  std::function<std::size_t(arguments<double>&)> workspace;
  /// The loss in __float128, from the same formula and plain loops; empty for estimators. Where
  /// the call returns no loss it is what the gradient is the slope of.
  std::function<quad(const problem&, const quad_inputs&)> reference;

  bool has_holes(int variant) const { return reads_holes && reads_holes(variant); }
};

/// Calls of operator new so far, and those of the last call in a workspace.
std::size_t allocations();
extern std::size_t allocations_of_last_call;

std::vector<entry>& registry();

/// Fills the calls of an entry from E::call<T>(arguments<T>&, exec) and E::read(result).
template <class E>
entry make_entry() {
  entry e = E::describe();
  e.call_double = [](arguments<double>& a) {
    return E::read(E::template call<double>(a, rlhf::serial{}));
  };
  e.call_float = [](arguments<float>& a) {
    return E::read(E::template call<float>(a, rlhf::serial{}));
  };
  e.call_parallel = [](arguments<double>& a, const thread_pool& pool) {
    return E::read(E::template call<double>(a, rlhf::parallel<thread_pool>{pool}));
  };
  e.call_in_workspace = [](arguments<double>& a, void* memory, std::size_t bytes) {
    // Reading the result into names allocates: the suite counts the call alone.
    const std::size_t before = allocations();
    const auto r = E::template call<double>(a, rlhf::serial{memory, bytes});
    allocations_of_last_call = allocations() - before;
    return E::read(r);
  };
  e.workspace = [](arguments<double>& a) {
    return rlhf::workspace_bytes([&](const auto& exec) { E::template call<double>(a, exec); });
  };
  return e;
}

struct registrar {
  explicit registrar(entry e) { registry().push_back(std::move(e)); }
};

/// A batch for `e`: ragged rows, holes in the mask where `holes`.
problem draw(const entry& e, int variant, index rows, index columns, bool holes,
             random_numbers& random);

/// Lays a problem out in memory. Outputs are filled with `fill`. Forms without a mask need one
/// whose weights are 1 up to the length; `packed` carries the mask along where there are holes.
template <class T>
arguments<T> lay_out(const entry& e, const problem& p, form f, double fill = 7);

/// The dense values of an output, row by row, whatever its form; padding that a form does not have
/// reads as 0.
template <class T>
std::vector<T> dense(const arguments<T>& a, const std::string& name);

/// Overwrites the inputs of slots that do not count; their labels and flags become nonsense.
template <class T>
void poison(const entry& e, arguments<T>& a, T value);

/// Rows `order` of a problem.
problem select_rows(const entry& e, const problem& p, const std::vector<index>& order);

/// Gives every normaliser as a number.
void give_counts(const entry& e, problem& p);

/// Adds the figures of a micro-batch.
void add_figures(figures& sum, const figures& part);

/// The forms of memory that fit an entry.
std::vector<form> forms_of(const entry& e);

/// w of each token for an aggregation: the definition, in plain loops.
std::vector<quad> aggregation_weights(const problem& p, rlhf::aggregation_mode mode,
                                      double horizon);

/// Number c of row i of an input, 0 where it is not given; one number per row serves all columns.
inline quad quad_at(const problem& p, const quad_inputs& x, const char* name, index i, index c) {
  const auto found = x.find(name);
  if (found == x.end()) return 0;
  const auto n = static_cast<index>(found->second.size());
  const index width = p.rows > 0 ? n / p.rows : 0;
  return found->second[static_cast<std::size_t>(width == 1 ? i : i * width + c)];
}

/// The aggregation or the reduction an entry's variant asks for.
template <class T>
rlhf::aggregation aggregation_of(const arguments<T>& a, rlhf::aggregation_mode mode) {
  using rlhf::aggregation;
  using rlhf::aggregation_mode;
  switch (mode) {
    case aggregation_mode::token_mean:
      return aggregation::token_mean(a.by("tokens"));
    case aggregation_mode::token_sum:
      return aggregation::token_sum();
    case aggregation_mode::sequence_mean_token_sum:
      return aggregation::sequence_mean_token_sum(a.by("sequences"));
    case aggregation_mode::sequence_mean_token_sum_norm:
      return aggregation::sequence_mean_token_sum_norm(a.by("sequences"), 16);
    case aggregation_mode::sequence_mean_token_mean:
      return aggregation::sequence_mean_token_mean(a.by("sequences"));
    case aggregation_mode::group_mean_token_mean:
      return aggregation::group_mean_token_mean(a.by("groups"));
    case aggregation_mode::turn_mean:
      return aggregation::turn_mean(a.by("turns"));
    case aggregation_mode::none:
      break;
  }
  return aggregation::none();
}
template <class T>
rlhf::reduction reduction_of(const arguments<T>& a, bool mean) {
  return mean ? rlhf::reduction::mean(a.by("pairs")) : rlhf::reduction::sum();
}

/// One of the eight aggregations, in the order of the enumeration.
inline rlhf::aggregation_mode mode_of(int k) { return static_cast<rlhf::aggregation_mode>(k % 8); }
inline const std::vector<std::string> aggregation_counts{"tokens", "sequences", "groups", "turns"};

/// Groups of rows that interleave, with ids that are no indices.
inline void draw_groups(problem& p, random_numbers& random) {
  for (auto& id : p.ids["group_id"] = std::vector<index>(static_cast<std::size_t>(p.rows)))
    id = random.below(3) * 1000 - 7;
}

/// Same bits, NaN and the sign of zero included.
template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
inline bool same_bits(const figures& a, const figures& b) {
  if (a.size() != b.size()) return false;
  for (auto i = a.begin(), j = b.begin(); i != a.end(); ++i, ++j)
    if (i->first != j->first || std::memcmp(&i->second, &j->second, sizeof(double)) != 0)
      return false;
  return true;
}

}  // namespace rlhf_test
