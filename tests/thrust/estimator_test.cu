#include "tests/thrust/estimator_cases.hpp"
