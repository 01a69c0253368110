"""The page is self-contained, complete, escaped, labelled and the same for the same input."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import pytest

from armlet.artifacts import (
    Check,
    Compiled,
    Compressed,
    Cost,
    Counts,
    DataReady,
    Epoch,
    Evaluated,
    Exported,
    Fallback,
    Imported,
    InputSpec,
    Kernel,
    KernelCount,
    Latency,
    Match,
    Measured,
    PassRecord,
    Score,
    TensorInfo,
    Trained,
    Verdict,
)
from armlet.errors import MissingDependency
from armlet.report import ReportInput, render_report
from armlet.report.kernels import kernel_rows
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def score(value: float) -> Score:
    per_class = tuple(min(1.0, value + 0.07 * math.sin(3 * i)) for i in range(len(CLASSES)))
    return Score("accuracy", value, 10_000, "test", per_class)


def history(n: int, start: float) -> tuple[Epoch, ...]:
    return tuple(
        Epoch(
            e,
            start * 0.8**e + 0.2,
            start * 0.8**e + 0.23,
            "accuracy",
            0.92 - start * 0.3 * 0.7**e,
            0.01 * (1 - e / n),
            4.2,
        )
        for e in range(n)
    )


BIG, SMALL, TINY = (
    Cost(3_412_480, 93_322, 373_288, 373_300),
    Cost(1_100_800, 34_826, 139_304, 139_310),
    Cost(1_100_800, 34_826, 35_900, 35_910),
)


def record(
    kind: str, before: Cost, after: Cost, scores: tuple[float, float], n_epochs: int = 0
) -> PassRecord:
    return PassRecord(
        kind, before, after, score(scores[0]), score(scores[1]), 41.5, (f"a note of {kind}",), before != after,
        history(n_epochs, 0.3),
    )  # fmt: skip


KERNELS = tuple(
    Kernel(
        f"cnn_k{i}",
        op,
        f"conv{i}/Conv",
        "generic" if op == "pool" else "int8_gemm_dot",
        "int8",
        52_419 * (i + 1),
    )
    for i, op in enumerate(("conv2d", "pool", "conv2d", "pool", "conv2d", "dense"))
)


def report_input(**changes: object) -> ReportInput:
    """A report of a made-up build with every part present."""
    recipe = Recipe.model_validate(
        {
            "name": "cnn-fashion-mnist",
            "description": "A small CNN that tells clothes apart",
            "seed": 7,
            "data": {"kind": "fashion-mnist", "limit": 20_000},
            "model": {"kind": "cnn"},
            "passes": [{"kind": "prune_channels", "ratio": "40 %"}, {"kind": "quantize_static"}],
            "budgets": {"accuracy": "90 %", "latency": "5 ms", "size": "96 KiB"},
        }
    )
    target = Target.model_validate(
        {
            "name": "raspberry-pi-4",
            "description": "Raspberry Pi 4 Model B",
            "triple": "aarch64-linux-gnu",
            "core": {"llvm_cpu": "cortex-a72"},
            "toolchain": {"cc": "cc", "ar": "ar"},
        }
    )
    image = TensorInfo("image", (1, 1, 28, 28))
    made = ReportInput(
        name=recipe.name,
        budgets=recipe.budgets,
        recipe=recipe,
        target=target,
        data=DataReady(
            "fashion-mnist",
            ("ab" * 32, "cd" * 32),
            "MIT",
            60_000,
            10_000,
            (InputSpec("input", (1, 28, 28)),),
            CLASSES,
            "pixels / 255",
        ),
        trained=Trained(BIG, score(0.9231), history(12, 0.9), "cpu", "fp32", 612.3, stopped_early=False),
        passes=(
            Compressed(record("prune_channels", BIG, SMALL, (0.9231, 0.9175), n_epochs=4)),
            Compressed(record("quantize_static", SMALL, TINY, (0.9175, 0.9168))),
        ),
        exported=Exported(
            (image,),
            (TensorInfo("logits", (1, 10)),),
            18,
            True,
            64,
            3.1e-6,
            1e-4,
            "float sums in another order",
            41_234,
        ),
        compiled=Compiled(
            "raspberry-pi-4",
            "aarch64-linux-gnu",
            "cortex-a72",
            ("neon",),
            "cnn",
            (image,),
            (TensorInfo("logits", (1, 10)),),
            21_344,
            37_120,
            12_608,
            11_776,
            KERNELS,
            (Fallback("pool1/MaxPool", "max_pool2d", "no schedule of its own"),),
            True,
            ("tvm 0.27.0",),
        ),
        evaluated=Evaluated(score(0.9166), 12.25),
        measured=Measured(
            "raspberry-pi-4",
            "qemu-aarch64 7.2",
            Match(1_000, 1_000, 0.0, 0.0, "integer arithmetic is exact on every CPU"),
            Counts(
                1_234_567,
                345_678,
                12_345,
                678,
                812_345.6,
                (
                    *(
                        KernelCount(k.symbol, 190_000 + 1_111 * i, 120_000.0 + 9_876 * i)
                        for i, k in enumerate(KERNELS)
                    ),
                    KernelCount("memcpy", 4_321, 3_210.0),
                ),
                "llvm-mca 19 cortex-a72",
                0.998,
                "qemu-aarch64 7.2",
            ),
            Latency("estimated", 0.55, 0.73, 0.91, "812 k cycles × 1.62 at 1800 MHz, ±25 %"),
        ),
        verdict=Verdict(
            "raspberry-pi-4",
            (
                Check("accuracy", "≥ 90.0 %", "91.66 % (10000 samples)", 0.0184, "pass"),
                Check("accuracy drop", "", "0.65 points from 92.31 %", None, "no budget"),
                Check("latency", "≤ 5 ms", "0.55–0.91 ms estimated", 0.818, "pass"),
                Check("size", "≤ 40 KiB", "57.1 KiB", -0.427, "fail"),
                Check("memory", "≤ 16 KiB", "not measured", None, "not measured"),
            ),
        ),
        versions=("armlet 0.1.0", "torch 2.13.0"),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    return render(report_input(), tmp_path_factory.mktemp("report"))


def render(report: ReportInput, folder) -> str:
    render_report(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects what a browser would load, the tags, and the text."""

    void = ("meta", "br", "link", "img", "path", "use", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.loads += [
            v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data") and v
        ]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"[ \n]+", " ", "".join(self.words))


