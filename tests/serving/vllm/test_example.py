"""The example of vLLM, as it is run, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[3] / "examples" / "serve_vllm.py"


def test_answers_rightly_with_few_tokens() -> None:
    command = [sys.executable, str(EXAMPLE), "--budget", "9"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    _, whole, pruned = ran.stdout.splitlines()[-3:]
    assert whole == "all tokens: purple  (106 prompt tokens)"
    assert pruned == "pruned: purple  (15 prompt tokens)"
