"""Every layer bites: switched off, the end-to-end scenario that it exists for fails.

A layer whose absence nobody notices does not belong here. Each row takes one layer out of a running
service and names the scenario that must then fail its assertions; the same scenario passes with the
layer on, in `test_end_to_end.py`. The gateway's rows run the real nginx, in
`tests/gateway/test_gateway_bites.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests import scenarios

from headworks.admission import AdmissionGate, Pressure
from headworks.admission.answer import Answer
from headworks.admission.slots import Slot, Slots
from headworks.admission.waiting import Waiting
from headworks.caller import Presence
from headworks.current import Criticality, Current
from headworks.fairness import ahead as fairness_ahead
from headworks.fairness import gate as fairness_gate
from headworks.fairness.gate import Fairness
from headworks.fairness.limits import Asked
from headworks.health import Probes
from headworks.health.readiness import Health
from headworks.identity import Identifier
from headworks.limits import breaker
from headworks.limits.line import Ahead, Line, Waiter
from headworks.store.protocol import Question
from headworks.vendor import slots as vendor_slots
from headworks.vendor import waiting as vendor_waiting
from headworks.vendor.gate import GateCache
from headworks.vendor.outlook import Place
from headworks.vendor.quota import Quota
from headworks.vendor.retry import Retry
from headworks.vendor.smoother import Smoother

Patch = pytest.MonkeyPatch
Scenario = Callable[[], Awaitable[None]]


def no_readiness(patch: Patch) -> None:
    """Layer 2 always says yes."""
    patch.setattr(Health, "report", lambda self: (True, {"reasons": []}))


def open_to_all(patch: Patch) -> None:
    """Everybody counts as inside."""
    patch.setattr(Probes, "_inside", lambda self, scope: True)


def no_admission(patch: Patch) -> None:
    """Layer 3 takes everybody."""
    patch.setattr(Slots, "claim", lambda self, current, now: self.claim_anyway(now))
    patch.setattr(Slot, "release", lambda self: None)


def no_shedding(patch: Patch) -> None:
    """Layer 3 treats every class alike."""
    claim = Slots.claim
    patch.setattr(
        Slots,
        "claim",
        lambda self, current, now: claim(self, replace(current, criticality=Criticality.CRITICAL), now),
    )


def no_line(patch: Patch) -> None:
    """Layer 3 has no line: who finds no place is refused."""

    def join(self: Waiting, current: Any, holding: float, now: float, in_vain: Any) -> Any:
        raise in_vain()

    patch.setattr(Waiting, "join", join)


def no_foresight(patch: Patch) -> None:
    """Layer 3 lets everybody into its line, however long."""
    patch.setattr(Waiting, "estimate", lambda self, *args: 0.0)


def no_pressure(patch: Patch) -> None:
    """Layer 3 looks at neither lag nor memory."""
    patch.setattr(Pressure, "sample", lambda self, lag: None)


def no_deadline(patch: Patch) -> None:
    """A request has no budget."""
    standing = AdmissionGate._standing
    patch.setattr(
        AdmissionGate,
        "_standing",
        lambda self, scope, arrived, budget: standing(self, scope, arrived, math.inf),
    )

    @contextlib.asynccontextmanager
    async def unbounded(deadline: float) -> Any:
        async with asyncio.timeout(None) as budget:
            yield budget

    patch.setattr(asyncio, "timeout_at", unbounded)


def no_last_words(patch: Patch) -> None:
    """A stream whose time is up is cut off."""

    async def cut(self: Answer, refused: Any) -> None:
        pass

    patch.setattr(Answer, "conclude", cut)


def nobody_listens(patch: Patch) -> None:
    """Nobody notices that a caller has left."""
    patch.setattr(Presence, "watch", lambda self, wait: None)


def no_limits(patch: Patch) -> None:
    """Layer 4 asks nothing."""

    async def admit(self: Fairness, *args: Any) -> None:
        await self._identifier.resolve(args[0])

    patch.setattr(Fairness, "admit", admit)
    patch.setattr(fairness_ahead.Ahead, "look", lambda self, scope: None)


def limits_one_by_one(patch: Patch) -> None:
    """Layer 4 asks one limit after the other, as everybody else does."""
    ask = Fairness._ask

    async def each(self: Fairness, ticket: Any, asked: Asked, criticality: Any) -> Any:
        for one in asked.asks:
            alone = Asked((one,), question=Question((one,)), kept=asked.kept)
            if refused := await ask(self, ticket, alone, criticality):
                return refused
        return None

    patch.setattr(Fairness, "_ask", each)
    patch.setattr(fairness_ahead.Ahead, "look", lambda self, scope: None)


def no_memory_of_refusals(patch: Patch) -> None:
    """Layer 4 refuses inside only, whatever it knows."""
    patch.setattr(fairness_ahead.Ahead, "known", lambda self, given: None)


def identity_believed(patch: Patch) -> None:
    """Any key that is sent counts as somebody."""
    tell, resolve = Identifier.tell, Identifier.resolve

    async def believing(self: Identifier, scope: Any, callers: Any = None) -> Any:
        found = await resolve(self, scope, callers)
        key = dict(scope["headers"]).get(b"x-api-key", b"").decode()
        return found if found.known else type(found)(**{**_fields(found), "user": key, "tenant": key})

    patch.setattr(Identifier, "tell", lambda self, scope: (tell(self, scope)[0], False))
    patch.setattr(Identifier, "resolve", believing)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def no_translation(patch: Patch) -> None:
    """Nobody recognises a refusal inside an SDK's exception."""
    patch.setattr(fairness_gate, "refused_behind", lambda error: None)


