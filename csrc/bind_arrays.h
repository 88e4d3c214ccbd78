// Array arguments of the bindings: their kind, dtype and layout. No array is copied or converted: an array that does
// not fit is an error.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>

#include "ops.h"

namespace trtseg {

using Types = std::initializer_list<Type>;
constexpr Types kFloats = {Type::f32, Type::f16};
constexpr Types kAll = {Type::u8, Type::i16, Type::i32, Type::f16, Type::f32};

std::string text(pybind11::handle value);

// Arrays on the host or on a GPU.
View input(pybind11::handle array, const char* name, Types allowed);
View output(pybind11::handle array, const char* name, Types allowed);

// NumPy arrays alone.
View host_input(pybind11::handle array, const char* name, Types allowed = kAll);
View host_output(pybind11::handle array, const char* name, Types allowed = kAll);

}  // namespace trtseg
