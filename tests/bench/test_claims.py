"""A claim holds only if every figure is there and kept, and its controls fail."""

from __future__ import annotations

import pytest
from bench.claims import Claim, Control, Figure, Verdict, all_hold, number, table

BITES = Control("limiter off", 12)


def claim(*figures: Figure, error: str = "") -> Claim:
    return Claim("name", "what is claimed", figures, error=error)


def rejected(value: float | None, control: Control | None = BITES) -> Figure:
    return Figure("calls rejected", value, "==", 0, control)


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (rejected(0), Verdict.HOLDS),
        (rejected(1), Verdict.FAILS),
        (rejected(None), Verdict.FAILS),
        (rejected(0, Control("limiter off", 0)), Verdict.VOID),
        (rejected(0, Control("limiter off", None)), Verdict.VOID),
        (rejected(0, None), Verdict.VOID),
        (rejected(1, Control("limiter off", 0)), Verdict.FAILS),
        (Figure("share", 0.99, ">=", 0.99, Control("divided", 0.5)), Verdict.HOLDS),
        (Figure("share", 0.98, ">=", 0.99, Control("divided", 0.5)), Verdict.FAILS),
        (Figure("share", 0.99, ">=", 0.99, Control("divided", 0.99)), Verdict.VOID),
        (Figure("trips", 5, "<=", 5, Control("polling", 100)), Verdict.HOLDS),
        (Figure("trips", 5.1, "<=", 5, Control("polling", 100)), Verdict.FAILS),
    ],
)
def test_one_figure_and_its_control_decide_the_verdict(figure: Figure, verdict: Verdict) -> None:
    assert claim(figure).verdict is verdict


def test_a_figure_without_a_control_is_carried_by_another_that_has_one() -> None:
    assert claim(rejected(0), rejected(0, None)).verdict is Verdict.HOLDS
    assert claim(rejected(0), rejected(1, None)).verdict is Verdict.FAILS


def test_one_control_that_does_not_fail_voids_the_claim() -> None:
    assert claim(rejected(0), rejected(0, Control("limiter off", 0))).verdict is Verdict.VOID


def test_nothing_measured_and_measuring_that_broke_are_failures() -> None:
    assert claim().verdict is Verdict.FAILS
    assert claim(rejected(0), error="Missing: the stack did not start").verdict is Verdict.FAILS


def test_a_proof_holds_only_if_every_claim_does_and_there_is_one() -> None:
    holds, void = claim(rejected(0)), claim(rejected(0, None))
    assert all_hold([holds, holds])
    assert not all_hold([holds, void])
    assert not all_hold([])


def test_what_is_written_down_names_value_bound_control_and_verdict() -> None:
    written = claim(rejected(0)).as_json()
    assert written["verdict"] == "holds"
    assert written["figures"] == [
        {
            "figure": "calls rejected",
            "value": 0,
            "must be": "==",
            "bound": 0,
            "kept": True,
            "control": {"about": "limiter off", "value": 12, "fails": True},
        }
    ]


def test_the_table_has_a_row_for_every_figure_and_one_for_an_error() -> None:
    shown = table([claim(rejected(0), rejected(None)), claim(error="Missing: no stack")])
    assert shown.row_count == 3


def test_numbers_are_as_short_as_they_can_be() -> None:
    assert [number(value) for value in (None, 0, 429.0, True, 0.99215)] == [
        "–",
        "0",
        "429",
        "1",
        "0.9921",
    ]