def no_limiter(patch: Patch) -> None:
    """Layer 5 asks no quota before it sends."""
    patch.setattr(Quota, "asks", lambda self, cost: ())


def first_come_first_served(patch: Patch) -> None:
    """The line knows neither tenants nor classes."""
    join = Line.join

    def alike(self: Line[Any], waiter: Waiter[Any]) -> None:
        waiter.tenant, waiter.criticality, waiter.weight = "", Criticality.DEFAULT, 1
        join(self, waiter)

    patch.setattr(Line, "join", alike)
    patch.setattr(Line, "ahead", lambda self, *who, **cost: Ahead(len(self), 0))
    enter = vendor_waiting.Waiting.enter  # nor does what is foreseen of it

    def as_anybody(self: vendor_waiting.Waiting, cost: dict[str, int], who: Current) -> Waiter[Place]:
        return enter(self, cost, Current(deadline=who.deadline))

    patch.setattr(vendor_waiting.Waiting, "enter", as_anybody)


def no_slots(patch: Patch) -> None:
    """As many calls at once as anybody likes."""
    patch.setattr(vendor_slots.Slots, "free", property(lambda self: 1_000))


def no_breaker(patch: Patch) -> None:
    """Nobody remembers that the vendor failed."""
    patch.setattr(breaker, "record", lambda state, *args: state)
    patch.setattr(GateCache, "wait", lambda self, now: 0.0)


def no_call_timeout(patch: Patch) -> None:
    """A call may take for ever."""
    patch.setitem(scenarios.VENDOR, "call_timeout", "3000s")
    patch.setitem(scenarios.VENDOR, "timeouts", {**scenarios.VENDOR["timeouts"], "read": "3000s"})


def no_retry(patch: Patch) -> None:
    """One attempt, whatever happens."""
    patch.setattr(Retry, "delay", lambda self, *args: None)


def no_smoother(patch: Patch) -> None:
    """Bookings are asked for as fast as they come."""
    patch.setattr(Smoother, "wait", lambda self, now: 0.0)


@dataclass(frozen=True)
class Row:
    """A layer, how it is taken out, and the scenario that must notice."""

    layer: str
    off: Callable[[Patch], None]
    scenario: Scenario


ROWS = [
    Row("2 health", no_readiness, scenarios.a_pod_that_is_leaving_says_so_and_still_serves),
    Row("2 health, closed", open_to_all, scenarios.strangers_learn_nothing_from_the_probes),
    Row("3 admission", no_admission, scenarios.a_burst_never_exceeds_what_the_pod_may_hold),
    Row("3 shedding", no_shedding, scenarios.the_less_critical_are_shed_first),
    Row("3 line", no_line, scenarios.who_matters_most_gets_the_next_place),
    Row("3 line, estimate", no_foresight, scenarios.who_matters_most_gets_the_next_place),
    Row("3 line, classes", first_come_first_served, scenarios.who_matters_most_gets_the_next_place),
    Row("3 pressure", no_pressure, scenarios.a_pod_short_of_memory_takes_only_the_critical),
    Row("3 deadline", no_deadline, scenarios.a_handler_that_hangs_is_answered_when_the_sla_is_spent),
    Row("3 last words", no_last_words, scenarios.a_stream_that_outlasts_its_deadline_says_so_at_its_end),
    Row("5 caller", nobody_listens, scenarios.a_caller_who_left_costs_the_vendor_nothing_more),
    Row("4 limits", no_limits, scenarios.the_eleventh_is_refused_and_the_next_user_served),
    Row(
        "4 one question",
        limits_one_by_one,
        scenarios.a_refusal_by_the_endpoint_burns_nothing_of_the_user,
    ),
    Row("4 known refusals", no_memory_of_refusals, scenarios.a_flooder_is_told_so_by_a_full_pod),
    Row("4 identity", identity_believed, scenarios.invented_keys_gain_nothing),
    Row("4 translator", no_translation, scenarios.an_sdks_refusal_becomes_the_right_answer),
    Row("5 limiter", no_limiter, scenarios.the_vendors_quota_is_used_up_and_never_exceeded),
    Row("5 line, tenants", first_come_first_served, scenarios.a_flooder_in_the_line_starves_nobody),
    Row("5 line, classes", first_come_first_served, scenarios.the_critical_overtake_in_the_line),
    Row("5 slots", no_slots, scenarios.no_more_calls_are_out_than_the_pod_has_slots),
    Row("5 breaker", no_breaker, scenarios.a_failing_vendor_is_left_alone),
    Row("5 call timeout", no_call_timeout, scenarios.a_vendor_that_hangs_is_given_up),
    Row("5 retry", no_retry, scenarios.a_passing_failure_is_not_seen_by_the_caller),
    Row("5 smoother", no_smoother, scenarios.a_smoothed_pod_never_bursts),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.layer)
async def test_without_the_layer_its_scenario_fails(row: Row, monkeypatch: Patch) -> None:
    """An assertion of the scenario fails; an error of the harness would not count."""
    row.off(monkeypatch)
    with pytest.raises(AssertionError):
        await row.scenario()


def test_every_scenario_is_somebodys_bite() -> None:
    """No promise stands without a layer whose absence breaks it."""
    assert {row.scenario for row in ROWS} == set(scenarios.SCENARIOS)
