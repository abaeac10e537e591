"""The pod's gate, in virtual time, between a fake server and a fake application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.admission.pod import START, Client, Pod, answer

from headworks.admission import ClientStalled
from headworks.current import Criticality, Current, current
from headworks.telemetry import Decided, Served
from headworks.testing.cancel import cancel_at_every_await


async def test_one_more_than_the_limit_is_refused_before_anything_is_received() -> None:
    """503 with problem body and a wait, nothing received; the others are served."""
    pod = Pod(limit=10)
    held = await pod.occupy(10)
    refused = await Client(pod.gate).run()
    assert (refused.status, refused.received) == (503, 0)
    assert refused.problem["reason"] == "pod-saturated"
    assert refused.header(b"content-type") == "application/problem+json"
    assert 1 <= int(refused.header(b"retry-after") or 0) <= 5
    assert refused.header(b"connection") is None
    pod.go.set()
    assert [(await task).status for task in held] == [200] * 10
    assert (pod.now().in_flight, pod.now().running, pod.now().saturated) == (0, 0, 1)


async def test_refused_callers_are_not_told_to_return_together() -> None:
    """Waits differ from caller to caller."""
    pod = Pod(limit=1)
    await pod.occupy(1)
    waits = {(await Client(pod.gate).run()).problem["retry_after"] for _ in range(20)}
    assert len(waits) == 20
    pod.go.set()


@pytest.mark.parametrize(
    ("tier", "places"), [("background", 8), ("sheddable", 9), ("default", 10), ("critical", 10)]
)
async def test_less_critical_requests_go_first(tier: str, places: int) -> None:
    """Background may use 80 % of the pod, sheddable 90 %, the others all of it."""
    pod = Pod(limit=10)
    await pod.occupy(places - 1, "critical")
    last, beyond = (await pod.occupy(2, tier))[0:2]
    refused = await beyond
    assert refused.problem["reason"] == ("load-shed" if places < 10 else "pod-saturated")
    assert not last.done()
    pod.go.set()
    assert (await last).status == 200


async def test_the_place_is_held_to_the_last_byte_and_not_by_background_tasks() -> None:
    """Body sent, place free; the background task still counts as running."""
    step = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(START))
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await step.wait()
        await send({"type": "http.response.body", "body": b"2"})
        await asyncio.sleep(10)

    pod = Pod(app)
    task = asyncio.create_task(Client(pod.gate).run())
    await asyncio.sleep(1)
    assert pod.now().in_flight == 1
    step.set()
    await asyncio.sleep(1)
    assert (pod.now().in_flight, pod.now().running) == (0, 1)
    async with asyncio.timeout(20):
        await pod.slots.wait_idle()
    await task
    assert (pod.now().in_flight, pod.now().running) == (0, 0)


async def test_background_tasks_hold_the_place_where_the_policy_says_so() -> None:
    """`hold`: a request counts until all that it started has ended."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send)
        await asyncio.sleep(10)

    pod = Pod(app, limit=1, hold_background=True)
    task = asyncio.create_task(Client(pod.gate).run())
    await asyncio.sleep(5)
    assert (pod.now().in_flight, pod.now().running) == (1, 1)
    assert (await Client(pod.gate).run()).status == 503
    await task
    assert (pod.now().in_flight, pod.now().running) == (0, 0)


@pytest.mark.parametrize("swallowed", [False, True])
async def test_a_client_that_does_not_read_is_cut_off(swallowed: bool) -> None:
    """After `write_stall` the sending fails, the place is free, and the connection is dropped, whether
    the application lets that be known or not."""
    dropped: list[str] = []
    raised: list[BaseException] = []

    class Transport:
        def abort(self) -> None:
            dropped.append("aborted")

    class Server(Client):
        transport = Transport()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await answer(send, b"x", b"y")
        except ClientStalled as error:
            raised.append(error)
            if not swallowed:
                raise

    pod = Pod(app)
    client = Server(pod.gate)
    client.reads.clear()
    began = asyncio.get_running_loop().time()
    await client.run()
    assert asyncio.get_running_loop().time() - began == pytest.approx(15.0)
    assert (dropped, len(raised), pod.now().stalled, pod.now().in_flight) == (["aborted"], 1, 1, 0)


async def test_a_refusal_to_a_client_that_does_not_read_is_bounded_too() -> None:
    """Nobody can hold the gate by not reading its answer."""
    pod = Pod(limit=1)
    await pod.occupy(1)
    client = Client(pod.gate)
    client.reads.clear()
    await client.run()
    assert pod.now().stalled == 1
    pod.go.set()


async def test_a_request_whose_time_is_spent_is_answered_504() -> None:
    """The application is cancelled, its clean-up runs, the client is told."""
    cleaned: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append(True)

    pod = Pod(app, sla=60.0)
    client = await Client(pod.gate).run()
    assert (client.status, client.problem["reason"], cleaned) == (504, "deadline-exceeded", [True])
    assert asyncio.get_running_loop().time() == pytest.approx(1060.0)
    assert (pod.now().expired, pod.now().in_flight) == (1, 0)


