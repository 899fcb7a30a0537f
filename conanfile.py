import os
import re

from conan import ConanFile
from conan.errors import ConanInvalidConfiguration
from conan.tools.build import check_min_cppstd
from conan.tools.files import copy, load

required_conan_version = ">=2.0"


class Rlhf(ConanFile):
    name = "rlhf"
    description = "Algorithms of reinforcement learning from human feedback, header-only C++20"
    license = "Apache-2.0"
    topics = ("rlhf", "reinforcement-learning", "ppo", "dpo", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    # A component whose option is off is not offered: what it needs would be missing.
    options = {
        "with_eigen": [True, False],
        "with_xtensor": [True, False],
        "with_tbb": [True, False],
        "with_openmp": [True, False],
    }
    default_options = {
        "with_eigen": False,
        "with_xtensor": False,
        "with_tbb": False,
        "with_openmp": False,
    }
    exports_sources = "LICENSE", "include/*"
    no_copy_source = True

    def set_version(self):
        text = load(self, os.path.join(self.recipe_folder, "include", "rlhf", "version.hpp"))
        parts = re.findall(r"#define RLHF_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)", text)
        self.version = ".".join(parts)

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
        if self.options.with_openmp and self._openmp_flag() is None:
            raise ConanInvalidConfiguration(
                f"with_openmp knows gcc, clang and msvc, not {self.settings.compiler}"
            )

    # Headers are all there is: no CMake, no compiler. Conan writes the CMake and pkg-config files.
    def package(self):
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))
        copy(self, "*.hpp", os.path.join(self.source_folder, "include"),
             os.path.join(self.package_folder, "include"))

    def package_info(self):
        self.cpp_info.set_property("cmake_file_name", "rlhf")
        self.cpp_info.set_property("cmake_config_version_compat", "SameMinorVersion")
        self.cpp_info.set_property("pkg_config_name", "rlhf")
        self._component("rlhf", [])
        if self.options.with_eigen:
            self._component("eigen", ["rlhf", "eigen::eigen"])
        if self.options.with_xtensor:
            self._component("xtensor", ["rlhf", "xtensor::xtensor"])
        if self.options.with_tbb:
            # libtbb alone: the package may also hold a replacement of malloc.
            self._component("tbb", ["rlhf", "onetbb::libtbb"])
        if self.options.with_openmp:
            openmp = self._component("openmp", ["rlhf"])
            openmp.cxxflags = [self._openmp_flag()]
            if str(self.settings.compiler) != "msvc":
                openmp.exelinkflags = [self._openmp_flag()]
                openmp.sharedlinkflags = [self._openmp_flag()]
        self._component("thrust", ["rlhf"])  # its headers come with the user's nvcc

    def _openmp_flag(self):
        return {"gcc": "-fopenmp", "clang": "-fopenmp", "msvc": "-openmp"}.get(
            str(self.settings.compiler)
        )

    def _component(self, name, requires):
        component = self.cpp_info.components[name]
        component.set_property("cmake_target_name", f"rlhf::{name}")
        component.requires = requires
        component.bindirs = []
        component.libdirs = []
        return component
