from __future__ import annotations

import re

from tests.build_cases import ROOT


def test_the_tasks_that_the_page_names_are_there() -> None:
    from lmms_eval.tasks import TaskManager

    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    table = page.partition("## The paper's benchmarks")[2].partition("\n## ")[0]
    named = re.findall(r"^\| [^|]+ \| `(\w+)` \|", table, re.M)
    assert len(named) == 8
    known = TaskManager(include_path=str(ROOT / "bench" / "retention" / "lmms_eval")).all_subtasks
    assert {*named, "mmbench_en_dev_static", "ocvtp_scenes"} <= {*known}
    assert {name for name in known if name.startswith("ocvtp")} == {"ocvtp_scenes"}
