"""The main job, asked of the running stack: first answer, chat, user limits, an exhausted vendor."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from typing import Any

import httpx2
from fastapi import FastAPI
from openai import AsyncOpenAI

from bench.claims import Claim, Control, Figure
from bench.stage import Stage, chat, client, running
from headworks.testing.fake_vendor import FakeVendor, InProcess, limit

TIGHT = {"HEADWORKS_VENDORS__LLM__QUOTA": '["3/min"]'}


async def first_answer(stage: Stage) -> Claim:
    """From the command to a completion. Measured only when the shipped stack has just been raised."""
    stack = await stage.shipped()
    async with client(base_url=stack.url) as asking:
        answer = await chat(asking, "free-20")
        answered = asyncio.get_running_loop().time() - stack.began
    return Claim(
        "first-answer",
        "on a warm machine, the stack is ready and has answered within ten seconds of the command",
        (
            Figure("seconds to the ready line", round(stack.ready_after, 2), "<=", 10),
            Figure("seconds to the first completion", round(answered, 2), "<=", 10),
            Figure("status", answer.status_code, "==", 200, Control("before the command", stack.before)),
        ),
    )


async def completions(stage: Stage) -> Claim:
    """A whole completion, and a streamed one whose chunks are timed where they arrive."""
    stack = await stage.shipped()
    body = {"message": "hi", "stream": True}
    before = (await stack.vendor_stats("llm"))["accepted"]
    async with client(base_url=stack.url, headers={"X-API-Key": "pro-8"}) as asking:
        whole = await chat(asking, None)
        arrivals, text = await _arrivals(asking, body)
        at_once, _ = await _arrivals(asking, {"message": "hi"})
        vendor_saw = (await stack.vendor_stats("llm"))["accepted"] - before
        await asking.post("/chat", json={})
    invalid = (await stack.vendor_stats("llm"))["accepted"] - before - vendor_saw
    gaps = [later - earlier for earlier, later in pairwise(arrivals)]
    words = _words(text)
    return Claim(
        "completions",
        "/chat answers with a completion that came through the SDK, and streams it chunk by chunk",
        (
            Figure("status", whole.status_code, "==", 200),
            Figure("completion is not empty", bool(whole.json().get("reply")), "==", 1),
            Figure("calls the vendor saw", vendor_saw, "==", 3, Control("of an invalid call", invalid)),
            Figure(
                "distinct arrival times of one stream",
                len(set(arrivals)),
                ">=",
                words / 2,
                Control("answered in one piece", len(set(at_once))),
            ),
            Figure("the stream says the same words", text.count("event: message"), "==", words),
            Figure("streams ended by `done`", text.rstrip().endswith("event: done\ndata: {}"), "==", 1),
            Figure(
                "share of gaps above a millisecond",
                round(sum(gap > 0.001 for gap in gaps) / max(1, len(gaps)), 3),
                ">=",
                0.5,
            ),
        ),
    )


async def _arrivals(asking: httpx2.AsyncClient, body: dict[str, Any]) -> tuple[list[float], str]:
    """When each piece of a streamed answer arrived, and all of it."""
    loop = asyncio.get_running_loop()
    arrivals, pieces = [], []
    async with asking.stream("POST", "/chat", json=body) as answer:
        async for piece in answer.aiter_raw():
            arrivals.append(loop.time())
            pieces.append(piece)
    return arrivals, b"".join(pieces).decode()


def _words(text: str) -> int:
    """How many words the streamed completion has."""
    told = [line[6:] for line in text.splitlines() if line.startswith('data: {"text"')]
    return len("".join(json.loads(line)["text"] for line in told).split())


async def user_limits(stage: Stage) -> Claim:
    """Ten a minute for free-1, and free-2 does not notice."""
    stack = await stage.shipped()
    async with client(base_url=stack.url) as asking:
        ten = list(await asyncio.gather(*(chat(asking, "free-1") for _ in range(10))))
        eleventh = await chat(asking, "free-1")
        other = await chat(asking, "free-2")
    problem = eleventh.json() if "problem" in eleventh.headers.get("content-type", "") else {}
    last = ten[-1]
    return Claim(
        "user-limits",
        "the eleventh /chat call within a minute by free-1 is a 429 that says why; free-2 is served",
        (
            Figure("of the first ten, served", sum(one.status_code == 200 for one in ten), "==", 10),
            Figure(
                "status of the eleventh",
                eleventh.status_code,
                "==",
                429,
                Control("the tenth", last.status_code),
            ),
            Figure(
                "Retry-After, seconds",
                _whole(eleventh.headers.get("retry-after")),
                ">=",
                1,
                Control("of the tenth: none", _whole(last.headers.get("retry-after")) or 0),
            ),
            Figure("RateLimit fields", _fields(eleventh), "==", 2),
            Figure("the body names the layer", problem.get("layer") == "fairness", "==", 1),
            Figure("the body names the limit", problem.get("limit") == "tier:free", "==", 1),
            Figure(
                "status of free-2 then",
                other.status_code,
                "==",
                200,
                Control("free-1 then", eleventh.status_code),
            ),
        ),
        {"RateLimit": eleventh.headers.get("ratelimit"), "problem": problem},
    )


def _whole(text: str | None) -> float | None:
    return int(text) if text is not None and text.isdigit() else None


def _fields(answer: httpx2.Response) -> int:
    return sum(name in answer.headers for name in ("ratelimit", "ratelimit-policy"))


async def exhausted_vendor(stage: Stage) -> Claim:
    """A vendor of three calls a minute behind an unmodified handler; and a vendor that is not there."""
    nobody = ("--vendor-url", "search=http://127.0.0.1:9/v1")
    async with running(*nobody, environ=TIGHT) as stack, client(base_url=stack.url) as asking:
        answers = [await chat(asking, "pro-1") for _ in range(4)]
        down = await asking.get("/search", params={"q": "weir"}, headers={"X-API-Key": "pro-1"})
        rejected = sum((await stack.vendor_stats("llm"))["rejected"].values())
    async with running_plain() as plain:
        bare = [(await chat(plain, None)).status_code for _ in range(4)]
    refused = next((answer for answer in answers if answer.status_code != 200), answers[-1])
    said = refused.json()
    return Claim(
        "exhausted-vendor",
        "an unmodified SDK handler answers 429 when the vendor's quota is exhausted, and 502 or 503 "
        "with Retry-After when the vendor is down",
        (
            Figure("calls served before", sum(a.status_code == 200 for a in answers), ">=", 1),
            Figure(
                "status of the next",
                refused.status_code,
                "==",
                429,
                Control("the same handler without headworks", max(bare)),
            ),
            Figure("it names the vendor layer", said.get("layer") == "vendor", "==", 1),
            Figure("Retry-After, seconds", _whole(refused.headers.get("retry-after")), ">=", 1),
            Figure(
                "calls the vendor rejected",
                rejected,
                "==",
                0,
                Control("without headworks", sum(s != 200 for s in bare)),
            ),
            Figure(
                "vendor down: status is 502 or 503",
                down.status_code in (502, 503),
                "==",
                1,
                Control("a vendor that is up", answers[0].status_code in (502, 503)),
            ),
            Figure("vendor down: Retry-After", _whole(down.headers.get("retry-after")), ">=", 1),
        ),
        {"problem": said, "vendor down": down.json() if down.status_code >= 400 else {}},
    )


def running_plain() -> httpx2.AsyncClient:
    """The same handler with the same SDK and nothing of ours; the vendor allows one call, then waits."""
    vendor = FakeVendor([limit("3/min", burst=1)])
    sdk = AsyncOpenAI(
        base_url="http://vendor/v1",
        http_client=httpx2.AsyncClient(transport=InProcess(vendor)),
        max_retries=0,
        api_key="local",
    )
    app = FastAPI()

    @app.post("/chat")
    async def chat(payload: dict[str, str]) -> dict[str, str]:
        completion = await sdk.chat.completions.create(
            model="gpt-small", messages=[{"role": "user", "content": payload["message"]}], max_tokens=16
        )
        return {"reply": completion.choices[0].message.content or ""}

    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    return httpx2.AsyncClient(transport=transport, base_url="http://service")
