#pragma once

#include "rlhf/primitive/map_reduce.hpp"

/// Before a loop over what a thread keeps in registers: an index known when compiled keeps it there.
#if defined(__CUDA_ARCH__)
#define RLHF_UNROLL _Pragma("unroll")
#else
#define RLHF_UNROLL
#endif

// A team is a block of threads that goes through a unit of work in phases. What it runs is
//
//     struct some_work {
//       static constexpr int threads = 128;
//       static constexpr unsigned least_blocks = 3;   // on a processor of a GPU; may be left out
//       struct shared { ... };                    // what its threads see of each other
//       template <class Team>
//       RLHF_HOST_DEVICE void operator()(const Team& team, shared& s, index unit) const;
//     };
//
// and the same text runs on a block of CUDA and on one thread of the host, phase by phase.

namespace rlhf::inline RLHF_COMPUTE::detail {

/// `Width` threads of a device, here one after the other:
///
///     each(f)                f(t) on thread t; what it shares is seen after the next sync()
///     sync()                 all of them are there before one goes on
///     own<X>                 an X of each thread, x[t] on thread t
///     merge16(m, f, store)   the tree over f(t) of 16 neighbours under m: t takes t + 8, t + 4, t + 2,
///                            t + 1; store(t, result) on the first of them
///     arrive(at, n, s)       true for all threads of the n-th team that gets here, which sees what
///                            the others have written; `at` counts them and is 0 again then
///     next(n)                n as it was, one more afterwards; no two threads get the same
///     fetch(p)               *p, written by another team
template <int Width>
struct serial_team {
  static constexpr int width = Width;
  static_assert(width % 32 == 0);

  template <class X>
  struct own {
    X value[at_least_one(Width)];
    RLHF_HOST_DEVICE X& operator[](int t) { return value[t]; }
  };

  template <class F>
  RLHF_HOST_DEVICE void each(const F& f) const {
    for (int t = 0; t < width; ++t) f(t);
  }
  RLHF_HOST_DEVICE void sync() const {}
  template <class M, class F, class S>
  RLHF_HOST_DEVICE void merge16(const M& m, const F& f, const S& store) const {
    for (int first = 0; first < width; first += 16) {
      double x[16];
      for (int l = 0; l < 16; ++l) x[l] = f(first + l);
      for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) x[l] = m(x[l], x[l + half]);
      store(first, x[0]);
    }
  }
  RLHF_HOST_DEVICE bool arrive(unsigned* at, index n, bool&) const {
#if defined(__CUDA_ARCH__)
    const bool last = static_cast<index>(++*at) == n;
    if (last) *at = 0;
#else
    const bool last = static_cast<index>(__atomic_add_fetch(at, 1u, __ATOMIC_ACQ_REL)) == n;
    if (last) __atomic_store_n(at, 0u, __ATOMIC_RELEASE);
#endif
    return last;
  }
  RLHF_HOST_DEVICE int next(int& n) const { return n++; }
  template <class X>
  RLHF_HOST_DEVICE X fetch(const X* p) const {
    return *p;
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail
