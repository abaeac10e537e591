"""How a pod speaks HTTP: uvicorn's own protocol, with less work for the answers that flood a pod.

A refusal that is known at once is written when the head of its request has been read: it needs no task,
no `receive`, and none of its answer's parts to be sent one by one. Every other request begins at the
door of its application, where the application's own call would only have led it. Both only where the
application has such a door (`works.door.Door`) and lets its server come straight there; for everything
else this is uvicorn.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, Final
from typing import Protocol as Protocol_

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from headworks.deploy.heads import BoundedHeads
from headworks.deploy.one_write import OneWrite
from headworks.problem import Whole

_LINE: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


class Door(Protocol_):
    """What an application's server may go by."""

    def straight(self, scope: Any) -> bool: ...

    def begin(self, scope: Any) -> Any: ...

    def refused(self, scope: Any, status: int, seconds: float) -> None: ...


class Protocol(BoundedHeads):
    """uvicorn's own, that joins heads and bodies, bounds heads, and refuses at once what it can."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(OneWrite(transport, self.loop))  # type: ignore[arg-type]  # behaves as one

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        door: Door | None = getattr(app, "middleware_stack", None)
        if door is not None and hasattr(door, "straight") and door.straight(cycle.scope):
            # Further requests on the way, a client that does not read, a log: all of it is uvicorn's.
            if not (self.pipeline or self.flow.write_paused or cycle.access_log):
                found = door.begin(cycle.scope)
                if isinstance(found, tuple):
                    self._answer(cycle, found)
                    door.refused(cycle.scope, found[0], 0.0)
                    return
                app = found
            else:
                app = door
        super()._start_asgi_task(cycle, app)

    def _answer(self, cycle: RequestResponseCycle, refusal: Whole) -> None:
        """Send a whole answer, as `cycle.send` would."""
        status, headers, body = refusal
        head = [_LINE[status]]
        for name, value in cycle.default_headers + headers:
            head += (name, b": ", value, b"\r\n")
        head.append(b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n")
        if cycle.scope["method"] != "HEAD":
            head.append(body)
        self.transport.write(b"".join(head))
        cycle.response_started = cycle.response_complete = True
        cycle.on_response = _nothing  # what leads back here would leave it all to the collector
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()


def _nothing() -> None:
    pass
