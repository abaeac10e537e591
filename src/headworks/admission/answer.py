"""One answer on its way out: watched for its start and end, bounded in time, ended early if it must be.

An answer that has not begun is replaced by a refusal. One that has begun can only be told where its
form has room for it: an event stream gets an event of its own as its last, between two events; any
other is broken off, so that no client mistakes a part for the whole.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterable
from typing import Final

from starlette.types import Message, Scope, Send

from headworks.admission.slots import Slot
from headworks.admission.within import within
from headworks.caller import Caller
from headworks.current import Current
from headworks.errors import CallerLeft, DeadlineExceeded, PodLeaving, Refused
from headworks.problem import body as problem
from headworks.problem import render

AGAIN: Final = 1.0
"""Seconds a caller is asked to wait when the pod that answered it ends."""
BETWEEN: Final = (b"\n\n", b"\r\r", b"\r\n\r\n")
"""How the bytes of an event stream end when no event is half sent."""


class ClientStalled(OSError):
    """The client has not read for `write_stall` seconds; its answer is given up."""


class Answers:
    """The answers under way in this pod, and what a pod that leaves does about them."""

    def __init__(self) -> None:
        self._open: set[Answer] = set()
        self.leaving = self._over = False
        self.discard = self._open.discard

    def add(self, answer: Answer) -> None:
        """An answer begins to be worked on; `discard` it in the end."""
        self._open.add(answer)
        if self._over:
            answer.end(PodLeaving(retry_after=AGAIN))

    def begin(self) -> None:
        """The pod serves (again)."""
        self.leaving = self._over = False

    def leave(self) -> None:
        """From now on answers ask clients for another connection."""
        self.leaving = True

    def end(self) -> None:
        """End every answer that is not complete: its time in this pod is over."""
        self._over = True
        for answer in tuple(self._open):
            answer.end(PodLeaving(retry_after=AGAIN))


class Answer:
    """What is sent to one client.

    write_stall  seconds one part may take to be accepted
    arrived      when the request came, on the loop's clock; `latest` when its caller stops waiting
    """

    latest = math.inf
    slot: Slot | None = None
    budget: asyncio.Timeout | None = None
    status = 0
    begun = complete = stalled = False
    _because: Refused | None = None
    _events: bool | None = None
    _headers: Iterable[tuple[bytes, bytes]] = ()
    _tail = BETWEEN[0]

    def __init__(
        self,
        send: Send,
        scope: Scope,
        caller: Caller,
        current: Current,
        answers: Answers,
        write_stall: float,
        arrived: float,
    ) -> None:
        self._send, self._scope, self.caller, self._current = send, scope, caller, current
        self._answers, self._write_stall, self.arrived = answers, write_stall, arrived

    async def send(self, message: Message) -> None:
        """The server's `send`, as the application is given it."""
        if self.stalled:
            raise ClientStalled
        kind = message["type"]
        if kind == "http.response.start":
            message = self._begin(message)
        elif kind == "http.response.pathsend" or (
            kind == "http.response.body" and not message.get("more_body", False)
        ):
            self._complete()
        try:
            await within(self._write_stall, self._send(message))
        except TimeoutError:
            self.stalled = True
            raise ClientStalled from None
        if not self.complete and kind == "http.response.body" and self._in_events():
            self._tail = (self._tail + message.get("body", b"")[-4:])[-4:]
        if self.complete and self.slot is not None:
            self.slot.release()

    def end(self, because: Refused) -> None:
        """Have the application cancelled, and the client told why; nothing once it is complete."""
        if self.budget is not None and not self.complete and not self.budget.expired():
            self._because = because
            self.budget.reschedule(asyncio.get_running_loop().time())

    def because(self) -> Refused:
        """Why it was ended before its end."""
        if self._because is not None:
            return self._because
        if self.caller.left:
            return CallerLeft()
        what = "the answer was not complete" if self.begun else "no answer had begun"
        seconds = asyncio.get_running_loop().time() - self.arrived
        return DeadlineExceeded(f"{what} after {seconds:.3g} s")

    async def refuse(self, refused: Refused) -> None:
        """Answer with a refusal."""
        status, headers, body = render(refused)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def conclude(self, refused: Refused) -> None:
        """Say in its own form why it ends here, or break it off."""
        if self._in_events() and self._tail.endswith(BETWEEN):
            event = b"event: error\ndata: " + json.dumps(problem(refused)).encode() + b"\n\n"
            await self.send({"type": "http.response.body", "body": event})
        else:
            await self._leave_transport("close")

    async def abort(self) -> None:
        """Drop the connection, and with it what the client has not read. Closing it would first wait
        for the client to read what is buffered."""
        await self._leave_transport("abort")

    async def _leave_transport(self, how: str) -> None:
        """ASGI has no word for this: uvicorn's `send` is a method of an object that has the transport,
        and a server without one closes in its own way when the application returns."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            getattr(transport, how)()
            await asyncio.sleep(0)  # the loop's next turn tells the server that the client is gone

    def _begin(self, message: Message) -> Message:
        self.begun, self.status = True, message["status"]
        current, budget = self._current, self.budget
        if current.lasting is not None and not (self._because or self.caller.left):
            current.deadline = min(self.arrived + current.lasting, self.latest)
            if budget is not None and not budget.expired():
                budget.reschedule(current.deadline if current.deadline < math.inf else None)
        self._headers = message.get("headers", ())
        if self._answers.leaving and self._may_close():
            return {**message, "headers": [*self._headers, (b"connection", b"close")]}
        return message

    def _complete(self) -> None:
        """The last byte goes out: no deadline is left to keep, and nobody to be left by."""
        self.complete = True
        self.caller.answered()
        self._current.deadline = math.inf
        if self.budget is not None and not self.budget.expired():
            self.budget.reschedule(None)

    def _may_close(self) -> bool:
        """A server that is told to close while it still receives a body loses the answer with it."""
        return bool(self._scope.get("http_version", "1.1") < "2") and self.caller.body_read

    def _in_events(self) -> bool:
        """Whether this is an event stream of plain, unmeasured text: one that can take another event."""
        if self._events is None:
            found = {name.lower(): value for name, value in self._headers}
            plain = b"content-encoding" not in found and b"content-length" not in found
            self._events = plain and found.get(b"content-type", b"").startswith(b"text/event-stream")
        return self._events
