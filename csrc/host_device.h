// HOST_DEVICE marks a function that g++/clang compile for the CPU and nvcc compiles for both sides.
#pragma once

#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif
