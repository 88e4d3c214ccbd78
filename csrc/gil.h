// Python's global interpreter lock, given up for work that needs no Python.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

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

// Calls fn() without the GIL. An exception of it goes on when the GIL is there again: a thread that Python ends while it
// unwinds aborts the process.
template <typename Fn>
void without_gil(Fn fn) {
  std::exception_ptr error;
  {
    const WithoutGil release;
    try {
      fn();
    } catch (const std::exception&) {  // not the end of a thread
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace trtseg
