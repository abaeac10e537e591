"""Probes and metrics: three paths, what they say, and to whom.

`/health` says that the event loop turns, and nothing more. `/ready` says whether to send traffic, and
why not. `/metrics` is Prometheus text. On the application's own port they are answered outside of
everything else, by exact path, and only those inside see more than a yes or no.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from headworks.address import Network
from headworks.health.readiness import Health

HEALTH: Final = "/health"
READY: Final = "/ready"
METRICS: Final = "/metrics"
PATHS: Final = (HEALTH, READY, METRICS)

_JSON: Final = "application/json"
_FORWARDED: Final = frozenset({b"forwarded", b"x-forwarded-for", b"x-real-ip"})
"""What proxies add: a request with one of these comes from behind a gateway, so from outside."""


class Page(NamedTuple):
    """One answer."""

    status: int
    content_type: str
    body: bytes


_NOT_FOUND: Final = Page(404, _JSON, b'{"detail":"Not Found"}')
_ALIVE: Final = Page(200, _JSON, b'{"status":"ok"}')
_ONLY_READ: Final = Page(405, _JSON, b'{"detail":"only GET and HEAD"}')


class Pages:
    """What the three paths say.

    metrics  content type and text of the metrics
    """

    def __init__(self, health: Health, *, metrics: Callable[[], tuple[str, bytes]]) -> None:
        self._health, self._metrics = health, metrics

    def page(self, method: str, path: str, *, inside: bool) -> Page:
        """The answer; to those outside there are no metrics, and `/ready` gives no reasons."""
        if path not in PATHS or (path == METRICS and not inside):
            return _NOT_FOUND
        if method not in ("GET", "HEAD"):
            return _ONLY_READ
        if path == HEALTH:
            return _ALIVE
        if path == METRICS:
            return Page(200, *self._metrics())
        ready, report = self._health.report()
        said = report if inside else {"ready": ready}
        return Page(200 if ready else 503, _JSON, json.dumps(said).encode())


class Probes:
    """Answers the three paths itself, and passes on everything else.

    allow  tells the networks that count as inside, beside loopback: of those who connect themselves.
           What a proxy passed on is from outside, whatever the proxy's address
    """

    def __init__(self, app: ASGIApp, pages: Pages, *, allow: Callable[[], Sequence[Network]]) -> None:
        self.app = app
        self._pages, self._allow = pages, allow

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # Every request passes here: how its path ends tells most apart, and there is no frame to leave.
        if scope["type"] == "http" and scope["path"].endswith(PATHS):
            path = get_route_path(scope)
            if path in PATHS:
                return self._answer(path, scope, send)
        return self.app(scope, receive, send)

    async def _answer(self, path: str, scope: Scope, send: Send) -> None:
        page = self._pages.page(scope["method"], path, inside=self._inside(scope))
        headers = [
            (b"content-type", page.content_type.encode()),
            (b"content-length", str(len(page.body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": page.status, "headers": headers})
        await send({"type": "http.response.body", "body": page.body})

    def _inside(self, scope: Scope) -> bool:
        if any(name in _FORWARDED for name, _ in scope["headers"]):
            return False
        try:
            address = ipaddress.ip_address(scope["client"][0])
        except (TypeError, ValueError):  # a Unix socket, or a test client's name
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address.is_loopback or any(address in network for network in self._allow())
