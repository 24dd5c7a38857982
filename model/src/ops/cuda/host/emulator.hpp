// Launching a kernel on the host.
#pragma once
#include <string>

#include "cuda_on_host.hpp"

namespace emulator {

// The kernel exported under this name, or null.
const Kernel *find(const std::string &name);

// Whether a device accepts a launch of these dimensions.
bool can_launch(Dimensions grid, Dimensions block, unsigned shared_bytes);

// Runs a kernel over the whole grid; every block sees `shared_bytes` of fresh, NaN-filled dynamic shared memory.
// Returns what the kernel did that a GPU would not define (an empty string for a correct kernel): threads that end
// while others wait at a barrier, and lanes missing from a warp exchange.
std::string launch(Body kernel, Dimensions grid, Dimensions block, unsigned shared_bytes, void **arguments);

}  // namespace emulator
