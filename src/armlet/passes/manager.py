"""Runs a pass and holds it to its contract.

For every pass: the network given is not changed; no global random state, no grad mode is left changed; the result
traces, keeps its output's shape, gives finite values, and keeps the zeros and equal values that an earlier pass asked
to keep; declared costs don't rise; what the pass ensures holds on the result.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from armlet import artifact_json, digest
from armlet.analysis.cost import cost_of
from armlet.analysis.graph import trace
from armlet.artifacts import Cost, PassRecord
from armlet.data.splits import Samples, not_finite
from armlet.errors import Problem
from armlet.models.constraints import broken_constraints
from armlet.models.network import Network, executable
from armlet.passes.base import (
    PASSES,
    Pass,
    PassContext,
    PassContractBroken,
    PostconditionFailed,
    PreconditionFailed,
)
from armlet.spec.passes import PassSpec
from armlet.train import evaluate

_N_PROBES = 8


def run_pass(options: PassSpec, network: Network, context: PassContext) -> tuple[Network, PassRecord]:
    """Run one pass.

    Args:
        options: says which pass, and how.
        network: is not changed.
        context: what the pass may use.

    Returns:
        the new network, and what the pass cost and gained.

    Raises:
        PreconditionFailed: the pass can't run on this network; names every reason.
        PostconditionFailed: the result lacks what the pass promises.
        PassContractBroken: the pass changed what it must not.
    """
    kind, step = options.kind, PASSES[options.kind](options)
    if problems := step.requires(network, context) or _sample_problems(context):
        raise PreconditionFailed(Problem(problem, key=kind) for problem in problems)
    before, state = fingerprint(network), _GlobalState.now()
    start = time.perf_counter()
    result = step.run(replace(network, module=copy.deepcopy(network.module)), context)
    seconds = time.perf_counter() - start
    if changed := state.differences(_GlobalState.now()):
        raise PassContractBroken(f"{kind} left {', '.join(changed)} changed")
    if fingerprint(network) != before:
        raise PassContractBroken(f"{kind} changed the network that it was given")
    costs = cost_of(network), cost_of(result.network)
    problems = (
        *_constraint_problems(network, result.network),
        *_result_problems(network, result.network, context.splits.test),
        *_cost_problems(step, *costs),
        *step.ensures(network, result.network),
    )
    if problems:
        raise PostconditionFailed("\n".join(f"{kind}: {problem}" for problem in problems))
    test = context.splits.test
    record = PassRecord(
        kind=kind,
        before=costs[0],
        after=costs[1],
        score_before=evaluate(network, test, context.scorer, "test"),
        score_after=evaluate(result.network, test, context.scorer, "test"),
        seconds=seconds,
        notes=result.notes,
        changed=fingerprint(result.network) != before,
        history=result.history,
    )
    return result.network, record


def fingerprint(network: Network) -> str:
    """Return the SHA-256 of everything that makes a network compute what it does."""
    tensors = {
        name: [str(value.dtype), list(value.shape), digest.of_bytes(value.detach().cpu().numpy().tobytes())]
        for name, value in network.module.state_dict().items()
    }
    quantization = None if network.quantization is None else artifact_json.to_data(network.quantization)
    constraints = [artifact_json.to_data(constraint) for constraint in network.constraints]
    return digest.of_json([str(network.module), tensors, quantization, constraints])


@dataclass(frozen=True, slots=True)
class _GlobalState:
    """What Python, NumPy and torch keep for the whole process."""

    grad_enabled: bool
    torch_random: bytes
    numpy_random: str
    python_random: str

    @classmethod
    def now(cls) -> _GlobalState:
        return cls(
            torch.is_grad_enabled(),
            torch.get_rng_state().numpy().tobytes(),
            str(np.random.get_state(legacy=False)),  # noqa: NPY002
            repr(random.getstate()),
        )

    def differences(self, other: _GlobalState) -> tuple[str, ...]:
        pairs: Iterable[tuple[str, object, object]] = (
            ("torch's grad mode", self.grad_enabled, other.grad_enabled),
            ("torch's random state", self.torch_random, other.torch_random),
            ("numpy's random state", self.numpy_random, other.numpy_random),
            ("Python's random state", self.python_random, other.python_random),
        )
        return tuple(name for name, was, now in pairs if was != now)


def _result_problems(before: Network, after: Network, samples: Samples) -> tuple[str, ...]:
    if after.architecture != before.architecture:
        return ("the result has another architecture",)
    if after.module.training:
        return ("the result is in training mode",)
    trace(after.module, after.architecture.inputs)
    with torch.no_grad():
        probes = samples.take(slice(_N_PROBES))
        outputs = executable(after)(*map(torch.from_numpy, probes.inputs))
    if outputs.shape != (len(probes), *after.architecture.output_shape):
        return (f"the result's output has shape {tuple(outputs.shape)}",)
    return () if torch.isfinite(outputs).all() else ("the result's output is not finite",)


def _sample_problems(context: PassContext) -> tuple[str, ...]:
    """Return why the training samples can't be used: whatever a pass learns of them would be lost in one NaN."""
    named = zip(context.splits.inputs, context.splits.train.inputs, strict=True)
    return tuple(
        f"training samples of {spec.name} are {problem}"
        for spec, array in named
        if (problem := not_finite(array))
    )


def _constraint_problems(before: Network, after: Network) -> tuple[str, ...]:
    kept = {constraint.parameter for constraint in after.constraints}
    forgotten = [c.parameter for c in before.constraints if c.parameter not in kept]
    return (
        *(f"{name} is no longer marked as a weight whose zeros are kept" for name in forgotten),
        *broken_constraints(before.constraints, before.module, after.module),
    )


def _cost_problems(step: Pass, before: Cost, after: Cost) -> tuple[str, ...]:
    costs = {
        "macs": (before.macs, after.macs),
        "parameters": (before.parameters, after.parameters),
        "weight_bytes": (before.weight_bytes, after.weight_bytes),
    }
    return tuple(
        f"{name} rose from {costs[name][0]} to {costs[name][1]}"
        for name in step.never_raises
        if costs[name][1] > costs[name][0]
    )
