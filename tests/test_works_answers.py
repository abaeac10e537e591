"""What a client is answered when a layer refuses, a handler fails, or a stream breaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import openai
import pytest
from fastapi.responses import StreamingResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from tests.protected import Service, chat_service

from headworks.errors import DeadlineExceeded, VendorOpen, VendorQuota


async def test_refusals_carry_cors_headers_and_preflights_ask_no_limits() -> None:
    """A browser can read why it was refused."""
    service = chat_service()
    service.app.add_middleware(CORSMiddleware, allow_origins=["https://ui.example"], allow_methods=["*"])
    origin = {"Origin": "https://ui.example"}
    async with service.client(key="pro-1") as client:
        preflight = await client.options(
            "/chat", headers=origin | {"Access-Control-Request-Method": "POST"}
        )
        answers = [await client.post("/chat", json={}, headers=origin) for _ in range(4)]
    assert preflight.status_code == 200
    assert answers[-1].status_code == 429
    assert answers[-1].headers["access-control-allow-origin"] == "https://ui.example"
    assert len(service.store.questions) == 4


async def test_a_preflight_the_application_answers_itself_asks_no_limits() -> None:
    service = chat_service()
    headers = {"Origin": "https://ui.example", "Access-Control-Request-Method": "POST"}
    async with service.client() as client:
        for _ in range(20):
            assert (await client.options("/chat", headers=headers)).status_code == 405
        assert service.store.questions == []
        await client.options("/chat")
        assert len(service.store.questions) == 1


async def test_the_application_is_not_woken_for_a_full_pod() -> None:
    """Ten in flight, the eleventh is 503 from admission, and probes still answer."""
    service, go = Service(), asyncio.Event()

    @service.app.get("/slow")
    async def slow() -> int:
        await go.wait()
        return 1

    async with service.client(key="pro-1") as client:
        held = [asyncio.create_task(client.get("/slow")) for _ in range(10)]
        await asyncio.sleep(1)
        refused = await client.get("/slow")
        assert (refused.status_code, refused.json()["reason"]) == (503, "pod-saturated")
        assert len(service.store.questions) == 10
        assert (await client.get("/health")).status_code == 200
        go.set()
        assert [(await task).status_code for task in held] == [200] * 10


async def test_an_endless_handler_is_answered_504() -> None:
    service = Service()

    @service.app.get("/endless")
    async def endless() -> None:
        await asyncio.sleep(3600)

    async with service.client() as client:
        answer = await client.get("/endless")
    assert (answer.status_code, answer.json()["reason"]) == (504, "deadline-exceeded")


def sdk_error(status: int, refused: Any) -> openai.APIStatusError:
    request = httpx2.Request("POST", "https://vendor.example/v1")
    response = httpx2.Response(status, request=request, extensions={"headworks.refused": refused})
    return openai.RateLimitError("no", response=response, body=None)


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (sdk_error(429, VendorQuota(retry_after=7.2)), 429, "vendor-quota"),
        (sdk_error(503, VendorOpen(retry_after=7.2)), 503, "vendor-open"),
        (VendorOpen(retry_after=7.2), 503, "vendor-open"),
        (ExceptionGroup("fan-out", [VendorQuota(retry_after=7.2)]), 429, "vendor-quota"),
        (DeadlineExceeded(retry_after=7.2), 504, "deadline-exceeded"),
    ],
)
async def test_an_unhandled_refusal_is_the_right_answer_and_no_500(
    error: Exception, status: int, reason: str
) -> None:
    """An unmodified SDK handler whose vendor quota is exhausted answers its client 429."""
    service = Service()

    @service.app.get("/vendor")
    async def vendor() -> None:
        raise error

    async with service.client() as client:
        answer = await client.get("/vendor")
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert answer.headers["retry-after"] == "8"
    assert answer.headers["ratelimit"].startswith('"tier:free";r=9')


async def test_a_defect_stays_a_500_and_a_handled_error_stays_the_application_s() -> None:
    """We translate refusals that escape, nothing else."""
    service = Service()

    @service.app.get("/defect")
    async def defect() -> None:
        raise KeyError("bug")

    @service.app.get("/handled")
    async def handled() -> None:
        raise sdk_error(429, VendorQuota())

    @service.app.exception_handler(openai.RateLimitError)
    async def theirs(request: Any, error: Exception) -> PlainTextResponse:
        return PlainTextResponse("sorry", status_code=418)

    transport = httpx2.ASGITransport(app=service.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://svc") as client:
        assert (await client.get("/defect")).status_code == 500
        assert (await client.get("/handled")).status_code == 418


async def test_a_stream_carries_its_limits_once_and_an_error_in_it_is_not_answered_twice() -> None:
    """One start, one set of fields; after the start a refusal is raised on, not answered."""
    service = Service()

    async def chunks(fail: bool) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"chunk"
        if fail:
            raise VendorOpen

    @service.app.get("/stream")
    async def stream(fail: bool = False) -> StreamingResponse:
        return StreamingResponse(chunks(fail))

    async with service.client(key="pro-1") as client:
        answer = await client.get("/stream")
        assert answer.content == b"chunk" * 3
        assert len(answer.headers.get_list("ratelimit")) == 1
        with pytest.raises(VendorOpen):
            await client.get("/stream?fail=true")
