"""Cases of a known end, for the test of the driver."""

from __future__ import annotations

import os
import signal
import time

import torch

from tests.fuzz.driver import Outcome

NAMES = ("fine", "crash", "hang", "wrong", "large")


def run_case(seed: int, number: int) -> Outcome:
    name = NAMES[number % len(NAMES)]
    if name == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "hang":
        time.sleep(3600)
    if name == "large":
        torch.empty(1 << 40)
    return Outcome(name, True, "is wrong" if name == "wrong" else "")
