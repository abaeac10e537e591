"""The pod's gate: plain ASGI around the whole application.

It decides before anything is received, so a refusal costs neither a body nor the application. A
place is held until the last byte of the answer is sent or the application returns, whichever comes
first: background tasks hold none. A request's time (`sla`) runs from here; if no answer has begun
when it is spent, the application is cancelled and the client told 504. An answer that has begun is
left to its own end, except that a client that stops reading is cut off.

Refusals never say `connection: close`: the server would drop a large upload with the answer in it,
while without it the rest of the body is read and thrown away and the client sees the answer.
"""

from __future__ import annotations

import asyncio
import logging
import math

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headworks.admission.slots import Slot, Slots
from headworks.cleanup import Reaper
from headworks.current import Current, enter, leave
from headworks.errors import DeadlineExceeded, Refused
from headworks.identity import Identifier, Identity
from headworks.problem import refuse_websocket, render
from headworks.telemetry import Decided, Served, Telemetry

log = logging.getLogger("headworks")


class ClientStalled(OSError):
    """The client has not read for `write_stall` seconds; its answer is given up."""


class AdmissionGate:
    """Lets a request in while the pod has room for its class, and accounts for it until it is over.

    app          the application's whole middleware stack
    slots        the pod's places
    identifier   tells the class of a caller without waiting
    sla          seconds a request may take until its answer begins, > 0
    write_stall  seconds one part of an answer may take to be accepted by the client, > 0
    telemetry    hears every decision and every answer
    reaper       closes what requests left open
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        slots: Slots,
        identifier: Identifier,
        sla: float,
        write_stall: float,
        telemetry: Telemetry,
        reaper: Reaper,
    ) -> None:
        self.app = app
        self._slots, self._identifier = slots, identifier
        self._sla, self._write_stall = sla, write_stall
        self._telemetry, self._reaper = telemetry, reaper

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = asyncio.get_running_loop().time()
        identity = self._identifier.identify(scope)
        current = _standing(identity, began + self._sla)
        answer = _Answer(send, self._write_stall)
        try:
            await self._admit(scope, receive, answer, current)
        except ClientStalled:
            self._slots.stalled += 1
            log.info("a client was cut off: it read nothing for %g s", self._write_stall)
            await answer.abort()
        finally:
            seconds = asyncio.get_running_loop().time() - began
            self._telemetry.emit(Served(current.route, scope["method"], answer.status, seconds))

    async def _admit(self, scope: Scope, receive: Receive, answer: _Answer, current: Current) -> None:
        try:
            slot = answer.slot = self._slots.claim(current.criticality)
        except Refused as refused:
            self._decided(current, refused)
            await answer.refuse(refused)
            return
        try:
            self._decided(current)
            await self._serve(scope, receive, answer, current)
        finally:
            self._end(slot, current)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer, current: Current) -> None:
        """Run the application until it returns, or until its time is spent and no answer has begun."""
        token = enter(current)
        try:
            async with asyncio.timeout_at(current.deadline) as budget:
                answer.budget = budget
                await self.app(scope, receive, answer.send)
        except Exception as error:
            if answer.stalled:
                raise ClientStalled from error
            if answer.begun or not budget.expired():
                answer.status = answer.status or 500  # the server's, who now answers in our place
                raise
            if not isinstance(error, TimeoutError):
                log.warning("the application raised when its time was up", exc_info=error)
        finally:
            leave(token)
        if budget.expired() and not answer.begun:
            self._slots.expired += 1
            refused = DeadlineExceeded(f"no answer had begun after {self._sla:g} s")
            self._telemetry.emit(Decided(refused.layer, False, refused.reason))
            await answer.refuse(refused)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        current = _standing(self._identifier.identify(scope))
        try:
            slot = self._slots.claim_websocket()
        except Refused as refused:
            self._decided(current, refused)
            await refuse_websocket(scope, send, refused)
            return
        token = enter(current)
        try:
            self._decided(current)
            await self.app(scope, receive, send)
        finally:
            leave(token)
            self._end(slot, current)

    def _decided(self, current: Current, refused: Refused | None = None) -> None:
        reason, name = refused.reason if refused else "", current.criticality.name.lower()
        self._telemetry.emit(Decided("admission", refused is None, reason, criticality=name))

    def _end(self, slot: Slot, current: Current) -> None:
        """Synchronous, so that nothing can come between: the place returns, the rest is handed over."""
        slot.end()
        for closer in current.closers:
            self._reaper.hand_over("closing what a request left open", closer)
        current.closers.clear()


class _Answer:
    """What is sent to the client: watched for its start and its end, and bounded in time."""

    def __init__(self, send: Send, write_stall: float) -> None:
        self._send, self._write_stall = send, write_stall
        self.slot: Slot | None = None
        self.budget: asyncio.Timeout | None = None
        self.status = 0
        self.begun = self.stalled = False

    async def send(self, message: Message) -> None:
        if self.stalled:
            raise ClientStalled
        if message["type"] == "http.response.start":
            self.begun, self.status = True, message["status"]
            if self.budget is not None and not self.budget.expired():
                self.budget.reschedule(None)
        try:
            async with asyncio.timeout(self._write_stall):
                await self._send(message)
        except TimeoutError:
            self.stalled = True
            raise ClientStalled from None
        if _ends(message) and self.slot is not None:
            self.slot.release()

    async def refuse(self, refused: Refused) -> None:
        status, headers, body = render(refused)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def abort(self) -> None:
        """Drop the connection. Closing it, which is all that ASGI offers, would first wait for the
        client to read what is buffered; uvicorn's `send` is a method of an object that has the
        transport, and a server without one closes in its own way."""
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)
        if transport is not None:
            transport.abort()
            await asyncio.sleep(0)  # the loop's next turn tells the server that the client is gone


def _ends(message: Message) -> bool:
    kind = message["type"]
    if kind == "http.response.body":
        return not message.get("more_body", False)
    return bool(kind == "http.response.pathsend")


def _standing(identity: Identity, deadline: float = math.inf) -> Current:
    return Current(deadline, identity.tenant, identity.criticality, identity.weight)
