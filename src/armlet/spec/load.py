"""Reads recipes and targets: YAML 1.2 with line numbers, every problem in one error with the nearest right name."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from armlet.errors import Problem, UsageError, nearest
from armlet.spec.budget import Budgets
from armlet.spec.misfits import misfits
from armlet.spec.model import Module
from armlet.spec.passes import order_problems
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target
from armlet.spec.train import TrainSpec

M = TypeVar("M", bound=BaseModel)

FULL = "full"
_PACKAGE = Path(__file__).parent.parent


def read_yaml(path: Path) -> CommentedMap:
    """Read a YAML file whose top level is a mapping; the result knows the line of each key.

    Raises:
        UsageError: no such file, not UTF-8, not YAML, a duplicate key, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(Problem("no such file", file=path)) from None
    except OSError as error:
        raise UsageError(Problem(f"can't be read: {error.strerror}", file=path)) from None
    except UnicodeDecodeError as error:
        raise UsageError(Problem(f"can't be read: {error}", file=path)) from None
    try:
        data = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        message = (error.problem or "not YAML").splitlines()[0]
        raise UsageError(Problem(f"is not valid YAML: {message}", file=path, line=line)) from None
    except YAMLError as error:
        raise UsageError(Problem(f"is not valid YAML: {error}", file=path)) from None
    except RecursionError:
        raise UsageError(Problem("is nested too deeply", file=path)) from None
    if not isinstance(data, CommentedMap):
        raise UsageError(Problem("is not a mapping of keys to values", file=path, line=1))
    return data


def load_recipe(path: Path, profile: str = FULL, overrides: Mapping[str, object] | None = None) -> Recipe:
    """Read and check a recipe.

    Args:
        path: the YAML file.
        profile: `full` for the recipe as written, or one of its `profiles`.
        overrides: budgets given as flags, by their key in `budgets`.

    Raises:
        UsageError: everything that is wrong, each with its line and key.
    """
    data = read_yaml(path)
    problems: list[Problem] = []
    profiles = data.get("profiles") or {}
    if profile != FULL and (not isinstance(profiles, dict) or profile not in profiles):
        known = [FULL, *(profiles if isinstance(profiles, dict) else ())]
        raise UsageError(
            Problem(f"has no profile {profile!r}", file=path, key="profiles", hint=nearest(profile, known))
        )
    if isinstance(profiles, dict) and FULL in profiles:
        message, where = f"{FULL!r} is the recipe as written", ("profiles", FULL)
        problems.append(
            Problem(message, path, _line(data, where), ".".join(where), "give the profile another name")
        )
    # Every profile is checked, whichever one runs, so that a typo is found before it matters.
    names = [FULL, *(name for name in (profiles if isinstance(profiles, dict) else ()) if name != FULL)]
    chosen: Recipe | None = None
    for name in names:
        merged = data if name == FULL else _merge(data, profiles[name], ("profiles", str(name)), path)
        recipe, found = _validate(Recipe, merged, data, path)
        if recipe is not None and isinstance(recipe.model, Module) and not recipe.model.code:
            recipe, found = _with_code(recipe, recipe.model, merged, path)
        if recipe is not None:
            found += [
                Problem(message, path, _line(merged, ("passes", position)), f"passes.{position}")
                for position, message in order_problems(recipe.passes)
            ]
            found += [
                Problem(message, path, _line(merged, where), ".".join(where))
                for where, message in misfits(recipe)
            ]
        problems += [p for p in found if p not in problems]
        if name == profile:
            chosen = recipe
    if problems or chosen is None:
        raise UsageError(problems)
    if not overrides:
        return chosen
    changed = chosen.model_copy(update={"budgets": override_budgets(chosen.budgets, overrides)})
    if unfit := [
        Problem(m, key=f"--budget {where[1]}") for where, m in misfits(changed) if where[0] == "budgets"
    ]:
        raise UsageError(unfit)
    return changed


