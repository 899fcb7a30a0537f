#pragma once

// The only place where the version number is written. CMake and the package recipes read it here.
#define RLHF_VERSION_MAJOR 0
#define RLHF_VERSION_MINOR 1
#define RLHF_VERSION_PATCH 0
