#include "tests/thrust/pair_cases.hpp"
