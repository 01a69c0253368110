"""Writes, opens and verifies bundles: the folder that an app links and a person reads.

A bundle holds `manifest.json` (everything known of the program, and the SHA-256 of every other file), `lib/` (static
and shared library, header), `src/` (C entry and glue), `bin/run` (the runner program; Apple's systems have neither it
nor a shared library, but a module map), `model.onnx`, `model.tflite` where it can be written, `assets/` that inputs
are prepared with (such as a tokenizer), `examples/` and `report.html`; where the recipe asks for them `packed/`, a
library with packed constants, and `stream/`, a program of the same form that takes a sequence step by step; of a
network that came as an ONNX file `samples/`: what the program was run on, and what it answered.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from armlet import __version__, artifact_json, digest
from armlet.artifacts import (
    Compiled,
    Compressed,
    DataReady,
    Evaluated,
    Exported,
    Imported,
    Measured,
    Pretrained,
    ProgramCost,
    StreamFacts,
    TensorInfo,
    Trained,
    Verdict,
)
from armlet.check import check_budgets
from armlet.errors import CorruptedFile, Problem, UsageError
from armlet.plan import STAGES, package_version
from armlet.report import ReportInput, render_report
from armlet.spec.budget import Budgets
from armlet.spec.recipe import Recipe
from armlet.spec.target import Target
from armlet.store import check_files

MANIFEST_FILE = "manifest.json"
SCHEMA_VERSION = 1
STREAM_FOLDER = "stream"
PACKED_FOLDER = "packed"
SAMPLES_FOLDER = "samples"
MEND = "make the bundle again with armlet run, or copy it again"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a bundle comes from: enough to make it again.

    Attributes:
        recipe: None where the network came as an ONNX file.
        versions: "name version" of armlet and each package that had a part in it.
        steps: cache key of each step, by its name.
    """

    recipe: Recipe | None
    profile: str
    seed: int
    data_sha256: tuple[str, ...]
    versions: tuple[str, ...]
    steps: dict[str, str]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        memory_bytes: peak working memory, the arena that the caller provides.
        size_bytes: code and constants that an app links.
        stream: of the program for streams, None where there is none.
        judge: of generated samples; other tasks have none.
        pretrained: what the network learned without labels first, None where it did not.
        costs: of the trained network as a program, and of that after each pass but the last; empty for this machine.
        imported: the ONNX file that the network came as; then `data`, `trained`, `exported` and `evaluated` are None.
        files: SHA-256 of every other file of the bundle, by its POSIX path.
    """

    schema_version: int
    name: str
    symbol: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    class_names: tuple[str, ...]
    preprocessing: str
    target: Target
    budgets: Budgets
    verdict: Verdict
    memory_bytes: int
    size_bytes: int
    data: DataReady | None
    trained: Trained | None
    passes: tuple[Compressed, ...]
    exported: Exported | None
    compiled: Compiled
    evaluated: Evaluated | None
    measured: Measured
    provenance: Provenance
    files: dict[str, str]
    stream: StreamFacts | None = None
    judge: Trained | None = None
    pretrained: Pretrained | None = None
    costs: tuple[ProgramCost, ...] = ()
    imported: Imported | None = None


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle whose files have all been verified."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: str | Path) -> Bundle:
        """Open a bundle and check every file of it.

        Raises:
            UsageError: not a bundle, or of a schema that this armlet can't read.
            CorruptedFile: the first file that is missing or changed.
        """
        from pydantic import ValidationError

        folder = Path(folder)
        path = folder / MANIFEST_FILE
        if not path.is_file():
            raise UsageError(Problem(f"is not a bundle: it has no {MANIFEST_FILE}", file=folder))
        try:
            version = json.loads(path.read_bytes())["schema_version"]
        except (ValueError, KeyError, TypeError):
            raise CorruptedFile(path, "a readable manifest", digest.of_file(path), MEND) from None
        if version != SCHEMA_VERSION:
            message = f"has schema version {version}; this armlet reads version {SCHEMA_VERSION}"
            raise UsageError(Problem(message, file=path, key="schema_version", hint="make the bundle again"))
        try:
            manifest = artifact_json.from_json(Manifest, path.read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                Problem(f"is not a valid manifest: {first['msg']}", file=path, key=key)
            ) from None
        check_files(folder, path, hint=MEND)
        return cls(folder, manifest)

    def check(self, budgets: Budgets | None = None) -> Verdict:
        """Hold the bundle's facts against its own budgets, or against others."""
        facts = self.manifest
        return check_budgets(
            budgets or facts.budgets,
            facts.trained.score if facts.trained else None,
            facts.evaluated,
            facts.compiled,
            facts.measured,
            facts.stream.measured if facts.stream else None,
        )


