"""When a pod asks for traffic: pressure, permits, holds, and what `/ready` says."""

from __future__ import annotations

import asyncio
import random

import pytest

from headworks.health import Health
from headworks.health.errors import WINDOW, ErrorRate
from headworks.health.readiness import LOOKS
from headworks.policy.settings import HealthSettings
from headworks.telemetry import Changed, Served, Telemetry
from headworks.testing.recording import RecordingSink


class Permit:
    """A permit that is to be had or not."""

    def __init__(self, available: bool = True) -> None:
        self.available, self.held, self.given_back = available, 0, 0

    async def hold(self) -> bool:
        self.held += 1
        return self.available

    async def give_back(self) -> None:
        self.given_back += 1


class Pod:
    """A pod's readiness with its inputs at hand."""

    def __init__(self, permit: Permit | None = None) -> None:
        self.full_for, self.permit, self.sink = 0.0, permit, RecordingSink()
        self.health = Health(
            HealthSettings(saturated_for=10.0, error_rate_high=0.5, min_samples=20),
            full_for=lambda: self.full_for,
            permit=permit,
            facts=lambda: {"pod": "pod-1"},
            telemetry=Telemetry(self.sink),
            rng=random.Random(1),
        )

    async def looks(self, count: int = LOOKS) -> None:
        """So many looks, one after the other."""
        for _ in range(count):
            await self.health.step()

    def serve(self, count: int, status: int) -> None:
        for _ in range(count):
            self.health.record(Served("/x", "GET", status, 0.1))

    def reasons(self) -> list[str]:
        reasons: list[str] = self.health.report()[1]["reasons"]
        return reasons


async def test_starting_serving_draining() -> None:
    """Only the middle one is ready; draining does not end."""
    pod = Pod()
    assert (pod.health.ready, pod.reasons()) == (False, ["starting"])
    pod.health.serve()
    assert (pod.health.ready, pod.reasons()) == (True, [])
    pod.health.drain()
    pod.health.serve()
    assert (pod.health.ready, pod.reasons()) == (False, ["draining"])
    assert [event.state for event in pod.sink.of(Changed)] == ["serving", "draining"]


@pytest.mark.parametrize("permit", [None, Permit(available=False)])
async def test_a_full_pod_without_a_permit_stays(permit: Permit | None) -> None:
    """The cascade guard: no permit, or nobody to ask: stay, and say what presses."""
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 100.0
    await pod.looks()
    assert pod.health.report() == (
        True,
        {"ready": True, "reasons": [], "pressure": "saturated", "pod": "pod-1"},
    )


async def test_a_pod_full_for_long_leaves_with_a_permit_and_returns_when_it_has_eased() -> None:
    """Not before `saturated_for`; not back before the minimum hold; the permit is given back."""
    permit = Permit()
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 9.9
    await pod.looks()
    assert (pod.health.ready, permit.held) == (True, 0)
    pod.full_for = 10.0
    await pod.looks(LOOKS - 1)
    assert pod.health.ready, "others have time to say that they are full, too"
    await pod.looks(1)
    assert pod.reasons() == ["saturated"]
    pod.full_for = 0.0
    await pod.looks(1)
    assert not pod.health.ready, "the minimum hold"
    assert permit.held == LOOKS + 1, "the permit is kept alive meanwhile"
    await asyncio.sleep(8)
    await pod.health.step()
    assert pod.health.ready
    assert permit.given_back == 1


async def test_a_pod_whose_permit_is_lost_returns() -> None:
    """The store went away: better half a pod than too few."""
    permit = Permit()
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 10.0
    await pod.looks()
    assert not pod.health.ready
    permit.available = False
    await pod.looks(1)
    assert pod.health.ready
    permit.available = True
    await pod.looks(LOOKS - 1)
    assert pod.health.ready, "it counts from the start"


