"""The emulator's own tests, which are C++."""

from __future__ import annotations

from tests.build_cases import ROOT, built_tests, said_by, tools_or_skip


def test_the_emulator_passes_its_own_tests() -> None:
    tree = built_tests("emulator_tests")
    (ctest,) = tools_or_skip("ctest")
    options = ["--test-dir", str(tree), "--output-on-failure", "--no-tests=error"]
    assert "100% tests passed" in said_by([ctest, *options], ROOT)
