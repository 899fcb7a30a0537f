#include "tests/thrust/shape_cases.hpp"
