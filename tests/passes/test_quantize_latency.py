"""Layers that stay float within a latency: the search against every choice there is, the pass, and real programs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.boards import requires_board

from armlet.artifacts import Latency, ProgramCost
from armlet.models.network import Network, executable
from armlet.passes import PreconditionFailed, run_pass
from armlet.passes.quantize.latency import FloatChoice, LatencyUnreachable, choose_float
from armlet.progress import Silent
from armlet.spec.load import load_target
from armlet.spec.passes import QuantizeStatic
from armlet.stages.device import program_cost

BOARD = "raspberry-pi-4"

Costs = Callable[[frozenset[str]], float]


def chain(seed: int, n: int, conversion: float) -> tuple[dict[str, float], Costs]:
    """Return errors and costs of layers in a row, between float input and answer, that pay for changes of type."""
    rng = np.random.default_rng(seed)
    names = [f"layer{i}" for i in range(n)]
    in_integers, changes = rng.exponential(0.05, n), rng.exponential(conversion, n + 1)
    in_float = in_integers * rng.uniform(1.0, 4.0, n)

    def cost_of(choice: frozenset[str]) -> float:
        is_float = np.array([name in choice for name in names])
        types = np.concatenate([[True], is_float, [True]])
        return float(np.where(is_float, in_float, in_integers).sum() + changes[types[1:] != types[:-1]].sum())

    return dict(zip(names, rng.exponential(size=n) ** 2, strict=True)), cost_of


def between(errors: dict[str, float], cost_of: Costs, share: float) -> float:
    """Return a latency between that in INT8 and that in float."""
    low, high = cost_of(frozenset()), cost_of(frozenset(errors))
    return low + share * (high - low)


def gain(errors: dict[str, float], choice: frozenset[str]) -> float:
    return sum(errors[name] for name in choice)


def best_of_all(errors: dict[str, float], cost_of: Costs, most_ms: float) -> float:
    """Return the largest gain of all choices that hold and leave a layer in INT8."""
    choices = (frozenset(choice) for n in range(len(errors)) for choice in itertools.combinations(errors, n))
    return max(gain(errors, choice) for choice in choices if cost_of(choice) <= most_ms)


def greedy(errors: dict[str, float], found: FloatChoice, most_ms: float) -> frozenset[str]:
    """Return the layers of the largest errors whose own prices together fit."""
    chosen, room = set(), most_ms - found.integers_ms
    for name in sorted(errors, key=lambda name: -errors[name]):
        price = found.alone_ms[name] - found.integers_ms
        if price <= room:
            chosen.add(name)
            room -= price
    return frozenset(chosen)


# The search


@pytest.mark.parametrize("seed", range(8))
def test_where_prices_add_up_the_choice_is_that_of_trying_all(seed):
    errors, cost_of = chain(seed, 9, conversion=0.0)
    most = between(errors, cost_of, 0.1 * (seed + 1))
    found = choose_float(errors, most, cost_of, Silent())
    assert cost_of(found.layers) == found.ms <= most
    assert gain(errors, found.layers) == pytest.approx(best_of_all(errors, cost_of, most))


def test_where_neighbours_share_changes_of_type_choices_hold_and_are_near_the_best():
    shares = []
    for seed in range(30):
        errors, cost_of = chain(seed, 9, conversion=0.02)
        most = between(errors, cost_of, np.random.default_rng(seed).uniform(0.1, 0.9))
        asked = []

        def counted(choice: frozenset[str], asked=asked, cost_of=cost_of) -> float:
            asked.append(choice)
            return cost_of(choice)

        found = choose_float(errors, most, counted, Silent())
        assert cost_of(found.layers) == found.ms <= most
        assert len(found.layers) < len(errors)
        assert len(asked) == len(set(asked)) == found.n_programs <= len(errors) + 1 + 8 + 4
        naive = greedy(errors, found, most)
        assert cost_of(naive) > most or gain(errors, found.layers) >= gain(errors, naive) - 1e-12
        shares.append(gain(errors, found.layers) / best_of_all(errors, cost_of, most))
    assert np.mean(shares) > 0.95
    assert np.mean(np.isclose(shares, 1.0)) > 0.7


def test_a_layer_that_is_faster_in_float_makes_room_for_others():
    """In INT8 alone 10 ms: beside the budget, which only float in the first layer reaches."""
    prices = {"fast": -3.0, "small": 1.0, "dear": 5.0}
    errors = {"fast": 0.0, "small": 0.1, "dear": 1.0}
    found = choose_float(errors, 8.5, lambda c: 10.0 + sum(prices[n] for n in c), Silent())
    assert found.layers == {"fast", "small"}
    assert found.ms == 8.0
    with pytest.raises(LatencyUnreachable, match=r"7\.0 ms with 1 layers in float"):
        choose_float(errors, 6.0, lambda c: 10.0 + sum(prices[n] for n in c), Silent())


def test_a_choice_that_takes_longer_than_its_prices_say_is_made_smaller_until_it_holds():
    errors = {f"layer{i}": 1.0 + 0.01 * i for i in range(8)}
    found = choose_float(errors, 4.0, lambda c: 1.0 + 0.5 * len(c) + 0.1 * len(c) ** 2, Silent())
    assert found.layers == {"layer5", "layer6", "layer7"}  # 3.4 ms; four take 4.6 ms


def test_the_only_layer_stays_in_integers():
    found = choose_float({"only": 1.0}, 5.0, lambda c: 1.0 + len(c), Silent())
    assert (found.layers, found.ms, found.n_programs) == (frozenset(), 1.0, 1)
    with pytest.raises(LatencyUnreachable):
        choose_float({"only": 1.0}, 0.5, lambda c: 1.0 + len(c), Silent())


# The pass


def quantize(network: Network, context, **options: object):
    spec = QuantizeStatic(kind="quantize_static", **{"calibration_samples": 64} | options)
    return run_pass(spec, network, context)


def by_formula(network: Network, target: str) -> ProgramCost:
    """Cost a network by its weights: 1 µs for each integer, 3 µs for each float."""
    of = network.quantization
    integers = set() if of is None else {p.parameter for p in of.parameters if p.dtype == "int8"}
    weights = {name: w.numel() for name, w in network.module.named_parameters() if w.dim() > 1}
    ms = 1e-3 * sum((1 if name in integers else 3) * n for name, n in weights.items())
    return ProgramCost(target, 0, 0, Latency("estimated", 0.8 * ms, 0.9 * ms, ms, "by formula"))


def uneven(network: Network) -> Network:
    """Let one huge weight leave no steps to the others of two layers."""
    with torch.no_grad():
        network.module.stage3.block1.conv.weight[:, 0, 0, 0] = 20.0
        network.module.classifier.weight[0, 0] = 10.0
    return network


def test_layers_that_lose_most_stay_float_as_far_as_the_upper_bound_allows(tiny_network, context):
    network = uneven(tiny_network(channels=[6, 8, 10]))
    given = replace(context(network), program_cost=by_formula)
    integers, _ = quantize(network, context(network))
    weight = "stage3.block1.conv.weight"
    least = by_formula(integers, "board").latency.high_ms
    most = least + 2.1e-3 * network.module.get_parameter(weight).numel()
    mixed, record = quantize(network, given, latency=f"{most} ms", target="board")
    assert least < by_formula(mixed, "board").latency.high_ms <= most
    assert weight not in {p.parameter for p in mixed.quantization.parameters}
    priced = [n for n in record.notes if n.startswith("sensitivity of ")]
    assert len(priced) == 4
    assert all(n.endswith(" more") and "and in float it takes " in n for n in priced)
    assert any(n.startswith("latency on board (upper bound of the estimate): ") for n in record.notes)
    (chosen,) = [n for n in record.notes if "stay float for the latency" in n]
    assert "stage3.block1.conv" in chosen
    assert any(n.startswith("stage3.block1.conv") and "stays float: excluded" in n for n in record.notes)


def test_what_users_exclude_is_float_in_every_choice(tiny_network, context):
    network = uneven(tiny_network(channels=[6, 8, 10]))
    asked = []

    def program_cost(candidate: Network, target: str) -> ProgramCost:
        asked.append(candidate.quantization)
        return by_formula(candidate, target)

    given = replace(context(network), program_cost=program_cost)
    quantize(network, given, latency="3 ms", target="board", exclude=["stage1.*"])
    assert asked[0] is None  # the float network comes first
    assert len(asked) > 3
    assert not any("stage1" in p.parameter for q in asked[1:] for p in q.parameters)


def test_a_latency_that_no_choice_or_the_float_network_holds_is_refused(tiny_network, context):
    network = tiny_network(channels=[6, 8, 10])
    given = replace(context(network), program_cost=by_formula)
    with pytest.raises(
        PreconditionFailed,
        match=r"latency on board 0\.1 ms can't be reached: .* ms with 0 of 4 layers in float is the least that was"
        r" found, of .* ms in float",
    ):
        quantize(network, given, latency="0.1 ms", target="board")
    with pytest.raises(PreconditionFailed, match="1 s holds without quantisation: the float network takes"):
        quantize(network, given, latency="1 s", target="board")
    with pytest.raises(PreconditionFailed, match="quantize_static: latency needs a context that can compile"):
        quantize(network, context(network), latency="1 ms", target="board")
    unknown = replace(given, program_cost=lambda network, target: ProgramCost(target, 0, 0, None))
    with pytest.raises(PreconditionFailed, match="quantize_static: what a network takes on board can't be"):
        quantize(network, unknown, latency="1 ms", target="board")


@requires_board
def test_the_choice_holds_as_a_program_and_is_no_worse_than_the_naive_one(tiny_network, context, splits):
    """Real programs for a board: between all in INT8 and all in float, with neighbours and their changes of type."""
    network = uneven(tiny_network(channels=[16, 32, 32]))
    known: dict[frozenset[str], ProgramCost] = {}
    board = load_target(BOARD)

    def in_float(candidate: Network) -> frozenset[str]:
        of = candidate.quantization
        weights = () if of is None else (p.parameter for p in of.parameters)
        return frozenset(names) - {name.rpartition(".")[0] for name in weights}

    def cost(candidate: Network, target: str) -> ProgramCost:
        choice = in_float(candidate)
        if choice not in known:
            known[choice] = program_cost(candidate, splits, board, "armlet_tiny", Silent())
        return known[choice]

    integers, _ = quantize(network, context(network))
    names = {p.parameter.rpartition(".")[0] for p in integers.quantization.parameters if p.dtype == "int8"}
    least = cost(integers, BOARD).latency.high_ms
    whole = cost(replace(network, quantization=None), BOARD).latency.high_ms
    most = least + 0.7 * (whole - least)
    given = replace(context(network), program_cost=cost)
    mixed, record = quantize(network, given, latency=f"{most} ms", target=BOARD, bias_correction=True)
    chosen = in_float(mixed)
    known.pop(chosen)  # compiled again, with corrected biases
    assert least < cost(mixed, BOARD).latency.high_ms <= most
    assert frozenset() < chosen < names
    errors = {
        n.removeprefix("sensitivity of ").partition(":")[0]: float(
            n.partition("answers by ")[2].partition("%")[0]
        )
        for n in record.notes
        if n.startswith("sensitivity of ")
    }
    assert set(errors) == names
    alone = {name: known[frozenset((name,))].latency.high_ms for name in names}
    naive = greedy(errors, FloatChoice(chosen, most, alone, least, 0), most)
    assert gain(errors, chosen) >= gain(errors, naive)
    x = torch.from_numpy(splits.test.inputs[0])
    with torch.no_grad():
        wanted, before, after = (executable(n)(x) for n in (network, integers, mixed))
    assert ((after - wanted) ** 2).mean() < 0.5 * ((before - wanted) ** 2).mean()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"latency": "5 ms"}, "latency and target go together"),
        ({"target": "host"}, "latency and target go together"),
        ({"latency": 5, "target": "host"}, "5 has no unit"),
        ({"keep_float": 1}, "keep_float and latency exclude each other: both say which layers"),
        ({"max_drop": 0.1}, "max_drop and latency exclude each other"),
        ({"max_drop": 0.1, "keep_float": 1}, "and latency exclude each other: all say which layers"),
        ({"weight_budget": "1 KiB"}, "latency and weight_budget exclude each other"),
        ({"mode": "weight_only"}, "latency chooses between float and INT8: mode: weight_only"),
        ({"mode": "dynamic"}, "mode: dynamic .* leave out latency, target"),
        ({"calibration": "batch_norm", "input_range": (0, 1)}, "latency can't do without data"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said):
    given = {"latency": "5 ms", "target": "host"} | options
    if "go together" in said:
        given = options
    with pytest.raises(ValidationError, match=said):
        QuantizeStatic(kind="quantize_static", **given)