def test_the_page_is_well_formed_and_loads_nothing_from_outside(page):
    reader = Reader(page)
    assert reader.open == []
    assert [place for place in reader.loads if not place.startswith("#")] == []
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in reader.tags}
    assert not re.search(r"@import|url\((?!#)", page)


def test_every_number_of_the_verdict_is_on_the_page(page):
    text = Reader(page).text
    for check in report_input().verdict.checks:
        for words in (check.what, check.budget, check.measured, check.outcome):
            assert words in text
    assert "1.84 % left" in text
    assert "missed by 42.7 %" in text
    assert "FAIL 1 of 4 checks fail, 1 of 4 not measured" in text


def test_what_was_measured_is_on_the_page_with_its_label(page):
    text = Reader(page).text.replace("\N{NO-BREAK SPACE}", "")
    for words in (
        "91.66 %", "10000 test samples", "0.73 ms", "estimated, 0.55 ms to 0.91 ms", "812 k cycles × 1.62",
        "1234567", "345678", "12345", "678", "812346", "99.8 %", "21344", "37120", "58464", "12608", "11776", "41234",
        "1000 of 1000 outputs identical", "integer arithmetic is exact on every CPU", "a note of prune_channels",
        "3.41 M", "÷3.1", "−0.56 points", "memcpy", "4321", "ab" * 32, "armlet 0.1.0",
        "tvm 0.27.0", "seed: 7", "no schedule of its own", "pixels / 255", "cnn_run", "[1, 1, 28, 28]",
    ):  # fmt: skip
        assert words in text, words


