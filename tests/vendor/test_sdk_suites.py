"""Both real SDKs, all the ways a call may go, with the collector frozen: attempts counted at the vendor.

Nothing that is asserted here may be the garbage collector's work, so it does not run.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from tests.vendor.sdks import TOOLS, Side

from headworks import Headworks
from headworks.current import Current, enter
from headworks.errors import CallTimeout, QueueTimeout, VendorFailed, VendorQuota
from headworks.policy.load import parse
from headworks.telemetry import Called
from headworks.testing.fake_vendor import InProcess, limit
from headworks.testing.fake_vendor.wire import WORDS
from headworks.vendor import REFUSED

SAID = " ".join(WORDS)


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@pytest.fixture(params=["openai", "anthropic"])
def name(request: Any) -> str:
    found: str = request.param
    return found


def loop_time() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_completion_is_one_attempt(name: str, retries: int) -> None:
    side = Side(name, retries)
    assert side.text(await side.ask()) == SAID
    assert side.attempts == 1
    assert side.clean()


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_stream_read_to_its_end_is_one_attempt_and_holds_its_slot_as_long(
    name: str, retries: int
) -> None:
    side = Side(name, retries, faults={"latency": "const:3s"})
    words = []
    async for word in side.words(await side.stream()):
        words.append(word)
        assert side.vendor.statistics().in_flight == 1
    assert "".join(words) == SAID
    assert side.attempts == 1
    assert side.fake.ledger.streams_closed_early == 0
    assert side.clean()


@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_are_called_and_their_results_told(name: str, streamed: bool) -> None:
    side = Side(name)
    answer = await side.ask(tools=TOOLS[name], stream=streamed)
    if streamed:
        called = [event async for event in answer]
        assert "search" in "".join(event.model_dump_json() for event in called)
    elif name == "openai":
        assert answer.choices[0].message.tool_calls[0].function.name == "search"
    else:
        assert answer.content[0].input == {"query": "weir"}
    assert side.attempts == 1
    assert side.clean()


async def test_a_stream_left_by_break_is_closed_when_its_request_ends(name: str) -> None:
    """The SDK's own stream object is kept: neither a reference count nor a collector closes it."""
    side = Side(name, faults={"latency": "const:30s"})
    kept: list[Any] = []

    async def handler() -> str:
        stream = await side.stream()
        kept.append(stream)
        async for _ in stream:
            break
        return "done"

    async with serving(side, handler) as pod:
        assert (await pod.get("/")).status_code == 200
        await asyncio.sleep(0.1)
    assert side.clean()
    assert side.fake.ledger.streams_closed_early == 1


async def test_a_stream_never_begun_is_closed_when_its_request_ends(name: str) -> None:
    side = Side(name, faults={"latency": "const:30s"})
    kept: list[Any] = []

    async def handler() -> str:
        kept.append(await side.stream())
        return "done"

    async with serving(side, handler) as pod:
        await pod.get("/")
        await asyncio.sleep(0.1)
    assert side.clean()


async def test_a_stream_left_outside_of_any_request_is_closed_by_an_idle_gap(name: str) -> None:
    side = Side(name, faults={"latency": "const:300s"}, settings={"call_timeout": "20s"})
    stream = await side.stream()
    words = side.words(stream)
    await anext(words)
    await asyncio.sleep(19)
    assert side.vendor.statistics().in_flight == 1
    await asyncio.sleep(2)
    assert side.vendor.statistics().in_flight == 0
    await side.house.reaper.drain(2)
    assert side.clean()
    with pytest.raises(Exception, match=r"nobody read this stream for 20 s|[Cc]onnection"):
        async for _ in words:
            pass


async def test_a_stream_read_slowly_is_not_idle(name: str) -> None:
    """A gap is between two reads; together they may take as long as they like."""
    side = Side(name, settings={"call_timeout": "20s"})
    words = []
    async for word in side.words(await side.stream()):
        words.append(word)
        await asyncio.sleep(15)
    assert "".join(words) == SAID


