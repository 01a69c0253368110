"""One of several training processes: `torchrun ... -m armlet.train.worker WORK_FOLDER`.

The main process writes the result, and its progress as JSON lines to standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from armlet.errors import ArmletError
from armlet.progress import Progress, Silent
from armlet.train.job import JOB_FOLDER, RESULT_FOLDER, load_job, save_result
from armlet.train.loop import run_training


class JsonLines:
    """Progress that writes each call as a JSON list on a line of its own."""

    def start(self, what: str, total: int | None = None) -> None:
        """Write the call."""
        self._write("start", what, total)

    def advance(self, parts: int = 1, note: str = "") -> None:
        """Write the call."""
        self._write("advance", parts, note)

    def say(self, line: str) -> None:
        """Write the call."""
        self._write("say", line)

    def fail(self, message: str) -> None:
        """Write why the training failed; any of the processes may be the first to know."""
        self._write("fail", message)

    def _write(self, *call: object) -> None:
        sys.stdout.write(json.dumps(call) + "\n")
        sys.stdout.flush()


def main(work: Path) -> None:
    """Run this process's part of the job in `work`."""
    state = PartialState(cpu=not torch.cuda.is_available())
    lines = JsonLines()
    progress: Progress = lines if state.is_main_process else Silent()
    try:
        network, run = run_training(load_job(work / JOB_FOLDER), work, progress)
    except ArmletError as error:
        lines.fail(str(error))
        sys.exit(error.exit_code)
    if state.is_main_process:
        save_result(network, run, work / RESULT_FOLDER)
    state.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
