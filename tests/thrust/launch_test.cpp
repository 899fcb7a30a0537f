#include "tests/thrust/launch_cases.hpp"
