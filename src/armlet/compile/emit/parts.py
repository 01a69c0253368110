"""Writes the C of calls whose work threads share: one function for a part of each, and what the header says of threads.

`runtime/threads.c.in` calls these functions; `emit.threads` has made kernels of the turns from `begin` to `end` - 1.
"""

from __future__ import annotations

from string import Template

from armlet.compile.emit.calls import Call, Listing, Place, thread_stride
from armlet.compile.emit.threads import PARTS_PER_THREAD


def threads_header(symbol: str, threads: int) -> str:
    """Return what the header declares beside the entry."""
    return _THREADS_HEADER.substitute(symbol=symbol, SYMBOL=symbol.upper(), n=threads, workers=threads - 1)


def expression(symbol: str, place: Place) -> str:
    """Return the C expression for a place."""
    match place.kind:
        case "input":
            return f"inputs[{place.at}]"
        case "output":
            return f"outputs[{place.at}]"
        case "constant":
            return f"{symbol}_params + {place.at}"
        case "arena":
            return f"base + {place.at}"


def parts(symbol: str, listing: Listing, *, unpacked: bool) -> str:
    """Return what a run's parts read, and the C functions that compute one part of each call."""
    weights = "    const unsigned char *weights;\n" if unpacked else ""
    functions = [
        _PART.substitute(name=f"part_{number}_{at}", call=_part(symbol, call, unpacked=unpacked))
        for number, build in enumerate(listing.builds)
        for at, call in enumerate(build.calls)
        if call.kernel.turns
    ]
    return _RUN.substitute(weights=weights) + "".join(functions)


def _part(symbol: str, call: Call, *, unpacked: bool) -> str:
    def read(place: Place) -> str:
        if place.kind == "constant":
            return f"run->weights + {place.at}" if unpacked else expression(symbol, place)
        return f"run->{expression(symbol, place)}"

    arguments = [read(place) for place in (*call.inputs, *call.outputs[:1])]
    for place, n_bytes in zip(call.outputs[1:], call.kernel.scratch_bytes, strict=True):
        arguments.append(f"{read(place)} + thread * {thread_stride(n_bytes)}")
    return f"{call.kernel.symbol}({', '.join([*arguments, 'begin', 'end'])});"


def share(symbol: str, part: str, call: Call, threads: int) -> str:
    """Return the C line that has a call's turns computed, by the function `part`."""
    turns = call.kernel.turns
    together = max(turns // (PARTS_PER_THREAD * threads), 1)
    return f"{symbol}_share(threads, {part}, &run, {turns}, {together});"


def take(symbol: str, listing: Listing, *, unpacked: bool) -> str:
    """Return the C lines that take the threads, and put down what parts read."""
    base = "base" if listing.arena_bytes else "NULL"
    weights = f", {symbol}_params" if unpacked else ""
    return (
        f"    const struct run run = {{inputs, outputs, {base}{weights}}};\n"
        f"    const int threads = {symbol}_take();\n"
    )


_THREADS_HEADER = Template("""\

/* A run may be computed by $n threads: the one that calls it, and $workers of the library's own, which this starts.
 * Returns how many there are then: fewer than ${SYMBOL}_THREADS if the system refused some.
 *
 * One run at a time has the threads. Others meanwhile, and every run before start or after stop, are computed by their
 * callers alone, with the same bits. After a run the library's threads look out for the next one for a fraction of a
 * millisecond, then sleep. They block all signals, and take nothing but their stacks from the system.
 */
#define ${SYMBOL}_THREADS $n
${SYMBOL}_API int ${symbol}_start(void);

/* Ends the library's threads, once the run that has them is over: before the library is unloaded, and before fork(). */
${SYMBOL}_API void ${symbol}_stop(void);
""")

_RUN = Template("""\

/* What the parts of one run read. */
struct run {
    const void *const *inputs;
    void *const *outputs;
    unsigned char *base;
$weights};
""")

_PART = Template("""\

static void $name(const void *data, int begin, int end, int thread)
{
    const struct run *const run = data;
    (void)thread;
    $call
}
""")
