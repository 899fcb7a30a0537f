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

#include "tests/support/backends.hpp"
#include "tests/support/quad.hpp"
#include "tests/support/thread_pool.hpp"
#include "rlhf/statistics/aggregation.hpp"

namespace rlhf_test {

/// How many numbers a tensor holds. Values are kept dense: [rows, columns] or [rows].
enum class extent { token, row };

struct input_spec {
  const char* name;
  extent size = extent::token;
  double low = -1, high = 1;
  const char* gradient = nullptr;  ///< the output that holds ∂loss/∂input
  bool optional = false;           ///< may be left out of the call
};

struct output_spec {
  const char* name;
  extent size = extent::token;
};

/// One batch, independent of how it will lie in memory.
struct problem {
  int variant = 0;
  index rows = 0, columns = 0;
  std::vector<index> length;                          // of each row
  std::vector<double> weight;                         // [rows, columns]; 0 beyond the length
  std::map<std::string, std::vector<double>> inputs;  // by name
  std::map<std::string, std::vector<index>> ids;      // rank 1, by name
  std::map<std::string, double> counts;               // normalisers given as numbers
  double upstream = 1;

  double at(const char* name, index i, index j) const {
    const auto found = inputs.find(name);
    if (found == inputs.end()) return 0;
    const auto& v = found->second;
    return v[static_cast<std::size_t>(static_cast<index>(v.size()) == rows && columns != 1
                                          ? i
                                          : static_cast<index>(v.size()) == rows ? i : i * columns + j)];
  }
  double w(index i, index j) const { return weight[static_cast<std::size_t>(i * columns + j)]; }
  bool has(const char* name) const { return inputs.count(name) != 0; }
};

/// How a problem lies in memory.
enum class form { mask_u8, mask_float, mask_double, lengths, packed, strided };

/// The tensors of one call in scalar T: what an entry builds its aggregates from. Names are looked
/// up without making a std::string, because the allocation suite counts what a call takes.
template <class T>
class arguments {
 public:
  const problem* p = nullptr;
  form shape_of_memory = form::mask_u8;
  bool accumulate = false;
  std::map<std::string, std::vector<T>, std::less<>> memory;        // inputs
  std::map<std::string, std::vector<T>, std::less<>> written;       // outputs
  std::map<std::string, extent, std::less<>> sizes;
  std::map<std::string, std::vector<std::int64_t>, std::less<>> ids;
  std::vector<std::uint8_t> mask_u8;
  std::vector<float> mask_float;
  std::vector<double> mask_double;
  std::vector<std::int32_t> lengths32;
  std::vector<std::int64_t> offsets;
  // One fault at a time, for the suite that breaks contracts.
  std::string left_out, wrong_shape, null_data;
  std::map<std::string, std::string, std::less<>> alias;  // an output that is given another one's memory

  index step() const { return shape_of_memory == form::strided ? 3 : 1; }
  bool packed() const { return shape_of_memory == form::packed; }