@pytest.mark.parametrize("swallow", [True, False])
async def test_an_application_that_mishandles_its_cancellation_still_answers_504(swallow: bool) -> None:
    """Returning without an answer, or raising something else, is no 500 when time was up."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not swallow:
                raise ValueError("confused") from None

    assert (await Client(Pod(app).gate).run()).status == 504


async def test_the_application_s_own_timeout_is_its_own() -> None:
    """A TimeoutError raised inside is not mistaken for ours."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise TimeoutError("theirs")

    pod = Pod(app)
    with pytest.raises(TimeoutError, match="theirs"):
        await Client(pod.gate).run()
    assert pod.sink.of(Served)[0].status == 500


async def test_the_request_s_standing_is_known_inside_and_gone_outside() -> None:
    """Deadline, tenant and class are set for the application and everything below it."""
    seen: list[Current] = []
    deadlines: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current())
        deadlines.append(current().deadline)
        await answer(send)

    pod = Pod(app, sla=60.0)
    await Client(pod.gate, "critical").run()
    assert (deadlines, seen[0].criticality) == ([1060.0], Criticality.CRITICAL)
    assert seen[0].tenant.startswith("key:")
    assert current() is not seen[0]
    decided, served = pod.sink.of(Decided)[0], pod.sink.of(Served)[0]
    assert (decided.layer, decided.admitted, decided.criticality) == ("admission", True, "critical")
    assert (served.status, served.method, served.route) == (200, "POST", "")


async def test_what_a_request_left_open_is_closed_when_it_ends() -> None:
    """Closers run once, also when the application raised."""
    closed: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def close() -> None:
            await asyncio.sleep(0.1)
            closed.append(1)

        current().closers.add(close)
        raise ValueError("broken")

    pod = Pod(app)
    with pytest.raises(ValueError, match="broken"):
        await Client(pod.gate).run()
    await pod.reaper.drain(1.0)
    assert closed == [1]


async def test_lifespan_passes() -> None:
    """What is neither a request nor a websocket is none of the gate's business."""
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await Client(Pod(app, limit=1).gate, type="lifespan").run()
    assert seen == ["lifespan"]


@pytest.mark.parametrize("extension", [True, False])
async def test_websockets_have_places_of_their_own(extension: bool) -> None:
    """Full of websockets, requests still pass; one websocket more is refused as the server can."""
    pod = Pod(limit=5, websockets=2)
    sockets = [asyncio.create_task(Client(pod.gate, type="websocket").run()) for _ in range(2)]
    await asyncio.sleep(0)
    assert (pod.now().websockets, pod.now().in_flight) == (2, 0)
    extensions = {"websocket.http.response": {}} if extension else {}
    refused = await Client(pod.gate, type="websocket", extensions=extensions).run()
    if extension:
        assert refused.status == 503
    else:
        assert refused.sent[0]["type"] == "websocket.close"
        assert refused.sent[0]["code"] == 1013
    request = (await pod.occupy(1))[0]
    pod.go.set()
    assert (await request).status == 200
    await asyncio.gather(*sockets)
    assert pod.now().websockets == 0


async def test_full_lasts_until_the_pressure_is_gone() -> None:
    """One place changing hands does not make a full pod look easy."""
    pod = Pod(limit=10)
    tasks = await pod.occupy(10)
    await asyncio.sleep(5)
    tasks[0].cancel()
    await asyncio.sleep(5)
    assert pod.now().full_for == pytest.approx(10.0)
    for task in tasks[1:4]:
        task.cancel()
    await asyncio.sleep(0.1)
    assert pod.now().full_for == 0.0
    pod.go.set()


def test_a_request_cancelled_anywhere_returns_its_place() -> None:
    """Struck at every await and in every way, the pod is as empty as before, and has cleaned up."""
    pods: list[Pod] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def close() -> None:
            await asyncio.sleep(0.1)

        current().closers.add(close)
        await receive()
        await asyncio.sleep(1)
        await answer(send, b"part")
        await asyncio.sleep(1)

    class Slow(Client):
        async def _send(self, message: Any) -> None:
            await asyncio.sleep(0.5)
            await super()._send(message)

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        pods.append(Pod(app))
        yield

    def snapshot() -> object:
        now, reaper = pods[-1].now(), pods[-1].reaper.statistics()
        return now.in_flight, now.running, now.full_for, reaper.waiting, reaper.running

    async def scenario() -> None:
        await Slow(pods[-1].gate).run()

    assert cancel_at_every_await(scenario, snapshot=snapshot, around=around) >= 4


def test_a_websocket_cancelled_at_any_await_gives_everything_back() -> None:
    pods: list[Pod] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await asyncio.sleep(1)
        await send({"type": "websocket.close", "code": 1000})

    class Slow(Client):
        async def _send(self, message: Any) -> None:
            await asyncio.sleep(0.5)
            await super()._send(message)

    @asynccontextmanager
    async def around() -> AsyncIterator[None]:
        pods.append(Pod(app))
        yield

    def snapshot() -> object:
        return pods[-1].now().websockets, pods[-1].now().running

    async def scenario() -> None:
        await Slow(pods[-1].gate, type="websocket").run()

    assert cancel_at_every_await(scenario, snapshot=snapshot, around=around) >= 3
