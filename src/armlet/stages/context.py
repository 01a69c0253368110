"""What a stage may use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from armlet import artifact_json
from armlet.artifacts import Task, Trained
from armlet.errors import UsageError
from armlet.plan import Plan, Step
from armlet.progress import Progress
from armlet.spec.data import DataSpec
from armlet.spec.target import Target

if TYPE_CHECKING:
    from armlet.data.splits import Splits
    from armlet.metrics import Scorer

ASSETS = "assets"
OUTPUTS_FILE = "outputs.npy"


@dataclass(frozen=True)
class StageContext:
    """What a stage may use.

    Attributes:
        plan, step: what is asked for.
        inputs: folders of the artefacts named by `step.needs`, in that order.
        folder: where to write files; becomes the store's entry.
        work: folder that outlives an interruption.
        data_folder: where data sets lie.
    """

    plan: Plan
    step: Step
    inputs: tuple[Path, ...]
    folder: Path
    work: Path
    data_folder: Path
    progress: Progress

    @property
    def target(self) -> Target:
        """The step's target."""
        if self.step.target is None:
            raise UsageError(f"step {self.step.name} has no target")
        return self.step.target

    def folder_of(self, step: str) -> Path:
        """Return the folder of the artefact of a step that this one needs."""
        return self.inputs[self.step.needs.index(step)]

    def splits(self, asked: DataSpec | None = None) -> Splits:
        """Load the recipe's data, or what `asked` asks of it, held out and limited as the recipe says."""
        from armlet import data

        spec = asked or self.plan.recipe.data
        data.ensure(spec.kind, self.data_folder, self.progress)
        return data.prepare(
            data.load(spec.kind, self.data_folder, spec.options()),
            validation=spec.validation,
            limit=spec.limit,
            test_limit=spec.test_limit,
            seed=self.plan.recipe.seed,
            fraction=spec.fraction,
            per_class=spec.per_class,
        )

    def scorer(self, task: Task) -> Scorer:
        """Return what scores answers to the task, with the judge and the untrained network's score where needed."""
        from armlet.metrics import Scorer
        from armlet.models.network import load_network

        if "judge" not in self.step.needs:
            return Scorer(task)
        judge, untrained = load_network(self.folder_of("judge")), None
        if "train" in self.step.needs:
            untrained = artifact_json.load(Trained, self.folder_of("train")).untrained_score
        return Scorer(task, judge, None if untrained is None else untrained.value)
