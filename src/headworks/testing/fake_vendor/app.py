"""The fake vendor as an ASGI application.

    POST {/v1,}/chat/completions   OpenAI's chat, plain or streamed   GET/POST {/v1,}/search?q=…
    POST {/v1,}/messages           Anthropic's, plain or streamed     GET {/v1,}/models
    GET  /stats  POST /stats/reset  what was decided              GET/POST /faults  what goes wrong

A call arrives, travels for the arrival jitter, is decided (this and nothing else changes the
limits), takes its latency and ends. All time is the event loop's, so a virtual-time loop moves it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from headworks.testing.fake_vendor import messages, wire
from headworks.testing.fake_vendor.endpoint import Answer, Asked, Endpoint
from headworks.testing.fake_vendor.judge import INPUT_TOKENS, REQUESTS, TOKENS, Judge, Limit, Ruling
from headworks.testing.fake_vendor.ledger import Ledger
from headworks.testing.fake_vendor.traffic import Faults


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
        chat, search = (Endpoint(self, ask, wire.Chat()) for ask in (self._ask_chat, self._ask_search))
        message = Endpoint(self, self._ask_message, messages.Messages())
        for prefix in ("/v1", ""):
            calls += [
                Route(f"{prefix}/chat/completions", chat, methods=["POST"]),
                Route(f"{prefix}/messages", message, methods=["POST"]),
                Route(f"{prefix}/search", search, methods=["GET", "POST"]),
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

    def _ask_message(self, request: Request, body: bytes) -> Asked:
        call = messages.parse(body)

        def answer() -> Answer:
            if call.stream:
                return Answer(events=tuple(messages.events_of(call, self._rng)))
            return Answer(messages.message(call, self._rng))

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
