#include "rlhf/statistics/masked_mean.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "tests/registry/registry.hpp"

namespace rlhf_test {
namespace {

template <bool Tokens>
entry statistic(const char* name) {
  entry e;
  e.name = std::string(name) + (Tokens ? "" : ", one row");
  e.tokens = Tokens;
  e.inputs = [](int) {
    return std::vector<input_spec>{{"value", extent::token, -2, 3, "d_value"}};
  };
  e.outputs = [](int) { return std::vector<output_spec>{{"d_value"}}; };
  return e;
}

template <class T>
rlhf::masked_values<T> values_of(const arguments<T>& a) {
  return {.value = a.in("value"), .mask = a.mask(), .layout = a.layout()};
}

struct quad_moments {
  quad count = 0, mean = 0, m2 = 0;
  quad_moments(const problem& p, const quad_inputs& x) {
    for (index i = 0; i < p.rows; ++i)
      for (index j = 0; j < p.columns; ++j) count += p.w(i, j), mean += at(p, x, i, j);
    if (count > 0) mean /= count;
    for (index i = 0; i < p.rows; ++i)
      for (index j = 0; j < p.columns; ++j)
        if (p.w(i, j) > 0) {
          const quad d = quad_at(p, x, "value", i, j) - mean;
          m2 += p.w(i, j) * d * d;
        }
  }
  static quad at(const problem& p, const quad_inputs& x, index i, index j) {
    return p.w(i, j) > 0 ? p.w(i, j) * quad_at(p, x, "value", i, j) : 0;
  }
  quad variance(quad ddof) const { return count > ddof ? m2 / (count - ddof) : 0; }
};

template <bool Tokens>
struct masked_mean {
  static entry describe() {
    entry e = statistic<Tokens>("masked_mean");
    e.count_names = {"tokens"};
    e.refused = {{"over", {-1, not_a_number, infinite}}};
    e.convex = true;
    e.homogeneous = [](int) { return std::vector<std::string>{"value"}; };
    e.outputs = [](int) { return std::vector<output_spec>{{"d_value", extent::token, 0}}; };
    e.reference = [](const problem& p, const quad_inputs& x) {
      const quad_moments m(p, x);
      const auto given = p.counts.find("tokens");
      return given == p.counts.end() ? m.mean : m.mean * m.count / static_cast<quad>(given->second);
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    rlhf::masked_mean_config config{.over = a.by("tokens"), .nonfinite = a.nonfinite};
    if (!a.numbers.empty()) config.over = a.number("over", 1);
    return rlhf::masked_mean<T>(
        values_of(a), {.d_value = a.out("d_value"), .upstream = a.upstream()}, config, exec);
  }
  static figures read(const rlhf::masked_mean_result& r) {
    figures f;
    put(f, "loss", r.mean);
    put(f, "value", r.value);
    put(f, "tokens", r.tokens);
    put(f, "positions", r.positions);
    put(f, "nonfinite", r.nonfinite);
    return f;
  }
};

template <bool Tokens>
struct masked_moments {
  static entry describe() {
    entry e = statistic<Tokens>("masked_moments");
    e.scales = false;
    e.inputs = [](int) { return std::vector<input_spec>{{"value", extent::token, -2, 3}}; };
    e.outputs = [](int) { return std::vector<output_spec>{}; };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::masked_moments<T>(values_of(a), {}, {.nonfinite = a.nonfinite}, exec);
  }
  static figures read(const rlhf::masked_moments_result& r) {
    figures f;
    put(f, "value", r.moments);
    put(f, "min:value", r.min);
    put(f, "max:value", r.max);
    put(f, "positions", r.positions);
    put(f, "nonfinite", r.nonfinite);
    return f;
  }
};

/// Variant = ddof.
template <bool Tokens>
struct masked_variance {
  static entry describe() {
    entry e = statistic<Tokens>("masked_variance");
    e.variants = 2;
    e.reduces = e.per_row = false;
    e.convex = true;
    e.loss_degree = 2;
    e.homogeneous = [](int) { return std::vector<std::string>{"value"}; };
    e.refused = {{"ddof", {-1, not_a_number, infinite}}};
    e.reference = [](const problem& p, const quad_inputs& x) {
      return quad_moments(p, x).variance(p.variant);
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::masked_variance<T>(
        values_of(a), {.d_value = a.out("d_value"), .upstream = a.upstream()},
        {.ddof = a.number("ddof", a.p->variant), .nonfinite = a.nonfinite}, exec);
  }
  static figures read(const rlhf::masked_variance_result& r) {
    figures f;
    put(f, "loss", r.variance);
    put(f, "value", r.moments);
    put(f, "positions", r.positions);
    put(f, "nonfinite", r.nonfinite);
    return f;
  }
};

/// Variants: epsilon inside, add, floor; with and without the mean; 6: moments given; 7: epsilon 0.
inline rlhf::whiten_config whitening(int v) {
  rlhf::whiten_config c{.shift_mean = v % 2 == 0,
                        .ddof = v % 3 == 0 ? 0.0 : 1.0,
                        .epsilon = v == 7 ? 0 : 0.125,
                        .epsilon_mode = static_cast<rlhf::epsilon_mode>(v % 3)};
  if (v == 6) c.moments = rlhf::moments{40, 0.5, 90};
  return c;
}
template <class T>
rlhf::whiten_config whitening(const arguments<T>& a) {
  rlhf::whiten_config c = whitening(a.p->variant);
  c.ddof = a.number("ddof", c.ddof);
  c.epsilon = a.number("epsilon", c.epsilon);
  c.nonfinite = a.nonfinite;
  return c;
}
inline figures read_whiten(const rlhf::whiten_result& r) {
  figures f;
  put(f, "own:moments", r.moments.mean);
  put(f, "own:mean", r.mean);
  put(f, "own:variance", r.variance);
  put(f, "own:scale", r.scale);
  put(f, "tokens", r.tokens);
  put(f, "positions", r.positions);
  put(f, "nonfinite", r.nonfinite);
  return f;
}
inline entry whitening_entry(entry e) {
  e.variants = 8;
  e.reduces = e.per_row = e.scales = false;
  e.refused = {{"ddof", {-1, not_a_number, infinite}}, {"epsilon", {-1, not_a_number, infinite}}};
  return e;
}

template <bool Tokens>
struct whiten {
  static entry describe() {
    entry e = whitening_entry(statistic<Tokens>("whiten"));
    e.inputs = [](int) { return std::vector<input_spec>{{"value", extent::token, -2, 3}}; };
    e.outputs = [](int) { return std::vector<output_spec>{{"whitened"}}; };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::whiten<T>(values_of(a), {.whitened = a.out("whitened")}, whitening(a), exec);
  }
  static figures read(const rlhf::whiten_result& r) { return read_whiten(r); }
};

/// The gradient of sum(d_whitened · whitened).
template <bool Tokens>
struct whiten_backward {
  static entry describe() {
    entry e = whitening_entry(statistic<Tokens>("whiten_backward"));
    e.weighs = false;  // d_whitened belongs to the result, which has no weight
    e.inputs = [](int) {
      return std::vector<input_spec>{{"value", extent::token, -2, 3, "d_value"}, {"d_whitened"}};
    };
    e.reference = [](const problem& p, const quad_inputs& x) {
      quad_moments m(p, x);
      const rlhf::whiten_config c = whitening(p.variant);
      if (c.moments) m.count = c.moments->count, m.mean = c.moments->mean, m.m2 = c.moments->m2;
      const quad variance = m.variance(c.ddof), epsilon = c.epsilon;
      quad scale = 0;
      if (variance > 0) {
        using rlhf::epsilon_mode;
        scale = c.epsilon_mode == epsilon_mode::inside ? 1 / sqrtq(variance + epsilon)
                : c.epsilon_mode == epsilon_mode::add
                    ? 1 / (sqrtq(variance) + epsilon)
                    : 1 / sqrtq(variance < epsilon ? epsilon : variance);
      }
      quad sum = 0;
      for (index i = 0; i < p.rows; ++i)
        for (index j = 0; j < p.columns; ++j)
          if (p.w(i, j) > 0)
            sum += quad_at(p, x, "d_whitened", i, j) *
                   ((quad_at(p, x, "value", i, j) - m.mean) * scale + (c.shift_mean ? 0 : m.mean));
      return sum;
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::whiten_backward<T>({.value = a.in("value"),
                                     .d_whitened = a.in("d_whitened"),
                                     .mask = a.mask(),
                                     .layout = a.layout()},
                                    {.d_value = a.out("d_value")}, whitening(a), exec);
  }
  static figures read(const rlhf::whiten_result& r) { return read_whiten(r); }
};

const registrar a(make_entry<masked_mean<true>>()), b(make_entry<masked_mean<false>>());
const registrar c(make_entry<masked_moments<true>>()), d(make_entry<masked_moments<false>>());
const registrar f(make_entry<masked_variance<true>>()), g(make_entry<masked_variance<false>>());
const registrar h(make_entry<whiten<true>>()), i(make_entry<whiten<false>>());
const registrar k(make_entry<whiten_backward<true>>()), l(make_entry<whiten_backward<false>>());

}  // namespace
}  // namespace rlhf_test
