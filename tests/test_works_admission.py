"""The settings of `[admission]`, each from the policy to what it does in a running service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from tests.scenarios import POLICY, service

from headworks import Headworks
from headworks.errors import PolicyError
from headworks.policy.load import parse
from headworks.telemetry import Decided, Shadowed
from headworks.works import build

SERVICE = POLICY["service"]


def admission(**settings: Any) -> dict[str, Any]:
    return {"admission": {"max_in_flight": 2, **settings}}


async def test_a_policy_with_a_line_lets_requests_wait_for_a_place() -> None:
    """Three requests, two places: served, the third after the first; waits and refusals are metrics."""
    async with service(**admission(queue_timeout="20s")) as pod:
        await pod.get("/slow")
        assert await pod.statuses("/slow", "pro-1", 3) == {200: 3}
        assert pod.highest == 2
        metrics = pod.works._metrics.render()[1].decode()
        assert 'headworks_admission_wait_seconds_count{ending="admitted"} 1.0' in metrics
        assert "headworks_admission_holding_seconds" in metrics
        assert "headworks_admission_waiting 0.0" in metrics
    async with service(**admission()) as pod:
        await pod.get("/quick")  # now its class is known
        assert await pod.statuses("/slow", "pro-1", 3) == {200: 2, 503: 1}


async def test_who_waits_when_the_pod_stops_is_served_in_its_drain_or_told_at_its_end() -> None:
    """Two are served within a drain of 12 s; who then waits behind handlers that resist is told."""
    stopping = {"drain_delay": "0s", "drain_timeout": "12s"}
    async with service(health=stopping, **admission(queue_timeout="50s")) as pod:

        @pod.app.get("/stubborn")
        async def stubborn() -> None:
            try:
                await asyncio.sleep(50)
            finally:
                await asyncio.sleep(50)

        await pod.get("/slow")
        paths = ("/stubborn", "/slow", "/slow", "/stubborn", "/slow", "/slow")
        tasks = [asyncio.create_task(pod.get(path)) for path in paths]
        await asyncio.sleep(1)
        assert pod.works._slots.statistics().waiting == 4
        await pod.works.stop()
        assert [task.done() for task in tasks] == [False, True, True, False, True, True]
        answers = await asyncio.gather(*tasks)
        assert [answer.status_code for answer in answers] == [503, 200, 200, 503, 503, 503]
        assert {answer.json()["reason"] for answer in answers[3:]} == {"pod-leaving"}
        assert pod.works._slots.statistics().waiting == 0
        assert pod.works._slots.statistics().running == 0


async def test_a_policy_in_shadow_refuses_nobody_and_keeps_nobody_waiting() -> None:
    async with service(**admission(shadow=True, queue_timeout="20s")) as pod:
        await pod.get("/quick")
        assert await pod.statuses("/slow", "pro-1", 9) == {200: 9}
        assert pod.highest == 9
        assert len(pod.sink.of(Shadowed)) == 7
        metrics = pod.works._metrics.render()[1].decode()
        would = 'layer="admission",outcome="refused",rule="pod-saturated"'
        assert f"headworks_shadow_decisions_total{{{would}}} 7.0" in metrics


async def test_a_class_stated_by_a_trusted_caller_goes_with_the_request() -> None:
    """It decides in admission, and stays when the resolver has said who asks."""
    trusted = {"service": {**SERVICE, "trust": ["127.0.0.1"]}}
    stated = {"criticality_header": "X-Class"}
    for table, expected in ((trusted, "background"), ({}, "sheddable")):
        async with service(**table, **admission(**stated)) as pod:
            await pod.client.get("/quick", headers={"x-class": "background"})
            assert {event.criticality for event in pod.sink.of(Decided)} == {expected}


async def test_background_tasks_hold_a_place_where_the_policy_says_so() -> None:
    """Two requests whose background tasks take a while: the third finds no place, or finds one."""
    for setting, status in (("hold", 503), ("free", 200)):
        async with service(**admission(background_tasks=setting)) as pod:

            @pod.app.get("/tail")
            async def tail() -> PlainTextResponse:
                return PlainTextResponse("done", background=BackgroundTask(asyncio.sleep, 30))

            await pod.get("/quick")
            tails = [asyncio.create_task(pod.get("/tail")) for _ in range(2)]
            await asyncio.sleep(1)
            assert (await pod.get("/quick")).status_code == status
            await asyncio.gather(*tails)


async def test_websockets_have_a_number_of_their_own() -> None:
    async with service(**admission(max_websockets=7)) as pod:
        assert pod.works._slots._websocket_limit == 7
    async with service(**admission()) as pod:
        assert pod.works._slots._websocket_limit == 2


async def test_pressure_is_watched_while_the_service_runs_and_only_where_it_is_bounded() -> None:
    """One task of our own, gone when the service stops."""

    def watched() -> bool:
        return any(task.get_name() == "headworks: pressure" for task in asyncio.all_tasks())

    async with service(**admission(memory_high="1MiB")) as pod:
        assert watched()
        assert (await pod.get("/quick", "pro-1")).status_code == 200
        await asyncio.sleep(5)  # the process has more than 1 MiB: all but the critical are shed
        refused = await pod.get("/quick", "pro-1")
        assert (refused.status_code, refused.json()["reason"]) == (503, "load-shed")
        assert pod.works._slots.statistics().pressure == 3.0
    assert not watched()
    async with service(**admission()):
        assert not watched()


def test_a_memory_bound_stays_below_what_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "container_memory", lambda: 512 * 1024**2)
    works = Headworks(parse({**POLICY, **admission(memory_high="1GiB")}, environ={}))
    assert works._pressure._memory_high == int(0.9 * 512 * 1024**2)
    works = Headworks(parse({**POLICY, **admission(memory_high="100MiB")}, environ={}))
    assert works._pressure._memory_high == 100 * 1024**2


def test_where_memory_cannot_be_read_a_bound_on_it_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headworks.admission.pressure.STATM", Path("/nowhere/statm"))
    with pytest.raises(PolicyError, match=r"admission\.memory_high: this system does not tell"):
        Headworks(parse({**POLICY, **admission(memory_high="1GiB")}, environ={}))


@pytest.mark.parametrize("value", ["yes", 1, "True"])
def test_a_setting_that_is_yes_or_no_takes_nothing_else(value: object) -> None:
    with pytest.raises(PolicyError, match=r"admission\.shadow: .* is neither true nor false"):
        parse({**POLICY, **admission(shadow=value)}, environ={})


def test_the_environment_can_say_yes_or_no() -> None:
    policy = parse(POLICY, environ={"HEADWORKS_ADMISSION__SHADOW": "true"})
    assert policy.admission.shadow is True