def test_text_from_the_user_is_escaped_everywhere(tmp_path):
    evil = '<script>alert("1")</script>&$x^2$'
    made = report_input()
    names = (evil, *CLASSES[1:])
    kernels = (replace(KERNELS[0], symbol=evil, layer=evil), *KERNELS[1:])
    counts = replace(made.measured.counts, kernels=(KernelCount(evil, 1, 1e5),))
    page = render(
        replace(
            made,
            recipe=made.recipe.model_copy(update={"description": evil}),
            data=replace(made.data, class_names=names),
            passes=(Compressed(replace(made.passes[0].record, notes=(evil,), kind=evil)),),
            compiled=replace(made.compiled, kernels=kernels, fallbacks=(Fallback(evil, evil, evil),)),
            measured=replace(made.measured, counts=counts),
        ),
        tmp_path,
    )
    reader = Reader(page)
    assert "script" not in {tag for tag, _ in reader.tags}
    assert reader.open == []
    assert reader.text.count(evil) >= 9


def test_every_plot_has_a_title_axis_labels_with_units_and_words_for_those_who_can_not_see_it(page):
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    found = {}
    for plot in plots:
        label = unescape(re.search(r'aria-label="([^"]*)"', plot).group(1))
        title = label.partition(". ")[0]
        texts = [unescape(t).strip() for t in re.findall(r"<text[^>]*>(.*?)</text>", plot, re.DOTALL)]
        assert title in texts
        assert 'role="img"' in plot
        found[title] = texts
    assert found.keys() == {
        "Size", "Work", "Accuracy", "Loss", "Validation accuracy", "Learning rate", "Accuracy of each class",
        "Latency of one inference, estimated", "Where the cycles go",
    }  # fmt: skip
    for title, unit in {
        "Size": "size (KiB)", "Work": "million multiply-accumulates", "Accuracy": "(%)", "Loss": "(nats)",
        "Validation accuracy": "(%)", "Learning rate": "(per step)", "Accuracy of each class": "(%)",
        "Latency of one inference, estimated": "(ms)", "Where the cycles go": "(%)",
    }.items():  # fmt: skip
        assert any(unit in text for text in found[title]), title
    for title in ("Loss", "Validation accuracy", "Learning rate"):
        assert "epoch (dashed: 1 prune_channels)" in found[title]
        assert "1" in found[title]
    assert set(CLASSES) <= set(found["Accuracy of each class"])


def test_every_table_has_headers_and_every_identifier_is_unique(page):
    tables = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert len(tables) >= 6
    assert all("<th scope=" in table for table in tables)
    references = set(re.findall(r'(?:href="|url\()#([\w-]+)', page))
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert references <= set(identifiers)
    assert len(identifiers) == len(set(identifiers))


def test_the_same_input_gives_the_same_bytes(page, tmp_path):
    assert render(report_input(), tmp_path) == page


def test_a_build_without_passes_latency_counts_or_match_says_so(tmp_path):
    made = report_input()
    bare = replace(
        made,
        passes=(),
        trained=replace(made.trained, history=(), score=replace(made.trained.score, per_class=())),
        measured=Measured("host", "host", None, None, None),
        compiled=replace(made.compiled, fallbacks=()),
        verdict=Verdict("host", (Check("latency", "", "not measured", None, "no budget"),)),
    )
    text = Reader(render(bare, tmp_path)).text
    assert "NO BUDGET no budget is set: nothing was checked" in text
    assert "no latency was measured or estimated" in text
    assert "Instructions were not counted: the program ran on host" in text
    assert "against the host program: not measured" in text
    for section in ("Accuracy of each class", "How sure it is", "What it answers", "The judge"):
        assert section not in text
    assert "Nothing: every operator has a schedule of its own" in text


def test_cache_misses_that_were_not_simulated_are_not_shown_as_numbers(tmp_path):
    made = report_input()
    counts = replace(made.measured.counts, l1_misses=-1, l2_misses=-1)
    text = Reader(render(replace(made, measured=replace(made.measured, counts=counts)), tmp_path)).text
    assert text.count("not simulated") == 2
    assert "-1 " not in text


