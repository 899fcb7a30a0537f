import os
import re

from conan import ConanFile
from conan.tools.build import check_min_cppstd
from conan.tools.cmake import CMake, CMakeToolchain, cmake_layout
from conan.tools.files import copy, load, rmdir

required_conan_version = ">=2.0"


class Rlhf(ConanFile):
    name = "rlhf"
    description = "Algorithms of reinforcement learning from human feedback, header-only C++20"
    license = "Apache-2.0"
    topics = ("rlhf", "reinforcement-learning", "ppo", "dpo", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    # A component whose option is off is not offered: its dependency would be missing.
    options = {
        "with_eigen": [True, False],
        "with_xtensor": [True, False],
        "with_tbb": [True, False],
    }
    default_options = {"with_eigen": False, "with_xtensor": False, "with_tbb": False}
    exports_sources = "CMakeLists.txt", "LICENSE", "cmake/*", "include/*"
    no_copy_source = True

    def set_version(self):
        text = load(self, os.path.join(self.recipe_folder, "include", "rlhf", "version.hpp"))
        parts = re.findall(r"#define RLHF_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text)
        self.version = ".".join(parts)

    def layout(self):
        cmake_layout(self)

    def requirements(self):
        if self.options.with_eigen:
            self.requires("eigen/[>=3.4 <6]", transitive_headers=True)
        if self.options.with_xtensor:
            self.requires("xtensor/[>=0.24 <1]", transitive_headers=True)
        if self.options.with_tbb:
            self.requires("onetbb/[>=2021]", transitive_headers=True)

    def package_id(self):
        self.info.clear()

    def validate(self):
        check_min_cppstd(self, 20)

    def generate(self):
        toolchain = CMakeToolchain(self)
        for part in ("TESTS", "BENCH", "EXAMPLES"):
            toolchain.cache_variables[f"RLHF_BUILD_{part}"] = False
        toolchain.cache_variables["RLHF_INSTALL"] = True
        toolchain.generate()

    def build(self):
        CMake(self).configure()

    def package(self):
        CMake(self).install()
        rmdir(self, os.path.join(self.package_folder, "share"))  # Conan writes its own config
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "rlhf")
        self.cpp_info.set_property("pkg_config_name", "rlhf")
        self._component("rlhf", [])
        if self.options.with_eigen:
            self._component("eigen", ["rlhf", "eigen::eigen"])
        if self.options.with_xtensor:
            self._component("xtensor", ["rlhf", "xtensor::xtensor"])
        if self.options.with_tbb:
            self._component("tbb", ["rlhf", "onetbb::onetbb"])
        self._component("thrust", ["rlhf"])  # the CUDA toolkit is the user's
        self._component("openmp", ["rlhf"])  # a compiler flag, the user's

    def _component(self, name, requires):
        component = self.cpp_info.components[name]
        component.set_property("cmake_target_name", f"rlhf::{name}")
        component.requires = requires
        component.bindirs = []
        component.libdirs = []