async def test_within_its_request_a_stream_may_rest(name: str) -> None:
    side = Side(name, settings={"call_timeout": "5s"})
    read: list[str] = []

    async def handler() -> str:
        async for word in side.words(await side.stream()):
            if not read:
                await asyncio.sleep(12)
            read.append(word)
        return "done"

    async with serving(side, handler) as pod:
        await pod.get("/")
    assert "".join(read) == SAID


async def test_a_task_that_outlives_its_request_does_not_keep_its_stream(name: str) -> None:
    side = Side(name, faults={"latency": "const:300s"}, settings={"call_timeout": "20s"})
    tasks, kept = set(), []

    async def left_behind() -> None:
        await asyncio.sleep(1)
        kept.append(await side.stream())
        await asyncio.sleep(1000)

    async def handler() -> str:
        tasks.add(asyncio.create_task(left_behind()))
        return "done"

    async with serving(side, handler) as pod:
        await pod.get("/")
        await asyncio.sleep(15)
        assert side.vendor.statistics().in_flight == 1
        await asyncio.sleep(15)
        assert side.clean()
    for task in tasks:
        task.cancel()


async def test_a_cancelled_stream_is_closed_at_once(name: str) -> None:
    side = Side(name, faults={"latency": "const:30s"})

    async def read() -> None:
        async for _ in await side.stream():
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(10)
    reading.cancel()
    await asyncio.wait((reading,))
    assert side.clean()
    assert side.attempts == 1


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_disconnects_frees_the_slot_within_three_turns(
    name: str, retries: int, streamed: bool
) -> None:
    """The call, its slot and the SDK's retries end with whoever asked, before any time passes.

    It takes three iterations of the loop, and cannot take fewer: the server's `receive` returns in the
    task that listens, asyncio's timeout calls back, and what it cancelled is woken. A call whose answer
    has not begun ends when its connection is closed, which takes the vendor in process seven more.
    """
    side = Side(name, retries, faults={"latency": "const:30s"})

    async def handler() -> Any:
        if not streamed:
            return side.text(await side.ask())
        return StreamingResponse(side.words(await side.stream()))

    async with serving(side, handler) as pod:
        gone = asyncio.Event()
        asking = asyncio.create_task(ask_and_leave(pod.app, gone))
        await asyncio.sleep(5.3)  # between two events
        assert side.vendor.statistics().in_flight == 1
        gone.set()
        start = loop_time()
        for _ in range(3 if streamed else 10):
            await asyncio.sleep(0)
        assert side.vendor.statistics().in_flight == 0
        assert loop_time() == start
        await asyncio.wait((asking,))
        await side.house.reaper.drain(2)
    assert side.attempts == 1
    assert side.clean()


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("status", [429, 500, 529])
async def test_a_failing_vendor_is_tried_as_often_as_the_policy_says(
    name: str, retries: int, status: int
) -> None:
    """Three attempts by us, none on top by the SDK, and its own exception with our refusal inside."""
    side = Side(name, retries, faults={"fail_ratio": 1, "fail_status": status}, settings={"attempts": 3})
    with pytest.raises(side.error("APIStatusError")) as caught:
        await side.ask()
    assert caught.value.status_code == status
    refusal = caught.value.response.extensions[REFUSED]
    assert isinstance(refusal, VendorFailed if status == 500 else VendorQuota)
    assert side.attempts == 3
    assert side.clean()


@pytest.mark.parametrize("retries", [0, 2])
async def test_an_error_that_is_the_callers_is_one_attempt(name: str, retries: int) -> None:
    side = Side(name, retries, settings={"attempts": 3})
    with pytest.raises(side.error("BadRequestError")):
        await side.ask(max_tokens=-1)
    assert side.attempts == 1
    assert side.clean()


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_call_the_vendor_does_not_answer_is_one_attempt(name: str, retries: int) -> None:
    """It may have been done: sent again, it might be done twice."""
    side = Side(name, retries, faults={"hang": True}, settings={"call_timeout": "3s", "attempts": 3})
    start = loop_time()
    with pytest.raises(side.error("APIStatusError")) as caught:
        await side.ask()
    assert isinstance(caught.value.response.extensions[REFUSED], CallTimeout)
    assert loop_time() - start == pytest.approx(3, abs=0.1)
    assert side.attempts == 1
    assert side.clean()


