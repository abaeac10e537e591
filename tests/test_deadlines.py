"""One deadline and one caller for everything below: application, limits and vendors, in virtual time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from tests.scenarios import VENDOR, tier_of
from tests.vendor.conftest import Server
from tests.vendor.test_sdks import Events, streaming

from headworks import Headworks
from headworks.admission import Slot
from headworks.caller import Presence
from headworks.current import current
from headworks.errors import Refused
from headworks.policy.load import parse
from headworks.store.memory import MemoryStore
from headworks.store.protocol import Question
from headworks.telemetry import Called
from headworks.testing.cancel import NotClean, cancel_at_every_await
from headworks.testing.recording import RecordingSink
from headworks.vendor.grant import Grant
from headworks.verdict import Verdict

POLICY: dict[str, Any] = {
    "schema": 1,
    "service": {"name": "deadlines", "sla": "60s", "deadline_header": "X-Request-Timeout"},
    "fairness": {"default_tier": "pro", "tiers": {"pro": {"rate": "100000/min"}}},
}


def now() -> float:
    return asyncio.get_running_loop().time()


class SlowStore(MemoryStore):
    """A memory whose every answer takes an hour, once `slow`."""

    slow = False

    async def ask(self, question: Question) -> Verdict:
        if self.slow:
            await asyncio.sleep(3600)
        return await super().ask(question)


class Visit:
    """One request, as a server hands it over; `leave` hangs up."""

    def __init__(self, pod: Pod, path: str, body: bytes = b"", **headers: str) -> None:
        self.pod, self.body, self.sent = pod, body, list[dict[str, Any]]()
        self.gone = asyncio.Event()
        named = {"content-length": str(len(body)), "content-type": "application/json"}
        named |= {k.replace("_", "-"): v for k, v in headers.items()}
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "client": ("203.0.113.7", 1),
            "server": ("pod", 80),
        }

    async def run(self) -> Visit:
        try:
            await self.pod.app(self.scope, self._receive, self._send)
        finally:
            here = current()
            self.pod.leaks += (here.ticket is not None) + (here.caller is not None)
        return self

    async def left_after(self, seconds: float) -> Visit:
        """Run it, and leave while it runs."""
        asyncio.get_running_loop().call_later(seconds, self.gone.set)
        return await self.run()

    async def _receive(self) -> dict[str, Any]:
        if self.body is not None:
            body, self.body = self.body, None  # type: ignore[assignment]  # given once
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self.gone.is_set():
            return
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.gone.set()  # as uvicorn does

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


class Pod:
    """A protected application, a scripted vendor behind it, and what its handlers came to."""

    def __init__(self, *, resolve: Any = tier_of, vendor: dict[str, Any] | None = None) -> None:
        self.server, self.store, self.sink = Server(latency=0.2), SlowStore(), RecordingSink()
        table = {**POLICY, "vendors": {"llm": {**VENDOR, **(vendor or {})}}}
        self.works = Headworks(
            parse(table, "test", {}),
            resolve=resolve,
            store=self.store,
            transports={"llm": self.server},
            sinks=[self.sink],
            rng=random.Random(1),
        )
        self.app = self.works.protect(FastAPI())
        self.log: list[str] = []
        self.leaks = 0
        self.llm = self.works.vendor("llm")
        self.sdk = openai.AsyncOpenAI(
            base_url=self.llm.base_url, http_client=self.llm.client, api_key="k"
        )
        _routes(self)

    def endings(self) -> list[str]:
        return [called.ending for called in self.sink.of(Called)]

    def held(self) -> object:
        """What a request may hold: nothing, when it is over."""
        slots, vendor = self.works._slots.statistics(), self.llm.statistics()
        retry = self.llm._pipeline._retry
        return (
            (retry.active, retry.retrying, self.leaks),
            (slots.in_flight, slots.running, len(self.works._answers.open)),
            (vendor.waiting, vendor.booked, vendor.in_flight, vendor.free, self.server.in_flight),
            (self.works._reaper.statistics().waiting, self.works._reaper.statistics().running),
        )


async def hanging(request: httpx2.Request) -> httpx2.Response:
    await asyncio.sleep(3600)
    raise AssertionError


async def failing(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(503, request=request)


async def endless_events(request: httpx2.Request) -> httpx2.Response:
    class Endless(Events):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            while True:
                yield b"data: {}\n\n"
                await asyncio.sleep(0.5)

    return await streaming(Endless())(request)


def _routes(pod: Pod) -> None:
    llm, app = pod.llm, pod.app

    @app.post("/hang")
    async def hang() -> None:
        await asyncio.sleep(3600)

    @app.post("/call")
    async def call(payload: dict[str, Any]) -> Any:
        answer = await llm.client.post("/chat/completions", json=payload)
        return answer.raise_for_status().json()

    @app.post("/careful")
    async def careful(request: Request) -> str:
        """A handler with a transaction: told that nobody is there, it still comes to its end."""
        await request.body()
        try:
            answer = await llm.client.post("/chat/completions", json={})
            pod.log.append(f"answer {answer.status_code}")
        finally:
            await asyncio.sleep(1)
            pod.log.append("committed")
        return "done"

    @app.post("/cut")
    @pod.works.cancel_on_disconnect
    async def cut() -> None:
        try:
            await asyncio.sleep(50)
        except asyncio.CancelledError:
            pod.log.append("cancelled")
            raise

    @app.post("/sdk")
    async def sdk() -> Any:
        try:
            return await pod.sdk.chat.completions.create(model="m", messages=[])
        except openai.APIStatusError as error:
            pod.log.append(f"{type(error).__name__} {error.status_code}")
            raise

    @app.post("/block")
    async def block(request: Request) -> None:
        await request.body()
        try:
            async with llm.call():
                await asyncio.sleep(3600)
        except Refused as refused:
            pod.log.append(refused.reason)
            raise

    @app.post("/stream")
    @app.post("/lasting")
    async def stream() -> StreamingResponse:
        async def relay() -> AsyncIterator[bytes]:
            async with llm.client.stream("POST", "/chat/completions", json={}) as answer:
                async for piece in answer.aiter_bytes():
                    yield piece

        return StreamingResponse(relay(), media_type="text/event-stream")

    @app.post("/background")
    async def background() -> JSONResponse:
        async def later() -> None:
            await asyncio.sleep(30)
            answer = await llm.client.post("/chat/completions", json={})
            pod.log.append(f"background {answer.status_code}")

        await llm.client.post("/chat/completions", json={})
        return JSONResponse({}, background=BackgroundTask(later))


# -- the deadline ----------------------------------------------------------------------------------


async def slow_resolver(key: str) -> str | None:
    await asyncio.sleep(3600)
    return None


async def the_resolver() -> tuple[Pod, str]:
    return Pod(resolve=slow_resolver), "/call"


async def the_store() -> tuple[Pod, str]:
    pod = Pod()
    pod.store.slow = True
    return pod, "/call"


async def the_handler() -> tuple[Pod, str]:
    return Pod(), "/hang"


async def the_line() -> tuple[Pod, str]:
    pod = Pod(vendor={"slots": 1, "expected_latency": "100ms"})
    pod.server.answer = hanging
    pod.held_up = asyncio.create_task(Visit(pod, "/call", b"{}").run())  # type: ignore[attr-defined]
    await asyncio.sleep(0.5)
    return pod, "/call"


async def the_call() -> tuple[Pod, str]:
    pod = Pod()
    pod.server.answer = hanging
    return pod, "/call"


async def a_block_around_another_client() -> tuple[Pod, str]:
    return Pod(), "/block"


@pytest.mark.parametrize(
    "where", [the_resolver, the_store, the_handler, the_line, the_call, a_block_around_another_client]
)
async def test_every_wait_ends_with_the_caller_s_deadline(where: Any) -> None:
    """Whatever a request waits for, after 0.8 s it is answered 504, and nothing is held."""
    pod, path = await where()
    before, began = pod.held(), now()
    visit = await Visit(pod, path, b"{}", x_request_timeout="0.8", x_api_key="pro-1").run()
    assert (visit.status, json.loads(visit.text)["reason"]) == (504, "deadline-exceeded")
    assert now() - began == pytest.approx(0.8)
    await asyncio.sleep(0.1)
    assert pod.held() == before


async def test_no_pause_before_a_retry_reaches_beyond_the_deadline() -> None:
    """What is left of the time decides whether there is another attempt: the outcome stands at once."""
    pod = Pod(vendor={"attempts": 10})
    pod.server.answer, pod.server.latency = failing, 0.0
    visit = await Visit(pod, "/call", b"{}", x_request_timeout="4").run()
    assert (visit.status, json.loads(visit.text)["reason"]) == (502, "vendor-error")
    assert 1000.5 < now() < 1004.0
    assert 2 <= len(pod.server.arrivals) < 10


async def test_a_transport_s_own_timeout_wins_where_it_is_the_stricter() -> None:
    """And the deadline does where that is: the sum of a call's waits never outlasts it."""
    pod = Pod(vendor={"timeouts": {**VENDOR["timeouts"], "read": "1s"}})
    assert pod.llm.client.timeout.read == 1.0
    for timeout, ends in (("3", 3.0), ("0.4", 0.4)):
        pod.server.answer = hanging  # a server that knows no read timeout: only ours can end it
        began = now()
        assert (await Visit(pod, "/call", b"{}", x_request_timeout=timeout).run()).status == 504
        assert now() - began == pytest.approx(ends)


