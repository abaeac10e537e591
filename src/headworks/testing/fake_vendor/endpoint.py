"""One limited endpoint of the fake vendor: reads the call, has it decided, answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from headworks.testing.fake_vendor import wire
from headworks.testing.fake_vendor.judge import Ruling

if TYPE_CHECKING:
    from headworks.testing.fake_vendor.app import FakeVendor


FAILED = "The server had an error while processing your request."


class Dialect(Protocol):
    """How a vendor speaks about a call apart from its answer.

    request_id   the header that names the call
    always       headers of every answer
    """

    request_id: str
    always: dict[str, str]

    @staticmethod
    def error(status: int, text: str, *, param: str | None = None) -> dict[str, Any]:
        """The body of an error of that status."""

    @staticmethod
    def error_event(said: dict[str, Any]) -> bytes:
        """The event by which a stream tells that error."""

    @staticmethod
    def rate_limited(ruling: Ruling, costs: dict[str, int], model: str) -> dict[str, Any]:
        """The 429 body of a refused call."""

    @staticmethod
    def rate_headers(ruling: Ruling, now: float) -> dict[str, str]:
        """Where the limits stand, and when a refused call may come back; `now` since 1970."""


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


class Endpoint:
    """Answers calls in one dialect, and watches the client leave."""

    def __init__(
        self, vendor: FakeVendor, ask: Callable[[Request, bytes], Asked], dialect: Dialect
    ) -> None:
        self._vendor, self._ask, self._dialect = vendor, ask, dialect

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
        vendor, dialect = self._vendor, self._dialect
        headers = {dialect.request_id: vendor.request_id(), **dialect.always}
        try:
            asked = self._ask(request, body)
        except wire.BadRequest as error:
            await _reply(send, 400, dialect.error(400, str(error), param=error.param), headers)
            return
        ruling = vendor.decide(asked, await vendor.wait_arrival())
        if ruling is None:
            said = dialect.error(429, "Too many concurrent requests.")
            await _reply(send, 429, said, headers | {"retry-after": "1"})
            return
        headers |= dialect.rate_headers(ruling, vendor.now())
        if not ruling.accepted:
            await _reply(send, 429, dialect.rate_limited(ruling, asked.costs, asked.model), headers)
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
            status = vendor.faults.fail_status
            await _reply(send, status, self._dialect.error(status, FAILED), headers)
        elif answer.body is not None:
            await vendor.wait_latency()
            await _reply(send, 200, answer.body, headers, cut=vendor.faults.disconnect)
        else:
            await self._stream(answer.events, send, headers)

    async def _stream(self, events: tuple[bytes, ...], send: Send, headers: dict[str, str]) -> None:
        vendor = self._vendor
        after = vendor.faults.error_after
        if after is not None and after < len(events):
            vendor.ledger.failed += 1
            said = self._dialect.error(vendor.faults.fail_status, FAILED)
            events = (*events[:after], self._dialect.error_event(said))
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
