"""`[admission]` changes while the service is full: from the policy to what a request meets."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from tests.scenarios import POLICY, VENDOR, Service, service

from headworks.errors import PolicyError
from headworks.policy.load import parse
from headworks.telemetry import Changed

SERVED = {"max_in_flight": 2, "queue_timeout": "50s"}


def adopt(pod: Service, **admission: Any) -> None:
    """As the watch of the policy's file does once it has found another one."""
    table = {**POLICY, "vendors": {"llm": VENDOR}, "admission": admission}
    pod.works._adopt(parse(table, "changed", {}))


def watched() -> int:
    return [task.get_name() for task in asyncio.all_tasks()].count("headworks: pressure")


def told(pod: Service) -> list[tuple[str, str]]:
    return [(event.state, event.detail) for event in pod.sink.of(Changed) if event.subject == "policy"]


async def test_places_and_line_change_with_everybody_in_them_kept() -> None:
    """Two in flight and two in line: with three places one more is served, with one nobody until two
    have gone, and all four are answered."""
    async with service(admission=SERVED) as pod:
        await pod.get("/quick")
        tasks = [asyncio.create_task(pod.get("/slow")) for _ in range(4)]
        await asyncio.sleep(1)
        assert (pod.inside, pod.works._slots.statistics().waiting) == (2, 2)
        adopt(pod, max_in_flight=3, queue_timeout="50s")
        await asyncio.sleep(1)
        assert pod.inside == 3
        assert (await pod.get("/ready")).json()["limit"] == 3
        adopt(pod, max_in_flight=1, queue_timeout="0s")
        await asyncio.sleep(1)
        assert pod.inside == 3
        assert (await pod.get("/slow")).status_code == 503, "there is no line for who comes now"
        assert {(await task).status_code for task in tasks} == {200}
        assert pod.highest == 3
        assert told(pod) == [
            ("reloaded", "admission.max_in_flight"),
            ("reloaded", "admission.max_in_flight, admission.queue_timeout"),
        ]


async def test_a_shadow_lets_in_who_waits_and_enforcing_again_ends_nobody() -> None:
    async with service(admission=SERVED) as pod:
        await pod.get("/quick")
        tasks = [asyncio.create_task(pod.get("/slow")) for _ in range(4)]
        await asyncio.sleep(1)
        adopt(pod, **SERVED, shadow=True)
        tasks.append(asyncio.create_task(pod.get("/slow")))
        await asyncio.sleep(1)
        assert pod.inside == 5
        adopt(pod, **SERVED)
        tasks.append(asyncio.create_task(pod.get("/slow")))
        await asyncio.sleep(1)
        assert (pod.inside, pod.works._slots.statistics().waiting) == (5, 1)
        assert {(await task).status_code for task in tasks} == {200}
        websockets = pod.works._slots
        adopt(pod, **SERVED, max_websockets=7)
        assert websockets._websocket_limit == 7


async def test_what_presses_the_pod_may_be_bounded_and_unbounded() -> None:
    """One watch at most, whatever comes after what; who was shed is served again at once."""
    async with service(admission=SERVED) as pod:
        assert (await pod.get("/quick")).status_code == 200
        for _ in range(2):
            adopt(pod, **SERVED, memory_high="1MiB")
            await asyncio.sleep(5)  # the process has more: all but the critical are shed
            assert watched() == 1
            assert (await pod.get("/quick")).json()["reason"] == "load-shed"
            adopt(pod, **SERVED)
            assert (await pod.get("/quick")).status_code == 200
            adopt(pod, **SERVED, lag_high="10s")
            assert watched() == 1
            adopt(pod, **SERVED)
            await asyncio.sleep(1)
            assert watched() == 0
        adopt(pod, **SERVED, lag_high="10s")
        await asyncio.sleep(1)
    assert watched() == 0


async def test_a_bound_that_cannot_be_had_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(admission=SERVED) as pod:
        monkeypatch.setattr("headworks.admission.pressure.STATM", Path("/nowhere/statm"))
        with pytest.raises(PolicyError, match=r"admission\.memory_high"):
            adopt(pod, max_in_flight=7, memory_high="1GiB")
        assert pod.works.policy.admission.max_in_flight == 2
        assert pod.works._slots.statistics().limit == 2
        assert told(pod) == []


async def test_background_tasks_and_stalls_go_by_the_new_policy() -> None:
    """Who begins from now on holds its place for as long as its background tasks take, or does not."""
    async with service(admission={"max_in_flight": 1}) as pod:

        @pod.app.get("/tail")
        async def tail() -> PlainTextResponse:
            return PlainTextResponse("done", background=BackgroundTask(asyncio.sleep, 30))

        await pod.get("/quick")
        for setting, status in (("hold", 503), ("free", 200)):
            adopt(pod, max_in_flight=1, background_tasks=setting, write_stall="7s")
            running = asyncio.create_task(pod.get("/tail"))
            await asyncio.sleep(1)
            assert (await pod.get("/quick")).status_code == status
            await running
        assert pod.works._answers.write_stall == 7.0


async def test_a_policy_that_came_before_the_first_request_holds_from_the_first_one_on() -> None:
    async with service(admission={"max_in_flight": 1}) as pod:
        adopt(pod, max_in_flight=1, shadow=True)
        assert await pod.statuses("/slow", "pro-1", 3) == {200: 3}


async def test_what_the_server_was_started_with_is_named_and_bounds_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own flags, whom admission believes, and places beyond the connections that it takes: it would
    refuse probes then. What else the same file changes holds."""
    caplog.set_level(logging.WARNING, "headworks")
    async with service(admission={**SERVED, "limit_concurrency": 100}) as pod:
        adopt(
            pod,
            max_in_flight=30,
            queue_timeout="9s",
            limit_concurrency=200,
            backlog=7,
            keep_alive="9s",
            criticality_header="X-Class",
        )
        assert told(pod) == [
            ("reloaded", "admission.max_in_flight, admission.queue_timeout"),
            (
                "needs-restart",
                "admission.criticality_header, admission.backlog, admission.keep_alive, "
                "admission.limit_concurrency",
            ),
        ]
        assert "admission.backlog" in caplog.text
        adopt(pod, max_in_flight=35, queue_timeout="8s", limit_concurrency=100)
        assert told(pod)[2:] == [
            ("reloaded", "admission.queue_timeout"),
            ("needs-restart", "admission.max_in_flight"),
        ]
        settings = pod.works.policy.admission
        assert (settings.max_in_flight, settings.queue_timeout, settings.backlog) == (30, 8.0, 200)
        assert pod.works._slots.statistics().limit == 30
    async with service(admission={"max_in_flight": 90, "limit_concurrency": 100}) as pod:
        adopt(pod, max_in_flight=80, limit_concurrency=100)
        assert pod.works._slots.statistics().limit == 80, "fewer are never too many"
