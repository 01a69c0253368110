/* An OpenCL library of one device, written for tests: it runs kernels as C, one work item after the other, with float16
 * where the compiler has _Float16; counts what is not released; and fails at a call that the environment names.
 *
 * Built together with the kernels: gcc -DKERNELS='"net_source.cl"' -shared -fPIC -o libdevice.so opencl_device.c -ldl -lm
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <tgmath.h>
#include <ucontext.h>

static size_t group_number, item_number;
static void wait_for_all(void);
static int larger(int a, int b) { return a > b ? a : b; }
static int smaller(int a, int b) { return a < b ? a : b; }

/* OpenCL C as C. */
#define __kernel __attribute__((visibility("default")))
#define __global
#define __local static
#define half _Float16
#define CLK_LOCAL_MEM_FENCE 0
#define barrier(fence) wait_for_all()
#define get_group_id(dimension) group_number
#define get_local_id(dimension) item_number
#define convert_int(x) ((int)(x))
#define convert_float(x) ((float)(x))
#define convert_half(x) ((half)(x))
#define max(a, b) _Generic((a) + (b), int: larger, default: fmaxf)(a, b)
#define min(a, b) _Generic((a) + (b), int: smaller, default: fminf)(a, b)
#define cl_khr_fp16 1
#include KERNELS

/* Every call that can fail counts; one of them does where FAIL_AT says so. */
int calls;
int live;

static int fails(void)
{
    const char *at = getenv("FAIL_AT");
    return at != NULL && calls++ == atoi(at);
}

static void *made(size_t size, int *status)
{
    *status = fails() ? -5 : 0;
    live += *status == 0;
    return *status == 0 ? calloc(1, size) : NULL;
}

static int given_back(void *object)
{
    live--;
    free(object);
    return 0;
}

typedef struct { unsigned char *data; int owned; } Memory;
typedef struct { void (*function)(); void *arguments[16]; unsigned count; } Kernel;

int clGetPlatformIDs(uint32_t n, void **platforms, uint32_t *found)
{
    (void)n;
    platforms[0] = &live;
    *found = 1;
    return fails() ? -1001 : 0;
}

int clGetDeviceIDs(void *platform, uint64_t kind, uint32_t n, void **devices, uint32_t *found)
{
    (void)platform, (void)n, (void)found;
    devices[0] = &live;
    return kind == 4 ? -1 : fails() ? -2 : 0; /* it is no GPU */
}

int clGetDeviceInfo(void *device, uint32_t what, size_t size, void *value, size_t *needed)
{
    static const char name[] = "test device", extensions[] = "cl_khr_icd cl_khr_fp16";
    (void)device;
    if (what == 0x102B)
        memcpy(value, name, sizeof name);
    else if (what == 0x1019)
        *(uint32_t *)value = 1024;
    else if (value == NULL)
        *needed = sizeof extensions;
    else
        memcpy(value, extensions, size);
    return what != 0x102B && fails() ? -30 : 0;
}

void *clCreateContext(void *p, uint32_t n, void *devices, void *f, void *d, int *status)
{
    (void)p, (void)n, (void)devices, (void)f, (void)d;
    return made(1, status);
}

void *clCreateCommandQueue(void *context, void *device, uint64_t properties, int *status)
{
    (void)context, (void)device, (void)properties;
    return made(1, status);
}

void *clCreateProgramWithSource(void *context, uint32_t n, const char **texts, const size_t *sizes, int *status)
{
    (void)context, (void)n, (void)texts, (void)sizes;
    return made(1, status);
}

int clBuildProgram(void *program, uint32_t n, void *devices, const char *options, void *f, void *d)
{
    (void)program, (void)n, (void)devices, (void)options, (void)f, (void)d;
    return fails() ? -11 : 0;
}

int clGetProgramBuildInfo(void *program, void *device, uint32_t what, size_t size, void *value, size_t *needed)
{
    static const char log[] = "the test says so";
    (void)program, (void)device, (void)what;
    if (value == NULL)
        *needed = sizeof log;
    else
        memcpy(value, log, size);
    return 0;
}

void *clCreateKernel(void *program, const char *name, int *status)
{
    Dl_info here;
    (void)program;
    Kernel *kernel = made(sizeof *kernel, status);
    if (kernel != NULL && dladdr((void *)clCreateKernel, &here))
        kernel->function = (void (*)())dlsym(dlopen(here.dli_fname, RTLD_NOW), name);
    return kernel;
}

