from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench.gpu_check import running
from bench.gpu_check.running import OUT_OF_TIME, run


def python(log: Path, code: str, limit: float = 60.0) -> int:
    return run([sys.executable, "-u", "-c", code], log, limit)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "a.log"


def test_status_and_output(log: Path) -> None:
    assert python(log, "print('said'); raise SystemExit(7)") == 7
    assert python(log, "print('again')") == 0
    lines = log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("$")] == ["said", "again"]


def test_a_command_that_is_not_there(log: Path) -> None:
    assert run(["/nothing/here"], log, 10.0) == 127
    assert "nothing/here" in log.read_text()


SAYS = """
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    print('so far: 3')
"""
STAYS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(60)"
print(subprocess.Popen([sys.executable, "-c", child]).pid)
time.sleep(60)
"""


def test_who_takes_too_long_may_say_what_it_has(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE_S", 5)
    start = time.monotonic()
    assert python(log, SAYS, limit=7.0) == OUT_OF_TIME
    assert "so far: 3" in log.read_text() and time.monotonic() - start < 20


def test_who_does_not_stop_is_killed_with_its_children(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "GRACE_S", 1)
    assert python(log, STAYS, limit=3.0) == OUT_OF_TIME
    state = Path(f"/proc/{log.read_text().splitlines()[-1]}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.1)
