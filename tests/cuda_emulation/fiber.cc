/* fiber.cc - a switch of stacks: push what a callee keeps, change the stack pointer, pop. Elsewhere than on x86-64, ucontext. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "tests/cuda_emulation/emulator.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef __x86_64__
extern "C" void emulation_switch_stacks(void **from, void *to);
__asm__(".text\n"
        ".p2align 4\n"
        ".hidden emulation_switch_stacks\n"
        ".globl emulation_switch_stacks\n"
        ".type emulation_switch_stacks, @function\n"
        "emulation_switch_stacks:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size emulation_switch_stacks, . - emulation_switch_stacks\n");
#else
#include <ucontext.h>
#endif

#define LAST_FRAMES 4096u        /* of a fiber that ended: its entry and the switch, whose frames nobody took down */

static fiber_stack *switched_from;

void fiber_stack_make(fiber_stack *stack, size_t size)
{
    size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void *all = mmap(nullptr, size + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED || mprotect(all, page, PROT_NONE) != 0) {
        perror("cuda emulation: a thread's stack");
        abort();
    }
    stack->low = static_cast<unsigned char *>(all) + page;
    stack->size = size;
}

void fiber_prepare(fiber_stack *stack, void (*entry)())
{
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack->low + stack->size - LAST_FRAMES, LAST_FRAMES);
#endif
#ifdef __x86_64__
    void **sp = reinterpret_cast<void **>(stack->low + stack->size) - 2;      /* on entry sp is 8 beside a multiple of 16 */
    *sp = reinterpret_cast<void *>(entry);
    sp[1] = nullptr;
    sp -= 6;
    memset(sp, 0, 6 * sizeof *sp);
    stack->sp = sp;
#else
    ucontext_t *context = static_cast<ucontext_t *>(stack->sp);
    if (context == nullptr)
        stack->sp = context = static_cast<ucontext_t *>(malloc(sizeof *context));
    getcontext(context);
    context->uc_stack.ss_sp = stack->low;
    context->uc_stack.ss_size = stack->size;
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
#endif
    stack->fake = nullptr;
}

static void arrived([[maybe_unused]] fiber_stack *self)
{
#ifdef __SANITIZE_ADDRESS__
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(self == nullptr ? nullptr : self->fake, &bottom, &size);
    if (switched_from->low == nullptr) {         /* the host thread's own stack is learned on leaving it */
        switched_from->low = static_cast<unsigned char *>(const_cast<void *>(bottom));
        switched_from->size = size;
    }
#endif
}

void fiber_entered()
{
    arrived(nullptr);
}

void fiber_switch(fiber_stack *from, fiber_stack *to, [[maybe_unused]] bool from_ends)
{
    switched_from = from;
    emulation_count.switches++;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(from_ends ? nullptr : &from->fake, to->low, to->size);
#endif
#ifdef __x86_64__
    emulation_switch_stacks(&from->sp, to->sp);
#else
    if (from->sp == nullptr)
        from->sp = malloc(sizeof(ucontext_t));
    swapcontext(static_cast<ucontext_t *>(from->sp), static_cast<ucontext_t *>(to->sp));
#endif
    arrived(from);
}
