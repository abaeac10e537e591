"""One deadline per request: whose it is, what it ends, and how an answer that has begun is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.admission.pod import START, Client, Pod, answer

from headworks.current import current
from headworks.telemetry import Decided

EVENTS = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"Content-Type", b"text/event-stream; charset=utf-8")],
}


def now() -> float:
    return asyncio.get_running_loop().time()


def asking(pod: Pod, *values: str, **scope: Any) -> Client:
    """A client that says how long it will wait."""
    client = Client(pod.gate, **scope)
    client.scope["headers"] += [(b"x-request-timeout", value.encode()) for value in values]
    return client


async def hang(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("2.5", 2.5), ("7", 7.0), (" 7 ", 7.0), ("600", 60.0), ("9999999", 60.0)],
)
async def test_a_caller_may_shorten_its_time_and_not_lengthen_it(said: str, seconds: float) -> None:
    client = await asking(Pod(hang, sla=60.0), said).run()
    assert (client.status, client.problem["reason"]) == (504, "deadline-exceeded")
    assert now() == pytest.approx(1000.0 + seconds)


async def test_of_two_deadlines_the_stricter_wins() -> None:
    await asking(Pod(hang), "9", "4").run()
    assert now() == pytest.approx(1004.0)


@pytest.mark.parametrize("said", ["0", "-3", "0.0", "-0.1"])
async def test_a_deadline_that_has_passed_is_answered_before_anything_is_taken(said: str) -> None:
    """504 even from a full pod, the application not woken, the body not asked for, no place taken."""
    pod = Pod(limit=1)
    await pod.occupy(1)
    client = await asking(pod, said).run()
    assert (client.status, client.problem["reason"], client.received) == (504, "deadline-exceeded", 0)
    assert (pod.now().admitted, pod.now().saturated, now()) == (1, 0, 1000.0)
    assert pod.sink.of(Decided)[-1].layer == "request"
    pod.go.set()


@pytest.mark.parametrize("said", ["soon", "", "1e3", "nan", "inf", "1,5", "5s", "+1", "9" * 12, "\xff"])
async def test_a_deadline_that_cannot_be_read_is_refused_by_name(said: str) -> None:
    """400 with the header, its value, and what would be right."""
    pod = Pod()
    client = Client(pod.gate)
    client.scope["headers"] += [(b"x-request-timeout", said.encode("latin-1"))]
    await client.run()
    assert (client.status, client.problem["reason"], client.received) == (400, "bad-deadline", 0)
    assert "x-request-timeout: " in client.problem["detail"]
    assert '"2.5"' in client.problem["detail"]
    assert pod.now().admitted == 0


async def test_an_event_stream_ends_with_an_event_that_says_why() -> None:
    """The last event is the problem itself, complete and after whole events only."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(EVENTS))
        while True:
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
            await asyncio.sleep(7)

    pod = Pod(app, sla=20.0)
    client = await Client(pod.gate).run()
    assert now() == pytest.approx(1020.0)
    bodies = [message["body"] for message in client.sent[1:]]
    assert bodies[:-1] == [b"data: 1\n\n"] * 3
    event, data, *rest = bodies[-1].split(b"\n")
    assert (event, rest) == (b"event: error", [b"", b""])
    problem = json.loads(data.removeprefix(b"data: "))
    assert (problem["reason"], problem["status"]) == ("deadline-exceeded", 504)
    assert not client.sent[-1].get("more_body")
    assert (pod.now().in_flight, pod.now().running, pod.now().expired) == (0, 0, 1)


class Connection:
    """As much of a server's transport as the gate uses."""

    def __init__(self) -> None:
        self.did: list[str] = []

    def close(self) -> None:
        self.did.append("closed")

    def abort(self) -> None:
        self.did.append("aborted")


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ([(b"content-type", b"text/event-stream")], b"data: half of an ev"),
        ([(b"content-type", b"text/event-stream"), (b"content-encoding", b"gzip")], b"zip\n\n"),
        ([(b"content-type", b"text/event-stream"), (b"content-length", b"99")], b"data: 1\n\n"),
        ([(b"content-type", b"application/json")], b'{"a":'),
        ([], b"bytes\n\n"),
    ],
    ids=["half an event", "compressed", "measured", "json", "untyped"],
)
async def test_an_answer_that_has_no_room_for_a_last_word_is_broken_off(
    headers: list[tuple[bytes, bytes]], part: bytes
) -> None:
    """The connection is closed without an end of the answer: no client takes the part for the whole."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": part, "more_body": True})
        await asyncio.sleep(3600)

    class Server(Client):
        transport = Connection()

    pod = Pod(app, sla=20.0)
    Server.transport.did.clear()
    client = await Server(pod.gate).run()
    assert now() == pytest.approx(1020.0)
    assert [message.get("body") for message in client.sent[1:]] == [part]
    assert Server.transport.did == ["closed"]
    assert pod.now().in_flight == 0


async def test_events_cut_at_any_byte_are_not_taken_for_whole_ones() -> None:
    """The end of an event is recognised across the parts it came in."""
    for parts, whole in (
        ([b"data: 1\n", b"\n"], True),
        ([b"data: 1\r\n\r", b"\n"], True),
        ([b"data: 1\n\n", b""], True),
        ([b"data: 1\n\n", b":"], False),
        ([b"data: 1", b"\n"], False),
    ):

        async def app(scope: Any, receive: Any, send: Any, parts: list[bytes] = parts) -> None:
            await send(dict(EVENTS))
            for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(3600)

        client = await Client(Pod(app).gate).run()
        assert (b"event: error" in client.sent[-1]["body"]) == whole, parts


async def test_an_application_that_raises_when_it_is_ended_still_ends_its_stream() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(dict(EVENTS))
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            raise ValueError("confused") from None

    client = await Client(Pod(app).gate).run()
    assert client.sent[-1]["body"].startswith(b"event: error")


async def test_background_tasks_outlast_the_deadline() -> None:
    """It is the answer's: once that is complete, nothing is cancelled, and no call told to hurry."""
    seen: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"part")
        await asyncio.sleep(300)
        seen.append(current().deadline)

    pod = Pod(app, sla=20.0)
    client = await Client(pod.gate).run()
    assert (client.status, seen, pod.now().expired) == (200, [float("inf")], 0)


