"""One answer on its way out: watched for its start and end, bounded in time, ended early if it must be.

An answer that has not begun is replaced by a refusal. One that has begun can only be told where its
form has room for it: an event stream gets an event of its own as its last, between two events; any
other is broken off, so that no client mistakes a part for the whole.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from starlette.types import Message, Scope, Send

from headworks.admission.answers import Answers
from headworks.admission.slots import Slot
from headworks.admission.within import TAKEN, within
from headworks.at_once import AT_ONCE
from headworks.caller import Presence
from headworks.current import Current
from headworks.errors import CallerLeft, DeadlineExceeded, Refused
from headworks.problem import body as problem
from headworks.problem import render, send_whole

if TYPE_CHECKING:
    from headworks.admission.waiting import Turn

BETWEEN: Final = (b"\n\n", b"\r\r", b"\r\n\r\n")
"""How the bytes of an event stream end when no event is half sent."""


class ClientStalled(OSError):
    """The client has not read for `write_stall` seconds; its answer is given up."""


@dataclass(slots=True)
class Entry(Current):
    """A request at the gate: its standing, when it came, and what it got.

    arrived  when it came, on the loop's clock
    latest   when its caller stops waiting, on the same clock; inf where it did not say
    place    a place in the pod, a turn in the line for one, or why there is neither
    """

    arrived: float = 0.0
    latest: float = math.inf
    place: Slot | Turn | Refused = field(init=False, repr=False)


class Answer:
    """What is sent to one client. From `begin` to `over` its application runs as inside an
    `asyncio.timeout`: cancelled when its time is up, which is a `TimeoutError` outside.

    current   its request's standing
    given_up  its time was up, or it had to end early
    """

    # Slots, set before they are read: in Python 3.11 a default of the class takes seven times as long.
    __slots__ = (
        "_answers",
        "_because",
        "_events",
        "_headers",
        "_send",
        "_tail",
        "_task",
        "begun",
        "caller",
        "complete",
        "current",
        "given_up",
        "scope",
        "slot",
        "stalled",
        "status",
    )

    def __init__(
        self,
        send: Send,
        scope: Scope,
        caller: Presence,
        entry: Entry,
        answers: Answers,
    ) -> None:
        self._send, self.scope, self.caller = send, scope, caller
        self.current, self._answers = entry, answers
        self.status = 0
        self.begun = self.complete = self.stalled = self.given_up = False
        self.slot: Slot | None = None
        self._because: Refused | None = None
        self._task: asyncio.Task[Any] | None
        self._tail: bytes

    def begin(self) -> None:
        """Its application runs, in this task, and its time does."""
        # Of a loop that is named: finding out which one runs takes four times as long.
        self._task = asyncio.current_task(self._answers.loop)
        self.caller.budget = self
        self._answers.add(self, self.current.deadline)

    def over(self, error: BaseException | None = None) -> None:
        """Its application has returned, or raised; `TimeoutError` if that is because its time was up."""
        if not self.complete:
            self._answers.open.pop(self, None)
        if self.given_up:
            assert self._task is not None
            # Where somebody else cancels it as well, that is what counts.
            if self._task.uncancel() == 0 and isinstance(error, asyncio.CancelledError):
                raise TimeoutError from error

    # No coroutine of its own where the server takes the message at once, as it nearly always does.
    def send(self, message: Message) -> Awaitable[None]:
        """The server's `send`, as the application is given it."""
        if self.stalled:
            raise ClientStalled
        kind = message["type"]
        if kind == "http.response.body":
            if not message.get("more_body", False):
                self._complete()
        elif kind == "http.response.start":
            message = self._begin(message)
        elif kind == "http.response.pathsend":
            self._complete()
        sending = self._send(message)
        if sending is not AT_ONCE:
            return self._patiently(sending, message)
        if kind != "http.response.start":
            self._sent(message)
        return AT_ONCE

    async def _patiently(self, sending: Awaitable[None], message: Message) -> None:
        """Wait for the client to take what it was sent, but not for ever."""
        steps = sending.__await__()
        waits_for = next(steps, TAKEN)
        if waits_for is not TAKEN:
            try:
                await within(self._answers.write_stall, steps, waits_for)
            except TimeoutError:
                self.stalled = True
                raise ClientStalled from None
        self._sent(message)

    def _sent(self, message: Message) -> None:
        if self.complete:
            if self.slot is not None:
                self.slot.release()
        elif message["type"] == "http.response.body" and self._in_events():
            self._tail = (self._tail + message.get("body", b"")[-4:])[-4:]

    def reschedule(self, when: float) -> None:
        """Its time is up at `when` instead, on the loop's clock; inf: never."""
        self._answers.bound(self, when)

    def give_up(self) -> None:
        """Its time is up: the application is cancelled, and is in the way of nobody who cancels too."""
        assert self._task is not None
        self.given_up = True
        self._task.cancel()

    def end(self, because: Refused) -> None:
        """Have the application cancelled, and the client told why; nothing once it is complete."""
        if self._answers.bound(self, self._answers.now()):
            self._because = because

    def because(self) -> Refused:
        """Why it was ended before its end."""
        if self._because is not None:
            return self._because
        if self.caller.left:
            return CallerLeft()
        what = "the answer was not complete" if self.begun else "no answer had begun"
        seconds = self._answers.now() - self.current.arrived
        return DeadlineExceeded(f"{what} after {seconds:.3g} s")

    async def refuse(self, refused: Refused) -> None:
        """Answer with a refusal."""
        await send_whole(self.send, *render(refused))

    async def conclude(self, refused: Refused) -> None:
        """Say in its own form why it ends here, or break it off."""
        if self._in_events() and self._tail.endswith(BETWEEN):
            event = b"event: error\ndata: " + json.dumps(problem(refused)).encode() + b"\n\n"
            await self.send({"type": "http.response.body", "body": event})
        else:
            await leave_transport(self._send, "close")

    async def abort(self) -> None:
        """Drop the connection, and with it what the client has not read. Closing it would first wait
        for the client to read what is buffered."""
        await leave_transport(self._send, "abort")

    def _begin(self, message: Message) -> Message:
        self.begun, self.status = True, message["status"]
        current = self.current
        if current.lasting is not None and not (self._because or self.caller.left):
            current.deadline = min(current.arrived + current.lasting, current.latest)
            self.reschedule(current.deadline)
        if current.ticket is not None and current.ticket.telling:
            message = current.ticket.head(message)
        self._headers: Iterable[tuple[bytes, bytes]] = message.get("headers", ())
        self._events: bool | None = None
        self._tail = BETWEEN[0]
        if self._answers.leaving and self._may_close():
            return {**message, "headers": [*self._headers, (b"connection", b"close")]}
        return message

    def _complete(self) -> None:
        """The last byte goes out: no deadline is left to keep, and nobody to be left by."""
        self.complete = True
        self.caller.answered()
        self.current.deadline = math.inf
        self._answers.open.pop(self, None)

    def _may_close(self) -> bool:
        """A server that is told to close while it still receives a body loses the answer with it."""
        return bool(self.scope.get("http_version", "1.1") < "2") and self.caller.body_read

    def _in_events(self) -> bool:
        """Whether this is an event stream of plain, unmeasured text: one that can take another event."""
        if self._events is None:
            found = {name.lower(): value for name, value in self._headers}
            plain = b"content-encoding" not in found and b"content-length" not in found
            self._events = plain and found.get(b"content-type", b"").startswith(b"text/event-stream")
        return self._events


async def leave_transport(send: Send, how: Literal["close", "abort"]) -> None:
    """ASGI has no word for this: uvicorn's `send` is a method of an object that has the transport, and
    a server without one closes in its own way when the application returns."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        getattr(transport, how)()
        await asyncio.sleep(0)  # the loop's next turn tells the server that the client is gone
