// A libcuda.so.1 without a GPU: the part of the driver interface that cudarc calls, on host memory and the emulator.
//
// There is one device, a "device pointer" is a host address. The device is as far behind with its work as it may be: what is
// asked for on a stream is done when the host waits for it, or when work of another stream that waits for it is done. So
// a buffer that is written again too early, and work that does not wait for what it reads, both show.
// Fresh memory is filled with NaN, and every allocation stands between guard bytes that are checked when it is freed. So what
// is read before it was written, and what is written past the end, show too. Declared after the CUDA driver API's
// documentation.
#include <stdio.h>
#include <stdlib.h>

#include <chrono>
#include <deque>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "emulator.hpp"

namespace {

enum Status : int { Success = 0, InvalidValue = 1, OutOfMemory = 2, InvalidDevice = 101, NotFound = 500, NotReady = 600 };

constexpr size_t GUARD = 256;
constexpr unsigned char GUARD_BYTE = 0xc5;
constexpr size_t TOTAL_MEMORY = (size_t)16 << 30;
constexpr int COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76, MEMORY_POOLS_SUPPORTED = 115;

std::mutex device;  // what is allocated
std::map<uint64_t, size_t> allocations;
size_t allocated, most_allocated;

[[noreturn]] void stop(const std::string &fault) {
    fprintf(stderr, "emulated CUDA device: %s\n", fault.c_str());
    fflush(stderr);
    abort();
}

Status allocate(uint64_t *pointer, size_t bytes) {
    const std::lock_guard<std::mutex> lock(device);
    if (allocated + bytes > TOTAL_MEMORY) return OutOfMemory;
    auto *const memory = static_cast<unsigned char *>(aligned_alloc(GUARD, (bytes + 3 * GUARD - 1) / GUARD * GUARD));
    if (memory == nullptr) return OutOfMemory;
    memset(memory, GUARD_BYTE, GUARD);
    memset(memory + GUARD + bytes, GUARD_BYTE, GUARD);
    *pointer = (uint64_t)(memory + GUARD);
    allocations[*pointer] = bytes;
    allocated += bytes;
    most_allocated = std::max(most_allocated, allocated);
    return Success;
}

Status release(uint64_t pointer) {
    const std::lock_guard<std::mutex> lock(device);
    const auto found = allocations.find(pointer);
    if (found == allocations.end()) return pointer == 0 ? Success : InvalidValue;
    const auto *const memory = (const unsigned char *)pointer;
    for (size_t i = 0; i < GUARD; ++i)
        if (memory[i - GUARD] != GUARD_BYTE || memory[found->second + i] != GUARD_BYTE)
            stop("a kernel wrote outside an allocation of " + std::to_string(found->second) + " bytes");
    free((void *)(memory - GUARD));
    allocated -= found->second;
    allocations.erase(found);
    return Success;
}

using Clock = std::chrono::steady_clock;

// Work that no host has waited for. Streams are never deleted: an event may still name one.
struct Stream {
    std::deque<std::function<void()>> late;
    size_t asked_for;
};

struct Event {
    Stream *stream;
    size_t after;                             // work of the stream that was asked for before the event
    std::shared_ptr<Clock::time_point> time;  // when that was done
};

// Memory is only freed when the device comes to it: no stream is further behind than this.
constexpr size_t FURTHEST_BEHIND = 20000;

std::recursive_mutex streams;
Stream default_stream;
thread_local uint64_t host_waits;  // times this thread waited for the device to be done

Stream &stream_of(void *handle) { return handle == nullptr ? default_stream : *static_cast<Stream *>(handle); }

// Does a stream's work until so much of it is done.
void catch_up(Stream &stream, size_t until) {
    const std::lock_guard<std::recursive_mutex> lock(streams);
    while (!stream.late.empty() && stream.asked_for - stream.late.size() < until) {
        const std::function<void()> work = std::move(stream.late.front());
        stream.late.pop_front();
        work();
    }
}

Status later(Stream &stream, std::function<void()> work) {
    const std::lock_guard<std::recursive_mutex> lock(streams);
    stream.late.push_back(std::move(work));
    stream.asked_for += 1;
    if (stream.late.size() > FURTHEST_BEHIND) catch_up(stream, stream.asked_for - FURTHEST_BEHIND);
    return Success;
}

void await(const Event &event) {
    if (event.stream != nullptr) catch_up(*event.stream, event.after);
}

std::map<uint64_t, size_t> pinned_memory;

// Whether all of it lies in one of these blocks.
bool within(const std::map<uint64_t, size_t> &blocks, uint64_t first, size_t bytes) {
    const auto next = blocks.upper_bound(first);
    if (next == blocks.begin()) return false;
    const auto block = std::prev(next);
    return first + bytes <= block->first + block->second;
}

void check(const std::map<uint64_t, size_t> &blocks, uint64_t first, size_t bytes) {
    const std::lock_guard<std::mutex> lock(device);
    if (bytes > 0 && !within(blocks, first, bytes))
        stop("a copy of " + std::to_string(bytes) + " bytes from or to memory that is not allocated");
}

Status copy_on_device(uint64_t to, uint64_t from, size_t bytes) {
    check(allocations, from, bytes);
    check(allocations, to, bytes);
    return memcpy((void *)to, (const void *)from, bytes), Success;
}

// From pinned memory when the device comes to it; other memory has been read when the call returns.
Status copy_from_host(uint64_t to, const void *from, size_t bytes, Stream &stream) {
    bool pinned;
    {
        const std::lock_guard<std::mutex> lock(device);
        pinned = within(pinned_memory, (uint64_t)from, bytes);
    }
    if (pinned)
        return later(stream, [=] {
            check(pinned_memory, (uint64_t)from, bytes);
            check(allocations, to, bytes);
            memcpy((void *)to, from, bytes);
        });
    const auto *const first = static_cast<const unsigned char *>(from);
    return later(stream, [to, copy = std::vector<unsigned char>(first, first + bytes)] {
        check(allocations, to, copy.size());
        memcpy((void *)to, copy.data(), copy.size());
    });
}

// The host has the bytes when the call returns.
Status copy_to_host(void *to, uint64_t from, size_t bytes, Stream &stream) {
    const std::lock_guard<std::recursive_mutex> lock(streams);
    catch_up(stream, SIZE_MAX);
    check(allocations, from, bytes);
    return memcpy(to, (const void *)from, bytes), Success;
}

Status set(uint64_t pointer, unsigned char value, size_t bytes, Stream &stream) {
    return later(stream, [=] {
        check(allocations, pointer, bytes);
        memset((void *)pointer, value, bytes);
    });
}

// Any non-null value serves as a handle.
template <typename Handle> Status hand_out(Handle *handle) {
    *handle = (Handle)1;
    return Success;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return Success; }
int cuDriverGetVersion(int *version) { return *version = 13000, Success; }
int cuGetErrorName(int, const char **text) { return *text = "emulated error", Success; }
int cuGetErrorString(int, const char **text) { return *text = "emulated error", Success; }

int cuDeviceGet(int *handle, int ordinal) { return *handle = ordinal, ordinal == 0 ? Success : InvalidDevice; }
int cuDeviceGetCount(int *count) { return *count = 1, Success; }
int cuDeviceGetName(char *name, int length, int) { return snprintf(name, (size_t)length, "host emulation"), Success; }
int cuDeviceTotalMem_v2(size_t *bytes, int) { return *bytes = TOTAL_MEMORY, Success; }
int cuDeviceGetAttribute(int *value, int attribute, int) {
    *value = attribute == MEMORY_POOLS_SUPPORTED     ? 1
             : attribute == COMPUTE_CAPABILITY_MAJOR ? 9
                                                     : 0;
    return Success;
}
int cuDeviceGetDefaultMemPool(void **pool, int) { return hand_out(pool); }
int cuMemPoolSetAttribute(void *, int, void *) { return Success; }
int cuMemPoolGetAttribute(void *, int, void *most_used) { return *(uint64_t *)most_used = most_allocated, Success; }

int cuDevicePrimaryCtxRetain(void **context, int) { return hand_out(context); }
int cuDevicePrimaryCtxRelease_v2(int) { return Success; }
int cuCtxSetCurrent(void *) { return Success; }
int cuCtxGetCurrent(void **context) { return hand_out(context); }

int cuStreamCreate(void **stream, unsigned) { return *stream = new Stream(), Success; }
int cuStreamDestroy_v2(void *) { return Success; }  // its work is done all the same
int cuStreamSynchronize(void *stream) {
    host_waits += 1;
    return catch_up(stream_of(stream), SIZE_MAX), Success;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned) {
    return later(stream_of(stream), [event = *static_cast<Event *>(event)] { await(event); });
}
int cuEventCreate(void **event, unsigned) { return *event = new Event(), Success; }
int cuEventDestroy_v2(void *event) { return delete static_cast<Event *>(event), Success; }
int cuEventRecord(void *event, void *handle) {
    const std::lock_guard<std::recursive_mutex> lock(streams);
    Stream &stream = stream_of(handle);
    const auto time = std::make_shared<Clock::time_point>();
    later(stream, [=] { *time = Clock::now(); });
    *static_cast<Event *>(event) = {&stream, stream.asked_for, time};
    return Success;
}
int cuEventSynchronize(void *event) { return await(*static_cast<Event *>(event)), Success; }
int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    const std::lock_guard<std::recursive_mutex> lock(streams);
    const auto &from = static_cast<Event *>(start)->time, &to = static_cast<Event *>(end)->time;
    if (!from || !to) return InvalidValue;
    if (*from == Clock::time_point() || *to == Clock::time_point()) return NotReady;
    return *milliseconds = std::chrono::duration<float, std::milli>(*to - *from).count(), Success;
}

