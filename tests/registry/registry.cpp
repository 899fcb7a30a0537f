#include "tests/registry/registry.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>
#include <set>

namespace {
std::size_t allocation_count = 0;
void* take(std::size_t bytes, std::size_t alignment) {
  ++allocation_count;
  void* p = nullptr;
  if (posix_memalign(&p, alignment < sizeof(void*) ? sizeof(void*) : alignment, bytes > 0 ? bytes : 1) != 0)
    throw std::bad_alloc();
  return p;
}
}  // namespace

void* operator new(std::size_t n) { return take(n, alignof(std::max_align_t)); }
void* operator new[](std::size_t n) { return take(n, alignof(std::max_align_t)); }
void* operator new(std::size_t n, std::align_val_t a) { return take(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return take(n, static_cast<std::size_t>(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace rlhf_test {

std::size_t allocations_of_last_call = 0;
std::size_t allocations() { return allocation_count; }

std::vector<entry>& registry() {
  static std::vector<entry> all;
  return all;
}

problem draw(const entry& e, int variant, index rows, index columns, bool holes,
             random_numbers& random) {
  problem p;
  p.variant = variant;
  p.rows = rows;
  p.columns = e.tokens ? columns : 1;
  for (index i = 0; i < rows; ++i) {
    const index n = e.tokens ? (random.chance(0.3) ? p.columns : random.below(p.columns + 1)) : 1;
    p.length.push_back(n);
    for (index j = 0; j < p.columns; ++j)
      p.weight.push_back(j < n && !(holes && random.chance(0.25)) ? 1 : 0);
  }
  for (const input_spec& s : e.inputs(variant)) {
    const index n = s.size == extent::row ? rows : rows * p.columns;
    auto& v = p.inputs[s.name];
    for (index k = 0; k < n; ++k) v.push_back(random.uniform(s.low, s.high));
  }
  if (e.shape_inputs) e.shape_inputs(p, random);
  // Exact in float, so that both scalars see the same numbers.
  for (auto& [name, v] : p.inputs)
    for (double& x : v) x = static_cast<double>(static_cast<float>(x));
  return p;
}

namespace {
/// Element of the dense [rows, columns] array → element of the memory, or -1 where there is none.
template <class T>
index place(const arguments<T>& a, extent size, index i, index j) {
  if (size == extent::row) return i * a.step();
  if (a.packed()) {
    if (j >= a.p->length[static_cast<std::size_t>(i)]) return -1;
    return static_cast<index>(a.offsets[static_cast<std::size_t>(i)]) + j;
  }
  return a.step() == 1 ? i * a.p->columns + j : a.step() * (j * a.p->rows + i);
}
}  // namespace

template <class T>
arguments<T> lay_out(const entry& e, const problem& p, form f, double fill) {
  arguments<T> a;
  a.p = &p;
  a.shape_of_memory = f;
  a.offsets.push_back(0);
  for (index i = 0; i < p.rows; ++i) {
    a.lengths32.push_back(static_cast<std::int32_t>(p.length[static_cast<std::size_t>(i)]));
    a.offsets.push_back(a.offsets.back() + p.length[static_cast<std::size_t>(i)]);
  }
  const auto elements = [&](extent size) {
    return size == extent::row ? p.rows * a.step()
           : a.packed()        ? static_cast<index>(a.offsets.back())
                               : p.rows * p.columns * a.step();
  };
  for (const input_spec& s : e.inputs(p.variant)) {
    const auto found = p.inputs.find(s.name);
    if (found == p.inputs.end()) continue;
    a.sizes[s.name] = s.size;
    auto& m = a.memory[s.name];
    m.assign(static_cast<std::size_t>(elements(s.size)), static_cast<T>(-77));
    for (index i = 0; i < p.rows; ++i)
      for (index j = 0; j < (s.size == extent::row ? 1 : p.columns); ++j) {
        const index at = place(a, s.size, i, j);
        if (at < 0) continue;
        const index from = s.size == extent::row ? i : i * p.columns + j;
        m[static_cast<std::size_t>(at)] = static_cast<T>(found->second[static_cast<std::size_t>(from)]);
      }
  }
  for (const output_spec& s : e.outputs(p.variant)) {
    a.sizes[s.name] = s.size;
    a.written[s.name].assign(static_cast<std::size_t>(elements(s.size)), static_cast<T>(fill));
  }
  for (const auto& [name, v] : p.ids) a.ids[name].assign(v.begin(), v.end());
  if (!e.tokens) return a;
  bool holes = false;
  for (index i = 0; i < p.rows; ++i)
    for (index j = 0; j < p.length[static_cast<std::size_t>(i)]; ++j) holes = holes || p.w(i, j) != 1;
  const bool weights = f == form::mask_float || f == form::mask_double;
  if (f == form::mask_u8 || f == form::strided || weights || holes) {
    const index n = a.packed() ? static_cast<index>(a.offsets.back()) : p.rows * p.columns;
    std::vector<double> w(static_cast<std::size_t>(n > 0 ? n : 1), 0.0);
    for (index i = 0; i < p.rows; ++i)
      for (index j = 0; j < p.columns; ++j) {
        const index at = a.packed() ? place(a, extent::token, i, j) : i * p.columns + j;
        if (at >= 0) w[static_cast<std::size_t>(at)] = p.w(i, j);
      }
    for (const double x : w) {
      if (f == form::mask_float)
        a.mask_float.push_back(static_cast<float>(x));
      else if (f == form::mask_double)
        a.mask_double.push_back(x);
      else
        a.mask_u8.push_back(x != 0 ? 1 : 0);
    }
  }
  return a;
}
template arguments<float> lay_out<float>(const entry&, const problem&, form, double);
template arguments<double> lay_out<double>(const entry&, const problem&, form, double);

template <class T>
std::vector<T> dense(const arguments<T>& a, const std::string& name) {
  const auto& m = a.written.at(name);
  const extent size = a.sizes.at(name);
  std::vector<T> v;
  for (index i = 0; i < a.p->rows; ++i)
    for (index j = 0; j < (size == extent::row ? 1 : a.p->columns); ++j) {
      const index at = place(a, size, i, j);
      v.push_back(at < 0 ? T(0) : m[static_cast<std::size_t>(at)]);
    }
  return v;
}
template std::vector<float> dense(const arguments<float>&, const std::string&);
template std::vector<double> dense(const arguments<double>&, const std::string&);

std::vector<quad> aggregation_weights(const problem& p, rlhf::aggregation_mode mode, double horizon) {
  using rlhf::aggregation_mode;
  std::vector<quad> w(static_cast<std::size_t>(p.rows * p.columns), 0);
  std::vector<quad> n(static_cast<std::size_t>(p.rows), 0);
  std::map<index, quad> group;
  std::set<index> groups;
  quad tokens = 0, sequences = 0, turns = 0;
  const auto id = p.ids.find("group_id");
  for (index i = 0; i < p.rows; ++i) {
    const auto r = static_cast<std::size_t>(i);
    for (index j = 0; j < p.columns; ++j) {
      n[r] += p.w(i, j);
      if (p.w(i, j) > 0 && (j == 0 || !(p.w(i, j - 1) > 0))) turns += 1;
    }
    tokens += n[r];
    sequences += n[r] > 0 ? 1 : 0;
    if (id != p.ids.end()) group[id->second[r]] += n[r];
  }
  quad counted_groups = 0;
  for (const auto& [key, weight] : group) counted_groups += weight > 0 ? 1 : 0;
  const auto given = [&](const char* name, quad here) {
    const auto found = p.counts.find(name);
    return found == p.counts.end() ? here : static_cast<quad>(found->second);
  };
  for (index i = 0; i < p.rows; ++i)
    for (index j = 0; j < p.columns; ++j) {
      const auto r = static_cast<std::size_t>(i);
      quad& x = w[static_cast<std::size_t>(i * p.columns + j)];
      if (!(p.w(i, j) > 0)) continue;
      x = p.w(i, j);
      switch (mode) {
        case aggregation_mode::token_mean: x /= given("tokens", tokens); break;
        case aggregation_mode::token_sum:
        case aggregation_mode::none: break;
        case aggregation_mode::sequence_mean_token_sum: x /= given("sequences", sequences); break;
        case aggregation_mode::sequence_mean_token_sum_norm:
          x /= given("sequences", sequences) * static_cast<quad>(horizon);
          break;
        case aggregation_mode::sequence_mean_token_mean:
          x /= given("sequences", sequences) * n[r];
          break;
        case aggregation_mode::group_mean_token_mean:
          x /= given("groups", counted_groups) * group[id->second[r]];
          break;
        case aggregation_mode::turn_mean: {
          quad turn = 0;
          index begin = j, end = j;
          while (begin > 0 && p.w(i, begin - 1) > 0) --begin;
          while (end < p.columns && p.w(i, end) > 0) ++end;
          for (index k = begin; k < end; ++k) turn += p.w(i, k);
          x /= given("turns", turns) * turn;
          break;
        }
      }
    }
  return w;
}

}  // namespace rlhf_test
