# Header-only: one build type. As an overlay in this repository the port builds the sources beside
# it; in vcpkg's registry vcpkg_from_github(REPO ... REF ... SHA512 ...) sets SOURCE_PATH instead.
set(VCPKG_BUILD_TYPE release)
get_filename_component(SOURCE_PATH "${CMAKE_CURRENT_LIST_DIR}/../../../../.." ABSOLUTE)

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DRLHF_BUILD_TESTS=OFF
    -DRLHF_BUILD_BENCH=OFF
    -DRLHF_BUILD_EXAMPLES=OFF
    -DRLHF_INSTALL=ON
)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/rlhf)
vcpkg_fixup_pkgconfig()

file(REMOVE_RECURSE "${CURRENT_PACKAGES_DIR}/share/licenses")  # it becomes share/rlhf/copyright
file(INSTALL "${CMAKE_CURRENT_LIST_DIR}/usage" DESTINATION "${CURRENT_PACKAGES_DIR}/share/${PORT}")
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