int clSetKernelArg(Kernel *kernel, uint32_t at, size_t size, const void *value)
{
    (void)size;
    kernel->arguments[at] = (*(Memory *const *)value)->data;
    kernel->count = at + 1;
    return fails() ? -50 : 0; /* a code that the driver has no name for */
}

void *clCreateBuffer(void *context, uint64_t flags, size_t size, const void *host, int *status)
{
    (void)context;
    Memory *memory = made(sizeof *memory, status);
    if (memory != NULL) {
        memory->data = malloc(size);
        memory->owned = 1;
        memset(memory->data, 0xFF, size); /* NaNs: what is read before it is written shows */
        if (flags & 32)
            memcpy(memory->data, host, size);
    }
    return memory;
}

void *clCreateSubBuffer(Memory *whole, uint64_t flags, uint32_t kind, const size_t *region, int *status)
{
    (void)flags, (void)kind;
    Memory *memory = made(sizeof *memory, status);
    if (memory != NULL)
        memory->data = whole->data + region[0];
    return memory;
}

/* A work group's items are coroutines, which change places at barriers. */
enum { MOST_ITEMS = 64, STACK = 1 << 16 };
static ucontext_t scheduler, items[MOST_ITEMS];
static char stacks[MOST_ITEMS][STACK];
static const Kernel *running;

static void wait_for_all(void)
{
    size_t own = item_number;
    swapcontext(&items[own], &scheduler);
    item_number = own;
}

static int finished[MOST_ITEMS];

static void run_item(void)
{
    void *const *a = running->arguments;
    running->function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]);
    finished[item_number] = 1;
}

int clEnqueueNDRangeKernel(void *queue, Kernel *kernel, uint32_t n, const size_t *offset, const size_t *global,
                           const size_t *local, uint32_t n_events, const void *events, void *event)
{
    (void)queue, (void)n, (void)offset, (void)n_events, (void)events, (void)event;
    if (fails() || *local > MOST_ITEMS || *global % *local)
        return -54;
    running = kernel;
    for (group_number = 0; group_number < *global / *local; group_number++) {
        for (size_t i = 0; i < *local; i++) {
            getcontext(&items[i]);
            items[i].uc_stack.ss_sp = stacks[i];
            items[i].uc_stack.ss_size = STACK;
            items[i].uc_link = &scheduler;
            makecontext(&items[i], run_item, 0);
            finished[i] = 0;
        }
        for (size_t left = *local; left > 0;)
            for (size_t i = 0; i < *local; i++)
                if (!finished[i]) {
                    item_number = i;
                    swapcontext(&scheduler, &items[i]);
                    left -= finished[i];
                }
    }
    return 0;
}

int clEnqueueWriteBuffer(void *queue, Memory *memory, uint32_t blocking, size_t at, size_t size, const void *from,
                         uint32_t n, const void *events, void *event)
{
    (void)queue, (void)blocking, (void)n, (void)events, (void)event;
    memcpy(memory->data + at, from, size);
    return fails() ? -5 : 0;
}

int clEnqueueReadBuffer(void *queue, Memory *memory, uint32_t blocking, size_t at, size_t size, void *to, uint32_t n,
                        const void *events, void *event)
{
    (void)queue, (void)blocking, (void)n, (void)events, (void)event;
    memcpy(to, memory->data + at, size);
    return fails() ? -5 : 0;
}

int clEnqueueCopyBuffer(void *queue, Memory *from, Memory *to, size_t at, size_t target, size_t size, uint32_t n,
                        const void *events, void *event)
{
    (void)queue, (void)n, (void)events, (void)event;
    memcpy(to->data + target, from->data + at, size);
    return fails() ? -5 : 0;
}

int clFinish(void *queue)
{
    (void)queue;
    return 0;
}

int clReleaseMemObject(Memory *memory)
{
    if (memory->owned)
        free(memory->data);
    return given_back(memory);
}

int clReleaseKernel(void *kernel) { return given_back(kernel); }
int clReleaseProgram(void *program) { return given_back(program); }
int clReleaseCommandQueue(void *queue) { return given_back(queue); }
int clReleaseContext(void *context) { return given_back(context); }
