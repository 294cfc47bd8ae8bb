"""Budgets: recorded numbers that a change may make worse only with a stated reason.

A budget file has groups, such as a GPU architecture: the version of what compiled it, and a row of
numbers by key. Numbers are compared within one version alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ocvtp_kernels.files import atomic_write
from ocvtp_kernels.markdown import markdown_table

FOLDER = Path(__file__).parents[1] / "budgets"
Row = Mapping[str, Any]  # numbers by name, and words beside them


class Slack(NamedTuple):
    """How far a number may go the wrong way.

    Attributes:
        share: relative slack.
        minimum: absolute slack; the larger of the two holds.
        falls: whether a smaller number is worse.
    """

    share: float = 0.0
    minimum: float = 0.0
    falls: bool = False


Slacks = Mapping[str, Slack]


def worse(recorded: Row, now: Row, slacks: Slacks) -> list[str]:
    """``step: 97 before, now 559`` of each number in both that got worse."""
    found = []
    for name, slack in slacks.items():
        if name in recorded and name in now:
            allowed = max(slack.minimum, slack.share * recorded[name])
            further = (recorded[name] - now[name]) if slack.falls else (now[name] - recorded[name])
            if further > allowed:
                found.append(f"{name}: {recorded[name]:g} before, now {now[name]:g}")
    return found


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that one compiler made.

    Attributes:
        version: of the compiler, such as "Triton 3.9.0".
        rows: numbers by key.
        reasons: why a row may be worse than the one recorded before, by key.
    """

    version: str
    rows: dict[str, Row]
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)

    def worsened(self, now: Group, slacks: Slacks) -> dict[str, list[str]]:
        """What got worse, by key."""
        both = [key for key in now.rows if key in self.rows]
        found = {key: worse(self.rows[key], now.rows[key], slacks) for key in both}
        return {key: said for key, said in found.items() if said}

    def table(self) -> str:
        """The rows in Markdown, a column a number."""
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        rows = [[key, *(_cell(row.get(name)) for name in names)] for key, row in self.rows.items()]
        return markdown_table(["", *names], rows)


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else value or ""


Groups = Mapping[str, Group]


@dataclasses.dataclass(frozen=True)
class Budget:
    """The groups of a budget file, by name."""

    groups: dict[str, Group]

    @classmethod
    def read(cls, path: Path) -> Budget:
        """Reads a budget file."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls({name: Group(**group) for name, group in values.items()})

    def write(self, path: Path) -> None:
        """Writes the file atomically, a line for each row."""
        groups = []
        for name, group in self.groups.items():
            parts = [f'  "version": {json.dumps(group.version)}']
            for field, values in (("rows", group.rows), ("reasons", group.reasons)):
                lines = [f"   {json.dumps(k)}: {json.dumps(v)}" for k, v in values.items()]
                parts.append(f'  "{field}": {{\n' + ",\n".join(lines) + "\n  }")
            groups.append(f" {json.dumps(name)}: {{\n" + ",\n".join(parts) + "\n }")
        atomic_write(path, "{\n" + ",\n".join(groups) + "\n}\n")

    def recorded(self, name: str, version: str) -> Group | None:
        """A group, if this version made it."""
        group = self.groups.get(name)
        return group if group is not None and group.version == version else None

    def violations(self, now: Groups, slacks: Slacks) -> list[str]:
        """A sentence for each row that got worse, or that nothing is recorded of."""
        found = []
        for name, group in now.items():
            if old := self.recorded(name, group.version):
                worsened = old.worsened(group, slacks)
                found += [f"{name} {key}: {'; '.join(said)}" for key, said in worsened.items()]
                why = "nothing is recorded; --write-budget records it"
                found += [f"{name} {key}: {why}" for key in group.rows if key not in old.rows]
        return found

    def uncompared(self, now: Groups) -> list[str]:
        """A sentence for each group that another version recorded, or none."""
        return [
            f"{name}: nothing that {group.version} made is recorded, so nothing is compared"
            for name, group in now.items()
            if not self.recorded(name, group.version)
        ]

    def with_groups(self, now: Groups, slacks: Slacks, why: str = "") -> Budget:
        """These groups recorded, in place of those of their names.

        Raises:
            ValueError: a row got worse, within a version, and ``why`` does not say why.
        """
        groups = dict(self.groups)
        for name, group in now.items():
            old = self.recorded(name, group.version) or Group("", {})
            worsened = old.worsened(group, slacks)
            if worsened and not why:
                key, said = next(iter(worsened.items()))
                raise ValueError(
                    f"{name}: {len(worsened)} got worse, such as {key}: {'; '.join(said)}. "
                    "--because says why they may"
                )
            reasons = {key: reason for key, reason in old.reasons.items() if key in group.rows}
            reasons |= dict.fromkeys(worsened, why)
            groups[name] = dataclasses.replace(group, reasons=reasons)
        return Budget(groups)


class Binary(Protocol):
    """What a compile report has a row of."""

    @property
    def arch(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def stack(self) -> int: ...
    @property
    def shared(self) -> int: ...
    @property
    def failure(self) -> str: ...
    def numbers(self) -> Row: ...


def by_arch(binaries: Iterable[Binary], version_of: Callable[[int], str]) -> dict[str, Group]:
    """The binaries that there are, by architecture; ``version_of`` tells an arch's compiler."""
    groups: dict[str, Group] = {}
    for one in binaries:
        if not one.failure:
            group = groups.setdefault(f"sm_{one.arch}", Group(version_of(one.arch), {}))
            group.rows[one.key] = one.numbers()
    return groups


