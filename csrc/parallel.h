// parallel_for: threads that live for one call, so that nothing survives a fork and no pool has to be configured.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <sched.h>
#endif

namespace trtseg {

// CPUs that this process may use by its affinity; `trtseg.resources.available_cpus` counts the quota of its cgroups too.
inline int available_cpus() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Calls fn(unit) for each unit in [0, units), on up to `threads` threads (0: all CPUs) of which this is one. `work` is
// the number of elements touched in all: starting a thread must pay. The first exception ends the loop and is rethrown.
template <typename Fn>
void parallel_for(std::int64_t units, int threads, std::int64_t work, Fn fn) {
  constexpr std::int64_t kWorkPerThread = 512 * 1024;  // 0.1 ms or more; a thread starts in some 0.03 ms
  std::int64_t count = std::min(units, work / kWorkPerThread);
  if (count > 1) count = std::min<std::int64_t>(count, threads > 0 ? threads : available_cpus());
  if (count <= 1) {
    for (std::int64_t u = 0; u < units; ++u) fn(u);
    return;
  }
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto worker = [&] {
    try {
      for (std::int64_t u = next++; u < units; u = next++) fn(u);
    } catch (...) {
      next = units;
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<std::size_t>(count - 1));
  try {
    for (std::int64_t t = 1; t < count; ++t) others.emplace_back(worker);
  } catch (...) {
    // The system gives no more threads, or no memory for one: the running threads, this one included, do the work.
  }
  worker();
  for (std::thread& t : others) t.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace trtseg