def _with_code(
    recipe: Recipe, model: Module, data: CommentedMap, path: Path
) -> tuple[Recipe | None, list[Problem]]:
    """Return the recipe with the text of its model's file, so that nothing else is needed to build the network."""

    def problem(key: str, message: str, hint: str = "") -> tuple[None, list[Problem]]:
        return None, [Problem(message, path, _line(data, ("model", key)), f"model.{key}", hint)]

    file = path.parent / model.file
    try:
        code = file.read_text(encoding="utf-8")
        names = list(_names_in(ast.parse(code)))
    except OSError as error:
        return problem("file", f"{file} can't be read: {error.strerror}")
    except SyntaxError as error:
        return problem("file", f"{file} is not Python: {error.msg} in line {error.lineno}")
    except ValueError as error:
        return problem("file", f"{file} is not Python: {error}")
    if model.factory not in names:
        message = f"{file} has no function or class {model.factory!r}"
        return problem("factory", message, nearest(model.factory, names) if names else "")
    return recipe.model_copy(update={"model": model.model_copy(update={"code": code})}), []


def _names_in(tree: ast.Module) -> Iterator[str]:
    """Give the names that a file defines, imports or sets at its top level."""
    for node in tree.body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.ImportFrom(names=aliases):
                yield from (alias.asname or alias.name for alias in aliases)
            case ast.Assign(targets=targets):
                yield from (target.id for target in targets if isinstance(target, ast.Name))


def load_target(name_or_path: str) -> Target:
    """Read and check a target, by the name of a shipped one or by the path of a YAML file.

    Raises:
        UsageError: there is no such target, or its file is wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        shipped = shipped_targets()
        if name_or_path not in shipped:
            raise UsageError(f"unknown target {name_or_path!r} ({nearest(name_or_path, shipped)})")
        path = shipped[name_or_path]
    data = read_yaml(path)
    target, problems = _validate(Target, data, data, path)
    if target is None:
        raise UsageError(problems)
    return target


@functools.cache
def shipped_targets() -> dict[str, Path]:
    """Return the targets that come with armlet, by name."""
    for folder in (_PACKAGE / "_targets", _PACKAGE.parent.parent / "targets"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    raise UsageError("armlet's own target files are missing; install it again")


def with_processes(recipe: Recipe, n: int) -> Recipe:
    """Return the recipe with every training in `n` processes; a generator and its critic stay in one."""

    def changed(train: TrainSpec) -> TrainSpec:
        return train.model_copy(update={"processes": n})

    passes = []
    alone = recipe.data.asks == "generation"
    for options in recipe.passes:
        trained = {
            key: changed(getattr(options, key))
            for key in ("train", "finetune")
            if not alone and getattr(options, key, None) is not None
        }
        passes.append(options.model_copy(update=trained))
    update: dict[str, object] = {"passes": tuple(passes)}
    if not alone:
        update["train"] = changed(recipe.train)
    for section in ("pretrain", "judge"):
        part = getattr(recipe, section)
        if part is not None:
            update[section] = part.model_copy(update={"train": changed(part.train)})
    return recipe.model_copy(update=update)


def override_budgets(budgets: Budgets, given: Mapping[str, object]) -> Budgets:
    """Return the budgets with those in `given` replaced, as a recipe writes them; for command-line flags.

    Raises:
        UsageError: a value that can't be read, named by its flag.
    """
    if unknown := [key for key in given if key not in Budgets.model_fields]:
        known = Budgets.model_fields
        raise UsageError(
            [Problem("no such budget", key=f"--budget {k}", hint=nearest(k, known)) for k in unknown]
        )
    try:
        return Budgets.model_validate(budgets.model_dump(mode="json") | dict(given))
    except ValidationError as error:
        raise UsageError(
            [Problem(_message(e), key=f"--{str(e['loc'][0]).replace('_', '-')}") for e in error.errors()]
        ) from None


def _merge(base: CommentedMap, changes: object, where: tuple[str, ...], path: Path) -> CommentedMap:
    """Lay a profile's changes over the recipe: mappings merge key by key, everything else is replaced."""
    if not isinstance(changes, CommentedMap):
        raise UsageError(
            Problem("is not a mapping of keys to values", path, _line(base, where), ".".join(where))
        )
    merged = CommentedMap(base)
    merged.lc.data = dict(base.lc.data or {})
    for key, value in changes.items():
        old = merged.get(key)
        same_kind = (
            isinstance(old, CommentedMap) and value.get("kind", old.get("kind")) == old.get("kind")
            if isinstance(value, CommentedMap)
            else False
        )
        merged[key] = _merge(old, value, (*where, str(key)), path) if same_kind else value
        if changes.lc.data and key in changes.lc.data:
            merged.lc.data[key] = changes.lc.data[key]
    return merged


