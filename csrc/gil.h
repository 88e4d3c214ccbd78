// Python's global interpreter lock, given up for work that needs no Python.
#pragma once

#include <pybind11/pybind11.h>

namespace trtseg {

// Gives up the GIL as long as it lives, as py::gil_scoped_release does. Where Python has ended meanwhile, Python before
// 3.14 ends the thread that asks for the GIL again, by unwinding its stack: a destructor that may not throw would then
// abort the process.
class WithoutGil {
 public:
  WithoutGil() : state_(PyEval_SaveThread()) {}
  ~WithoutGil() noexcept(false) { PyEval_RestoreThread(state_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace trtseg
