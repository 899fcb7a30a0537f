#include "tests/thrust/policy_cases.hpp"
