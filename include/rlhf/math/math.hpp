#pragma once

/// All lane functions, for those who write formulas.

#include "rlhf/math/dual.hpp"
#include "rlhf/math/exp.hpp"
#include "rlhf/math/kl.hpp"
#include "rlhf/math/lane.hpp"
#include "rlhf/math/log.hpp"
#include "rlhf/math/pack.hpp"
#include "rlhf/math/sigmoid.hpp"
#include "rlhf/math/single.hpp"
