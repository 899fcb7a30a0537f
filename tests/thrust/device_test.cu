#include "tests/thrust/device_cases.hpp"
