"""CP decomposition: kernels of known rank are found again, factors are the kernel they sum to, nothing degenerate."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.passes.conftest import tiny
from tests.passes.test_factorize import options
from torch import nn

from armlet.analysis.graph import trace
from armlet.artifacts import InputSpec
from armlet.errors import UsageError
from armlet.metrics import Scorer
from armlet.models.network import load_network, save_network
from armlet.passes import run_pass
from armlet.passes.factorize.candidates import candidates
from armlet.passes.factorize.canonical import Fits, fit, orthogonal
from armlet.progress import Silent
from armlet.spec.load import load_recipe
from armlet.spec.passes import PruneChannels
from armlet.train import TrainOptions, train_network

PATH = "or,ir,hr,wr->oihw"
SHAPES = [(8, 6, 3, 3), (12, 9, 5, 3), (6, 10, 2, 4), (7, 5, 1, 3)]


def drawn(shape: tuple[int, ...], rank: int | None = None, seed: int = 0) -> np.ndarray:
    """A kernel of normal numbers, or one of a known rank."""
    rng = np.random.default_rng(seed)
    if rank is None:
        return rng.normal(size=shape)
    return np.einsum(PATH, *(rng.normal(size=(n, rank)) for n in shape))


def degree(total: int, n: int) -> np.ndarray:
    """The sum of all products of unit vectors whose numbers add up to this: few components come near, none are it.

    De Silva and Lim 2008, "Tensor rank and the ill-posedness of the best low-rank approximation problem".
    """
    kernel = np.zeros((n,) * 4)
    for at in itertools.product(range(n), repeat=4):
        kernel[at] = float(sum(at) == total)
    return kernel


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_kernel_of_known_rank_is_found_again(shape):
    kernel = drawn(shape, 5)
    found = fit(kernel, 5)
    built = np.einsum(PATH, *found.components)
    error = np.linalg.norm(built - kernel) / np.linalg.norm(kernel)
    assert error < 5e-3
    assert found.lost == pytest.approx(error**2, abs=1e-10)
    fits = Fits(kernel, 12)
    (rank,) = fits.ranks_for(0.99)
    assert rank <= 5
    assert fits.kept((rank,)) >= 0.99 > fits.kept((rank - 1,))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonal_components_sum_to_the_kernel_and_lose_what_is_left_out(shape):
    kernel = drawn(shape)
    lengths, vectors = orthogonal(kernel)
    first, *others = vectors
    assert len(lengths) == Fits(kernel, 1).full[0]
    np.testing.assert_allclose(np.einsum(PATH, first * lengths, *others), kernel, atol=1e-12)
    low = np.einsum(PATH, (first * lengths)[:, :4], *(part[:, :4] for part in others))
    assert np.square(kernel - low).sum() == pytest.approx(np.square(lengths[4:]).sum())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_loss_is_that_of_the_components_and_falls_with_the_rank(shape):
    kernel = drawn(shape)
    total, losses = np.square(kernel).sum(), []
    orthogonal_lengths = orthogonal(kernel)[0]
    for rank in (1, 3, 6, 10):
        found = fit(kernel, rank)
        built = np.einsum(PATH, *found.components)
        assert found.lost == pytest.approx(np.square(built - kernel).sum() / total, rel=1e-6)
        assert found.lost < np.square(orthogonal_lengths[rank:]).sum() / total
        losses.append(found.lost)
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_the_best_of_rank_one_is_found():
    """Against many starts of the plain power iteration of De Lathauwer et al. 2000."""
    kernel, best = drawn((6, 5, 3, 3), seed=3), 0.0
    rng = np.random.default_rng(1)
    for _ in range(50):
        parts = [rng.normal(size=n) for n in kernel.shape]
        for _, dim in itertools.product(range(100), range(4)):
            letters = [(part, [at]) for at, part in enumerate(parts) if at != dim]
            value = np.einsum(kernel, [0, 1, 2, 3], *itertools.chain.from_iterable(letters), [dim])
            parts[dim] = value / np.linalg.norm(value)
        best = max(best, float(np.linalg.norm(value)))
    assert 1 - fit(kernel, 1).lost == pytest.approx(best**2 / np.square(kernel).sum(), rel=0.01)


def test_the_same_kernel_gives_the_same_bytes():
    first, second = (fit(drawn((8, 6, 3, 3)), 7).components for _ in range(2))
    assert [part.tobytes() for part in first] == [part.tobytes() for part in second]


def test_a_kernel_of_zeros_stays_one():
    found = fit(np.zeros((4, 3, 3, 3)), 2)
    assert found.lost == 0
    assert not any(part.any() for part in found.components)


def test_a_start_at_rest_is_left():
    """At its orthogonal components, of which two lose half, each part alone can't be bettered."""
    kernel = degree(1, 2)
    assert np.square(orthogonal(kernel)[0][2:]).sum() == pytest.approx(0.5 * np.square(kernel).sum())
    assert fit(kernel, 2).lost < 1e-3


