#include "tests/thrust/logits_cases.hpp"
