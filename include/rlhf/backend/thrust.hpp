#pragma once

// Tensors of Thrust, and the executors that work on device memory:
//
//     cuda::stream     under nvcc
//     thrust_device    where Thrust's device is the CPU: THRUST_DEVICE_SYSTEM CPP, OMP or TBB
//
// device_workspace_bytes says how much memory a call needs on either.

#include "rlhf/backend/host.hpp"
#include "rlhf/backend/thrust/dry.hpp"
#include "rlhf/backend/thrust/traits.hpp"

#if THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_CUDA
#include "rlhf/backend/thrust/stream.hpp"
#else
#include "rlhf/backend/thrust/cpu.hpp"
#endif
