"""The typed, immutable artefacts that flow down the pipeline.

Each artefact is one frozen dataclass with the numbers that a later stage or a report needs; its files, if it has any,
lie in the folder of its `artifact.json` (see `armlet.artifact_json`). No torch and no tvm here.
"""

from __future__ import annotations

from armlet.artifacts.ablation import Ablation, Variant
from armlet.artifacts.network import (
    Compressed,
    Cost,
    DataReady,
    Epoch,
    InputSpec,
    PassRecord,
    Pretrained,
    Score,
    Task,
    TaskKind,
    TensorInfo,
    Trained,
)
from armlet.artifacts.program import (
    Compiled,
    Exported,
    Fallback,
    Kernel,
    KernelVariant,
    LitertTwin,
    PackedProgram,
    StreamExported,
)
from armlet.artifacts.sensitivity import Analysis, GroupCurve, LayerError
from armlet.artifacts.verdict import (
    ChangedClass,
    ChangedInput,
    Changes,
    Check,
    Counts,
    Evaluated,
    KernelCount,
    Latency,
    Match,
    Measured,
    Outcome,
    ProgramCost,
    StreamFacts,
    StreamMeasured,
    Verdict,
)

__all__ = [
    "Ablation",
    "Analysis",
    "ChangedClass",
    "ChangedInput",
    "Changes",
    "Check",
    "Compiled",
    "Compressed",
    "Cost",
    "Counts",
    "DataReady",
    "Epoch",
    "Evaluated",
    "Exported",
    "Fallback",
    "GroupCurve",
    "InputSpec",
    "Kernel",
    "KernelCount",
    "KernelVariant",
    "Latency",
    "LayerError",
    "LitertTwin",
    "Match",
    "Measured",
    "Outcome",
    "PackedProgram",
    "PassRecord",
    "Pretrained",
    "ProgramCost",
    "Score",
    "StreamExported",
    "StreamFacts",
    "StreamMeasured",
    "Task",
    "TaskKind",
    "TensorInfo",
    "Trained",
    "Variant",
    "Verdict",
]