@pytest.mark.parametrize("retries", [0, 2])
async def test_a_refusal_of_ours_is_no_attempt_at_all(name: str, retries: int) -> None:
    side = Side(name, retries, settings={"quota": ["1/min"]})
    await side.ask()
    start = loop_time()
    with pytest.raises(side.error("RateLimitError")) as caught:
        await side.ask()
    assert loop_time() - start < 0.1
    assert isinstance(caught.value.response.extensions[REFUSED], VendorQuota)
    assert caught.value.response.headers["x-headworks-refusal"] == "vendor-quota"
    assert side.attempts == 1


async def test_an_sdks_retries_of_what_we_do_not_judge_take_their_turn_each(name: str) -> None:
    """408 and 409 are an SDK's to retry: each attempt passes the line, and is counted and paid."""
    side = Side(name, 2, faults={"fail_ratio": 1, "fail_status": 409}, settings={"quota": ["60/min"]})
    with pytest.raises(side.error("ConflictError")):
        await side.ask()
    assert side.attempts == 3
    assert len(side.house.sink.of(Called)) == 3
    assert [r.headers["x-stainless-retry-count"] for r in side.recorder.requests] == ["0", "1", "2"]
    assert side.clean()


@pytest.mark.parametrize("retries", [0, 2])
async def test_the_sdks_stricter_timeout_bounds_the_answer(name: str, retries: int) -> None:
    side = Side(name, retries, faults={"hang": True}, timeout=2.0)
    start = loop_time()
    with pytest.raises(side.error("APIStatusError")) as caught:
        await side.ask()
    assert isinstance(caught.value.response.extensions[REFUSED], CallTimeout)
    assert loop_time() - start == pytest.approx(2, abs=0.01)
    assert side.attempts == 1
    assert side.clean()
    (called,) = side.house.sink.of(Called)
    assert called.ending == "ignored", "a caller's impatience is not held against the vendor"


async def test_the_sdks_stricter_timeout_bounds_the_line_too(name: str) -> None:
    """The SDK knows of no line: without us deducting it, it would wait five seconds and the answer."""
    side = Side(
        name,
        faults={"latency": "const:4s"},
        settings={"slots": 1, "queue_timeout": "30s", "expected_latency": "100ms"},
    )
    first = asyncio.create_task(side.ask())
    await asyncio.sleep(0.1)
    start = loop_time()
    with pytest.raises(side.error("APIStatusError")) as caught:
        await side.ask(timeout=1.0)
    assert isinstance(caught.value.response.extensions[REFUSED], CallTimeout | QueueTimeout)
    assert loop_time() - start <= 1.01
    await first
    assert side.attempts == 1


async def test_the_policys_stricter_timeout_bounds_an_sdk_that_would_wait_for_ever(name: str) -> None:
    side = Side(name, faults={"hang": True}, timeout=600.0, settings={"timeouts": {"read": "3s"}})
    start = loop_time()
    with pytest.raises(side.error("APIStatusError")):
        await side.ask()
    assert loop_time() - start == pytest.approx(3, abs=0.1)


async def test_a_vendors_own_limits_are_never_met(name: str) -> None:
    """Thirty calls at once, both dimensions tight: the vendor, which counts for itself, refuses none."""
    side = Side(
        name,
        limits=(limit("120/min", burst=2), limit("3000 tokens/min")),
        settings={"quota": ["120/min", "3000 tokens/min"], "queue_timeout": "60s"},
    )
    answers = await asyncio.gather(*(side.ask() for _ in range(30)))
    assert len(answers) == 30
    assert not side.fake.ledger.rejected


# Whoever is being served


