"""The same small application, bare and behind each way of limiting it.

All answer GET /hello, after two limits of the caller have been asked: the caller's, and the caller's on
this endpoint. The limits are far away or used up, as the rate has it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded

from headworks import Headworks
from headworks.limits.text import shape_of
from headworks.policy.load import parse
from headworks.store.protocol import Ask, Question
from headworks.store.valkey import ValkeyStore
from limits import parse as rate_item

CALLERS = 64
HEADER = "X-API-Key"

POLICY = """
schema = 1
[service]
name = "bench"
trust = ["127.0.0.1"]
[health]
drain_delay = "0s"
[admission]
max_in_flight = 1000
[store]
url = "{url}"
decision_timeout = "1s"
[fairness]
default_tier = "free"
[fairness.tiers]
free = {{ rate = "{rate}" }}
[fairness.endpoints]
"/hello" = "{rate}"
[fairness.keys]
{keys}
"""


def caller(number: int) -> str:
    return f"caller-{number}"


def bare(url: str, rate: str) -> FastAPI:
    """No limit at all."""
    app = FastAPI()

    @app.get("/hello")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


def ours(url: str, rate: str) -> FastAPI:
    """headworks with all that it does by default."""
    keys = "\n".join(f'"{caller(number)}" = "free"' for number in range(CALLERS))
    policy = parse(tomllib.loads(POLICY.format(url=url, rate=rate, keys=keys)), "bench", {})
    return Headworks(policy).protect(bare(url, rate))


def floor(url: str, rate: str) -> Any:
    """The question alone, in plain ASGI around the bare application: the least that ours could cost."""
    app, store, shape = bare(url, rate), ValkeyStore(url), shape_of(rate)
    header = HEADER.lower().encode()

    async def asked(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        if scope["type"] == "http":
            key = next(value for name, value in scope["headers"] if name == header).decode()
            asks = (Ask("user", f"{{{key}}}", shape), Ask("endpoint", f"{{{key}}}:/hello", shape))
            if not (await store.ask(Question(asks))).allowed:
                await send({"type": "http.response.start", "status": 429, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
        await app(scope, receive, send)

    return asked


def answer_alone(url: str, rate: str) -> Any:
    """An answer of the same length as a refusal, in plain ASGI: the most that this server can do."""
    body = b'{"title":"' + b"x" * 300 + b'"}'
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"retry-after", b"3000"),
        (b"ratelimit-policy", b'"tier:free";q=1;w=3600, "endpoint:/hello";q=1;w=3600'),
        (b"ratelimit", b'"tier:free";r=0;t=3000, "endpoint:/hello";r=0;t=3000'),
    ]

    async def answered(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 429, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return answered


def answer_in_fastapi(url: str, rate: str) -> FastAPI:
    """The same as the outermost part of a FastAPI application, behind what FastAPI itself does first."""
    app, answered = bare(url, rate), answer_alone(url, rate)
    app.build_middleware_stack = lambda: answered  # type: ignore[method-assign]  # as `protect` does
    return app


def question_and_answer(url: str, rate: str) -> Any:
    """The same, after the question."""
    store, shape, answer = ValkeyStore(url), shape_of(rate), answer_alone(url, rate)

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            asks = (Ask("user", "{user}", shape), Ask("endpoint", "{user}:/hello", shape))
            await store.ask(Question(asks))
            await answer(scope, receive, send)

    return asked


def limits_by_hand(url: str, rate: str) -> FastAPI:
    """limits, asynchronous, asked twice in a dependency."""
    app = FastAPI()
    limiter = FixedWindowRateLimiter(RedisStorage(f"async+{url}", implementation="redispy"))
    item = rate_item(rate)

    async def limited(request: Request) -> None:
        key = request.headers[HEADER]
        for scope in (key, f"{key}:/hello"):
            if not await limiter.hit(item, scope):
                raise HTTPException(429)

    @app.get("/hello", dependencies=[Depends(limited)])
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


def by_slowapi(url: str, rate: str) -> FastAPI:
    """slowapi, which asks a synchronous client: two limits on the endpoint."""
    limiter = Limiter(key_func=lambda request: request.headers[HEADER], storage_uri=url)
    app = FastAPI()
    app.state.limiter = limiter

    async def refused(request: Request, error: Exception) -> Any:
        raise HTTPException(429)

    app.add_exception_handler(RateLimitExceeded, refused)

    @app.get("/hello")
    @limiter.limit(rate)
    @limiter.limit(rate, key_func=lambda request: f"{request.headers[HEADER]}:/hello")
    async def hello(request: Request) -> dict[str, str]:
        return {"hello": "world"}

    return app


APPS: dict[str, Callable[[str, str], Any]] = {
    "bare FastAPI": bare,
    "headworks": ours,
    "bare, our server": bare,
    "question alone": floor,
    "answer alone": answer_alone,
    "answer in FastAPI": answer_in_fastapi,
    "question and answer": question_and_answer,
    "limits in a dependency": limits_by_hand,
    "slowapi": by_slowapi,
}
OURS = ("headworks", "bare, our server")
"""Those that are served as `headworks serve` serves."""
