#pragma once

// reverse_scan on the host, from its parts to the whole:
//   compaction  closing up the holes of a mask, and opening them again
//   moments     of the outputs, along the way
//   powers      of a decay
//   block       8 steps in registers
//   tile        up to 1,024 steps of one row
//   rows        of one call
//   share       of threads in them

#include "rlhf/backend/host/reverse_scan/rows.hpp"
#include "rlhf/backend/host/reverse_scan/share.hpp"
