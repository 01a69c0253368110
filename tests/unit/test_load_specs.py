from pathlib import Path

import pytest

from armlet.errors import UsageError
from armlet.spec.load import load_recipe, load_target, shipped_targets
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target

GOOD = """\
name: tiny
data: {kind: fashion-mnist}
model:
  kind: cnn
  channels: [8, 16]
train: {epochs: 3, learning_rate: 3e-4}
passes:
  - kind: prune_channels
    ratio: 25 %
  - kind: quantize_static
budgets: {accuracy: 90 %, latency: 5 ms, size: 96 KiB}
profiles:
  smoke:
    train: {epochs: 1}
    passes: []
"""

BAD = """\
name: Tiny
data: {kind: fashion-mnst}
model:
  kind: cnn
  chanels: [8]
train:
  epochs: ten
  optimizer: adm
passes:
  - kind: quantize_static
  - kind: prune_channels
    ratoi: 0.3
budgets:
  latency: 5
profiles:
  smoke:
    train: {epohcs: 1}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def errors_of(folder: Path, text: str, **options: object) -> list[str]:
    path = write(folder, text)
    with pytest.raises(UsageError) as caught:
        load_recipe(path, **options)
    assert caught.value.exit_code == 2
    return [str(problem).replace(f"{path}:", "") for problem in caught.value.problems]


def test_a_good_recipe_is_read_with_units_and_scientific_numbers(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.train.learning_rate == 3e-4
    assert recipe.budgets.latency == 5.0
    assert recipe.budgets.size == 96 * 1024
    assert recipe.passes[0].ratio == 0.25
    assert recipe.symbol == "tiny"


def test_a_profile_changes_only_what_it_names(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD), "smoke")
    assert recipe.train.epochs == 1
    assert recipe.train.learning_rate == 3e-4
    assert recipe.passes == ()


def test_a_recipe_survives_json(tmp_path):
    recipe = load_recipe(write(tmp_path, GOOD))
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_problem_is_named_at_once_with_line_key_and_nearest_name(tmp_path):
    found = errors_of(tmp_path, BAD)
    assert [line.split(" ")[0] + " " + line.split(" ")[1] for line in found] == [
        "1: name:",
        "2: data.kind:",
        "5: model.chanels:",
        "7: train.epochs:",
        "8: train.optimizer:",
        "12: passes.1.ratoi:",
        "14: budgets.latency:",
        "17: train.epohcs:",
    ]
    assert "did you mean 'fashion-mnist'?" in found[1]
    assert "did you mean 'channels'?" in found[2]
    assert "not 'ten'" in found[3]
    assert "did you mean 'adam'?" in found[4]
    assert "did you mean 'ratio'?" in found[5]
    assert "5 has no unit: write for instance 5 ms" in found[6]
    assert "did you mean 'epochs'?" in found[7]


def test_an_impossible_order_of_passes_is_refused(tmp_path):
    text = GOOD.replace("  - kind: prune_channels\n    ratio: 25 %\n  - kind: quantize_static\n",
                        "  - kind: quantize_static\n  - kind: prune_channels\n    ratio: 25 %\n"
                        "  - kind: quantize_static\n")  # fmt: skip
    assert errors_of(tmp_path, text) == [
        "9: passes.1: prune_channels can't come after quantize_static (pass 1): that leaves integers, and this pass "
        "works on float numbers",
        "11: passes.2: quantize_static stands twice; it can run only once",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "is not valid YAML"),
        ("- 1\n", "is not a mapping"),
        ("", "is not a mapping"),
        ("name: a\nname: b\n", "found duplicate key"),
        (GOOD.replace("ratio: 25 %", "ratio: 100 %"), "less than 1"),
        (GOOD.replace("epochs: 3", "epochs: 0"), "greater than 0"),
        (GOOD.replace("kind: cnn\n", "kind: cnnn\n"), "did you mean 'cnn'?"),
        (GOOD.replace("  kind: cnn\n", ""), "has no `kind`"),
        (GOOD.replace("size: 96 KiB", "size: 96 kb"), "96 kb"),
        (GOOD.replace("train: {epochs: 1}", "train: 1"), "train: is not a mapping of keys to values"),
        (
            GOOD.replace("  - kind: quantize_static\n", "  - quantize_static\n"),
            "10: passes.1: is not a mapping",
        ),
        (GOOD.replace("epochs: 3", "epochs: true"), "should be a valid integer, not True"),
        (
            GOOD.replace("[8, 16]", '[8, "16"]'),
            "5: model.channels.1: input should be a valid integer, not '16'",
        ),
        (GOOD.replace("[8, 16]", "[]"), "needs at least 1 entry"),
        (GOOD.replace("name: tiny", f"name: tiny\nseed: {2**64}"), "2: seed: input should be less than"),
        (GOOD.replace("name: tiny", f"name: {'a' * 65}"), "at most 64 characters"),
        (GOOD.replace("fashion-mnist", "fashion-mnist, validation: 0 %"), "greater than 0"),
        (GOOD.replace("fashion-mnist", "fashion-mnist, validation: 100 %"), "less than 1"),
        (GOOD.replace("smoke:", "full:"), "13: profiles.full: 'full' is the recipe as written"),
        (
            GOOD.replace("  smoke:\n    train: {epochs: 1}\n    passes: []\n", "  7: 3\n"),
            "profiles.7: is not",
        ),
        ("a: " + "[" * 5000 + "]" * 5000, "is nested too deeply"),
        (
            GOOD.replace("  smoke:\n    train: {epochs: 1}\n    passes: []\n", "  smoke: 3\n"),
            "is not a mapping",
        ),
    ],
)
def test_bad_text_is_refused_with_a_clear_message(tmp_path, text, message):
    assert any(message in line for line in errors_of(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "{kind: fashion-mnist}",
            "{kind: fashion-mnist, limit: 9}",
            "2: data.limit: 9 samples are less than one for",
        ),
        (
            "{kind: fashion-mnist}",
            "{kind: letter-recognition}",
            "4: model.kind: a cnn takes pictures, and letter-rec",
        ),
        (
            "[8, 16]",
            "[8, 8, 8, 8, 8, 8]",
            "5: model.channels: pictures of 28×28 can't be halved 5 times: use fewer",
        ),
        (
            "[8, 16]",
            "[8, 16]\n  depth: [1, 1, 2]",
            "6: model.depth: has 3 numbers for 2 stages",
        ),
    ],
)
def test_sections_that_do_not_fit_each_other_are_refused_before_any_work(tmp_path, old, new, problem):
    (found,) = errors_of(tmp_path, GOOD.replace(old, new))
    assert found.startswith(problem)


def test_an_unknown_profile_names_the_known_ones(tmp_path):
    assert "did you mean 'smoke'? known: full, smoke" in errors_of(tmp_path, GOOD, profile="smok")[0]


def test_budget_flags_replace_the_recipes_budgets_and_are_checked(tmp_path):
    assert load_recipe(write(tmp_path, GOOD), overrides={"latency": "2 ms"}).budgets.latency == 2.0
    assert errors_of(tmp_path, GOOD, overrides={"latency": "2"})[0].startswith(
        "--latency: '2' is not a number"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.yaml: no such file"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("name", sorted(shipped_targets()))
def test_every_shipped_target_is_valid_and_named_like_its_file(name):
    target = load_target(name)
    assert target.name == name
    assert type(target).model_validate_json(target.model_dump_json()) == target
    assert target.calibration is None or (target.core.cost_model and target.core.clock_mhz)
    assert target.calibration is None or not target.is_native


def test_an_unknown_target_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'raspberry-pi-4'"):
        load_target("raspberry-pi4")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("spread: 25 %", "spread: 100 %", "19: calibration.spread: input should be less than 1"),
        ("ways: 2}", "ways: 3}", "caches.l1: a cache of 32768 bytes can't have 3 ways of lines of 64 bytes"),
        ("ways: 2}", "ways: 2, line: 48 B}", "caches.l1.line: a line of 48 bytes is no power of two"),
        ("ways: 2}", "ways: 2, line: 0 B}", "caches.l1.line: a line of 0 bytes is no power of two"),
        ("size: 32 KiB", "size: 0 B", "caches.l1: a cache of 0 bytes can't have 2 ways"),
        ("[neon]", "[neon, i8mm]", "features: a core with i8mm has neon and dotprod, too: list all three"),
        ("[neon]", "[neon]\nvariants: [i8mm]", "variants: a core with i8mm has dotprod, too"),
        ("[neon]", "[neon]\nvariants: [i8mm, dotprod]", "list dotprod before it"),
        ("[neon]", "[neon]\nvariants: [dotprod, dotprod]", "variants: dotprod is listed twice"),
        ("[neon]", "[neon, dotprod]\nvariants: [dotprod]", "variants: dotprod is listed twice"),
        ("[neon]", "[]\nvariants: [dotprod]", "variants: they need neon in features"),
        ("[neon]", "[neon]\nvariants: [fp16]", "variants.0: unknown value 'fp16' (known: dotprod, i8mm)"),
        ("cc: ", "zig: aarch64-linux-musl, cc: ", "toolchain: a tool chain is cc and ar, or zig alone"),
        (", ar: aarch64-linux-gnu-ar", "", "toolchain: a tool chain is cc and ar, or zig alone"),
        ("{cpu:", "{program: qemu-arm, cpu:", "qemu-aarch64 runs programs for aarch64-linux-gnu"),
        ("aarch64-linux-gnu", "armv7a-linux-gnueabihf", "qemu-arm runs programs for armv7a-linux-gnueabihf"),
    ],
)
def test_an_impossible_board_is_refused(tmp_path, old, new, message):
    text = shipped_targets()["raspberry-pi-4"].read_text()
    assert old in text
    path = tmp_path / "board.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        load_target(str(path))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:")


def test_variants_are_refused_where_nobody_tells_of_extensions(tmp_path):
    path = tmp_path / "board.yaml"
    path.write_text(
        shipped_targets()["arm64-linux"].read_text().replace("aarch64-linux-gnu\n", "aarch64-none-elf\n")
    )
    with pytest.raises(
        UsageError, match="aarch64-none-elf has none: Linux tells of extensions on aarch64 only"
    ):
        load_target(str(path))


def test_each_build_of_a_target_has_one_extension_more(tmp_path):
    builds = load_target("arm64-linux").builds
    assert [b.features for b in builds] == [("neon",), ("neon", "dotprod"), ("neon", "dotprod", "i8mm")]
    assert [len(load_target(name).builds) for name in ("host", "raspberry-pi-5")] == [1, 1]


@pytest.mark.parametrize(
    ("update", "message"),
    [
        ({"features": ["neon", "dotprod"]}, "features: kernels in 32-bit code use neon, not dotprod"),
        (
            {"core": {"llvm_cpu": "cortex-a57", "cost_model": "cortex-a57"}},
            "core.cost_model: instructions are counted and costed in 64-bit code only; leave it out",
        ),
    ],
)
def test_what_32_bit_code_does_not_have_is_refused(update, message):
    board = load_target("raspberry-pi-2").model_dump(mode="json")
    with pytest.raises(ValueError, match=message):
        Target.model_validate(board | update)


def test_a_target_with_a_gpu_says_nothing_of_kernels_on_the_core():
    target = load_target("android-opencl")
    assert (target.gpu.api, target.is_native, target.computes_float16) == ("opencl", False, True)
    board = load_target("raspberry-pi-4").model_dump(mode="json")
    said = "gpu: kernels do not run on the core: leave out emulator, calibration, core.cost_model"
    with pytest.raises(ValueError, match=said):
        Target.model_validate(board | {"gpu": {"api": "opencl"}})
    for update, message in (
        ({"gpu": {"api": "vulkan"}}, "opencl"),
        ({"tiles": [{"kernel": "dense", "tile": [1, 4]}]}, "do not run on the core: leave out tiles"),
        ({"compiled_only": True}, "run through this machine's OpenCL: leave out compiled_only"),
    ):
        with pytest.raises(ValueError, match=message):
            Target.model_validate(target.model_dump(mode="json") | update)


def test_a_target_with_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "board.yaml"
    path.write_text(shipped_targets()["raspberry-pi-4"].read_text().replace("clock_mhz", "clock_mgz"))
    with pytest.raises(UsageError, match=r"core.clock_mgz: unknown key \(did you mean 'clock_mhz'"):
        load_target(str(path))
