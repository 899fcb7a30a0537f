#include "rlhf/backend/host.hpp"
#include "tests/golden/whitening.hpp"

namespace golden {
namespace {

struct mean_names {
  const char *value, *mask, *axis;
  double epsilon;  // what the peer adds to the count
};

/// The mean of everything, or of each row when an axis is given.
template <class T>
void masked_mean(const request& c, place<T>& on, answer& out, const mean_names& names) {
  const array& value = c.input(names.value);
  const array& mask = c.input(names.mask);
  const array cotangent = c.cotangent("out");
  const auto axis = c.maybe(names.axis);
  if (axis && *axis != -1 && *axis != 1) unknown_value(names.axis, std::to_string(*axis));
  const auto mean = [&](const array& v, const array& m, double u, array& d) {
    const auto to = on.out(v.shape);
    const auto r = rlhf::masked_mean<T>({.value = on.in(v), .mask = on.mask(m)},
                                        {.d_value = to.view, .upstream = above<T>(u)},
                                        {.over = sum(m) + names.epsilon});
    d = to.read();
    if (sum(m) + names.epsilon > 0) return r.mean;
    d = map([](double) { return nan; }, d);  // 0/0 there, 0 here
    return nan;
  };
  array d = value;
  if (!axis) {
    out.put("out", mean(value, mask, cotangent[0], d));
  } else {
    array means = array::filled({value.rows()}, 0);
    for (index i = 0; i < value.rows(); ++i) {
      array row;
      means[i] = mean(value.row(i), mask.row(i), cotangent[i], row);
      d.set_row(i, row);
    }
    out.put("out", means);
  }
  out.grad(names.value, d);
}

template <class T>
void verl_mean(const request& c, place<T>& on, answer& out) {
  masked_mean(c, on, out, {"values", "mask", "axis", small_count});
}
template <class T>
void trl_mean(const request& c, place<T>& on, answer& out) {
  masked_mean(c, on, out, {"values", "mask", "axis", 0});
}
template <class T>
void openrlhf_mean(const request& c, place<T>& on, answer& out) {
  masked_mean(c, on, out, {"tensor", "mask", "dim", 0});
}

template <class T>
void masked_variance(const request& c, place<T>& on, answer& out, whitening how) {
  const array& value = c.input("values");
  const array& mask = c.input("mask");
  const double ddof = c.flag("unbiased", true) ? 1 : 0;
  const auto d = on.out(value.shape);
  const double n = sum(mask);
  const double factor = how == whitening::verl ? n / (n + small_count) : 1;
  const auto r = rlhf::masked_variance<T>(
      {.value = on.in(value), .mask = on.mask(mask)},
      {.d_value = d.view, .upstream = above<T>(factor * c.cotangent("out")[0])}, {.ddof = ddof});
  out.put("out", r.variance * factor);
  out.grad("values", d.read());
}

template <class T>
void verl_variance(const request& c, place<T>& on, answer& out) {
  masked_variance(c, on, out, whitening::verl);
}
template <class T>
void trl_variance(const request& c, place<T>& on, answer& out) {
  masked_variance(c, on, out, whitening::exact);
}

template <class T>
void whiten(const request& c, place<T>& on, answer& out, const char* name, const array& mask,
            whitening how, bool shift_mean) {
  const array& value = c.input(name);
  out.put("out", whitened(on, out, value, mask, how, shift_mean));
  out.grad(name, whitened_slope(on, value, mask, how, shift_mean, c.cotangent("out")));
}

template <class T>
void verl_whiten(const request& c, place<T>& on, answer& out) {
  whiten(c, on, out, "values", c.input("mask"), whitening::verl, c.flag("shift_mean", true));
}
template <class T>
void trl_whiten(const request& c, place<T>& on, answer& out) {
  whiten(c, on, out, "values", c.input("mask"), whitening::exact, c.flag("shift_mean", true));
}
/// torchtune's flag means the opposite: true adds the mean back.
template <class T>
void torchtune_whiten(const request& c, place<T>& on, answer& out) {
  const bool masked = c.has("mask");
  whiten(c, on, out, "x", c.input("mask", ones_like(c.input("x"))),
         masked ? whitening::torchtune : whitening::exact, !c.flag("shift_mean", true));
}

/// Each row by itself: population variance, the epsilon as its floor, 0 at masked slots. Equal
/// numbers are exactly 0 here and rounding over sqrt(epsilon) there.
template <class T>
void openrlhf_normalise(const request& c, place<T>& on, answer& out) {
  const array& value = c.input("tensor");
  const array& mask = c.input("mask");
  const array cotangent = c.cotangent("out");
  if (c.number("dim", 1) != 1) unknown_value("dim", "not 1");
  const rlhf::whiten_config config{
      .ddof = 0, .epsilon = c.number("eps", 1e-8), .epsilon_mode = rlhf::epsilon_mode::floor};
  array normal = value, d = value;
  for (index i = 0; i < value.rows(); ++i) {
    const auto to = on.out({1, value.columns()}), slope = on.out({1, value.columns()});
    rlhf::whiten<T>({.value = on.in(value.row(i)), .mask = on.mask(mask.row(i))},
                    {.whitened = to.view}, config);
    const auto r = rlhf::whiten_backward<T>({.value = on.in(value.row(i)),
                                             .d_whitened = on.in(cotangent.row(i)),
                                             .mask = on.mask(mask.row(i))},
                                            {.d_value = slope.view}, config);
    normal.set_row(i, to.read());
    array row = slope.read();
    if (r.tokens == 0) {  // 0/0 there, 0 here
      row = map([](double) { return nan; }, row);
      normal.set_row(i, row);
      d.set_row(i, row);
      continue;
    }
    if (r.variance == 0) {
      // The peer's slope at equal numbers: the variance stays on its floor.
      const double n = r.tokens, scale = 1 / std::sqrt(config.epsilon);
      const double mean = n > 0 ? sum(kept(cotangent.row(i), mask.row(i))) / n : 0;
      row = map([&](double u, double m) { return m != 0 ? (u - mean) * scale : 0; },
                cotangent.row(i), mask.row(i));
    }
    d.set_row(i, row);
  }
  out.loosen(0, 1e-8);
  out.put("out", normal);
  out.grad("tensor", d);
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("verl.masked_mean", verl_mean),
    GOLDEN_ADAPTER("trl.ppo_masked_mean", trl_mean),
    GOLDEN_ADAPTER("openrlhf.masked_mean", openrlhf_mean),
    GOLDEN_ADAPTER("verl.masked_var", verl_variance),
    GOLDEN_ADAPTER("trl.ppo_masked_var", trl_variance),
    GOLDEN_ADAPTER("verl.masked_whiten", verl_whiten),
    GOLDEN_ADAPTER("trl.ppo_masked_whiten", trl_whiten),
    GOLDEN_ADAPTER("torchtune.whiten", torchtune_whiten),
    GOLDEN_ADAPTER("openrlhf.masked_normalize", openrlhf_normalise),
};

}  // namespace

std::span<const adapter> statistics_adapters() { return adapters; }

}  // namespace golden
