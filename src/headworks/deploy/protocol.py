"""How a pod speaks HTTP: uvicorn's own protocol, with less work for what most answers are.

A refusal that is known at once is written when the head of its request has been read: it needs no task,
no `receive`, and none of its parts to be sent one by one. Every other request begins at the door of its
application, where the application's own call would only have led it. Both only where the application
has such a door (`works.door.Door`) and lets its server come straight there; any other is uvicorn's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from contextvars import Context
from functools import partial
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from headworks.deploy.heads import BoundedHeads
from headworks.deploy.one_write import Heads, OneWrite
from headworks.deploy.whole import Sending, refuse

log = logging.getLogger("headworks")

_NONE: Final[Any] = {}
"""The scope of no request."""


class Protocol(BoundedHeads):
    """uvicorn's own, that joins heads and bodies, bounds heads, and refuses at once what it can.

    One timer per connection sees to the keep-alive timeout, and is set again only when it comes due:
    nearly always another request has come by then.
    """

    transport: OneWrite  # type: ignore[assignment]  # behaves as one of asyncio's
    heads = Heads()
    _idle_since = math.inf
    _make_task = HttpToolsProtocol._start_asgi_task

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(OneWrite(transport, self.loop, self.heads))  # type: ignore[arg-type]  # behaves as one

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        if self.scope is self.cycle.scope:  # not needed here any more, and large
            self.scope = self.cycle.scope = _NONE
            self.headers, self.url, self._half = [], b"", None
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_again(self._idle_since + self.timeout_keep_alive)

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = math.inf

    def _look_again(self, when: float) -> None:
        # In a context of its own: it is of no request, though one of them sets it.
        self.timeout_keep_alive_task = self.loop.call_at(
            when, self.timeout_keep_alive_handler, context=Context()
        )

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that has been idle for so long; look again when this one may have been."""
        self.timeout_keep_alive_task = None
        until = self._idle_since + self.timeout_keep_alive
        if until <= self.loop.time():
            super().timeout_keep_alive_handler()
        elif until < math.inf:
            self._look_again(until)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        door: Any = getattr(app, "middleware_stack", None)
        scope = cycle.scope  # which does not stay with one that has been answered
        # A log of every answer is uvicorn's to write.
        if (
            cycle.access_log
            or not hasattr(door, "straight")
            or not door.straight(app, scope, self.loop.time())
        ):
            self._make_task(cycle, app)
            return
        try:
            found = door.begin(scope)
            if not isinstance(found, tuple):
                if scope["method"] == "HEAD" or not door.put(scope, found, self, cycle):
                    self._make_task(cycle, Sending(cycle, found))
            # Where others are on the way already, one after the other, each in a task of its own.
            elif not self.pipeline and refuse(cycle, *found):
                cycle.on_response = _nothing  # what leads back here would leave it to the collector
                door.refused(scope, found[0], 0.0)
            else:
                self._make_task(cycle, partial(door.refuse, found))
        except Exception:  # to the parser it would be a mistake of the client's
            log.exception("a request was not begun")
            self._make_task(cycle, _failed)

    def go_on(self, cycle: RequestResponseCycle, door: Any, found: Any) -> None:
        """The door's word on a request that has waited for it."""
        if not isinstance(found, tuple):
            self._make_task(cycle, Sending(cycle, found))
        # Where it is closing, its client has left meanwhile, and there is nothing to be sent.
        elif self.transport.is_closing() or refuse(cycle, *found):
            cycle.on_response = _nothing
        else:
            self._make_task(cycle, door.telling(found))


def _nothing() -> None:
    pass


async def _failed(scope: Any, receive: Any, send: Any) -> None:
    """It was not begun: the server answers 500."""
    raise RuntimeError("the request was not begun")
