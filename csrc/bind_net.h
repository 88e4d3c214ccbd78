// Adds the class `Net` to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace trtseg {

void bind_net(pybind11::module_& m);

}  // namespace trtseg
