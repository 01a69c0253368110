"""One function for each stage: unpacks specs and artefacts, calls the room that does the work, returns the artefact.

Nothing heavy is imported before a stage runs: a fully cached run loads neither torch nor tvm.
"""

from __future__ import annotations

from collections.abc import Callable

from armlet.plan import StageName
from armlet.stages.context import StageContext
from armlet.stages.network import (
    export,
    export_stream,
    fetch_data,
    pretrain,
    run_one_pass,
    train,
    train_judge,
    train_teacher,
)
from armlet.stages.program import bundle, check, compile_program, cost_of_program, evaluate_program, measure
from armlet.stages.stream import compile_stream, measure_stream

__all__ = ["STAGE_FUNCTIONS", "StageContext"]

STAGE_FUNCTIONS: dict[StageName, Callable[[StageContext], object]] = {
    "data": fetch_data,
    "judge": train_judge,
    "pretrain": pretrain,
    "train": train,
    "teacher": train_teacher,
    "pass": run_one_pass,
    "export": export,
    "export_stream": export_stream,
    "compile": compile_program,
    "compile_stream": compile_stream,
    "evaluate": evaluate_program,
    "measure": measure,
    "measure_stream": measure_stream,
    "program_cost": cost_of_program,
    "check": check,
    "bundle": bundle,
}
