/* Runs CUDA C++ on the CPU: each thread of a block is a fiber, and the fibers run in turn between barriers. A warp runs
 * up to the block's barrier before the next warp does, in an order that the caller chooses, so that a missing barrier
 * shows as a wrong result. Threads that wait at different lines are an error. Shared memory starts as NaN.
 * The functions cu... stand in for the CUDA driver. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <utility>
#include <vector>

#define EMULATED
#define __global__ static
#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __ldg(address) (*(address))
#define __syncthreads() emulator::wait(emulator::BLOCK, __LINE__)
#define __syncwarp() emulator::wait(emulator::WARP, __LINE__)

struct alignas(16) float4 { float x, y, z, w; };
struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim, gridDim;

static inline void atomicAdd(float *sum, float value) { *sum += value; }

/* MUFU.RCP is exact to one unit in the last place. */
static inline float reciprocal(float q) { return nextafterf(1 / q, 2); }

namespace emulator {
constexpr int SHARED = 4096, STACK = 32768; /* floats in shared memory; bytes in a fiber's stack */
enum Wait { READY, WARP, BLOCK, DONE };
struct Thread {
  ucontext_t context;
  Wait waits;
  int line;
  float sent, received;
  unsigned source;
};
static std::vector<Thread> threads;
static std::vector<char> stacks;
static ucontext_t scheduler;
static unsigned seed;
static char message[200];

static void wait(Wait waits, int line) {
  Thread &thread = threads[threadIdx.x];
  thread.waits = waits, thread.line = line;
  swapcontext(&thread.context, &scheduler);
}

static float shuffle(float value, unsigned source, int line) {
  Thread &thread = threads[threadIdx.x];
  thread.sent = value, thread.source = source;
  wait(WARP, line);
  return threads[threadIdx.x].received;
}

}  // namespace emulator

static inline float __shfl_sync(unsigned mask, float value, int lane, int line = __builtin_LINE()) {
  return emulator::shuffle(value, lane, line);
}

static inline float __shfl_xor_sync(unsigned mask, float value, int distance, int line = __builtin_LINE()) {
  return emulator::shuffle(value, threadIdx.x % 32 ^ distance, line);
}

namespace emulator {
/* Returns 0..n-1 upwards for seed 0, downwards for seed 1, otherwise in random order. */
static std::vector<int> order(int n) {
  static unsigned state;
  std::vector<int> numbers(n);
  for (int i = 0; i < n; i++) numbers[i] = seed == 1 ? n - 1 - i : i;
  for (int i = n - 1; i > 0 && seed > 1; i--) {
    state = (state + seed) * 1664525u + 1013904223u;
    std::swap(numbers[i], numbers[(state >> 8) % (i + 1)]);
  }
  return numbers;
}

/* Returns what all threads wait for; -1 with a message if they wait at different lines. */
static int together(int begin, int end) {
  for (int i = begin + 1; i < end; i++)
    if (threads[i].waits != threads[begin].waits || threads[i].line != threads[begin].line) {
      snprintf(message, sizeof message, "threads %d and %d wait at lines %d and %d", begin, i, threads[begin].line,
               threads[i].line);
      return -1;
    }
  return threads[begin].waits;
}

template <class Call> struct Launch {
  inline static void (*kernel)(Call);
  inline static const Call *call;

  static void fiber() {
    kernel(*call);
    threads[threadIdx.x].waits = DONE, threads[threadIdx.x].line = 0;
    swapcontext(&threads[threadIdx.x].context, &scheduler);
  }

  static bool block() {
    const int n = blockDim.x;
    for (int i = 0; i < n; i++) {
      getcontext(&threads[i].context);
      threads[i].context.uc_stack.ss_sp = stacks.data() + (size_t)i * STACK;
      threads[i].context.uc_stack.ss_size = STACK;
      makecontext(&threads[i].context, fiber, 0);
      threads[i].waits = READY;
    }
    for (;;) {
      for (int warp : order(n / 32))
        for (int waits = READY; waits == READY || waits == WARP;) {
          for (int lane : order(32)) {
            threadIdx.x = warp * 32 + lane;
            if (threads[threadIdx.x].waits == READY) swapcontext(&scheduler, &threads[threadIdx.x].context);
          }
          if ((waits = together(warp * 32, warp * 32 + 32)) < 0) return false;
          for (int i = warp * 32; waits == WARP && i < warp * 32 + 32; i++) {
            threads[i].received = threads[warp * 32 + threads[i].source % 32].sent;
            threads[i].waits = READY;
          }
        }
      const int waits = together(0, n);
      if (waits < 0 || waits == DONE) return waits == DONE;
      for (int i = 0; i < n; i++) threads[i].waits = READY;
    }
  }
};

/* Runs all blocks, one after another. Returns whether all threads always waited at the same lines. */
template <class Call>
static bool run(void (*kernel)(Call), const void *call, float *shared, int blocks, int size) {
  typedef Launch<Call> L;
  L::kernel = kernel, L::call = (const Call *)call;
  blockDim.x = size, gridDim.x = blocks;
  if ((int)threads.size() < size) threads.resize(size), stacks.resize((size_t)size * STACK);
  for (int b = 0; b < blocks; b++) {
    blockIdx.x = b;
    memset(shared, 0xff, SHARED * sizeof(float)); /* NaN */
    if (!L::block()) return false;
  }
  return true;
}

/* A driver with one device. A module is the number of a source in text; FUNCTIONS is what the sources contain. */
struct Function {
  const char *module, *name;
  bool (*run)(const void *call, int blocks, int size);
};
extern const std::vector<Function> FUNCTIONS;
static int device_context;
static void *current_context; /* none, as in a new thread */
}  // namespace emulator

extern "C" {
unsigned emulator_order;
const char *emulator_message() { return emulator::message; }
int cuInit(unsigned) { return 0; }
int cuGetErrorName(int, const char **name) { return *name = "EMULATED_ERROR", 0; }
int cuDevicePrimaryCtxRetain(void **context, int) { return *context = &emulator::device_context, 0; }
int cuCtxGetCurrent(void **context) { return *context = emulator::current_context, 0; }
int cuCtxPushCurrent_v2(void *context) { return emulator::current_context = context, 0; }
int cuCtxPopCurrent_v2(void **context) {
  *context = emulator::current_context, emulator::current_context = nullptr;
  return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int) { return *value = 3, attribute == 16 ? 0 : 1; }
int cuModuleLoadData(void **module, const void *image) { return *module = strdup((const char *)image), 0; }
int cuModuleGetFunction(const emulator::Function **function, void *module, const char *name) {
  for (const auto &known : emulator::FUNCTIONS)
    if (!strcmp(known.module, (const char *)module) && !strcmp(known.name, name)) return *function = &known, 0;
  return 500;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const emulator::Function *, int size, size_t) {
  return *blocks = 1, size % 32;
}
int cuLaunchKernel(const emulator::Function *function, unsigned blocks, unsigned, unsigned, unsigned size, unsigned y,
                   unsigned z, unsigned bytes, void *stream, void **parameters, void **extra) {
  if (emulator::current_context != &emulator::device_context) return 201;
  if (y != 1 || z != 1 || bytes > emulator::SHARED * sizeof(float) || stream || extra) return 1;
  emulator::seed = emulator_order;
  return function->run(parameters[0], blocks, size) ? 0 : 719;
}
}
