"""The fake vendor as an ASGI application.

    POST {/v1,}/chat/completions   chat, plain or streamed        GET/POST {/v1,}/search?q=…
    GET  {/v1,}/models             the models there are
    GET  /stats  POST /stats/reset  what was decided              GET/POST /faults  what goes wrong

A call arrives, travels for the arrival jitter, is decided (this and nothing else changes the
limits), takes its latency and ends. All time is the event loop's, so a virtual-time loop moves it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from headworks.testing.fake_vendor import wire
from headworks.testing.fake_vendor.judge import INPUT_TOKENS, REQUESTS, TOKENS, Judge, Limit, Ruling
from headworks.testing.fake_vendor.ledger import Ledger
from headworks.testing.fake_vendor.traffic import Faults


@dataclass(frozen=True, slots=True)
class Answer:
    """What an accepted call gets: one JSON body, or the events of a stream."""

    body: dict[str, Any] | None = None
    events: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """A well-formed call: what it costs, and how to answer it once it is accepted."""

    model: str
    costs: dict[str, int]
    answer: Callable[[], Answer]


class FakeVendor:
    """A vendor that really enforces. An ASGI application.

    limits           what it enforces, all together
    faults           delays and failures to begin with; `POST /faults` changes them
    max_concurrency  accepted calls at once, beyond which calls are refused; None: no bound
    models           what `GET /v1/models` lists, besides models that have limits of their own
    rng              source of ids, delays and failures; seeded, so that runs repeat
    wall             seconds since 1970, for `created` and for where fixed windows begin; None: the
                     event loop's clock, which tests can foresee
    """

    def __init__(
        self,
        limits: Iterable[Limit] = (),
        *,
        faults: Faults | None = None,
        max_concurrency: int | None = None,
        models: Iterable[str] = ("gpt-fake",),
        rng: random.Random | None = None,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self.judge = Judge(limits)
        self.ledger = Ledger()
        self.faults = faults or Faults()
        self._max_concurrency = max_concurrency
        own = [limit.model for limit, _ in self.judge.meters if limit.model]
        self._models = list(dict.fromkeys([*models, *own]))
        self._rng = rng or random.Random(0)
        self._wall = wall
        self._epoch: float | None = None
        self._latest = 0
        self._app = Starlette(routes=self._routes())

    def _routes(self) -> list[Route]:
        calls: list[Route] = []
        for prefix in ("/v1", ""):
            calls += [
                Route(f"{prefix}/chat/completions", _Endpoint(self, self._ask_chat), methods=["POST"]),
                Route(f"{prefix}/search", _Endpoint(self, self._ask_search), methods=["GET", "POST"]),
                Route(f"{prefix}/models", self._get_models, methods=["GET"]),
            ]
        return [
            *calls,
            Route("/stats", self._get_stats, methods=["GET"]),
            Route("/stats/reset", self._reset_stats, methods=["POST"]),
            Route("/faults", self._get_faults, methods=["GET"]),
            Route("/faults", self._set_faults, methods=["POST"]),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    # Time and chance

    def now(self) -> float:
        """Seconds on the vendor's calendar: the wall clock when it began, moved by the loop's."""
        loop = asyncio.get_running_loop()
        if self._epoch is None:
            self._epoch = 0.0 if self._wall is None else self._wall() - loop.time()
        return self._epoch + loop.time()

    def now_us(self) -> int:
        return round(self.now() * 1e6)

    # The calls that are limited

    def _ask_chat(self, request: Request, body: bytes) -> Asked:
        call = wire.parse_chat(body)

        def answer() -> Answer:
            created = int(self.now())
            if call.stream:
                return Answer(events=tuple(wire.chunks(call, created, self._rng)))
            return Answer(wire.completion(call, created, self._rng))

        return Asked(call.model, call.costs, answer)

    def _ask_search(self, request: Request, body: bytes) -> Asked:
        asked: object = request.query_params.get("q")
        if asked is None and request.method == "POST":
            asked = wire.json_object(body).get("q")
        if not isinstance(asked, str) or not asked:
            raise wire.BadRequest("'q' must be a text that is not empty", "q")
        query = asked
        tokens = -(-len(query) // 4)
        costs = {REQUESTS: 1, TOKENS: tokens, INPUT_TOKENS: tokens}
        return Asked("search", costs, lambda: Answer(wire.search_results(query)))

    def decide(self, asked: Asked, now_us: int) -> Ruling | None:
        """The decision on a call that arrived then; None when all concurrent calls are taken."""
        if self._max_concurrency is not None and self.ledger.in_flight >= self._max_concurrency:
            self.ledger.rejected["concurrency"] += 1
            return None
        ruling = self.judge.decide(asked.costs, now_us, model=asked.model)
        if ruling.refused_by is None:
            self.ledger.accept(
                {s.limit: asked.costs.get(s.limit.unit, 0) for s in ruling.standings}, now_us
            )
        else:
            self.ledger.rejected[ruling.refused_by.unit] += 1
        return ruling

    async def wait_arrival(self) -> int:
        """Let a call travel; when it arrives, in microseconds. A busy machine that wakes late makes it
        no later: the vendor's clock is its own."""
        travel = self.faults.arrival_jitter.sample(self._rng)
        arrives = round((self.now() + travel) * 1e6)
        await asyncio.sleep(travel)
        self._latest = max(self._latest, arrives)
        return self._latest

    async def wait_latency(self) -> None:
        """The latency of a plain answer; for ever when calls hang."""
        if self.faults.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(self.faults.latency.sample(self._rng))

    async def wait_between(self, events: tuple[bytes, ...]) -> Callable[[], Awaitable[None]]:
        """The pause before each event of a stream: the latency, spread evenly over all of them."""
        if self.faults.hang:
            await asyncio.Event().wait()
        pause = self.faults.latency.sample(self._rng) / len(events)
        return lambda: asyncio.sleep(pause)

    def fails(self) -> bool:
        return self._rng.random() < self.faults.fail_ratio

    def request_id(self) -> str:
        return f"req_{self._rng.getrandbits(128):032x}"

    # What is said about it

    async def _get_models(self, request: Request) -> Response:
        listed = [
            {"id": m, "object": "model", "created": 0, "owned_by": "headworks"} for m in self._models
        ]
        return JSONResponse({"object": "list", "data": listed})

    async def _get_stats(self, request: Request) -> Response:
        return JSONResponse(self.ledger.as_json(self.judge, self.now_us()))

    async def _reset_stats(self, request: Request) -> Response:
        self.ledger.reset()
        return JSONResponse(self.ledger.as_json(self.judge, self.now_us()))

    async def _get_faults(self, request: Request) -> Response:
        return JSONResponse(self.faults.as_json())

    async def _set_faults(self, request: Request) -> Response:
        try:
            self.faults = self.faults.changed(wire.json_object(await request.body()))
        except ValueError as error:
            return JSONResponse(wire.error(str(error), "invalid_request_error"), 400)
        return JSONResponse(self.faults.as_json())


