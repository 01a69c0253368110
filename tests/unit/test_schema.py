"""The JSON Schemas and the reference pages say what the loader takes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armlet.spec import schema
from armlet.spec.base import Spec
from armlet.spec.load import shipped_targets
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target
from armlet.units import parse_bytes, parse_fraction, parse_milliseconds

ROOT = Path(__file__).parents[2]
GENERATED = dict(schema.files())


def objects(kind: type[Spec]) -> dict[str, dict[str, Any]]:
    """Every object of a schema, by name: the file itself and its sections."""
    whole = schema.json_schema(kind)
    return {kind.__name__: whole} | whole["$defs"]


@pytest.mark.parametrize("path", GENERATED, ids=str)
def test_the_checked_in_file_is_what_the_specs_say(path: Path) -> None:
    hint = f"{path} is stale: run python -m armlet.spec.schema"
    assert (ROOT / path).read_text(encoding="utf-8") == GENERATED[path], hint


def test_main_writes_every_file_below_the_folder(tmp_path: Path) -> None:
    schema.main(tmp_path)
    written = {p.relative_to(tmp_path): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert written == GENERATED


@pytest.mark.parametrize("kind", [Recipe, Target])
def test_every_object_of_a_schema_is_closed_and_described(kind: type[Spec]) -> None:
    for name, node in objects(kind).items():
        assert node["additionalProperties"] is False, name
        assert node["description"], name


@pytest.mark.parametrize("kind", [Recipe, Target])
def test_every_key_of_a_schema_has_a_meaning(kind: type[Spec]) -> None:
    silent = [
        f"{name}.{key}"
        for name, node in objects(kind).items()
        for key, field in node["properties"].items()
        if not field.get("description")
    ]
    assert silent == []


@pytest.mark.parametrize("kind", [Recipe, Target])
def test_the_reference_page_has_a_row_for_every_key(kind: type[Spec]) -> None:
    page = GENERATED[Path("docs", "reference", f"{kind.__name__.lower()}.md")]
    rows = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    keys = [key for node in objects(kind).values() for key in node["properties"]]
    assert sorted(rows) == sorted(keys)


@pytest.mark.parametrize("kind", [Recipe, Target])
def test_every_link_of_the_reference_page_has_its_heading(kind: type[Spec]) -> None:
    page = GENERATED[Path("docs", "reference", f"{kind.__name__.lower()}.md")]
    headings = re.findall(r"^## (.+)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}
    links = set(re.findall(r"\]\(#([^)]+)\)", page))
    assert links
    assert links <= anchors


def unit_pattern(kind: type[Spec], section: str, key: str) -> str:
    field = objects(kind)[section]["properties"][key]
    options = field.get("anyOf", [field])
    return next(option["pattern"] for option in options if "pattern" in option)


@given(
    st.from_regex(
        unit_pattern(Recipe, "Budgets", "latency"), fullmatch=True, alphabet=st.characters(codec="ascii")
    )
)
def test_the_loader_reads_every_time_that_the_schema_allows(text: str) -> None:
    assert parse_milliseconds(text) >= 0


@given(
    st.from_regex(
        unit_pattern(Recipe, "Budgets", "size"), fullmatch=True, alphabet=st.characters(codec="ascii")
    )
)
def test_the_loader_reads_every_size_that_the_schema_allows(text: str) -> None:
    assert parse_bytes(text) >= 0


@given(st.integers(0, 100), st.sampled_from(["%", " %", "  % "]))
def test_the_schema_allows_every_percentage_that_the_loader_reads(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    assert parse_fraction(text) == pytest.approx(number / 100)
    assert re.search(unit_pattern(Recipe, "Budgets", "accuracy"), text)


@pytest.mark.parametrize("text", ["5", "5 parsecs", "ms", "5 ms later"])
def test_the_schema_refuses_a_time_without_a_known_unit(text: str) -> None:
    assert not re.search(unit_pattern(Recipe, "Budgets", "latency"), text)


def test_the_target_files_name_the_schema_that_is_there() -> None:
    for name, path in shipped_targets().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first == "# yaml-language-server: $schema=../schemas/target.schema.json", name
    assert json.loads((ROOT / "schemas" / "target.schema.json").read_text())["$schema"] == schema.DIALECT
