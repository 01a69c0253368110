"""Runs one training job in several worker processes under torchrun, and relays their progress."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from armlet.errors import ArmletError
from armlet.models.network import Network
from armlet.progress import Progress
from armlet.train.job import JOB_FOLDER, RESULT_FOLDER, TrainingJob, TrainingRun, load_result, save_job

_LOG_FILE = "workers.log"
_STOP_SECONDS = 10


def launch(job: TrainingJob, n_processes: int, work: Path, progress: Progress) -> tuple[Network, TrainingRun]:
    """Train the job in `n_processes` processes, each on its share of every batch.

    Raises:
        ArmletError: training failed in a worker; the message is its own, or the last lines of its log.
    """
    save_job(job, work / JOB_FOLDER)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={n_processes}",
    ]
    log_file = work / _LOG_FILE
    with log_file.open("w", encoding="utf-8") as log:
        # A session of its own: an interrupt reaches this process alone, which then stops the workers.
        agent = subprocess.Popen(
            [*command, "-m", "armlet.train.worker", str(work)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            if agent.stdout is not None:
                _relay(agent.stdout, progress)
            status = agent.wait()
        finally:
            _stop(agent)
    if status != 0:
        tail = "\n".join(log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-60:])
        raise ArmletError(
            f"training in {n_processes} processes failed with status {status}; {log_file} ends:\n{tail}"
        )
    return load_result(work / RESULT_FOLDER)


def _relay(lines: IO[str], progress: Progress) -> None:
    """Repeat the calls that the workers wrote, one JSON list a line."""
    for line in lines:
        try:
            call = json.loads(line)
        except ValueError:
            call = line.rstrip()
        match call:
            case ["start", str(what), int() | None as total]:
                progress.start(what, total)
            case ["advance", int(parts), str(note)]:
                progress.advance(parts, note)
            case ["say", str(text)]:
                progress.say(text)
            case ["fail", str(reason)]:
                raise ArmletError(reason)
            case other:
                raise ArmletError(f"a training process wrote {other!r}, which is no progress")


def _stop(agent: subprocess.Popen[str]) -> None:
    """End torchrun, which ends its workers; kill what is left of its session if it doesn't."""
    if agent.poll() is not None:
        return
    agent.terminate()
    try:
        agent.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()