async def test_a_pod_whose_permit_cannot_be_asked_for_returns() -> None:
    """An error is no permit, also for a pod that is away already."""

    class Failing(Permit):
        async def hold(self) -> bool:
            if not self.available:
                raise OSError("store")
            return await super().hold()

    permit = Failing()
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 10.0
    await pod.looks()
    assert not pod.health.ready
    permit.available = False
    await pod.looks(1)
    assert pod.health.ready


async def test_the_place_is_given_back_when_the_pressure_goes_though_the_pod_never_left() -> None:
    """Places are few; who does not need one any more must not keep it."""
    permit = Permit(available=False)
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 10.0
    await pod.looks(2)
    assert (permit.held, permit.given_back) == (2, 0)
    pod.full_for = 0.0
    await pod.looks(2)
    assert permit.given_back == 1


async def test_a_draining_pod_needs_no_permit_and_gives_back_the_one_it_has() -> None:
    """Another pod may need the place during the drain."""
    permit = Permit()
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 10.0
    await pod.looks()
    pod.health.drain()
    await pod.looks(1)
    assert (permit.given_back, pod.reasons()) == (1, ["draining"])


async def test_a_question_that_was_cancelled_may_have_taken_the_place() -> None:
    """It is given back at the end, although nobody heard the answer."""

    class Slow(Permit):
        async def hold(self) -> bool:
            await asyncio.sleep(1)
            return True

    permit = Slow()
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 10.0
    asking = asyncio.create_task(pod.health.step())
    await asyncio.sleep(0.5)
    asking.cancel()
    await asyncio.wait((asking,))
    await pod.health.close()
    assert permit.given_back == 1


async def test_a_pod_that_fails_by_its_own_fault_leaves_and_recovers_below_half() -> None:
    """A minimum number of answers; hysteresis between leaving and returning."""
    pod = Pod(Permit())
    pod.health.serve()
    pod.serve(19, 500)
    await pod.looks()
    assert pod.health.ready, "too few answers to tell"
    pod.serve(1, 500)
    await pod.looks()
    assert pod.reasons() == ["failing"]
    await asyncio.sleep(10)
    pod.serve(30, 200)  # 40 %: below the threshold, but not well below
    await pod.health.step()
    assert pod.reasons() == ["failing"]
    pod.serve(50, 200)
    await pod.health.step()
    assert pod.health.ready


@pytest.mark.parametrize("status", [429, 502, 503, 504, 0])
async def test_a_vendor_s_outage_is_not_the_pod_s_fault(status: int) -> None:
    """Refusals and failures of somebody behind us take no pod out."""
    pod = Pod(Permit())
    pod.health.serve()
    pod.serve(1000, status)
    await pod.looks()
    assert pod.health.ready


async def test_answers_are_forgotten_after_the_window() -> None:
    rate = ErrorRate()
    rate.record(Served("/x", "GET", 500, 0.1))
    assert rate.measure(100.0) == (1.0, 1)
    rate.record(Served("/x", "GET", 200, 0.1))
    assert rate.measure(100.0 + WINDOW - 1) == (0.5, 2)
    assert rate.measure(100.0 + WINDOW) == (0.0, 1)
    for look in range(1000):
        rate.record(Served("/x", "GET", 200, 0.1))
        assert rate.measure(200.0 + look / 1000) == (0.0, look + 1), "each counts once"
    assert len(rate._bins) == 1, "whoever looks often leaves nothing behind"


async def test_the_watch_goes_on_when_a_permit_cannot_be_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error is logged, the next look is taken, and the pod stays."""

    class Broken(Permit):
        async def hold(self) -> bool:
            self.held += 1
            raise OSError("store")

    permit = Broken()
    pod = Pod(permit)
    pod.health.serve()
    pod.full_for = 10.0
    watch = asyncio.create_task(pod.health.watch())
    await asyncio.sleep(3.5)
    watch.cancel()
    assert permit.held == 4
    assert pod.health.ready
    assert "cannot be asked for" in caplog.text
