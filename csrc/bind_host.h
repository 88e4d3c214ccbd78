// Adds `copy`, `to_half`, `clear`, and the classes `Graph`, `Event` and `Chunk` to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace trtseg {

void bind_host(pybind11::module_& m);

}  // namespace trtseg
