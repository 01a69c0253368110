/* A QEMU user-mode plugin that counts how often each block of guest code runs, exactly, between two marks.
 *
 * The guest marks the region with syscall(0x5eed, 2) and syscall(0x5eed, 3); QEMU answers ENOSYS and the plugin
 * sees them. Counters are zeroed at the first mark and frozen at the second; the caches are simulated all the
 * time, so that a warm-up before the first mark warms them. Only one guest thread may run: the counters are
 * plain adds.
 *
 * Arguments: out=FILE, and optionally both of l1=BYTES:WAYS:LINE and l2=BYTES:WAYS:LINE.
 *
 * Output, as text lines:
 *   region 1              whether both marks were seen
 *   entry HEX             address of the program's entry point, as loaded
 *   block ADDRESS EXECUTIONS ACCESSES L1_MISSES L2_MISSES CODE    one line a block that ran, in the order of its
 *                         first translation; address and code (little-endian bytes) in hexadecimal
 *
 * PLUGIN_API is the version of QEMU's plugin interface: 1 for QEMU 7.2 to 8.2, 2 for 9.0, 3 for 9.1 and newer
 * (which also take plugins of version 3). Debian packages no header of it, so the few declarations that are needed
 * stand here; of these, only qemu_plugin_insn_data has changed between the versions.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { QEMU_PLUGIN_CB_NO_REGS = 0 };
enum { QEMU_PLUGIN_MEM_RW = 3 };
typedef void (*tb_trans_cb_t)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*vcpu_udata_cb_t)(unsigned int, void *);
typedef void (*mem_cb_t)(unsigned int, qemu_plugin_meminfo_t, uint64_t, void *);
typedef void (*syscall_cb_t)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                             uint64_t, uint64_t, uint64_t, uint64_t);
typedef void (*udata_cb_t)(qemu_plugin_id_t, void *);

extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, tb_trans_cb_t);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, vcpu_udata_cb_t, int, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, mem_cb_t, int, int, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb_t);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, udata_cb_t, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_entry_code(void);
#if PLUGIN_API < 3
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
#else
extern size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *, void *, size_t);
#endif

EXPORT int qemu_plugin_version = PLUGIN_API;

enum { MARK = 0x5eed, BEGIN = 2, END = 3 };
enum { INSTRUCTION_BYTES = 4 }; /* AArch64 */

/* ---- caches: set-associative, least recently used, allocate on write ------------------------------------- */

typedef struct {
    uint64_t sets, ways, line_shift;
    uint64_t *lines; /* [sets][ways], most recently used first */
} Cache;

static Cache l1, l2;
static bool caches_simulated;

static void die(const char *what) {
    fprintf(stderr, "armlet plugin: %s\n", what);
    exit(125);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (memory == NULL) die("out of memory");
    return memory;
}

static bool read_cache(Cache *cache, const char *text) {
    uint64_t bytes, ways, line;
    if (sscanf(text, "%" SCNu64 ":%" SCNu64 ":%" SCNu64, &bytes, &ways, &line) != 3) return false;
    if (ways == 0 || line == 0 || (line & (line - 1)) != 0 || bytes == 0 || bytes % (ways * line) != 0) return false;
    cache->sets = bytes / (ways * line);
    cache->ways = ways;
    cache->line_shift = (uint64_t)__builtin_ctzll(line);
    cache->lines = allocate(cache->sets * ways, sizeof *cache->lines);
    memset(cache->lines, 0xff, cache->sets * ways * sizeof *cache->lines); /* no address has this line */
    return true;
}

/* Touches the line of an address; returns whether it was there. */
static bool touch(Cache *cache, uint64_t address) {
    uint64_t line = address >> cache->line_shift;
    uint64_t *set = cache->lines + (line % cache->sets) * cache->ways;
    uint64_t way = 0;
    while (way < cache->ways && set[way] != line) way++;
    bool hit = way < cache->ways;
    if (!hit) way = cache->ways - 1; /* the least recently used one goes */
    memmove(set + 1, set, way * sizeof *set);
    set[0] = line;
    return hit;
}

/* ---- blocks --------------------------------------------------------------------------------------------- */

typedef struct {
    uint64_t executions, accesses, l1_misses, l2_misses;
} Counters;

typedef struct Block {
    uint64_t address;
    size_t n_instructions;
    uint8_t *code;
    Counters running, frozen;
    struct Block *same_bucket, *next; /* `next` keeps the order of translation */
} Block;

enum { BUCKETS = 1 << 16 };
static Block *buckets[BUCKETS];
static Block *first_block, **last_link = &first_block;
static bool begun, ended;
static const char *output_path;

