# Installs headers, one set of targets per component, the package config and a pkg-config file.
# Nothing absolute is written, so the prefix may move.
include(GNUInstallDirs)
set(rlhf_config_folder "${CMAKE_INSTALL_DATADIR}/cmake/rlhf")
set(rlhf_generated "${PROJECT_BINARY_DIR}/package_config")

foreach(component rlhf ${rlhf_components})
  if(component STREQUAL "rlhf")
    set(target rlhf)
  else()
    set(target rlhf_${component})
  endif()
  install(TARGETS ${target} EXPORT rlhf-${component}
          FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
  install(EXPORT rlhf-${component} NAMESPACE rlhf:: FILE rlhf-${component}-targets.cmake
          DESTINATION "${rlhf_config_folder}")
endforeach()

configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/rlhf-config.cmake.in" "${rlhf_generated}/rlhf-config.cmake"
  INSTALL_DESTINATION "${rlhf_config_folder}"
  NO_SET_AND_CHECK_MACRO)
rlhf_write_version_file("${rlhf_generated}/rlhf-config-version.cmake")
configure_file("${PROJECT_SOURCE_DIR}/cmake/rlhf.pc.in" "${rlhf_generated}/rlhf.pc" @ONLY)

install(FILES "${rlhf_generated}/rlhf-config.cmake" "${rlhf_generated}/rlhf-config-version.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/RlhfComponents.cmake"
              "${PROJECT_SOURCE_DIR}/cmake/RlhfThrust.cmake"
        DESTINATION "${rlhf_config_folder}")
install(FILES "${rlhf_generated}/rlhf.pc" DESTINATION "${CMAKE_INSTALL_DATADIR}/pkgconfig")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/rlhf")