async def test_a_relayed_stream_ends_with_its_terminal_event() -> None:
    """The client reads why, the vendor's stream is closed, nothing is held."""
    pod = Pod()
    pod.server.answer = endless_events
    before = pod.held()
    visit = await Visit(pod, "/stream", x_request_timeout="5").run()
    assert (visit.status, now()) == (200, pytest.approx(1005.0))
    last = visit.text.split(b"\n\n")[-2]
    assert last.startswith(b"event: error\ndata: ")
    assert json.loads(last.partition(b"data: ")[2])["reason"] == "deadline-exceeded"
    await asyncio.sleep(1)
    assert (pod.held(), pod.endings()) == (before, ["ignored"])


async def test_a_route_may_say_how_long_its_answers_last() -> None:
    pod = Pod()
    pod.server.answer = endless_events
    pod.works.lasting("3m")(next(r for r in pod.app.routes if r.path == "/lasting").endpoint)  # type: ignore[attr-defined]
    await Visit(pod, "/lasting").run()
    assert now() == pytest.approx(1180.0)


async def test_background_tasks_have_time_of_their_own() -> None:
    """A call made half a minute after an answer that had two seconds is not refused."""
    pod = Pod()
    visit = await Visit(pod, "/background", x_request_timeout="2").run()
    assert (visit.status, pod.log) == (200, ["background 200"])


