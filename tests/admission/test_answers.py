"""One timer ends every answer at its own time, as a timeout of its own would."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.admission.pod import Client, Pod, answer

from headworks.current import current
from headworks.telemetry import Served
from headworks.testing.loop import VirtualTimeLoop


def now() -> float:
    return asyncio.get_running_loop().time()


async def ends(client: Client) -> tuple[float, int]:
    """When it was answered, and how."""
    await client.run()
    return now(), client.status


def saying(pod: Pod, seconds: str) -> Client:
    """A client that waits for so long."""
    client = Client(pod.gate)
    client.scope["headers"].append((b"x-request-timeout", seconds.encode()))
    return client


async def test_each_is_given_up_at_its_own_time_whatever_the_order_they_came_in() -> None:
    """Shorter ones after longer ones, in time or not, two at the same moment."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(3 if scope["path"] == "/quick" else 1000)
        await answer(send)

    pod = Pod(app, sla=60.0)
    clients = [Client(pod.gate), saying(pod, "20"), Client(pod.gate, path="/quick"), saying(pod, "7.5")]
    clients += [saying(pod, "20"), saying(pod, "40")]
    ended = await asyncio.gather(*map(ends, clients))
    late = [(1060.0, 504), (1020.0, 504), (1003.0, 200), (1007.5, 504), (1020.0, 504), (1040.0, 504)]
    assert ended == late
    assert await ends(saying(pod, "5")) == (1065.0, 504)


async def test_a_deadline_moved_away_or_dropped_is_not_kept() -> None:
    """An answer that may last goes on until that time is up too, and the others end before."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current().lasting = 100.0 if scope["path"] == "/stream" else None
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(1000)

    pod = Pod(app, sla=10.0)
    clients = [Client(pod.gate, path="/stream"), Client(pod.gate)]
    assert [when for when, _ in await asyncio.gather(*map(ends, clients))] == [1100.0, 1010.0]


async def test_a_cancellation_from_outside_at_the_same_moment_stays_one() -> None:
    """Whoever cancelled the request's task sees it cancelled, and its place is back."""
    pod = Pod(sla=10.0)
    task = asyncio.create_task(Client(pod.gate).run())
    asyncio.get_running_loop().call_later(9.0, asyncio.get_running_loop().call_at, 1010.0, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (now(), pod.now().in_flight, pod.now().running) == (1010.0, 0, 0)


async def test_giving_up_leaves_no_cancellation_behind() -> None:
    """What the task does afterwards is not cancelled, nor thought to be."""
    pod = Pod(sla=10.0)

    async def work() -> tuple[int, int]:
        status = (await Client(pod.gate).run()).status
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(1)
        return status, task.cancelling()

    assert await asyncio.create_task(work()) == (504, 0)


def test_a_second_event_loop_finds_its_deadlines_kept() -> None:
    """The timer of the loop before is not waited for, and its clock not looked at."""
    pod = Pod(sla=10.0)

    async def main(*clients: Client) -> list[tuple[float, int]]:
        return await asyncio.gather(*map(ends, clients))

    async def quick(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)

    for app, ended in ((quick, (1000.0, 200)), (pod.gate.app, (1010.0, 504))):
        pod.gate.app = app
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            assert runner.run(main(Client(pod.gate))) == [ended]
    assert [event.seconds for event in pod.sink.of(Served)] == [0.0, 10.0]
