"""The process that cases run in; `tests.fuzz.driver` starts it, and reads what it tells.

Memory is limited, so that what is refused has to be refused before it is allocated.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import resource
import sys
import time
from dataclasses import asdict
from importlib import import_module
from typing import Any

import torch

from tests.fuzz.driver import Plan

MEMORY = 6 << 30  # bytes of address space beyond those at the start
# Of one process: oneDNN keeps a program for each shape, about a megabyte.
CASES = 1500


def limit_memory() -> None:
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def main(given: dict[str, Any]) -> None:
    start = time.monotonic()
    with os.fdopen(given.pop("pipe"), "w") as pipe:
        plan = Plan(**given)
        suite = import_module(plan.suite)
        torch.set_num_threads(1)
        limit_memory()

        def tell(**told: Any) -> None:
            print(json.dumps(told), file=pipe, flush=True)

        ran = 0
        for number in itertools.count(plan.first):
            late = time.monotonic() - start > plan.seconds
            if late or (plan.last is not None and number > plan.last):
                tell(done=True)
                return
            target = suite.NAMES[number % len(suite.NAMES)]
            if plan.only not in ("", target):
                continue
            if ran == CASES:
                tell(done=False)
                return
            tell(begin=number, target=target)
            faulthandler.dump_traceback_later(plan.timeout, exit=True)
            began = time.monotonic()
            outcome = suite.run_case(plan.seed, number)
            faulthandler.cancel_dump_traceback_later()
            tell(number=number, outcome=asdict(outcome), seconds=time.monotonic() - began)
            ran += 1


if __name__ == "__main__":
    faulthandler.enable()
    main(json.loads(sys.argv[1]))