class serving:
    """An application with one route, its vendors replaced by nothing: the sides bring their own."""

    def __init__(self, side: Side, handler: Any) -> None:
        policy = parse(
            {
                "schema": 1,
                "service": {"name": "s", "app": "none:none", "sla": "60s"},
                "fairness": {"default_tier": "t", "tiers": {"t": {"rate": "1000/min"}}},
                "deploy": {"image": "x:1", "replicas": 1, "port": 8000},
            },
            "policy",
            {},
        )
        self.app = Headworks(policy, rng=random.Random(1)).protect(FastAPI())
        self.app.get("/", response_model=None)(handler)
        self._client = httpx2.AsyncClient(
            transport=InProcess(self.app), base_url="http://pod", timeout=None
        )

    async def __aenter__(self) -> serving:
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()
        return self

    async def get(self, path: str) -> httpx2.Response:
        return await self._client.get(path)

    async def __aexit__(self, *failed: Any) -> None:
        await self._lifespan.__aexit__(*failed)


async def ask_and_leave(app: Any, gone: asyncio.Event) -> None:
    """A request whose client disconnects when told so, as a server sees it."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("pod", 80),
    }
    given = False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if gone.is_set():
            raise OSError("the client is gone")

    await asyncio.wait((asyncio.create_task(app(scope, receive, send)),))


# Whose call it is


async def test_what_is_wished_around_a_call_decides_its_place_in_the_line(name: str) -> None:
    """Behind a slow call wait a batch of background ones; the critical one, last to come, goes first."""
    side = Side(name, faults={"latency": "const:1s"}, settings={"slots": 1, "queue_timeout": "60s"})
    order: list[str] = []

    async def one(label: str, **wish: Any) -> None:
        with side.vendor.as_(**wish):
            await side.ask()
        order.append(label)

    tasks = [asyncio.create_task(one("first"))]
    await asyncio.sleep(0.1)
    tasks += [asyncio.create_task(one("batch", criticality="background")) for _ in range(3)]
    await asyncio.sleep(0.1)
    tasks.append(asyncio.create_task(one("urgent", criticality="critical")))
    await asyncio.gather(*tasks)
    assert order.index("urgent") <= 2, "one booking may have fallen due before it came"


async def test_a_header_says_the_same_and_never_reaches_the_vendor(name: str) -> None:
    side = Side(name, faults={"latency": "const:1s"}, settings={"slots": 1, "queue_timeout": "60s"})
    enter(Current(tenant="request"))
    headers = {
        "x-headworks-tenant": "acme",
        "x-headworks-criticality": "critical",
        "X-Headworks-Tokens": "7",
        "x-other": "kept",
    }
    seen: list[Any] = []
    admit = side.vendor._lanes[""].admit

    async def spying(cost: Any, who: Current) -> Any:
        seen.append((who.tenant, who.criticality.name, cost["tokens"]))
        return await admit(cost, who)

    side.vendor._lanes[""].admit = spying  # type: ignore[method-assign]  # to look at what comes in
    with side.vendor.as_("job", criticality="background", tokens=9):
        await side.ask(extra_headers=headers)
        await side.ask()
    await side.ask()
    assert seen[:2] == [("acme", "CRITICAL", 7), ("job", "BACKGROUND", 9)]
    assert seen[2][:2] == ("request", "DEFAULT")
    for request in side.recorder.requests:
        assert not [header for header in request.headers if header.startswith("x-headworks")]
    assert side.recorder.requests[0].headers["x-other"] == "kept"


async def test_a_wish_that_cannot_be_is_named(name: str) -> None:
    side = Side(name)
    with pytest.raises(ValueError, match="'urgent' must be one of background"):
        side.vendor.as_(criticality="urgent")
    with pytest.raises(ValueError, match="tokens: -1"):
        side.vendor.as_(tokens=-1)
    with pytest.raises(Exception, match=r"x-headworks-tokens: 'many'|[Cc]onnection"):
        await side.ask(extra_headers={"x-headworks-tokens": "many"})
    assert side.attempts == 0


async def test_a_block_around_another_client_hears_the_same_wishes() -> None:
    side = Side("openai", settings={"quota": ["600/min", "6000 tokens/min"]})
    with side.vendor.as_("acme", tokens=50):
        async with side.vendor.call(tokens=10) as call:
            call.settle(tokens=20)
    assert (await side.corrections())["tokens"] == 20 - 50


async def test_calls_without_a_body_pass_as_well() -> None:
    side = Side("openai")
    assert [model.id async for model in await side.client.models.list()] == ["gpt-fake"]