def _validate(
    kind: type[M], data: CommentedMap, written: CommentedMap, path: Path
) -> tuple[M | None, list[Problem]]:
    try:
        return kind.model_validate(data), []
    except ValidationError as error:
        return None, [_problem(kind, e, data, path) for e in error.errors()]


def _problem(kind: type[BaseModel], error: ErrorDetails, data: CommentedMap, path: Path) -> Problem:
    loc = _strip_tags(error["loc"], data)
    hint = ""
    if error["type"] == "extra_forbidden":
        hint = nearest(str(loc[-1]), _known_keys(kind, error["loc"][:-1]))
    elif error["type"] == "union_tag_invalid":
        expected = error["ctx"]["expected_tags"].replace("'", "").split(", ")
        hint = nearest(str(error["ctx"]["tag"]), expected)
        loc = (*loc, "kind")
    elif error["type"] == "literal_error":
        expected = error["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        hint = nearest(str(error["input"]), expected)
    return Problem(_message(error), path, _line(data, loc), ".".join(str(part) for part in loc), hint)


def _message(error: ErrorDetails) -> str:
    """Say pydantic's error in armlet's words, with the value."""
    match error["type"]:
        case "extra_forbidden":
            return "unknown key"
        case "missing":
            return "is missing"
        case "union_tag_not_found":
            return "has no `kind`"
        case "union_tag_invalid":
            return f"unknown kind {error['ctx']['tag']!r}"
        case "literal_error":
            return f"unknown value {error['input']!r}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "is not a mapping of keys to values"
        case "too_short":
            return f"needs at least {error['ctx']['min_length']} entry"
        case "value_error":
            return str(error["ctx"]["error"])
        case _:
            text = error["msg"][0].lower() + error["msg"][1:]
            return f"{text}, not {error['input']!r}" if not isinstance(error["input"], dict | list) else text


def _strip_tags(loc: tuple[int | str, ...], data: object) -> tuple[int | str, ...]:
    """Drop the union tags that pydantic puts into a location, so that it is the path in the file."""
    path: list[int | str] = []
    here: object = data
    for position, part in enumerate(loc):
        if isinstance(here, CommentedMap) and part == here.get("kind") and part not in here:
            continue
        last = position == len(loc) - 1
        path.append(part)
        if isinstance(here, CommentedMap) and isinstance(part, str):
            here = here.get(part)
        elif isinstance(here, CommentedSeq) and isinstance(part, int) and part < len(here):
            here = here[part]
        elif not last:
            here = None
    return tuple(path)


def _known_keys(kind: type[BaseModel], loc: tuple[int | str, ...]) -> Iterable[str]:
    """Return the keys allowed at `loc`, by walking the JSON schema of `kind`."""
    schema: dict[str, Any] = kind.model_json_schema()
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[1]]
        for option in node.get("anyOf", ()):
            if "$ref" in option:
                return resolve(option)
        return node

    node = resolve(schema)
    for part in loc:
        if isinstance(part, int):
            node = resolve(node.get("items", {}))
        elif "discriminator" in node:
            node = resolve({"$ref": node["discriminator"]["mapping"][part]})
        else:
            node = resolve(node.get("properties", {}).get(part, {}))
    return tuple(node.get("properties", ()))


def _line(data: object, loc: tuple[int | str, ...]) -> int:
    """Return the 1-based line of the deepest part of `loc` that the file has."""
    line = 0
    here: Any = data
    for part in loc:
        in_map = isinstance(here, CommentedMap) and part in here
        in_list = isinstance(here, CommentedSeq) and isinstance(part, int) and part < len(here)
        if not in_map and not in_list:
            break
        line = _position(here, part) or line
        here = here[part]
    return line


def _position(container: CommentedMap | CommentedSeq, part: int | str) -> int:
    found = (container.lc.data or {}).get(part)
    return found[0] + 1 if found else 0
