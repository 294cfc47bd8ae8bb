"""Processes with a time limit whose output stays in a log, and the check that runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.gpu_check import bundle

OUT_OF_TIME = 124
GRACE_S = 8  # for pytest to print failures after an interrupt


def run(
    command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str] | None = None
) -> int:
    """Runs a command with its output appended to a log; returns its status.

    Shortly before the limit it is interrupted, then killed with its children; the status is then
    `OUT_OF_TIME`, and 127 where there is no such command.
    """
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            file.write(f"{error}\n")
            return 127
        try:
            return process.wait(max(1.0, limit - GRACE_S))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            return OUT_OF_TIME
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@dataclass
class Check:
    """A check and its current stage.

    Attributes:
        device: "cuda" or "cpu".
        short: the short list, for CI on a CPU.
        folder: of results and logs.
        prepared: the bundle's folder, which may be absent.
        commit: recorded in result files; None asks Git.
        limit: seconds of the stage.
        log: of the stage.
    """

    device: str
    short: bool
    folder: Path
    prepared: Path
    commit: str | None = None
    limit: float = 0.0
    log: Path = Path()
    facts: dict[str, Any] = field(default_factory=dict)  # of all stages, for the summary

    @property
    def cuda(self) -> bool:
        """Whether the check needs a GPU."""
        return self.device == "cuda"

    def run(self, *command: str, share: float = 1.0, **environment: str) -> int:
        """Runs a command within a share of the stage's time."""
        given = {"PYTHONUNBUFFERED": "1", **environment}
        if self.cuda:
            # Otherwise tests would pass in the interpreter without a GPU.
            given["TRITON_INTERPRET"] = "0"
            given["TRITON_CACHE_DIR"] = str(self.folder / bundle.INSTALLED_CACHE)
            sites = [str(self.folder / bundle.SITE), os.environ.get("PYTHONPATH", "")]
            given["PYTHONPATH"] = os.pathsep.join(filter(None, sites))
        return run(command, self.log, self.limit * share, given)

    def python(self, *arguments: str, share: float = 1.0, **environment: str) -> int:
        """Runs this Python as `run` does."""
        return self.run(sys.executable, *arguments, share=share, **environment)

    def said(self) -> str:
        """The stage's log."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Outcome(NamedTuple):
    """A stage's exit status, and a note that may be empty."""

    status: int
    note: str = ""