@pytest.mark.parametrize(
    ("said", "lasting", "ends"),
    [(None, 100.0, 100.0), ("50", 100.0, 50.0), (None, float("inf"), 1000.0), (None, 5.0, 5.0)],
)
async def test_a_route_may_let_its_answer_last_but_not_begin_later(
    said: str | None, lasting: float, ends: float
) -> None:
    """Once begun, it has its own time from the request's arrival; the caller's own still holds."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current().lasting = lasting
        await asyncio.sleep(2)
        await send(dict(EVENTS))
        await asyncio.sleep(998)
        await send({"type": "http.response.body", "body": b""})

    await asking(Pod(app, sla=20.0), *([said] if said else [])).run()
    assert now() == pytest.approx(1000.0 + ends)

    async def late(scope: Any, receive: Any, send: Any) -> None:
        current().lasting = lasting
        await asyncio.sleep(3600)

    began = now()
    assert (await Client(Pod(late, sla=20.0).gate).run()).status == 504
    assert now() == pytest.approx(began + 20.0)


async def test_an_answer_that_begins_as_it_is_ended_gets_no_more_time() -> None:
    """Neither a pod whose time is over nor a caller who has left is outlasted by a route's own time."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current().lasting = 100.0
        caller = current().caller
        assert caller is not None
        caller.take_along()
        if scope["path"] == "/leaving":
            pod.answers.end()
        else:
            await receive()
            await receive()
        await send(dict(EVENTS))
        await asyncio.sleep(50)

    class Leaver(Client):
        async def _receive(self) -> dict[str, Any]:
            self.received += 1
            kind = "http.request" if self.received == 1 else "http.disconnect"
            return {"type": kind, "body": b"", "more_body": False}

    for path, reason in (("/left", "caller-left"), ("/leaving", "pod-leaving")):
        pod = Pod(app)
        client = Leaver(pod.gate, path=path)
        client.scope["headers"].append((b"content-length", b"5"))
        await client.run()
        assert now() == 1000.0
        assert pod.sink.of(Decided)[-1].reason == reason


async def test_a_pod_that_leaves_asks_for_another_connection_where_no_upload_is_lost() -> None:
    """`connection: close` from the signal on; not while a body is unread, and not in HTTP/2."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/read":
            await receive()
        await answer(send)

    pod = Pod(app)
    assert (await Client(pod.gate).run()).header(b"connection") is None
    pod.answers.leave()
    assert (await Client(pod.gate).run()).header(b"connection") == "close"
    upload = Client(pod.gate)
    upload.scope["headers"].append((b"content-length", b"5000000"))
    assert (await upload.run()).header(b"connection") is None
    upload = Client(pod.gate, path="/read")
    upload.scope["headers"].append((b"content-length", b"5"))
    assert (await upload.run()).header(b"connection") == "close"
    assert (await Client(pod.gate, http_version="2").run()).header(b"connection") is None


async def test_a_pod_whose_time_is_over_ends_what_it_still_answers() -> None:
    """A stream gets its last event, a request without an answer a 503; what comes then, the same."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/events":
            await send(dict(EVENTS))
        if scope["path"] == "/background":
            await answer(send)
        await asyncio.sleep(10)
        if scope["path"] == "/background":
            finished.append(1)

    finished: list[int] = []
    pod = Pod(app, sla=60.0)
    paths = ("/events", "/plain", "/background")
    clients = [Client(pod.gate, path=path) for path in paths]
    tasks = [asyncio.create_task(client.run()) for client in clients]
    await asyncio.sleep(1)
    pod.answers.end()
    await asyncio.wait(tasks[:2])
    assert now() == pytest.approx(1001.0)
    assert b'"reason": "pod-leaving"' in clients[0].sent[-1]["body"]
    assert (clients[1].status, clients[1].problem["reason"]) == (503, "pod-leaving")
    assert (await Client(pod.gate, path="/plain").run()).status == 503
    await tasks[2]
    assert (clients[2].status, finished) == (200, [1])


async def test_clients_that_take_every_part_at_once_share_one_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is the first one's deadline; no part has one of its own, and nobody after it sets any."""
    set_: list[float] = []
    loop = asyncio.get_running_loop()
    call_at = loop.call_at

    def counted(when: float, *arguments: Any, **named: Any) -> asyncio.TimerHandle:
        set_.append(when)
        return call_at(when, *arguments, **named)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"part")

    class AtOnce(Client):
        async def _send(self, message: Any) -> None:
            self.sent.append(message)

    pod = Pod(app)
    monkeypatch.setattr(loop, "call_at", counted)
    for _ in range(3):
        client = await AtOnce(pod.gate).run()
        assert [client.sent[0], len(client.sent), len(set_)] == [START, 3, 1]
        await asyncio.sleep(0)