static void copy_instruction(const struct qemu_plugin_insn *instruction, uint8_t *code) {
#if PLUGIN_API < 3
    memcpy(code, qemu_plugin_insn_data(instruction), INSTRUCTION_BYTES);
#else
    if (qemu_plugin_insn_data(instruction, code, INSTRUCTION_BYTES) != INSTRUCTION_BYTES) die("can't read the code");
#endif
}

static Block *new_block(uint64_t address, size_t n, const struct qemu_plugin_tb *tb) {
    Block *block = allocate(1, sizeof *block);
    block->address = address;
    block->n_instructions = n;
    block->code = allocate(n, INSTRUCTION_BYTES);
    for (size_t i = 0; i < n; i++)
        copy_instruction(qemu_plugin_tb_get_insn(tb, i), block->code + i * INSTRUCTION_BYTES);
    *last_link = block;
    last_link = &block->next;
    return block;
}

/* QEMU may translate the same code again: such a block keeps its counters. */
static Block *block_of(const struct qemu_plugin_tb *tb) {
    uint64_t address = qemu_plugin_tb_vaddr(tb);
    size_t n = qemu_plugin_tb_n_insns(tb);
    Block **bucket = &buckets[(address >> 2) * UINT64_C(0x9e3779b97f4a7c15) >> 48];
    for (Block *block = *bucket; block != NULL; block = block->same_bucket)
        if (block->address == address && block->n_instructions == n) return block;
    Block *block = new_block(address, n, tb);
    block->same_bucket = *bucket;
    *bucket = block;
    return block;
}

static void on_execution(unsigned int cpu, void *data) {
    (void)cpu;
    ((Block *)data)->running.executions++;
}

static void on_access(unsigned int cpu, qemu_plugin_meminfo_t info, uint64_t address, void *data) {
    (void)cpu, (void)info;
    Counters *counters = &((Block *)data)->running;
    counters->accesses++;
    if (touch(&l1, address)) return;
    counters->l1_misses++;
    if (!touch(&l2, address)) counters->l2_misses++;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    Block *block = block_of(tb);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_execution, QEMU_PLUGIN_CB_NO_REGS, block);
    if (!caches_simulated) return;
    for (size_t i = 0; i < block->n_instructions; i++)
        qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), on_access, QEMU_PLUGIN_CB_NO_REGS,
                                         QEMU_PLUGIN_MEM_RW, block);
}

static void on_syscall(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t mark, uint64_t a2,
                       uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)id, (void)cpu, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARK) return;
    if (mark == BEGIN) {
        begun = true;
        for (Block *block = first_block; block != NULL; block = block->next) block->running = (Counters){0};
    } else if (mark == END && begun && !ended) {
        ended = true;
        for (Block *block = first_block; block != NULL; block = block->next) block->frozen = block->running;
    }
}

static void on_exit(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    FILE *out = fopen(output_path, "w");
    if (out == NULL) die("can't write the output file");
    fprintf(out, "region %d\nentry %" PRIx64 "\n", begun && ended, qemu_plugin_entry_code());
    for (const Block *block = first_block; block != NULL; block = block->next) {
        const Counters *c = &block->frozen;
        if (c->executions == 0) continue;
        fprintf(out, "block %" PRIx64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " ", block->address, c->executions,
                c->accesses, c->l1_misses, c->l2_misses);
        for (size_t i = 0; i < block->n_instructions * INSTRUCTION_BYTES; i++) fprintf(out, "%02x", block->code[i]);
        fputc('\n', out);
    }
    if (fclose(out) != 0) die("can't write the output file");
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t *info, int argc, char **argv) {
    (void)info;
    int n_caches = 0;
    for (int i = 0; i < argc; i++) {
        if (strncmp(argv[i], "out=", 4) == 0) {
            output_path = strdup(argv[i] + 4);
        } else if (strncmp(argv[i], "l1=", 3) == 0 && read_cache(&l1, argv[i] + 3)) {
            n_caches++;
        } else if (strncmp(argv[i], "l2=", 3) == 0 && read_cache(&l2, argv[i] + 3)) {
            n_caches++;
        } else {
            fprintf(stderr, "armlet plugin: bad argument %s\n", argv[i]);
            return 1;
        }
    }
    if (output_path == NULL || n_caches == 1) {
        fprintf(stderr, "armlet plugin: needs out=FILE, and either both or none of l1= and l2=\n");
        return 1;
    }
    caches_simulated = n_caches == 2;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_exit, NULL);
    return 0;
}