// For the tests: how often the calling thread waited for the device to be done.
uint64_t emulated_host_waits() { return host_waits; }
// For the fake cuBLAS: work for the default stream.
void emulated_work(std::function<void()> *work) { later(default_stream, std::move(*work)); }

int cuMemAllocAsync(uint64_t *pointer, size_t bytes, void *stream) {
    const Status status = allocate(pointer, bytes);
    return status == Success ? set(*pointer, 0xff, bytes, stream_of(stream)) : status;
}
int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) { return cuMemAllocAsync(pointer, bytes, nullptr); }
int cuMemFreeAsync(uint64_t pointer, void *stream) {
    return later(stream_of(stream), [=] {
        if (release(pointer) != Success) stop("memory is freed that was not allocated");
    });
}
int cuMemFree_v2(uint64_t pointer) { return cuMemFreeAsync(pointer, nullptr); }
int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
    const std::lock_guard<std::mutex> lock(device);
    if ((*pointer = malloc(bytes)) == nullptr) return OutOfMemory;
    return pinned_memory[(uint64_t)*pointer] = bytes, Success;
}
int cuMemFreeHost(void *pointer) {
    const std::lock_guard<std::mutex> lock(device);
    if (pinned_memory.erase((uint64_t)pointer) == 0) return InvalidValue;
    return free(pointer), Success;
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    return *free_bytes = TOTAL_MEMORY - allocated, *total = TOTAL_MEMORY, Success;
}
int cuMemsetD8_v2(uint64_t pointer, unsigned char value, size_t bytes) {
    return set(pointer, value, bytes, default_stream);
}
int cuMemsetD8Async(uint64_t pointer, unsigned char value, size_t bytes, void *stream) {
    return set(pointer, value, bytes, stream_of(stream));
}
int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    return copy_from_host(to, from, bytes, default_stream);
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    return copy_from_host(to, from, bytes, stream_of(stream));
}
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    host_waits += 1;
    return copy_to_host(to, from, bytes, default_stream);
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    return copy_to_host(to, from, bytes, stream_of(stream));
}
int cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t bytes) {
    return later(default_stream, [=] { copy_on_device(to, from, bytes); });
}
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    return later(stream_of(stream), [=] { copy_on_device(to, from, bytes); });
}

// The kernels are compiled in: a module's image is not looked at.
int cuModuleLoad(void **module, const char *) { return hand_out(module); }
int cuModuleLoadData(void **module, const void *) { return hand_out(module); }
int cuModuleUnload(void *) { return Success; }
int cuModuleGetFunction(void **function, void *, const char *name) {
    *function = const_cast<emulator::Kernel *>(emulator::find(name));
    return *function != nullptr ? Success : NotFound;
}
int cuFuncSetAttribute(void *, int, int) { return Success; }

int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, void **) {
    const auto &kernel = *static_cast<const emulator::Kernel *>(function);
    const Dimensions grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
    if (!emulator::can_launch(grid, block, shared_bytes)) return InvalidValue;
    return later(stream_of(stream), [=, &kernel, values = kernel.copy(arguments)]() mutable {
        std::vector<void *> addresses;
        for (uint64_t &value : values) addresses.push_back(&value);
        const std::string fault = emulator::launch(kernel.body, grid, block, shared_bytes, addresses.data());
        if (!fault.empty()) stop(fault);
    });
}

}  // extern "C"
