"""Random calls of every op, selector and method of the pruner, valid ones and others:

    python -m tests.fuzz --seconds 3600 --seed 0

Each finding comes with the command that runs it again. Exits 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.fuzz.driver import Plan, fuzz


def names() -> Sequence[str]:
    """Of what there is, which takes seconds to import."""
    from tests.fuzz.cases import NAMES

    return NAMES


def plan_of(arguments: list[str]) -> Plan:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long")
    parser.add_argument("--seed", type=int, default=0, help="of all cases")
    parser.add_argument("--cases", type=int, help="how many numbers of cases at most")
    parser.add_argument("--case", type=int, help="this one alone")
    parser.add_argument("--only", default="", choices=["", *names()], metavar="NAME")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds of a case that hangs")
    given = parser.parse_args(arguments)
    first = given.case or 0
    last = first if given.case is not None else None if given.cases is None else given.cases - 1
    return Plan(given.seed, first, last, given.seconds, given.only, given.timeout)


def main(arguments: list[str]) -> int:
    report = fuzz(plan_of(arguments))
    print(f"\n{report}")
    return 0 if report.clean and report.tallies else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
