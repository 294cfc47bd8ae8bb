"""Processes with a limit, that leave what they have said when it is over, and whose they are."""

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
GRACE_S = 8  # to say what failed so far, as pytest does when it is interrupted


def run(
    command: Sequence[str], log: Path, limit: float, environment: Mapping[str, str] | None = None
) -> int:
    """Runs a command with its output behind a log's end; returns its status.

    It is interrupted in time to tell what it has, then killed with all that it began; the status
    is then `OUT_OF_TIME`, and 127 where there is no such command.
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
    """A check, and the stage that it is at.

    Attributes:
        device: "cuda" or "cpu".
        short: what CI takes of a CPU.
        folder: results and logs, while they are made.
        prepared: the bundle's folder, which need not be there.
        commit: what result files say was run; None asks Git.
        limit: seconds that the stage has.
        log: the stage's.
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
        """Whether there has to be a GPU."""
        return self.device == "cuda"

    def run(self, *command: str, share: float = 1.0, **environment: str) -> int:
        """Runs a command within a share of the stage's time."""
        given = {"PYTHONUNBUFFERED": "1", **environment}
        if self.cuda:
            # Else tests that find no GPU would pass in the interpreter.
            given["TRITON_INTERPRET"] = "0"
            given["TRITON_CACHE_DIR"] = str(bundle.cache_of(self.folder))
            sites = [str(bundle.site_of(self.folder)), os.environ.get("PYTHONPATH", "")]
            given["PYTHONPATH"] = os.pathsep.join(filter(None, sites))
        return run(command, self.log, self.limit * share, given)

    def python(self, *arguments: str, share: float = 1.0, **environment: str) -> int:
        """As `run`, of this Python."""
        return self.run(sys.executable, *arguments, share=share, **environment)

    def said(self) -> str:
        """The stage's log."""
        return self.log.read_text(encoding="utf-8", errors="replace")


class Outcome(NamedTuple):
    """A stage's exit status, and a sentence where there is something to say."""

    status: int
    note: str = ""