# -- a caller who left -----------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"{}", b""], ids=["with a body", "without one"])
async def test_a_plain_call_is_aborted_and_its_handler_is_not(body: bytes) -> None:
    """The vendor's connection ends with the caller's; the handler is told, and comes to its end."""
    pod = Pod()
    pod.server.answer, before = hanging, pod.held()
    visit = Visit(pod, "/careful", body)
    running = asyncio.create_task(visit.left_after(3))
    await asyncio.sleep(2.9)
    assert pod.server.in_flight == 1
    await asyncio.sleep(0.2)
    assert (pod.server.in_flight, pod.llm.statistics().in_flight, pod.log) == (0, 0, ["answer 499"])
    await running
    assert (pod.log, pod.endings(), now()) == (["answer 499", "committed"], ["ignored"], 1004.0)
    assert (pod.held(), visit.sent) == (before, [])


@pytest.mark.parametrize(
    "where", [the_line, the_call, a_block_around_another_client], ids=lambda where: where.__name__
)
async def test_every_wait_for_a_vendor_ends_with_the_caller(where: Any) -> None:
    pod, path = await where()
    before, began = pod.held(), now()
    await Visit(pod, path, b"{}").left_after(2)
    assert now() - began == pytest.approx(2.0)
    await asyncio.sleep(0.1)
    assert pod.held() == before


async def test_the_pause_before_a_retry_ends_with_the_caller() -> None:
    pod = Pod(vendor={"attempts": 5})
    pod.server.answer = failing
    await Visit(pod, "/call", b"{}").left_after(0.5)
    assert (now(), len(pod.server.arrivals)) == (1000.5, 1)
    assert pod.works.vendor("llm")._pipeline._retry.active == 0


async def test_the_body_of_an_answer_is_read_no_further() -> None:
    """A vendor that sent its head early is left as well; nothing failed, so nothing is held against
    it."""
    pod = Pod()
    pod.server.answer = endless_events
    await Visit(pod, "/careful").left_after(3)
    assert (pod.endings(), pod.log, now()) == (["ignored"], ["committed"], pytest.approx(1004.0))


async def test_a_relayed_stream_is_closed_with_its_caller() -> None:
    pod = Pod()
    pod.server.answer, before = endless_events, pod.held()
    await Visit(pod, "/stream").left_after(3)
    await asyncio.sleep(0.1)
    assert (pod.held(), pod.endings(), now()) == (before, ["ignored"], pytest.approx(1003.1))


