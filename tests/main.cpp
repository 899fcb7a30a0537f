// The one translation unit that holds doctest itself. A program with a main of its own says so.
#ifdef RLHF_TEST_OWN_MAIN
#define DOCTEST_CONFIG_IMPLEMENT
#else
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#endif
#include <doctest/doctest.h>
