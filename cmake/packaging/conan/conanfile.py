"""Stand-ins for the packages that rlhf's options require: they hold the distribution's own headers,
so that a recipe's requirements are resolved, and its components used, without a remote.

conan create . --name eigen --version 3.4.0     (FROM: the folder that holds what is copied)
"""

import os

from conan import ConanFile
from conan.tools.files import copy

# name: folders to copy, the CMake package, its target, its component, its libraries
KNOWN = {
    "eigen": (("Eigen",), "Eigen3", "Eigen3::Eigen", "eigen3", []),
    "xtensor": (("xtensor", "xtl"), "xtensor", "xtensor", None, []),
    "onetbb": (("tbb", "oneapi"), "TBB", "TBB::tbb", "libtbb", ["tbb"]),
}


class StandIn(ConanFile):
    package_type = "header-library"

    def package(self):
        for folder in KNOWN[self.name][0]:
            source = os.path.join(os.environ["FROM"], folder)
            copy(self, "*", source, os.path.join(self.package_folder, "include", folder))

    def package_id(self):
        self.info.clear()

    def package_info(self):
        _, package, target, component, libraries = KNOWN[self.name]
        self.cpp_info.set_property("cmake_file_name", package)
        info = self.cpp_info.components[component] if component else self.cpp_info
        info.set_property("cmake_target_name", target)
        info.system_libs = libraries
