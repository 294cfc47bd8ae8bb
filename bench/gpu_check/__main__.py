"""``bench/gpu_check.sh [--device cuda|cpu] [--short] [--only smoke,prune,...]``: see docs/gpu.md.

Builds, tests, sanitizes and measures in order of importance, each stage within its time limit. The
results are packed into the output folder after every stage: at most eight files. A stage that fails
is recorded and the rest runs, unless no backend computes `prune` correctly. Status 1: a stage
failed; 3: `prune` is wrong on every backend.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import checkout
from bench.checkout import ROOT
from bench.gpu_check import bundle
from bench.gpu_check.running import OUT_OF_TIME, Check, Outcome
from bench.gpu_check.stages import NONE_RIGHT, STAGES

# Whose result files come back.
SUITES = ("prune", "compile", "ops", "e2e", "selectors")
TOTAL_S = 780  # of fifteen minutes, less the start of a machine
MIN_S = 10  # with less time left a stage does not start


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    given = _parse(arguments)
    # Imports torch, which bad arguments need not wait for.
    from bench.gpu_check.screen import screen

    chosen = given.only or list(STAGES)
    folder = given.work or ROOT / "build" / "gpu_check" / given.device
    if not given.only:
        shutil.rmtree(folder / "logs", ignore_errors=True)
        for name in (*SUITES, "summary"):
            (folder / f"{name}.json").unlink(missing_ok=True)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    commit = given.commit or checkout.commit()
    prepared = ROOT / bundle.FOLDER
    check = Check(given.device, given.short, folder, prepared, given.commit)
    summary = _earlier(folder, given.device, commit)
    check.facts = summary["facts"]
    output = given.output or _default_output(given.device)
    output.mkdir(parents=True, exist_ok=True)
    if check.cuda and prepared.is_dir():
        print(bundle.install(prepared, folder), flush=True)
    deadline = time.monotonic() + given.total
    status = 0
    for name in chosen:
        record = _run(name, check, deadline)
        stages = [one for one in summary["stages"] if one["stage"] != name]
        summary["stages"] = sorted(
            [*stages, record], key=lambda one: list(STAGES).index(one["stage"])
        )
        lines = screen(summary, folder)
        _pack(summary, lines, folder, output)
        status = status or int(record["status"] != 0)
        if name == "smoke" and record["status"] == NONE_RIGHT:
            status = NONE_RIGHT
            break
    print("\n" + "\n".join(lines), flush=True)
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/gpu_check.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--short", action="store_true", help="on a CPU, the least")
    parser.add_argument("--only", type=_stages_of, help=f"some of {','.join(STAGES)}")
    parser.add_argument("--total", type=float, default=TOTAL_S, help="seconds for all stages")
    parser.add_argument("--commit", help="what is run, where there is no Git to ask")
    parser.add_argument("--work", type=Path, help="folder that stages work in; else in build/")
    parser.add_argument(
        "--output",
        type=Path,
        default=os.environ.get("OUT") and Path(os.environ["OUT"]),
        help="folder of the results; $OUT or bench/results/<device> if not given",
    )
    given = parser.parse_args(arguments)
    interpreting = os.environ.get("TRITON_INTERPRET", "").lower() not in ("", "0", "false", "off")
    if given.device == "cuda" and interpreting:
        parser.error(
            "Triton is in its interpreter, so no kernel runs on a GPU: unset TRITON_INTERPRET"
        )
    return given


def _stages_of(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(STAGES):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(STAGES)}, got {text!r}")
    return [name for name in STAGES if name in names]


def _run(name: str, check: Check, deadline: float) -> dict[str, Any]:
    stage = STAGES[name]
    check.log = check.folder / "logs" / f"{name}.log"
    check.log.unlink(missing_ok=True)
    check.log.touch()
    start = time.monotonic()
    check.limit = min(stage.max_s, deadline - start)
    before = bundle.count(check.folder)
    if check.limit < MIN_S:
        outcome = Outcome(OUT_OF_TIME, "not begun: too little time is left")
    else:
        print(f"== {name} (at most {check.limit:.0f} s)", flush=True)
        outcome = stage.run(check)
    seconds = time.monotonic() - start
    if outcome.status:
        print(*check.said().splitlines()[-12:], sep="\n", flush=True)
    print(f"   {name}: {outcome.status or 'ok'}, {seconds:.0f} s; {outcome.note}", flush=True)
    return {
        "stage": name,
        "status": outcome.status,
        "seconds": round(seconds, 1),
        "compiled": bundle.count(check.folder) - before if check.cuda else None,
        "note": outcome.note,
    }


def _earlier(folder: Path, device: str, commit: str) -> dict[str, Any]:
    """The summary of earlier stages of the same commit, or an empty one."""
    try:
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
        if summary["commit"] == commit:
            return summary
    except (OSError, ValueError, KeyError):
        pass
    return {"device": device, "commit": commit, "stages": [], "facts": {}}


def _pack(summary: dict[str, Any], lines: Sequence[str], folder: Path, output: Path) -> None:
    """Writes the eight files."""
    from ocvtp_kernels.files import atomic_write

    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    (folder / "screen.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with tarfile.open(folder / "logs.tgz", "w:gz") as archive:
        for path in (*(folder / "logs").iterdir(), *folder.glob("*.xml"), *folder.glob("*.csv")):
            archive.add(path, path.name)
    for name in ("summary.json", "screen.txt", "logs.tgz", *(f"{suite}.json" for suite in SUITES)):
        if (folder / name).exists():
            atomic_write(output / name, (folder / name).read_bytes())


def _default_output(device: str) -> Path:
    code = (
        "import torch; from bench.machine import default_folder as f; print(f(torch.device({!r})))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code.format(device)], cwd=ROOT, capture_output=True, text=True
    )
    found = said.stdout.strip()
    return Path(found) if found else ROOT / "bench" / "results" / f"unknown-{device}"


if __name__ == "__main__":
    sys.exit(main())
