"""The fleet in processes: its verdict can fail, and be void."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bench.claims import Verdict
from bench.contract.__main__ import judged_too
from bench.contract.cells import MECHANISMS as ENFORCED
from bench.contract.cells import Cell
from bench.contract.processes import COUNTED, MECHANISMS, POLICY, VENDORS
from bench.contract.real import judged

from headworks.policy.load import load
from headworks.policy.profiles import profile_named

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
    ("name", "changes", "verdict", "status"),
    [
        ("", {}, Verdict.HOLDS, 0),
        ("off", {"rejected": 0}, Verdict.VOID, 2),
        ("without J", {"rejected": 0}, Verdict.VOID, 2),
        ("sliding 10 s", {"rejected": 1}, Verdict.FAILS, 1),
        ("bucket 1 s", {"rejected": 1}, Verdict.FAILS, 1),
        ("bucket 1 s", {"of_bound": 0.96}, Verdict.FAILS, 1),
        ("sliding 10 s", {"trips": 3.1}, Verdict.FAILS, 1),
    ],
)
def test_a_rejection_fails_and_a_control_without_one_is_void(
    name: str, changes: dict[str, Any], verdict: Verdict, status: int
) -> None:
    assert judged(cells(name, **changes)).verdict is verdict
    assert judged_too(cells(name, **changes)) == status


def test_a_run_that_is_void_shows_nothing_whatever_else_it_shows() -> None:
    void = cells("off", rejected=0)
    void["processes, bucket 1 s"]["rejected"] = 1
    assert judged_too(void) == 2


@pytest.mark.parametrize(("policy", "vendors"), [(POLICY, VENDORS), (MECHANISMS, COUNTED)])
def test_whoever_judges_counts_as_the_policy_says(policy: Path, vendors: dict[str, Cell]) -> None:
    known = load(policy).vendors
    assert set(known) == set(vendors)
    for name, cell in vendors.items():
        (rate,), profile = known[name].quota, profile_named(known[name].profile)
        assert rate.amount == (cell.tokens or cell.per_minute)
        assert (profile.mechanism == "bucket") is (cell.mechanism == "bucket")
        if cell.mechanism == "bucket":
            assert profile.capacity_of(rate) == cell.per_minute * cell.window / 60
        else:
            assert profile.window_of(rate) == cell.window
        spare = 0.0 if name == "eager" else max(2 * cell.jitter, 0.1)
        assert known[name].jitter == spare, "half of it is the pods' own"


def test_every_mechanism_is_run_with_processes() -> None:
    counted = {(cell.mechanism, cell.window) for cell in COUNTED.values() if not cell.tokens}
    assert counted == set(ENFORCED.values())
    assert any(cell.tokens for cell in COUNTED.values())
