#pragma once

#include <type_traits>

#include "rlhf/core/config.hpp"
#include "rlhf/core/scalar.hpp"

namespace rlhf::inline v1 {

/// Carries out the primitives: says where memory lies and what a call returns. A call opens one
/// run, allocates from it, and hands the primitives to it; see backend/host.hpp for the model.
template <class E>
concept executor = !requires {
  sizeof(E);
}
|| requires {
  typename E::space;
  typename E::template result<int>;
};

namespace detail {

/// Names the mistake of a unit with an algorithm and no backend: `serial` is only declared there.
template <class Exec>
struct complete_executor {
  static_assert(
      requires { sizeof(Exec); },
      "rlhf: include a backend beside the algorithm: rlhf/backend/host.hpp, or one of its "
      "neighbours");
  using type = Exec;
};

/// Names the mistake of a call without a config: the default argument of one that has no default.
template <class T, class Config>
struct no_config {
  static_assert(
      std::is_void_v<T>,
      "rlhf: this call has no config: write f<T>({inputs}, {outputs}, {config}); the config "
      "of a loss says what divides it, {.over = ...}");
  static const Config& value;
};

}  // namespace detail

template <class Exec>
using space_of = typename detail::complete_executor<Exec>::type::space;
template <class Exec, class R>
using result_of = typename detail::complete_executor<Exec>::type::template result<R>;

}  // namespace rlhf::inline v1

namespace rlhf::inline v1::detail {}
namespace rlhf::inline RLHF_COMPUTE::detail {
using namespace v1::detail;
}

namespace rlhf::inline RLHF_COMPUTE {

/// One thread of the host; defined in backend/host.hpp, so that an algorithm names no backend.
struct serial;

}  // namespace rlhf::inline RLHF_COMPUTE
