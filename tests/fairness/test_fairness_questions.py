"""Callers' questions, and whose are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.protected import POLICY

from headworks.current import Criticality
from headworks.fairness import limits as module
from headworks.fairness.limits import Limits
from headworks.fairness.routes import Matched
from headworks.identity import Identity
from headworks.policy.load import parse
from headworks.store.protocol import FinalAsk, Question

HELLO = Matched("/chat")


def made() -> Limits:
    return Limits(parse(POLICY, "test", {}).fairness, service="svc")


def somebody(user: str, *, known: bool, tenant: str = "") -> Identity:
    return Identity(user, tenant or user, "free", Criticality.DEFAULT, 1, known)


def stranger(number: int) -> Identity:
    return somebody(f"ip:203.0.113.{number}", known=False)


def test_who_comes_under_ever_new_addresses_pushes_out_nobody_who_is_known() -> None:
    limits, known = made(), somebody("key:1", known=True)
    asked = limits.asks(known, HELLO)
    for number in range(module.ASKED + module.STRANGERS):
        limits.asks(stranger(number), HELLO)
        assert len(limits._strangers) <= module.STRANGERS
    assert limits.asks(known, HELLO) is asked


def test_known_callers_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 3)
    limits = made()
    for number in range(10):
        asked = limits.asks(somebody(f"key:{number}", known=True), HELLO)
        assert limits.asks(somebody(f"key:{number}", known=True), HELLO) is asked
        assert len(limits._asked) <= 3


def test_a_flood_from_one_unknown_address_is_asked_the_same_again() -> None:
    """The very same, which is how the memory of refusals knows it at once; made anew once in as many
    others as are kept."""
    limits = made()
    asked, anew = limits.asks(stranger(1), HELLO), 0
    for number in range(2, 502):
        limits.asks(stranger(number), HELLO)
        again = limits.asks(replace(stranger(1)), HELLO)
        anew += again.asks is not asked.asks
        asked = again
    assert anew <= 500 / (module.STRANGERS - 2)


@given(st.booleans(), st.sampled_from(["/chat", "/together", "/elsewhere"]), st.integers(0, 3))
def test_a_question_so_made_is_one_that_could_be_asked(shared: bool, path: str, cost: int) -> None:
    """It is as its own constructor, which checks that no key is there twice, would make it."""
    caller = somebody("key:1", known=True, tenant="org:1" if shared else "")
    question = made().asks(caller, Matched(path, cost=cost)).question
    assert type(question) is Question
    assert question == Question(question.asks)
    assert {type(ask) for ask in question.asks} == {FinalAsk}