  rlhf::raw_view<T, rlhf::host_space> raw(const char* name, T* data) const {
    if (null_data == name) data = nullptr;
    rlhf::raw_view<T, rlhf::host_space> r;
    r.data = data;
    const index extra = wrong_shape == name ? 1 : 0;
    if (sizes.find(name)->second == extent::row) {
      r.rank = 1;
      r.size[0] = p->rows + extra;
      r.stride[0] = step();
    } else if (packed()) {
      r.rank = 1;
      r.size[0] = (offsets.empty() ? 0 : static_cast<index>(offsets.back())) + extra;
      r.stride[0] = 1;
    } else {
      r.rank = 2;
      r.size[0] = p->rows;
      r.size[1] = p->columns + extra;
      r.stride[0] = step() == 1 ? p->columns + 0 : step();  // strided: column-major, every third
      r.stride[1] = step() == 1 ? 1 : step() * p->rows;
    }
    return r;
  }
  rlhf::signal<const T> in(const char* name) const {
    const auto found = memory.find(name);
    if (found == memory.end() || left_out == name) return {};
    const auto r = raw(name, const_cast<T*>(found->second.data()));
    rlhf::raw_view<const T, rlhf::host_space> c{r.data, r.rank, {r.size[0], r.size[1], 1},
                                               {r.stride[0], r.stride[1], 0}};
    rlhf::signal<const T> s{rlhf::view<const T>(c)};
    s.one_per_sequence = sizes.find(name)->second == extent::row;
    return s;
  }
  rlhf::output<T> out(const char* name) {
    const auto found = written.find(name);
    if (found == written.end() || left_out == name) return {};
    const auto shared = alias.find(name);
    T* const data = shared == alias.end() ? found->second.data() : written[shared->second].data();
    rlhf::output<T> o{rlhf::view<T>(raw(name, data))};
    o.accumulate = accumulate;
    return o;
  }
  rlhf::index_view<> id(const char* name) const {
    const auto found = ids.find(name);
    if (found == ids.end() || left_out == name) return {};
    return {found->second.data(), rlhf::shape(static_cast<index>(found->second.size()))};
  }
  rlhf::mask_view<> mask() const {
    const rlhf::shape s = packed() ? rlhf::shape(offsets.empty() ? index{0} : static_cast<index>(offsets.back()))
                                   : rlhf::shape(p->rows, p->columns);
    if (!mask_u8.empty()) return {mask_u8.data(), s};
    if (!mask_float.empty()) return {mask_float.data(), s};
    if (!mask_double.empty()) return {mask_double.data(), s};
    return {};
  }
  rlhf::sequence_layout<> layout() const {
    if (shape_of_memory == form::lengths)
      return rlhf::lengths(lengths32.data(), rlhf::shape(static_cast<index>(lengths32.size())));
    if (packed()) return rlhf::packed(offsets.data(), rlhf::shape(static_cast<index>(offsets.size())));
    return {};
  }
  rlhf::normaliser by(const char* count) const {
    const auto found = p->counts.find(count);
    if (found == p->counts.end()) return rlhf::local;
    return found->second;
  }
  double upstream() const { return p->upstream; }
};

/// What a call returned, as names and numbers; `sums` merge by addition.
using figures = std::map<std::string, double>;

inline void put(figures& f, const char* name, double x) { f[name] = x; }
template <class Metric>
  requires requires(const Metric& m) { m.sum; m.count; }
void put(figures& f, const char* name, const Metric& m) {
  f[std::string(name) + ".sum"] = m.sum;
  f[std::string(name) + ".count"] = m.count;
}

struct entry {
  std::string name;
  int variants = 1;
  bool tokens = true;      ///< has a mask and a layout
  bool reduces = true;     ///< figures add up over micro-batches with given counts
  bool per_row = true;     ///< outputs of a row depend on that row and the counts alone
  bool scales = true;      ///< takes .upstream
  std::function<std::vector<input_spec>(int variant)> inputs;
  std::function<std::vector<output_spec>(int variant)> outputs;
  std::function<void(problem&, random_numbers&)> shape_inputs;  ///< after drawing; may be empty
  std::vector<std::string> count_names;  ///< normalisers that the counts suites give

  std::function<figures(arguments<double>&)> call_double;
  std::function<figures(arguments<float>&)> call_float;
  std::function<figures(arguments<double>&, const thread_pool&)> call_parallel;
  std::function<figures(arguments<double>&, void*, std::size_t)> call_in_workspace;
  std::function<std::size_t(arguments<double>&)> workspace;
  /// The loss in __float128, from the same formula and plain loops; empty for estimators.
  std::function<quad(const problem&, const std::map<std::string, std::vector<quad>>&)> reference;
};

/// Calls of operator new so far, and those of the last call in a workspace.
std::size_t allocations();
extern std::size_t allocations_of_last_call;

std::vector<entry>& registry();

/// Fills the calls of an entry from E::call<T>(arguments<T>&, exec) and E::read(result).
template <class E>
entry make_entry() {
  entry e = E::describe();
  e.call_double = [](arguments<double>& a) { return E::read(E::template call<double>(a, rlhf::serial{})); };
  e.call_float = [](arguments<float>& a) { return E::read(E::template call<float>(a, rlhf::serial{})); };
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
problem draw(const entry& e, int variant, index rows, index columns, bool holes, random_numbers& random);

/// Lays a problem out in memory. Outputs are filled with `fill`. Forms without a mask need one
/// whose weights are 1 up to the length; `packed` carries the mask along where there are holes.
template <class T>
arguments<T> lay_out(const entry& e, const problem& p, form f, double fill = 7);

/// The dense [rows, columns] (or [rows]) values of an output, whatever its form; padding that a
/// form does not have reads as 0.
template <class T>
std::vector<T> dense(const arguments<T>& a, const std::string& name);

/// w of each token for an aggregation: the definition, in plain loops.
std::vector<quad> aggregation_weights(const problem& p, rlhf::aggregation_mode mode, double horizon);

/// Same bits, NaN and the sign of zero included.
template <class T>
bool same_bits(const T& a, const T& b) {
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}
inline bool same_bits(const figures& a, const figures& b) {
  if (a.size() != b.size()) return false;
  for (auto i = a.begin(), j = b.begin(); i != a.end(); ++i, ++j)
    if (i->first != j->first || std::memcmp(&i->second, &j->second, sizeof(double)) != 0) return false;
  return true;
}

}  // namespace rlhf_test