def test_a_program_without_modelled_cycles_has_no_shares(tmp_path):
    made = report_input()
    counts = replace(made.measured.counts, cycles=0.0)
    text = Reader(render(replace(made, measured=replace(made.measured, counts=counts)), tmp_path)).text
    assert "Where the cycles go" not in text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"missing: {package}, .*pip install 'armlet\[report\]'"):
        render_report(report_input(), tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_importing_the_report_loads_none_of_the_heavy_packages():
    code = "import sys, armlet.report; print({'matplotlib', 'jinja2', 'torch', 'tvm', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_what_float_takes_in_an_int8_network_is_said(tmp_path):
    made = report_input()
    first, *rest = made.compiled.kernels
    kernels = (
        replace(first, op="dense", precision="float32"),
        *(replace(k, op="dense", precision="int8") for k in rest),
    )
    mixed = replace(made, compiled=replace(made.compiled, kernels=kernels, integer_only=False))
    counts = made.measured.counts
    (cycles,) = [k.cycles for k in counts.kernels if k.symbol == first.symbol]
    text = Reader(render(mixed, tmp_path)).text
    assert f"take {100 * cycles / counts.cycles:.1f} % of the modelled cycles" in text
    for kept in (
        replace(mixed, compiled=replace(mixed.compiled, integer_only=True)),
        replace(mixed, compiled=replace(mixed.compiled, kernels=kernels[:1])),
        replace(mixed, measured=replace(made.measured, counts=None)),
    ):
        assert "of the modelled cycles" not in Reader(render(kept, tmp_path)).text


def test_what_a_layer_that_is_not_as_asked_costs_is_said_beside_the_reason(tmp_path):
    made = report_input()
    layer = made.compiled.kernels[0].layer
    fallbacks = (
        Fallback(layer, "LSTM", "stays float: too long"),
        Fallback("gone", "Mul", "stays float: alone"),
    )
    counts = made.measured.counts
    (cycles,) = [k.cycles for k in counts.kernels if k.symbol == made.compiled.kernels[0].symbol]
    text = Reader(render(replace(made, compiled=replace(made.compiled, fallbacks=fallbacks)), tmp_path)).text
    assert f"too long ({100 * cycles / counts.cycles:.1f} % of the modelled cycles)" in text
    assert "alone (" not in text


def test_a_kernel_that_calls_share_has_a_row_for_each_call_and_its_code_once(tmp_path):
    made = report_input()
    first = replace(
        KERNELS[0], joined=("relu0",), dtype="int8", shape=(1, 8, 4, 4), layout="channels-last", code_bytes=987,
        constant_bytes=1_200,
    )  # fmt: skip
    again = replace(first, layer="conv9/Conv", joined=(), constant_bytes=0)
    shared = replace(made, compiled=replace(made.compiled, kernels=(first, again, *KERNELS[1:])))
    rows = kernel_rows(shared.compiled, shared.measured)
    assert [(row.n_calls, row.code_bytes, row.layers) for row in rows[:2]] == [
        (2, 987, ("conv0/Conv", "relu0")),
        (2, 0, ("conv9/Conv",)),
    ]
    counts = made.measured.counts
    assert sum(row.cycles for row in rows) == pytest.approx(sum(kernel.cycles for kernel in counts.kernels))
    assert rows[0].share == rows[1].share == counts.kernels[0].cycles / 2 / counts.cycles
    text = Reader(render(shared, tmp_path)).text
    for words in (
        "int8 [1, 8, 4, 4]",
        "channels-last",
        "Shared kernels",
        "cnn_k0 (2 calls)",
        "conv0/Conv, relu0",
    ):
        assert words in text


def test_the_page_of_an_onnx_file_tells_of_the_file_and_of_no_training(tmp_path):
    made, image = report_input(), TensorInfo("image", (1, 1, 28, 28))
    imported = Imported("theirs.onnx", "ef" * 32, (image,), (), 17, True, 4_321, ("image",), 16, True)
    reference = Match(16, 3, 0.01, 0.02, "2 steps of the output's scale")
    page = render(
        replace(
            made, recipe=None, data=None, trained=None, exported=None, evaluated=None, passes=(), imported=imported,
            measured=replace(made.measured, reference=reference),
        ),
        tmp_path,
    )  # fmt: skip
    reader = Reader(page)
    assert reader.open == []
    for words in (
        "theirs.onnx", "ef" * 32, "opset 17, quantised", "against ONNX Runtime on 16 random samples", "4321",
        "2 steps of the output's scale", "there are no samples with labels", "the inputs are those of",
    ):  # fmt: skip
        assert words in reader.text.replace("\N{NO-BREAK SPACE}", ""), words
    for words in ("What each step did", "Training", "Seed", "test samples"):
        assert words not in reader.text
