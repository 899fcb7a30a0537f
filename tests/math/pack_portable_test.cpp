// The same cases once more without compiler intrinsics, in an inline namespace of their own.
#ifndef RLHF_PORTABLE_PACKS
#define RLHF_PORTABLE_PACKS
#endif
#include "pack_test.cpp"
