"""Probes and metrics, answered outside everything else, by exact path.

`/health` says that the event loop turns, and nothing more. `/ready` says whether to send traffic, and
why not. `/metrics` is Prometheus text; the gateway keeps it from the outside.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Final

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from headworks.health.readiness import Health

HEALTH: Final = "/health"
READY: Final = "/ready"
METRICS: Final = "/metrics"

_JSON: Final = "application/json"


class Probes:
    """Answers the three paths itself and passes on everything else.

    metrics  content type and text of the metrics
    """

    def __init__(
        self, app: ASGIApp, *, health: Health, metrics: Callable[[], tuple[str, bytes]]
    ) -> None:
        self.app = app
        self._health, self._metrics = health, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = get_route_path(scope) if scope["type"] == "http" else ""
        if path not in (HEALTH, READY, METRICS):
            await self.app(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, _JSON, b'{"detail":"only GET and HEAD"}')
        elif path == HEALTH:
            await _answer(send, 200, _JSON, b'{"status":"ok"}')
        elif path == READY:
            ready, report = self._health.report()
            await _answer(send, 200 if ready else 503, _JSON, json.dumps(report).encode())
        else:
            await _answer(send, 200, *self._metrics())


async def _answer(send: Send, status: int, content_type: str, body: bytes) -> None:
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
