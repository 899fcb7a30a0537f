#pragma once

// Recorded numbers of other projects against this library. A file holds the cases of one function;
// an adapter says which calls of the library that function is, and hands back its outputs by their
// names.

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "rlhf/core/scalar.hpp"
#include "rlhf/tensor/layout.hpp"
#include "rlhf/tensor/view.hpp"
#include "tests/golden/array.hpp"

namespace golden {

using parameter = std::variant<std::nullptr_t, bool, double, std::string, std::vector<double>,
                               std::vector<std::string>, std::map<std::string, double>>;
std::string to_text(const parameter&);

/// One case of a file, as read.
struct test_case {
  std::string function;
  long number = 0;
  std::map<std::string, parameter> params;
  std::map<std::string, array> inputs, outputs, grads, cotangents;
  std::string raises;           ///< what the source itself threw, if it did
  std::string backward_raises;  ///< the same in its backward pass
};

/// All cases of one file.
std::vector<test_case> read_cases(const std::string& path);

/// What makes a case fail besides its numbers: an unknown name or value.
struct unfit : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// A case as an adapter sees it. What it does not look at is an error of the run: an option that
/// the adapter has never heard of would otherwise be compared under the wrong meaning.
class request {
  const test_case& case_;
  mutable std::set<std::string> seen_;

  const parameter* find(const std::string& name) const;

 public:
  explicit request(const test_case& c) : case_(c) {}

  const std::string& function() const { return case_.function; }

  bool has(const std::string& name) const;  ///< is the input there?
  const array& input(const std::string& name) const;
  array input(const std::string& name, const array& otherwise) const;
  bool differentiated(const std::string& name) const { return case_.grads.contains(name); }
  bool expects(const std::string& name) const { return case_.outputs.contains(name); }
  /// The weight of an output in the scalar whose gradients are recorded; zeros where it takes no
  /// part.
  array cotangent(const std::string& output) const;

  bool flag(const std::string& name, bool otherwise) const;
  double number(const std::string& name, double otherwise) const;
  double number(const std::string& name) const;
  std::optional<double> maybe(const std::string& name,
                              std::optional<double> otherwise = std::nullopt) const;
  std::string text(const std::string& name, const std::string& otherwise) const;
  std::vector<double> numbers(const std::string& name, const std::vector<double>& otherwise) const;
  std::vector<std::string> texts(const std::string& name) const;
  std::map<std::string, double> table(const std::string& name) const;
  bool given(const std::string& name) const;  ///< there, and not null

  /// Says that a parameter only describes the inputs, or that an input does not matter here.
  void ignore(std::initializer_list<const char*> names) const;

  /// Names of params and inputs that nobody asked for.
  std::vector<std::string> unread() const;
};

[[noreturn]] void unknown_value(const std::string& name, const std::string& value);

/// What an adapter hands back. Gradients have names of inputs.
class answer {
 public:
  struct entry {
    array value;
    std::optional<array> where;  ///< compare where this is not 0
    double atol = 0;             ///< looser than the rule, for a reason given at the call
    double rtol = 0;
  };

  entry& put(const std::string& name, array value) {
    return outputs_[name] = {std::move(value), {}};
  }
  entry& put(const std::string& name, double value) { return put(name, array::scalar(value)); }
  /// A figure that the source logs; its name in the file starts with "metric:".
  entry& log(const std::string& name, double value) { return put("metric:" + name, value); }
  entry& grad(const std::string& name, array value) {
    return grads_[name] = {std::move(value), {}};
  }

  /// Every output of this answer is compared with at least this tolerance.
  void loosen(double rtol, double atol) {
    rtol_ = std::max(rtol_, rtol);
    atol_ = std::max(atol_, atol);
  }
  double rtol() const { return rtol_; }
  double atol() const { return atol_; }
  /// The largest exponent that the numbers went through, where the inputs do not show it.
  void exponent(double largest) { exponent_ = std::max(exponent_, largest); }
  double exponent() const { return exponent_; }
  /// The largest number that was rounded on the way, where sums cancel or a small spread divides:
  /// in float the outputs are compared relative to it.
  void magnitude(double largest) {
    if (std::isfinite(largest)) magnitude_ = std::max(magnitude_, largest);
  }
  double magnitude() const { return magnitude_; }

  const std::map<std::string, entry>& outputs() const { return outputs_; }
  const std::map<std::string, entry>& grads() const { return grads_; }

 private:
  std::map<std::string, entry> outputs_, grads_;
  double rtol_ = 0, atol_ = 0, exponent_ = 0, magnitude_ = 0;
};

/// A tensor that the library writes. It starts full of a number that no function returns.
template <class T>
struct written {
  rlhf::raw_view<T, rlhf::host_space> view;
  std::vector<index> shape;

  array read() const;
};

/// Where the tensors of one case live: a backend. Numbers become its tensors here, and what the
/// library sees is what it makes of them; from there on the calls are the same for every backend.
template <class T>
class place {
 public:
  virtual ~place() = default;

  /// One to three extents. The views stay valid as long as the place.
  virtual rlhf::raw_view<const T, rlhf::host_space> in(const array& a) = 0;
  rlhf::raw_view<const T, rlhf::host_space> in(const std::optional<array>& a) {
    return a ? in(*a) : rlhf::raw_view<const T, rlhf::host_space>{};
  }
  virtual rlhf::mask_view<> mask(const array& a) = 0;       ///< as flags
  virtual rlhf::mask_view<> weights(const array& a) = 0;    ///< as weights, in double
  virtual rlhf::index_view<> integers(const array& a) = 0;  ///< ids, labels, lengths
  virtual written<T> out(const std::vector<index>& shape) = 0;
};

template <class T>
std::unique_ptr<place<T>> make_place(std::string_view backend);
std::vector<std::string> backends();

template <class T>
using adapter_call = void (*)(const request&, place<T>&, answer&);

struct adapter {
  const char* function;
  adapter_call<double> in_double;
  adapter_call<float> in_float;
};

std::span<const adapter> statistics_adapters();
std::span<const adapter> kl_adapters();
std::span<const adapter> advantage_adapters();
std::span<const adapter> group_adapters();
std::span<const adapter> policy_adapters();
std::span<const adapter> trl_policy_adapters();
std::span<const adapter> value_adapters();
std::span<const adapter> preference_adapters();
std::span<const adapter> reward_adapters();
std::span<const adapter> distribution_adapters();

/// Why a case is left out; null when it is not. The rules are in rules.cpp.
const char* excluded(const test_case& c);

}  // namespace golden

#define GOLDEN_ADAPTER(name, call) \
  ::golden::adapter { name, &call<double>, &call<float> }
