#pragma once

#include "rlhf/primitive/map_reduce.hpp"

namespace rlhf::inline v1 {

/// What a NaN or an infinity in a counted token does. It is counted in `nonfinite` whatever is
/// chosen; denominators stay those of the whole mask.
enum class nonfinite_policy : unsigned char {
  propagate,      ///< a NaN reaches the loss; an infinity what the formula makes of it
  drop_token,     ///< the token counts as masked
  drop_sequence,  ///< every token of its sequence counts as masked
  error           ///< contract_violation, before anything is written; on a stream, from get()
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// Writes the weights of one row without its non-finite tokens (or without any), and their number.
template <class T, class Space, std::size_t N>
struct screen_row {
  token_domain<Space> domain;
  token_input<T> in[N];
  bool whole_sequence;
  double* weight;  // [rows, columns] or packed like the domain
  double* found;

  RLHF_RARE RLHF_HOST_DEVICE void operator()(index i) const {
    const index begin = domain.begin(i), n = domain.length(i);
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    double* const row = weight + (domain.kind == arrangement::packed ? begin : i * domain.columns);
    double bad = 0;
    for (index j = 0; j < n; ++j) {
      double w = domain.mask.at(at + j * step);
      if (w > 0)
        for (std::size_t k = 0; k < N; ++k) {
          if (in[k].data == nullptr) continue;
          const T x = in[k].data[i * in[k].per_row + begin * in[k].per_begin + j * in[k].stride];
          if (math::is_finite(x)) continue;
          bad += 1;
          w = 0;
          break;
        }
      row[j] = w;
    }
    if (whole_sequence && bad > 0)
      for (index j = 0; j < n; ++j) row[j] = 0;
    for (index j = n; j < domain.slots(i); ++j) row[j] = 0;
    found[i] = bad;
  }
};

struct add_rows {
  const double* x;
  index n;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    double s = 0;
    for (index i = 0; i < n; ++i) s += x[i];
    *to = s;
  }
};

/// *to += *from: tokens that a screen has dropped are counted like those the kernel sees.
struct add_dropped {
  const double* from;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const { *to += *from; }
};

}  // namespace detail

/// A domain without the tokens that `policy` drops, and where their number stands (null when the
/// primitives count them by themselves).
template <class Space>
struct screened_domain {
  token_domain<Space> domain;
  const double* dropped = nullptr;
};

template <class T, class Run, class Space, std::size_t N>
screened_domain<Space> screen_nonfinite(Run& run, const token_domain<Space>& domain,
                                        const token_input<T> (&in)[N], nonfinite_policy policy) {
  if (policy == nonfinite_policy::propagate) return {domain, nullptr};
  const bool packed = domain.kind == arrangement::packed;
  const index slots = packed ? domain.columns : domain.rows * domain.columns;
  double* const weight = run.template allocate<double>(slots);
  double* const found = run.template allocate<double>(domain.rows);
  double* const total = run.template allocate<double>(1);
  detail::screen_row<T, Space, N> screen{
      domain, {}, policy == nonfinite_policy::drop_sequence, weight, found};
  for (std::size_t k = 0; k < N; ++k) screen.in[k] = in[k];
  run.for_each(domain.rows, screen);
  run.for_each(1, detail::add_rows{found, domain.rows, total});
  if (policy == nonfinite_policy::error) {
    run.refuse(total, "inputs", "finite values in every counted token");
    return {domain, nullptr};
  }
  screened_domain<Space> kept{domain, total};
  kept.domain.mask = packed ? mask_view<Space>(weight, shape(slots))
                            : mask_view<Space>(weight, shape(domain.rows, domain.columns));
  return kept;
}

}  // namespace rlhf::inline RLHF_COMPUTE
