// Threads that give way by themselves, each on its own stack: one runs at a time, from resume() to
// its next suspend(). Started once, a fiber runs one body after another, for all launches to come.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

constexpr unsigned kMostFibers = 1024;
constexpr size_t kStack = 128 << 10;  // bytes of a fiber's stack

struct Fiber {
    jmp_buf resume;
    ucontext_t start;
    bool started;
    char *stack;
    void *fake_stack;  // the address sanitizer's
};

inline Fiber fibers[kMostFibers];
inline unsigned running;            // the number of the fiber that runs
inline void (*body)(const void *);  // what each fiber runs, with `arguments`
inline const void *arguments;
inline jmp_buf scheduler;  // where resume() was called
inline const void *scheduler_stack;
inline size_t scheduler_stack_size;

// Tell the address sanitizer that the next jump goes to another stack, and that it went.
inline void leave_stack([[maybe_unused]] void **fake, [[maybe_unused]] const void *stack,
                        [[maybe_unused]] size_t size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(fake, stack, size);
#endif
}

inline void enter_stack([[maybe_unused]] void *fake, [[maybe_unused]] const void **from,
                        [[maybe_unused]] size_t *size) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(fake, from, size);
#endif
}

// Back to the scheduler, until it resumes this fiber. _setjmp, unlike swapcontext, does not ask the
// system for the signal mask: a switch costs nanoseconds.
inline void suspend() {
    Fiber &self = fibers[running];
    leave_stack(&self.fake_stack, scheduler_stack, scheduler_stack_size);
    if (!_setjmp(self.resume)) _longjmp(scheduler, 1);
    enter_stack(self.fake_stack, nullptr, nullptr);
}

inline void run_bodies() {
    enter_stack(nullptr, &scheduler_stack, &scheduler_stack_size);
    for (;;) {
        body(arguments);
        suspend();
    }
}

inline void start(Fiber &fiber) {
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack;
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, run_bodies, 0);
    fiber.started = true;
    setcontext(&fiber.start);
}

// Runs a fiber until it suspends itself.
inline void resume(unsigned number) {
    Fiber &fiber = fibers[number];
    void *fake_stack = nullptr;
    running = number;
    if (!fiber.stack) fiber.stack = new char[kStack];
    leave_stack(&fake_stack, fiber.stack, kStack);
    if (!_setjmp(scheduler)) {
        if (fiber.started) _longjmp(fiber.resume, 1);
        start(fiber);
    }
    enter_stack(fake_stack, nullptr, nullptr);
}

// Gives up what fibers that were suspended in the middle of a body still had to do.
inline void abandon() {
    for (Fiber &fiber : fibers) fiber.started = false;
}

}  // namespace emulator
