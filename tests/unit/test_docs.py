"""What the documentation shows is there: links, commands, options, names, recipes, exit codes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from pydantic import TypeAdapter
from ruamel.yaml import YAML

import armlet
from armlet import errors
from armlet.cli.main import app
from armlet.spec.base import ListOf
from armlet.spec.load import load_recipe
from armlet.spec.passes import PassSpec, order_problems

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def blocks(path: Path, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(path.read_text(encoding="utf-8")) if found == language]


def prose(path: Path) -> str:
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands() -> list[tuple[Path, str]]:
    lines = [(path, line) for path in PAGES for block in blocks(path, "sh") for line in block.splitlines()]
    return [(path, line.partition("#")[0]) for path, line in lines if line.startswith("armlet ")]


@page
def test_every_link_of_a_page_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@page
def test_every_python_example_of_a_page_is_python(path: Path) -> None:
    for block in blocks(path, "python"):
        compile(block, str(path), "exec")


def test_every_command_in_the_documentation_has_its_verb_and_its_options() -> None:
    assert len(commands()) >= 10
    for path, line in commands():
        command, (_, *words) = typer.main.get_command(app), shlex.split(line)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), f"{path.name}: {line} names no verb"
        known = {
            name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
        }
        unknown = {word for word in words if word.startswith("-")} - known
        assert not unknown, f"{path.name}: {line}"


def test_every_verb_and_option_of_run_is_in_the_command_line_page() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    root = typer.main.get_command(app)
    for name in root.commands:
        assert f"\n## {name}\n" in text
    for parameter in root.commands["run"].params:
        assert parameter.name in ("recipe", "help") or f"`{parameter.opts[0]}`" in text, parameter.name


def test_every_recipe_file_named_in_the_documentation_is_there() -> None:
    named = {name for path in PAGES for name in re.findall(r"\brecipes/[\w-]+\.yaml", path.read_text())}
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_recipe_of_the_quick_start_is_valid_in_each_profile(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "quick-start.md", "yaml")
    recipe = tmp_path / "letters.yaml"
    recipe.write_text(block)
    assert load_recipe(recipe).passes[0].kind == "prune_channels"
    assert load_recipe(recipe, "smoke").data.limit == 600


def test_every_public_name_is_in_the_library_page() -> None:
    text = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, flags=re.MULTILINE))
    assert set(armlet.__all__) - named == {"__version__"}


@pytest.mark.parametrize("name", ["README.md", "docs/concepts.md"])
def test_the_table_of_exit_codes_has_every_code_that_an_error_gives(name: str) -> None:
    rows = re.findall(r"^\| (\d+) \|", (ROOT / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    given = {
        e.exit_code
        for e in vars(errors).values()
        if isinstance(e, type) and issubclass(e, errors.ArmletError)
    }
    assert {int(row) for row in rows} == given | {0, 1, 130}


def test_the_readme_begins_with_the_two_commands() -> None:
    first = blocks(ROOT / "README.md", "sh")[0].splitlines()
    assert [line.split()[0] for line in first] == ["./scripts/demo", "./scripts/test"]
    assert all((ROOT / line.split()[0]).is_file() for line in first)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert [name for name in pages if f" {name}\n" not in navigation] == []


def test_every_module_folder_is_in_the_architecture_page() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "src" / "armlet"
    rooms = [p.name for p in package.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))]
    missing = [name for name in rooms if name not in text and name not in ("__main__.py", "__pycache__")]
    assert missing == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "techniques").glob("*.md")), ids=lambda path: path.stem
)
def test_the_passes_of_a_technique_s_page_are_valid_and_in_order(path: Path) -> None:
    found = [YAML(typ="safe").load(block) for block in blocks(path, "yaml")]
    recipes = [part["passes"] for part in found if "passes" in part]
    assert recipes
    for passes in recipes:
        assert order_problems(TypeAdapter(ListOf[PassSpec]).validate_python(passes)) == []
