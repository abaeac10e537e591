"""Whatever callers send: no 500 of ours, no key without end, no metric that grows with them."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from fastapi import APIRouter, FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from tests.protected import Service

from headworks import Caller
from headworks.testing.loop import run

LONGEST_KEY = 300
"""Characters: a service's name, two digests, a template of 128."""

FAIRNESS: dict[str, Any] = {
    "default_tier": "free",
    "tiers": {"free": {"rate": "1000/s", "tenant_rate": "5000/s"}, "pro": {"rate": "1000/s"}},
    "keys": {"k": "pro"},
    "total_rate": "100000/s",
    "endpoints": {
        "/items/{item_id}": ["500/s", {"rate": "9000/s", "scope": "all"}],
        "/long/" + "x" * 200: {"rate": "5/s", "mode": "shadow"},
    },
}


def protected() -> Service:
    app = FastAPI()
    router = APIRouter(prefix="/items")
    router.add_api_route("/{item_id}", lambda item_id: item_id, methods=["GET", "POST"])
    app.include_router(router)
    app.add_api_route("/files/{path:path}", lambda path: path)
    app.add_api_route("/long/" + "x" * 200, lambda: 1)

    async def resolve(key: str) -> Caller | None:
        return Caller("pro", f"tenant of {key}") if key.startswith("known") else None

    policy = {
        "service": {"name": "svc", "deadline_header": "X-Request-Timeout", "trust": ["10.0.0.0/8"]},
        "fairness": FAIRNESS,
        "admission": {"max_in_flight": 1000, "criticality_header": "X-Request-Criticality"},
    }
    return Service(app, policy, resolve=resolve)


async def request(
    made: Service, kind: str, path: str, method: str, headers: Any, peer: Any
) -> list[Any]:
    """What a protected application answers to a scope, in messages."""
    sent: list[Any] = []
    scope: dict[str, Any] = {
        "type": kind,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogatepass"),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": peer,
        "server": ("svc", 80),
        "scheme": "http",
        "http_version": "1.1",
        "extensions": {"websocket.http.response": {}},
    }
    scope |= {"method": method} if kind == "http" else {"subprotocols": []}
    coming = [{"type": "http.request", "body": b""} if kind == "http" else {"type": "websocket.connect"}]

    async def receive() -> Any:
        if coming:
            return coming.pop()
        return {"type": "http.disconnect" if kind == "http" else "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        sent.append(message)

    await made.app(scope, receive, send)
    return sent


NAMES = st.sampled_from(
    [
        b"x-api-key",
        b"x-forwarded-for",
        b"forwarded",
        b"host",
        b"origin",
        b"access-control-request-method",
        b"x-request-timeout",
        b"x-request-criticality",
    ]
)
HEADERS = st.lists(
    st.tuples(
        NAMES,
        st.one_of(
            st.binary(max_size=400), st.sampled_from([b"k", b"known-\xc3\xa9", b"2.5", b"critical"])
        ),
    ),
    max_size=6,
)
PATHS = st.one_of(
    st.text(max_size=60).map("/".__add__),
    st.sampled_from(["/items/3", "/files/a/b", "/long/" + "x" * 200, "/items/", "//", "/docs", ""]),
    st.text(max_size=400).map("/items/".__add__),
)
PEERS = st.one_of(st.none(), st.tuples(st.text(max_size=60), st.integers(0, 70_000)))
METHODS = st.one_of(
    st.sampled_from(["GET", "POST", "OPTIONS", "HEAD"]), st.text(min_size=1, max_size=30)
)


@settings(max_examples=400)
@given(st.sampled_from(["http", "websocket"]), PATHS, METHODS, HEADERS, PEERS)
def test_no_request_makes_our_layers_fail(
    kind: str, path: str, method: str, headers: Any, peer: Any
) -> None:
    """Every scope has one answer, its head is well-formed, and its keys are short."""
    made = protected()
    sent = run(request(made, kind, path, method, headers, peer))
    starts = [m for m in sent if m["type"].endswith("response.start") or m["type"] == "websocket.close"]
    assert len(starts) == 1
    assert starts[0].get("status", 404) < 500
    for name, value in starts[0].get("headers", ()):
        assert not set(name + value) & set(b"\r\n\0")
    for question in made.store.questions:
        for ask in question.asks:
            assert len(ask.key) <= LONGEST_KEY
            assert ask.key.isascii()
            assert ask.key.isprintable()


def invented(rng: random.Random) -> list[tuple[bytes, bytes]]:
    """Headers of somebody who makes up a new identity for every request."""
    address = ".".join(str(rng.randrange(256)) for _ in range(4))
    forwarded = rng.choice([b"x-forwarded-for", b"forwarded"])
    value = address if forwarded == b"x-forwarded-for" else f"for={address}"
    key = rng.randbytes(rng.randrange(1, 40)).hex()
    return [(b"x-api-key", key.encode()), (forwarded, value.encode())]


async def test_ten_thousand_invented_callers_are_one_caller_and_few_labels() -> None:
    """Random keys, forwarding headers, paths and methods from one address: one tenant in the store, and
    no more label sets than ten times fewer requests leave."""
    made, rng = protected(), random.Random(7)
    counted = []
    for n in range(10_001):
        path = rng.choice(["/items/", "/files/", "/", "/nothing/"]) + rng.randbytes(6).hex()
        method = rng.choice(["GET", "POST", "DELETE", f"BREW{rng.randrange(10**6)}"])
        sent = await request(made, "http", path, method, invented(rng), ("203.0.113.7", n))
        assert sent[0]["status"] < 500
        await asyncio.sleep(0.01)
        if n % 1000 == 0:
            counted.append(len(label_sets(made)))
    keys = {ask.key for question in made.store.questions for ask in question.asks}
    assert keys == {
        "{user:svc:ip:203.0.113.7}:tier",
        "{user:svc:ip:203.0.113.7}:tenant:free",
        "{user:svc:ip:203.0.113.7}:endpoint:/items/{item_id}",
        "{all:svc}:endpoint:all:/items/{item_id}",
        "{all:svc}:total",
    }
    assert counted[1] == counted[-1] < 200
    identifier = made.works._identifier
    assert len(identifier._known) == 0
    assert len(identifier._unknown) <= 10_000


def label_sets(made: Service) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    text = made.works._metrics.render()[1].decode()
    return {
        (sample.name, frozenset(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "le" not in sample.labels
    }