async def test_an_sdk_tries_once_and_hears_499() -> None:
    """Its own retries would be for nobody, too."""
    pod = Pod()
    pod.server.answer = hanging
    await Visit(pod, "/sdk").left_after(1)
    assert (pod.log, len(pod.server.arrivals), now()) == (["APIStatusError 499"], 1, 1001.0)


async def test_a_call_for_somebody_who_has_left_is_not_made() -> None:
    pod = Pod()

    @pod.app.post("/twice")
    async def twice() -> None:
        for _ in range(2):
            answer = await pod.llm.client.post("/chat/completions", json={})
            pod.log.append(str(answer.status_code))
            await asyncio.sleep(5)

    await Visit(pod, "/twice").left_after(1)
    assert (pod.log, len(pod.server.arrivals)) == (["200", "499"], 1)


@pytest.mark.parametrize("path", ["/cut", "/hang"])
async def test_a_handler_is_cancelled_only_where_its_route_says_so(path: str) -> None:
    pod = Pod()
    await Visit(pod, path, x_request_timeout="20").left_after(3)
    marked = path == "/cut"
    assert (now(), pod.log) == (1003.0, ["cancelled"]) if marked else (1020.0, [])


async def test_middleware_that_runs_the_application_in_a_task_changes_nothing() -> None:
    """`BaseHTTPMiddleware` wraps `receive`, and moves the handler into a task of its own."""
    pod = Pod()
    pod.app.add_middleware(BaseHTTPMiddleware, dispatch=_pass)
    pod.server.answer, before = hanging, pod.held()
    await Visit(pod, "/careful").left_after(3)
    assert pod.log == ["answer 499", "committed"]
    await Visit(pod, "/cut").left_after(3)
    assert (pod.log[2:], pod.held(), now()) == (["cancelled"], before, pytest.approx(1007.0))


async def _pass(request: Any, call_next: Any) -> Any:
    return await call_next(request)


async def test_background_tasks_of_healthy_requests_are_not_touched() -> None:
    """The server says that the caller is gone the moment the answer is complete."""
    pod = Pod()
    visit = await Visit(pod, "/background").run()
    assert (visit.status, pod.log, pod.endings()) == (200, ["background 200"], ["ok", "ok"])


async def test_without_a_vendor_call_a_request_has_no_task_of_ours() -> None:
    pod, tasks = Pod(), []

    @pod.app.post("/look")
    async def look() -> None:
        await asyncio.sleep(1)
        tasks.extend(asyncio.all_tasks())

    await Visit(pod, "/look").run()
    assert len(tasks) == 1


# -- cancelled anywhere ----------------------------------------------------------------------------


class World:
    """A pod built anew for every run."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.pod: Pod

    async def __aenter__(self) -> None:
        self.pod = Pod(vendor=self.settings)

    async def __aexit__(self, *error: object) -> None:
        await self.pod.llm.aclose()
        await self.pod.works._reaper.drain(1)

    def check(self, path: str, answer: Any = None, body: bytes = b"{}", **headers: str) -> int:
        async def scenario() -> None:
            self.pod.server.answer = answer
            self.pod.store.latency = 0.01
            await Visit(self.pod, path, body, **headers).run()

        return cancel_at_every_await(
            scenario, snapshot=lambda: self.pod.held(), around=lambda: self, settle=40.0
        )


@pytest.mark.parametrize(
    ("path", "answer", "headers"),
    [
        ("/call", None, {"x_api_key": "pro-1"}),
        ("/careful", None, {"x_request_timeout": "0.1"}),
        ("/cut", None, {"x_request_timeout": "1"}),
        ("/block", None, {"x_request_timeout": "1"}),
        ("/stream", endless_events, {"x_request_timeout": "2"}),
        ("/background", None, {}),
    ],
)
def test_a_request_cancelled_at_any_await_gives_everything_back(
    path: str, answer: Any, headers: dict[str, str]
) -> None:
    """Through admission, limits, handler and vendor: places, slots, bookings, streams, tasks."""
    assert World().check(path, answer, **headers) >= 1


@pytest.mark.parametrize(("owner", "way"), [(Slot, "end"), (Grant, "finish"), (Presence, "answered")])
def test_the_sweep_sees_what_is_not_given_back(owner: Any, way: str, monkeypatch: Any) -> None:
    """The control: without one of the ways back the same run is not clean."""
    monkeypatch.setattr(owner, way, lambda self, *args, **named: None)
    with pytest.raises(NotClean):
        World().check("/call", hanging, x_api_key="pro-1", x_request_timeout="1")
