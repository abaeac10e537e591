"""The proof as a whole: a claim that breaks fails alone, and the fleet's cells cover what is claimed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench.claims import Claim, Control, Figure, Verdict
from bench.contract.cells import MECHANISMS, OTHERS, Cell, cells
from bench.contract.fleet import run
from bench.stage import Missing, Stage

from bench import offline, prove


async def holding(stage: Stage) -> Claim:
    return Claim("holding", "", (Figure("yes", 1, "==", 1, Control("without", 0)),))


async def breaking(stage: Stage) -> Claim:
    raise Missing("the stack did not start")


async def test_a_claim_that_breaks_fails_and_the_next_is_still_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prove, "CLAIMS", {"breaking": breaking, "holding": holding})
    said: list[str] = []
    stage = Stage(seed=1, quick=True, say=said.append)
    claims = await prove.prove(["breaking", "holding"], stage)
    assert [claim.verdict for claim in claims] == [Verdict.FAILS, Verdict.HOLDS]
    assert claims[0].error == "Missing: the stack did not start"
    assert said[1].startswith("breaking: fails")


def test_every_broken_policy_has_a_place_that_must_be_named() -> None:
    assert {path.stem for path in offline.BROKEN.glob("*.toml")} == set(offline.MISTAKES)


@pytest.mark.parametrize("quick", [True, False])
def test_every_mechanism_has_cells_and_a_control(quick: bool) -> None:
    names = [cell.name for cell in cells(quick=quick)]
    assert len(names) == len(set(names))
    for mechanism in (*MECHANISMS, "tokens"):
        assert any(name.startswith(mechanism) and name.endswith("ms") for name in names)
        assert f"{mechanism}, off" in names
    for other in OTHERS:
        assert any(name.endswith(other) for name in names)


def test_a_cell_without_its_limiter_is_rejected_and_with_it_is_not() -> None:
    """One small run each way: the judge of the fleet does say no."""
    minute = Cell("narrow", "sliding", window=10.0, overload=1.5, seconds=60.0)
    assert run(minute, 1).rejected == 0
    assert run(replace(minute, limiter="off"), 1).rejected > 0
