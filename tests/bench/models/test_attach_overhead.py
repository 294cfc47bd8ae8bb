from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from bench.models import attach_overhead
from tests.vlm.models_qwen import needs_encoded_images


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs_encoded_images() if name.startswith("Qwen") else ())
        for name in attach_overhead.PAIRS
    ],
)
def test_host_time_of_attaching_is_measured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach_overhead, "ROUNDS", (2, 2))
    found = attach_overhead.measure_overhead(name, 0.0)
    # Whether it is little enough only an idle machine can tell.
    assert list(found) == ["attached", "by hand"] and min(found.values()) > 0


def test_an_attached_model_that_does_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair = attach_overhead.llava(attach_overhead.TINY)
    wrong = attach_overhead.Pair(pair.attached, lambda: pair.by_hand() + 1)
    monkeypatch.setitem(attach_overhead.PAIRS, "wrong", lambda: wrong)
    with pytest.raises(ValueError, match="wrong: attached and by hand give different results"):
        attach_overhead.measure_overhead("wrong", 0.0)


@pytest.mark.parametrize(("added", "status"), [(0.4e-3, 0), (0.6e-3, 1)])
def test_the_status_tells_whether_it_is_too_much(
    added: float, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attach_overhead.torch, "set_num_threads", lambda _: None)
    found = {"attached": 1e-3 + added, "by hand": 1e-3}
    monkeypatch.setattr(attach_overhead, "measure_overhead", lambda *_: found)
    assert attach_overhead.main([]) == status
    said = capsys.readouterr().out
    line = f"attached {1 + added * 1e3:.3f} ms, by hand 1.000 ms, added {added * 1e3:.3f} ms"
    assert said.count(line) == len(attach_overhead.PAIRS)
    assert ("more than the 0.5 ms allowed" in said) == bool(status)
