/*
 * One small function for every entry point of libcuda, libcublas and libnvrtc: the first call asks `resolve` (resolve.c)
 * for the address and keeps it, later calls jump. So the binary names none of these libraries, starts where they do
 * not exist, and gets an error code there instead of being refused by the dynamic linker.
 * The argument registers are kept around the question because the trampoline does not know the signature.
 */

#if defined(__x86_64__)

.macro TRAMPOLINE name, library
    .section .rodata
name_of_\name: .asciz "\name"
    .section .bss
    .balign 8
slot_of_\name: .skip 8
    .text
    .globl \name
    .type \name, @function
\name:
    endbr64
    movq slot_of_\name(%rip), %rax
    testq %rax, %rax
    jz 1f
    jmp *%rax
1:  leaq name_of_\name(%rip), %r10
    movl $\library, %r11d
    call resolve_keeping_arguments
    movq %rax, slot_of_\name(%rip)
    jmp *%rax
    .size \name, . - \name
.endm

    .text
    .type resolve_keeping_arguments, @function
resolve_keeping_arguments:
    pushq %rbp
    movq %rsp, %rbp
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %rcx
    pushq %r8
    pushq %r9
    subq $128, %rsp
    movups %xmm0, 0(%rsp)
    movups %xmm1, 16(%rsp)
    movups %xmm2, 32(%rsp)
    movups %xmm3, 48(%rsp)
    movups %xmm4, 64(%rsp)
    movups %xmm5, 80(%rsp)
    movups %xmm6, 96(%rsp)
    movups %xmm7, 112(%rsp)
    movq %r10, %rdi
    movl %r11d, %esi
    andq $-16, %rsp
    call deepflow_resolve_cuda_symbol
    leaq -176(%rbp), %rsp
    movups 0(%rsp), %xmm0
    movups 16(%rsp), %xmm1
    movups 32(%rsp), %xmm2
    movups 48(%rsp), %xmm3
    movups 64(%rsp), %xmm4
    movups 80(%rsp), %xmm5
    movups 96(%rsp), %xmm6
    movups 112(%rsp), %xmm7
    addq $128, %rsp
    popq %r9
    popq %r8
    popq %rcx
    popq %rdx
    popq %rsi
    popq %rdi
    popq %rbp
    ret
    .size resolve_keeping_arguments, . - resolve_keeping_arguments

#elif defined(__aarch64__)

.macro TRAMPOLINE name, library
    .section .rodata
name_of_\name: .asciz "\name"
    .section .bss
    .balign 8
slot_of_\name: .skip 8
    .text
    .balign 4
    .globl \name
    .type \name, %function
\name:
    adrp x16, slot_of_\name
    ldr x16, [x16, :lo12:slot_of_\name]
    cbz x16, 1f
    br x16
1:  stp x29, x30, [sp, #-16]!
    adrp x16, name_of_\name
    add x16, x16, :lo12:name_of_\name
    mov w17, #\library
    bl resolve_keeping_arguments
    adrp x17, slot_of_\name
    str x16, [x17, :lo12:slot_of_\name]
    ldp x29, x30, [sp], #16
    br x16
    .size \name, . - \name
.endm

    .text
    .balign 4
    .type resolve_keeping_arguments, %function
resolve_keeping_arguments:
    stp x29, x30, [sp, #-208]!
    mov x29, sp
    stp x0, x1, [sp, #16]
    stp x2, x3, [sp, #32]
    stp x4, x5, [sp, #48]
    stp x6, x7, [sp, #64]
    stp q0, q1, [sp, #80]
    stp q2, q3, [sp, #112]
    stp q4, q5, [sp, #144]
    stp q6, q7, [sp, #176]
    mov x0, x16
    mov w1, w17
    bl deepflow_resolve_cuda_symbol
    mov x16, x0
    ldp x0, x1, [sp, #16]
    ldp x2, x3, [sp, #32]
    ldp x4, x5, [sp, #48]
    ldp x6, x7, [sp, #64]
    ldp q0, q1, [sp, #80]
    ldp q2, q3, [sp, #112]
    ldp q4, q5, [sp, #144]
    ldp q6, q7, [sp, #176]
    ldp x29, x30, [sp], #208
    ret
    .size resolve_keeping_arguments, . - resolve_keeping_arguments

#else
#error "no trampolines for this processor: link the CUDA libraries directly"
#endif

#define DRIVER(name) TRAMPOLINE name, 0
#define CUBLAS(name) TRAMPOLINE name, 1
#define NVRTC(name) TRAMPOLINE name, 2
#include "symbols.h"

    .section .note.GNU-stack, "", %progbits
