"""Programs for an emulated board, written here and cross-compiled once a session."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from armlet.spec.load import load_target
from armlet.spec.target import Target

CC = "aarch64-linux-gnu-gcc"

# One input and one output as the runner has them: 64 floats through a dense layer and a ReLU. `spin` is written in
# assembly so that its instruction count is known: 2 an iteration, 2 around them. `walk` touches known cache lines.
NETWORK = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
enum { K = 64, SPINS = 1000 };
float weights[K * K];
_Alignas(64) unsigned char memory[4 << 20];
void spin(void);
__asm__(".text\n.global spin\n.type spin, %function\nspin: mov x0, #1000\n1: subs x0, x0, #1\nb.ne 1b\nret\n"
        ".size spin, . - spin\n");
__attribute__((noinline)) void dense(const float *in, float *out) {
    for (int i = 0; i < K; i++) {
        float sum = 0;
        for (int k = 0; k < K; k++) sum += weights[i * K + k] * in[k];
        out[i] = sum;
    }
}
__attribute__((noinline)) void relu(float *x) {
    for (int i = 0; i < K; i++) x[i] = x[i] > 0 ? x[i] : 0;
}
__attribute__((noinline)) void walk(int stride, int n, int repeats) {
    for (int r = 0; r < repeats; r++)
        for (int i = 0; i < n; i++) (void)*(volatile unsigned char *)&memory[(size_t)i * stride];
}
static void infer(const float *in, float *out) { dense(in, out); relu(out); spin(); walk(in[0], in[1], in[2]); }
int main(int argc, char **argv) {
    for (int i = 0; i < K * K; i++) weights[i] = (float)(i % 7) - 3;
    FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
    float x[K], y[K];
    for (int i = 0; i < atoi(argv[3]); i++) {
        if (fread(x, sizeof x, 1, in) != 1) return 2;
        infer(x, y);
        fwrite(y, sizeof y, 1, out);
    }
    if (argc > 4 && strcmp(argv[4], "--count") == 0) {
        syscall(0x5eed, 2);
        infer(x, y);
        syscall(0x5eed, 3);
    }
    return fclose(out) != 0;
}
"""


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that cross-compiles C source into a static program."""
    if shutil.which(CC) is None or shutil.which("qemu-aarch64") is None:
        pytest.skip("no aarch64 cross compiler or no qemu-aarch64: scripts/setup installs both")

    def compile_(source: str, *flags: str) -> Path:
        flags = flags or ("-static",)
        folder = tmp_path_factory.mktemp("guest")
        (folder / "guest.c").write_text(source)
        program = folder / "guest"
        command = [CC, "-O2", *flags, "-o", str(program), str(folder / "guest.c")]
        subprocess.run(command, check=True, capture_output=True)
        return program

    return compile_


@pytest.fixture(scope="session")
def network_program(build: Callable[..., Path]) -> Path:
    return build(NETWORK)


@pytest.fixture(scope="session")
def network_pie(build: Callable[..., Path]) -> Path:
    """The same program, position-independent."""
    return build(NETWORK, "-static-pie", "-fPIE")


@pytest.fixture(scope="session")
def board() -> Target:
    return load_target("raspberry-pi-4")
