"""What metrics, logs and keys tell of callers: nothing that they sent."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protected import INSIDE, chat_service

from headworks.telemetry import Served
from headworks.testing.loop import run


async def test_metrics_know_routes_and_reasons_but_no_caller() -> None:
    """Templates, never paths; no key, no tenant, no address."""
    service = chat_service()
    async with service.client(key="pro-1") as client:
        for _ in range(4):
            await client.post("/chat", json={})
        for number in range(30):
            await client.get(f"/nowhere/{number}")
        assert (await client.get("/metrics")).status_code == 404
    async with service.client(INSIDE) as client:
        text = (await client.get("/metrics")).text
    assert 'headworks_requests_total{method="POST",route="/chat",status="429"} 1.0' in text
    assert 'route="unmatched",status="404"} 30.0' in text
    assert 'reason="quota-exceeded",rule="endpoint:/chat"} 1.0' in text
    for secret in ("pro-1", "nowhere", "203.0.113.7", "key:"):
        assert secret not in text
    assert service.sink.of(Served)[0].route == "/chat"


async def test_no_log_line_holds_what_a_caller_sent(caplog: pytest.LogCaptureFixture) -> None:
    """Neither key nor path nor a line of its own, even if a resolver says it aloud."""

    async def resolve(key: str) -> str | None:
        raise KeyError(key)

    caplog.set_level(logging.DEBUG)
    service = chat_service(resolve=resolve)
    forged = "forged\x0b\u2028ERROR all is lost"
    async with service.running(), service.client(key="secret-key-of-somebody") as client:
        await client.get(
            "/hello", headers={"X-Request-ID": forged.encode(), "X-Forwarded-For": "forged"}
        )
        await client.get("/forged%0d%0aERROR%20all%20is%20lost")
        await client.post("/chat", content=b"{forged")
    ours = [record.getMessage() for record in caplog.records if record.name == "headworks"]
    assert any("the resolver raised KeyError" in line for line in ours)
    assert [line for line in ours if "forged" in line or "secret" in line or "\n" in line] == []


SOME_BYTES = st.binary(max_size=400).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b""))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([b"x-api-key", b"x-forwarded-for"]), SOME_BYTES), max_size=6),
    st.text(max_size=60),
    st.sampled_from(["GET", "POST", "OPTIONS", "BREW"]),
)
def test_nothing_a_caller_sends_is_a_500_or_grows_a_key(
    headers: list[tuple[bytes, bytes]], path: str, method: str
) -> None:
    """Any headers, any path: an answer below 500, and short keys in the store."""

    async def scenario() -> None:
        service = chat_service()
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": "/" + path,
            "raw_path": b"/",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "server": ("svc", 80),
            "client": ("10.0.0.9", 1),
            "headers": headers,
            "http_version": "1.1",
        }
        await service.app(scope, receive, send)
        assert sent[0]["status"] < 500
        for question in service.store.questions:
            assert all(len(ask.key) < 300 for ask in question.asks)

    run(scenario())
