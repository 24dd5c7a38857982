/* Finds the address behind a trampoline (trampolines.S) when it is first called. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

enum { LIBRARIES = 3, NAMES = 5 };

/* The newest version first; the entry points used here are the same in all of them. */
static const char *const NAMES_OF[LIBRARIES][NAMES] = {
    {"libcuda.so.1", "libcuda.so"},
    {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"},
    {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"},
};

/* What a function of a missing library returns: an error code that cudarc's enums have. */
static int missing_driver(void) { return 303; }  /* CUDA_ERROR_SHARED_OBJECT_INIT_FAILED */
static int missing_cublas(void) { return 1; }    /* CUBLAS_STATUS_NOT_INITIALIZED */
static int missing_nvrtc(void) { return 11; }    /* NVRTC_ERROR_INTERNAL_ERROR */

static void *libraries[LIBRARIES];
static pthread_once_t opened = PTHREAD_ONCE_INIT;

static void open_libraries(void) {
    for (int library = 0; library < LIBRARIES; ++library)
        for (int i = 0; i < NAMES && NAMES_OF[library][i] != NULL && libraries[library] == NULL; ++i)
            libraries[library] = dlopen(NAMES_OF[library][i], RTLD_NOW | RTLD_LOCAL);
}

void *deepflow_resolve_cuda_symbol(const char *name, int library) {
    static int (*const missing[LIBRARIES])(void) = {missing_driver, missing_cublas, missing_nvrtc};
    pthread_once(&opened, open_libraries);
    void *const address = libraries[library] != NULL ? dlsym(libraries[library], name) : NULL;
    return address != NULL ? address : (void *)missing[library];
}