def beyond(binaries: Iterable[Binary], shared_of: Callable[[int], int]) -> list[str]:
    """A sentence for what does not compile, spills, or needs more shared memory than there is."""
    found = []
    for one in binaries:
        name, most = f"sm_{one.arch} {one.key}", shared_of(one.arch)
        if one.failure:
            found.append(f"{name}: does not compile: {one.failure}")
        if one.stack:
            found.append(f"{name}: spills: its stack has {one.stack} bytes")
        if one.shared > most:
            found.append(f"{name}: shared memory is {one.shared} bytes, allowed are {most}")
    return found


def make_parser(
    module: str, description: str | None, archs: Sequence[int]
) -> argparse.ArgumentParser:
    """The options that budgets share: ``--archs``, ``--write-budget`` and ``--because``."""

    def archs_of(text: str) -> list[int]:
        if not set(text.split(",")) <= set(map(str, archs)):
            known = ", ".join(map(str, archs))
            raise argparse.ArgumentTypeError(f"expected some of {known}, got {text!r}")
        return [int(part) for part in text.split(",")]

    def sentence(text: str) -> str:
        if len(text.split()) < 3:
            raise argparse.ArgumentTypeError(f"expected a sentence, got {text!r}")
        return text.strip()

    parser = argparse.ArgumentParser(prog=f"python -m bench {module}", description=description)
    parser.add_argument("--archs", type=archs_of, default=list(archs), help="such as 80,90; all")
    parser.add_argument("--write-budget", action="store_true", help="record these numbers")
    why = "with --write-budget: why what got worse may be, kept beside it"
    parser.add_argument("--because", type=sentence, metavar="SENTENCE", help=why)
    return parser


def settle(
    path: Path,
    now: Groups,
    slacks: Slacks,
    given: argparse.Namespace,
    broken: Callable[[Budget], Iterable[str]],
) -> int:
    """Prints the groups, records them if asked to, and says what breaks the budget.

    Args:
        path: the budget file.
        now: what was found.
        slacks: how far each number may go the wrong way.
        given: the arguments of a `make_parser`.
        broken: sentences for all that breaks the budget.

    Returns:
        The exit status: 1 where something breaks the budget, 2 where nothing could be recorded.
    """
    budget = Budget.read(path)
    for name, group in now.items():
        print(f"## {name}\n\n{group.table()}\n")
    if given.write_budget:
        try:
            budget = budget.with_groups(now, slacks, given.because or "")
        except ValueError as error:
            print(f"--write-budget: nothing is recorded: {error}", file=sys.stderr)
            return 2
        budget.write(path)
    found = list(broken(budget))
    for sentence in (*budget.uncompared(now), *found):
        print(sentence)
    print(f"{sum(len(group.rows) for group in now.values())} rows, {len(found)} violations")
    return 1 if found else 0