class _Endpoint:
    """One limited endpoint: reads the call, has it decided, answers, and watches the client leave."""

    def __init__(self, vendor: FakeVendor, ask: Callable[[Request, bytes], Asked]) -> None:
        self._vendor, self._ask = vendor, ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        try:
            async with asyncio.timeout(None) as stay:
                watcher = asyncio.create_task(_watch(receive, stay))
                try:
                    await self._serve(request, body, send)
                finally:
                    watcher.cancel()
        except TimeoutError:
            return  # the client left; what it held has been given back on the way here

    async def _serve(self, request: Request, body: bytes, send: Send) -> None:
        vendor = self._vendor
        headers = {"x-request-id": vendor.request_id(), "openai-version": "2020-10-01"}
        try:
            asked = self._ask(request, body)
        except wire.BadRequest as error:
            said = wire.error(str(error), "invalid_request_error", param=error.param)
            await _reply(send, 400, said, headers)
            return
        ruling = vendor.decide(asked, await vendor.wait_arrival())
        if ruling is None:
            said = wire.error(
                "Too many concurrent requests.", "requests", code="concurrency_limit_exceeded"
            )
            await _reply(send, 429, said, headers | {"retry-after": "1"})
            return
        headers |= wire.rate_headers(ruling)
        if not ruling.accepted:
            await _reply(send, 429, wire.rate_limited(ruling, asked.costs, asked.model), headers)
            return
        vendor.ledger.begin()
        try:
            await self._answer(asked.answer(), send, headers)
        finally:
            vendor.ledger.end()

    async def _answer(self, answer: Answer, send: Send, headers: dict[str, str]) -> None:
        vendor = self._vendor
        if vendor.fails():
            await vendor.wait_latency()
            vendor.ledger.failed += 1
            said = wire.error("The server had an error while processing your request.", "server_error")
            await _reply(send, 500, said, headers)
        elif answer.body is not None:
            await vendor.wait_latency()
            await _reply(send, 200, answer.body, headers, cut=vendor.faults.disconnect)
        else:
            await self._stream(answer.events, send, headers)

    async def _stream(self, events: tuple[bytes, ...], send: Send, headers: dict[str, str]) -> None:
        vendor = self._vendor
        pause = await vendor.wait_between(events)
        await _start(send, 200, headers | {"content-type": "text/event-stream; charset=utf-8"})
        done = False
        try:
            for number, event in enumerate(events):
                if number == vendor.faults.disconnect:
                    done = True  # our own fault, not the client's
                    raise ConnectionAbortedError("the fake vendor closed the connection in mid-stream")
                await pause()
                await send({"type": "http.response.body", "body": event, "more_body": True})
            done = True
        finally:
            if not done:
                vendor.ledger.streams_closed_early += 1
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _watch(receive: Receive, stay: asyncio.Timeout) -> None:
    """Ends the stay of a call whose client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stay.reschedule(asyncio.get_running_loop().time())


async def _start(send: Send, status: int, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _reply(
    send: Send, status: int, body: dict[str, Any], headers: dict[str, str], *, cut: int | None = None
) -> None:
    """One JSON answer; `cut` closes the connection after that many of its bytes."""
    content = json.dumps(body, separators=(",", ":")).encode()
    sized = {"content-type": "application/json", "content-length": str(len(content))}
    await _start(send, status, headers | sized)
    if cut is not None:
        await send({"type": "http.response.body", "body": content[:cut], "more_body": True})
        raise ConnectionAbortedError("the fake vendor closed the connection in mid-answer")
    await send({"type": "http.response.body", "body": content, "more_body": False})
