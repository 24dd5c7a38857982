// Threads as fibers.
//
// Every thread of a block owns a stack; it is entered with ucontext once and from then on switched to with
// _setjmp/_longjmp, which need no system call. The scheduler lets one warp run until each of its lanes is done or waits
// for the block, then the next. The order of warps and of lanes is the launch's: ascending, descending or shuffled, in
// turn, because a race that one order hides shows in another.
#include "emulator.hpp"

#include <setjmp.h>
#include <stdlib.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <vector>

namespace emulator {

Dimensions thread_index, block_index, block_size, grid_size;
unsigned char *dynamic_shared;

namespace {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 64 * 1024;

enum class State { Ready, AtBlockBarrier, AtWarpBarrier, Done };

struct Fiber {
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    ucontext_t start;
    jmp_buf resume;
    bool entered = false;
    State state = State::Done;
    Dimensions index;
    unsigned lane, warp;
    unsigned exchanges;
};

// What a warp exchanges: two sets, so that a lane may give its next value while another still reads the last one.
struct Exchange {
    uint32_t values[2][WARP];
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Exchange> warps;
Fiber *current;
jmp_buf scheduler;
Body running;
void **running_arguments;
unsigned launches;

std::map<std::string, Kernel> &registry() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

// A fiber lives for the whole process and runs one thread after the other.
void run_threads() {
    for (;;) {
        running(running_arguments);
        current->state = State::Done;
        if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
    }
}

void wait_in(State state) {
    current->state = state;
    if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

void run(Fiber &fiber) {
    current = &fiber;
    thread_index = fiber.index;
    if (_setjmp(scheduler) != 0) return;
    if (fiber.entered) _longjmp(fiber.resume, 1);
    fiber.entered = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = STACK_BYTES;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_threads, 0);
    setcontext(&fiber.start);
}

// A permutation of 0..count-1: as it is, reversed, or shuffled.
std::vector<unsigned> order(unsigned count, unsigned kind) {
    std::vector<unsigned> result(count);
    for (unsigned i = 0; i < count; ++i) result[i] = kind % 3 == 1 ? count - 1 - i : i;
    if (kind % 3 == 2) {
        uint64_t random = 0x9E3779B97F4A7C15u + kind;
        for (unsigned i = count; i > 1; --i) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            std::swap(result[i - 1], result[(random >> 33) % i]);
        }
    }
    return result;
}

std::string place(const Fiber &fiber) {
    return "block " + std::to_string(block_index.x) + "," + std::to_string(block_index.y) + "," +
           std::to_string(block_index.z) + " thread " + std::to_string(fiber.index.x) + "," +
           std::to_string(fiber.index.y);
}

// Runs one warp until every lane is done or waits for the block.
std::string run_warp(unsigned warp, unsigned threads, const std::vector<unsigned> &lanes) {
    for (;;) {
        bool waiting = false;
        for (unsigned lane : lanes) {
            const unsigned thread = warp * WARP + lane;
            if (thread < threads && fibers[thread]->state == State::Ready) run(*fibers[thread]);
        }
        for (unsigned lane = 0; lane < WARP && warp * WARP + lane < threads; ++lane)
            waiting |= fibers[warp * WARP + lane]->state == State::AtWarpBarrier;
        if (!waiting) return "";
        for (unsigned lane = 0; lane < WARP && warp * WARP + lane < threads; ++lane) {
            Fiber &fiber = *fibers[warp * WARP + lane];
            if (fiber.state != State::AtWarpBarrier)
                return "a warp exchange without every lane: " + place(fiber) + " is elsewhere";
            fiber.state = State::Ready;
        }
    }
}

std::string run_block(unsigned threads, unsigned kind) {
    const unsigned warp_count = (threads + WARP - 1) / WARP;
    const std::vector<unsigned> warp_order = order(warp_count, kind), lanes = order(WARP, kind);
    for (;;) {
        for (unsigned warp : warp_order) {
            const std::string fault = run_warp(warp, threads, lanes);
            if (!fault.empty()) return fault;
        }
        unsigned done = 0;
        for (unsigned i = 0; i < threads; ++i) done += fibers[i]->state == State::Done;
        if (done == threads) return "";
        for (unsigned i = 0; i < threads; ++i) {
            if (fibers[i]->state == State::Done) return "a barrier without every thread: " + place(*fibers[i]) + " ended";
            fibers[i]->state = State::Ready;
        }
    }
}

}  // namespace

void block_barrier() { wait_in(State::AtBlockBarrier); }
void warp_barrier() { wait_in(State::AtWarpBarrier); }
unsigned lane() { return current->lane; }

uint32_t exchange(uint32_t value, unsigned source) {
    uint32_t *const values = warps[current->warp].values[current->exchanges++ % 2];
    values[current->lane] = value;
    warp_barrier();
    return values[source % WARP];
}

Registration::Registration(const char *name, Kernel kernel) { registry()[name] = std::move(kernel); }

const Kernel *find(const std::string &name) {
    const auto found = registry().find(name);
    return found == registry().end() ? nullptr : &found->second;
}

bool can_launch(Dimensions grid, Dimensions block, unsigned shared_bytes) {
    const unsigned threads = block.x * block.y * block.z;
    return threads > 0 && threads <= 1024 && grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y <= 65535 &&
           grid.z <= 65535 && shared_bytes <= 227 * 1024;
}

std::string launch(Body kernel, Dimensions grid, Dimensions block, unsigned shared_bytes, void **arguments) {
    const unsigned threads = block.x * block.y * block.z;
    while (fibers.size() < threads) fibers.emplace_back(new Fiber);
    warps.resize(std::max<size_t>(warps.size(), (threads + WARP - 1) / WARP));
    std::vector<unsigned char> shared(shared_bytes + 16);
    dynamic_shared = shared.data() + (16 - (uintptr_t)shared.data() % 16) % 16;
    block_size = block;
    grid_size = grid;
    running = kernel;
    running_arguments = arguments;
    const unsigned kind = launches++;
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; ++x) {
                block_index = {x, y, z};
                std::fill(shared.begin(), shared.end(), 0xff);
                for (unsigned i = 0; i < threads; ++i) {
                    Fiber &fiber = *fibers[i];
                    fiber.index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
                    fiber.lane = i % WARP;
                    fiber.warp = i / WARP;
                    fiber.exchanges = 0;
                    fiber.state = State::Ready;
                }
                const std::string fault = run_block(threads, kind);
                if (!fault.empty()) {
                    fibers.clear();  // their stacks are in the middle of a kernel
                    return fault;
                }
            }
    return "";
}

}  // namespace emulator