@dataclass(frozen=True, slots=True)
class Sources:
    """Folders of the artefacts that a bundle's files come from: `Compiled`, `Exported` or `Imported`, `DataReady`.

    Attributes:
        data: None where the network came as an ONNX file; then `exported` has `samples/` beside the file.
        stream_program, stream_exported: `Compiled` and `StreamExported` of the program for streams, None without one.
    """

    program: Path
    exported: Path
    data: Path | None = None
    stream_program: Path | None = None
    stream_exported: Path | None = None


def write_bundle(facts: ReportInput, provenance: Provenance, sources: Sources, folder: Path) -> Bundle:
    """Write a bundle into `folder/bundle`.

    Args:
        facts: all that is known of the network and its program.
        provenance: where they come from.
        sources: where the files are.
        folder: an existing folder.
    """
    from armlet.compile.emit.examples import write_examples, write_stream_example

    root = folder / "bundle"
    root.mkdir()
    _copy_program(sources.program, root)
    if facts.compiled.packed:
        shutil.copytree(sources.program / PACKED_FOLDER, root / PACKED_FOLDER)
    for model in ("model.onnx", *(["model.tflite"] if facts.exported and facts.exported.litert else [])):
        shutil.copyfile(sources.exported / model, root / model)
    if facts.data and facts.data.assets and sources.data:
        shutil.copytree(sources.data / "assets", root / "assets")
    if facts.imported:
        shutil.copytree(sources.exported / SAMPLES_FOLDER, root / SAMPLES_FOLDER)
    write_examples(facts.compiled, root)
    if facts.stream and sources.stream_program and sources.stream_exported:
        stream = root / STREAM_FOLDER
        _copy_program(sources.stream_program, stream)
        shutil.copyfile(sources.stream_exported / "stream.onnx", stream / "stream.onnx")
        write_stream_example(facts.stream.compiled, stream)
    render_report(facts, root / "report.html")
    manifest = _manifest(facts, provenance, digest.of_folder(root))
    (root / MANIFEST_FILE).write_text(artifact_json.to_json(manifest), encoding="utf-8")
    return Bundle(root, manifest)


def _copy_program(source: Path, folder: Path) -> None:
    """Copy what makes a compiled program into `folder`."""
    for part in ("lib", "src", "bin"):
        if part != "bin" or (source / part).is_dir():  # there is no runner for Apple's systems, nor for a GPU
            shutil.copytree(source / part, folder / part)


def versions(packages: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return "name version" of armlet and of packages, by default of all whose version is part of a cache key."""
    named = packages or {package for stage in STAGES.values() for package in stage.packages}
    return (f"armlet {__version__}", *(f"{name} {package_version(name) or 'none'}" for name in sorted(named)))


def _manifest(facts: ReportInput, provenance: Provenance, files: dict[str, str]) -> Manifest:
    source = facts.exported or facts.imported or facts.compiled
    return Manifest(
        schema_version=SCHEMA_VERSION,
        name=facts.name,
        symbol=facts.compiled.symbol,
        inputs=source.inputs,
        outputs=source.outputs,
        class_names=facts.data.class_names if facts.data else (),
        preprocessing=facts.preprocessing,
        target=facts.target,
        budgets=facts.budgets,
        verdict=facts.verdict,
        memory_bytes=facts.compiled.arena_bytes,
        size_bytes=facts.compiled.size_bytes,
        data=facts.data,
        trained=facts.trained,
        passes=facts.passes,
        exported=facts.exported,
        compiled=facts.compiled,
        evaluated=facts.evaluated,
        measured=facts.measured,
        provenance=provenance,
        files=files,
        stream=facts.stream,
        judge=facts.judge,
        pretrained=facts.pretrained,
        costs=facts.costs,
        imported=facts.imported,
    )
