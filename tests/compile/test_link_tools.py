"""The tool chain is run with clear errors, and what it made is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from armlet.compile import link
from armlet.compile.symbols import check_undefined, undefined_symbols
from armlet.errors import ArmletError, MissingDependency
from armlet.spec.target import Target


def _object(folder: Path, target: Target, source: str, name: str = "unit") -> Path:
    (folder / f"{name}.c").write_text(source)
    link.compile_object(target, folder / f"{name}.c", folder / f"{name}.o", folder)
    return folder / f"{name}.o"


@pytest.mark.parametrize(
    ("program", "install"),
    [
        ("aarch64-linux-gnu-ar", "apt-get install binutils-aarch64-linux-gnu"),
        ("arm-linux-gnueabihf-gcc", "apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross"),
        ("nonesuch-cc", "your system's package that has nonesuch-cc, which the target's file names"),
    ],
)
def test_a_missing_tool_is_named_with_the_command_that_installs_it(
    tmp_path: Path, program: str, install: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency) as caught:
        link.run_tool([program, "-c"], tmp_path, "compiling C for the target")

    expected = f"missing: {program}, needed for compiling C for the target; install with: {install}"
    assert str(caught.value) == expected


def test_a_failing_compile_shows_the_command_and_what_the_compiler_said(tmp_path: Path, host: Target):
    with pytest.raises(link.ToolFailed) as caught:
        _object(tmp_path, host, "int f(void) { return missing; }\n")

    message = str(caught.value)
    assert message.splitlines()[0].startswith("gcc -std=c11 -O2")
    assert " -c unit.c " in message.splitlines()[0]
    assert "exit code 1" in message
    assert "‘missing’ undeclared" in message or "'missing' undeclared" in message


def test_a_warning_is_an_error(tmp_path: Path, host: Target):
    with pytest.raises(link.ToolFailed, match="unused variable"):
        _object(tmp_path, host, "int f(void) { int x; return 0; }\n")


def test_loaded_bytes_tell_code_from_constants_and_count_nothing_else(tmp_path: Path, host: Target):
    source = "const int table[25] = {1};\nint f(int i) { return table[i]; }\n"

    counted = link.loaded_bytes(_object(tmp_path, host, source))

    assert counted.constants == 100
    assert 4 <= counted.code <= 32  # one load and a return
    assert link.loaded_bytes(_object(tmp_path, host, "int f(int i) { return i; }\n")).constants == 0


def test_libc_and_libm_may_stay_undefined_and_nothing_else(tmp_path: Path, host: Target):
    allowed = _object(
        tmp_path,
        host,
        "#include <math.h>\n#include <string.h>\n"
        "float f(float x, void *p, const void *q, unsigned n) { memcpy(p, q, n); return expf(x) + tanhf(x); }\n",
        "allowed",
    )
    check_undefined(host, allowed)
    assert {"expf", "memcpy", "tanhf"} <= set(undefined_symbols(allowed))

    forbidden = _object(
        tmp_path,
        host,
        "void *g(void); void *malloc(unsigned long); void *f(void) { g(); return malloc(4); }\n",
        "forbidden",
    )
    with pytest.raises(ArmletError, match=r"needs g, malloc, which no app has"):
        check_undefined(host, forbidden)


def test_linking_into_one_object_drops_what_the_roots_do_not_reach(tmp_path: Path, host: Target):
    source = (
        "__attribute__((noinline)) int used(int x) { return x + 1; }\n"
        "int unused(int x) { return x * 3; }\n"
        "int root(int x) { return used(x); }\n"
    )
    unit = _object(tmp_path, host, source)

    link.link_relocatable(host, [unit], tmp_path / "kept.o", ["root"])

    assert 0 < link.loaded_bytes(tmp_path / "kept.o").code < link.loaded_bytes(unit).code
