"""The fleet in processes: its verdict can fail, and be void."""

from __future__ import annotations

from typing import Any

import pytest
from bench.claims import Verdict
from bench.contract.real import judged

FINE = {"rejected": 0, "of_bound": 0.99, "trips": 2.2}


def cells(name: str = "", **changes: Any) -> dict[str, dict[str, Any]]:
    found = {
        "processes, sliding 10 s": dict(FINE),
        "processes, bucket 1 s": dict(FINE),
        "processes, without J": {"rejected": 2},
        "processes, off": {"rejected": 300},
    }
    if name:
        found[f"processes, {name}"] |= changes
    return found


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("", {}, Verdict.HOLDS),
        ("off", {"rejected": 0}, Verdict.VOID),
        ("without J", {"rejected": 0}, Verdict.VOID),
        ("sliding 10 s", {"rejected": 1}, Verdict.FAILS),
        ("bucket 1 s", {"rejected": 1}, Verdict.FAILS),
        ("bucket 1 s", {"of_bound": 0.96}, Verdict.FAILS),
        ("sliding 10 s", {"trips": 3.1}, Verdict.FAILS),
    ],
)
def test_a_rejection_fails_and_a_control_without_one_is_void(
    name: str, changes: dict[str, Any], verdict: Verdict
) -> None:
    assert judged(cells(name, **changes)).verdict is verdict