def test_components_that_cancel_are_not_used():
    """Three come as near as one likes to this kernel, the larger the nearer: none of that is chosen."""
    kernel = degree(2, 3)
    fits = Fits(kernel, 6)
    assert fits.at(3).lost < 2e-3
    assert fits.at(3).size > 25
    assert not fits.usable((3,))
    assert fits.kept((3,)) == 0
    assert (3,) not in fits.ladder()
    assert fits.ranks_for(0.9) != (3,)
    assert "cancel" in fits.unusable()[3,]


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (5, 3), "stride": (2, 1), "padding": (2, 0)},
    {"kernel_size": (4, 2), "stride": 2, "padding": (1, 1)},
    {"kernel_size": 3, "padding": 2, "dilation": 2, "bias": False},
    {"kernel_size": (1, 3), "stride": 2, "padding": (1, 1)},
    {"kernel_size": (3, 1), "stride": (1, 2), "padding": (0, 1)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("rank", [1, 4])
def test_factors_are_the_convolution_with_the_kernel_they_sum_to(geometry, rank):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(5, 8, **geometry)).eval()
    layer = module[0]
    weight = layer.weight.detach().double().numpy()
    ((candidate,), notes) = candidates(module, trace(module, (InputSpec("input", (5, 11, 9)),)), "cp")
    candidate.apply(module, (rank,))
    assert not notes
    kernels = [n for n in layer.kernel_size if n > 1]
    assert [part.groups for part in module[0]] == [1, *[rank] * len(kernels), 1]
    whole = nn.Conv2d(5, 8, **geometry)
    built = np.einsum(PATH, *fit(weight, rank).components)
    with torch.no_grad():
        whole.weight.copy_(torch.from_numpy(built))
        if layer.bias is not None:
            whole.bias.copy_(layer.bias)
        inputs = torch.randn(3, 5, 11, 9)
        torch.testing.assert_close(module(inputs), whole(inputs), rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def trained(splits, tmp_path_factory):
    train = TrainOptions(epochs=4, batch_size=32, learning_rate=0.01)
    work = tmp_path_factory.mktemp("trained")
    return train_network(
        tiny(channels=[12, 16]), splits, train, Scorer(splits.task), seed=0, work=work, progress=Silent()
    )[0]


@pytest.mark.parametrize(
    "goal", [{"energy": 0.8}, {"ratio": 0.8}, {"macs": 0.5}, {"parameters": 0.5}], ids=str
)
def test_goals_hold_on_a_trained_network(goal, trained, context, tmp_path):
    result, record = run_pass(options(convolutions="cp", **goal), trained, context(trained))
    notes = "\n".join(record.notes)
    assert "stage2.block1.conv: CP, rank" in notes
    assert record.after.macs < record.before.macs
    weight = trained.module.get_submodule("stage2.block1.conv").weight.detach().double()
    parts = [part.weight.detach().double() for part in result.module.get_submodule("stage2.block1.conv")]
    a, b, c, d = parts[3][:, :, 0, 0], parts[0][:, :, 0, 0], parts[1][:, 0, :, 0], parts[2][:, 0, 0, :]
    built = torch.einsum("or,ri,rh,rw->oihw", a, b, c, d)
    kept = 1 - float((weight - built).square().sum() / weight.square().sum())
    said = notes.split("stage2.block1.conv: CP")[1].split("kept ")[1].split("%")[0]
    assert kept == pytest.approx(float(said) / 100, abs=1e-3)
    (name, share), *_ = goal.items()
    if name == "energy":
        assert kept >= share - 1e-6
    elif name == "ratio":
        assert len(parts[0]) == 22  # of 12 × 9
    else:
        assert share - 0.2 < getattr(record.after, name) / getattr(record.before, name) <= share
    save_network(result, tmp_path)
    inputs = torch.from_numpy(context(trained).splits.test.inputs[0])
    with torch.no_grad():
        assert torch.equal(load_network(tmp_path).module(inputs), result.module(inputs))


def test_a_layer_with_no_fit_that_can_be_used_stays_whole_and_says_why(trained, context):
    network = replace(trained, module=copy.deepcopy(trained.module))
    layer = network.module.get_submodule("stage2.block1.conv")
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:3, :3] = torch.from_numpy(degree(2, 3)).to(layer.weight.dtype)
    result, record = run_pass(options(convolutions="cp", ratio=0.98), network, context(network))
    notes = "\n".join(record.notes)
    assert "stage2.block1.conv stays whole: " in notes
    assert "or rank 3: its components cancel: " in notes
    assert isinstance(result.module.get_submodule("stage2.block1.conv"), nn.Conv2d)


def test_channels_between_the_factors_can_be_pruned(trained, context):
    result, _ = run_pass(options(convolutions="cp", macs=0.6), trained, context(trained))
    pruned, record = run_pass(PruneChannels(kind="prune_channels", ratio=0.25), result, context(trained))
    assert record.after.macs < record.before.macs
    was = result.module.get_submodule("stage2.block1.conv")
    now = pruned.module.get_submodule("stage2.block1.conv")
    assert [part.out_channels for part in now[:3]] < [part.out_channels for part in was[:3]]
    assert now[1].groups == now[0].out_channels


def test_an_unknown_form_is_refused(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: x\ndata: {kind: letter-recognition}\nmodel: {kind: fnn}\n"
        "passes:\n  - {kind: factorize, energy: 90 %, convolutions: parafac}\n"
    )
    with pytest.raises(
        UsageError, match=r"passes\.0.*convolutions: unknown value 'parafac' \(known: cp, none"
    ):
        load_recipe(recipe)
