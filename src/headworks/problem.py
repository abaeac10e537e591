"""A refusal as the client sees it: RFC 9457 `application/problem+json` with `Retry-After`."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from headworks.errors import Refused

TRY_AGAIN_LATER: Final = 1013
"""Close code of a refused websocket where it cannot be answered in HTTP (IANA registry)."""

REGISTRY = "https://iana.org/assignments/http-problem-types#"
"""Base of the problem types registered by draft-ietf-httpapi-ratelimit-headers."""

_TYPES = {
    "quota-exceeded": REGISTRY + "quota-exceeded",
    "vendor-quota": REGISTRY + "quota-exceeded",
    "pod-saturated": REGISTRY + "temporary-reduced-capacity",
    "load-shed": REGISTRY + "temporary-reduced-capacity",
}

Headers = list[tuple[bytes, bytes]]
Send = Callable[[Any], Awaitable[None]]
Whole = tuple[int, Headers, bytes]
"""A whole answer: status, headers, body."""

_PROBLEM: Final = (b"content-type", b"application/problem+json")
_NO_STORE: Final = (b"cache-control", b"no-store")


def retry_after_header(seconds: float | None) -> str | None:
    """`Retry-After` in whole seconds, rounded up, at least 1; None when coming back cannot help."""
    if seconds is None or seconds == math.inf:
        return None
    up = math.ceil(seconds - 1e-6)
    return str(up if up > 1 else 1)


def body(refused: Refused) -> dict[str, Any]:
    """The problem object: `layer`, `reason`, and where known `limit` and `retry_after` in seconds."""
    problem = _lasting(type(refused), refused.detail, refused.limit)
    if retry_after_header(refused.retry_after) is not None and refused.retry_after is not None:
        problem["retry_after"] = round(refused.retry_after, 3)
    return problem


def _lasting(kind: type[Refused], detail: str, limit: str | None) -> dict[str, Any]:
    """What does not change from one refusal of this kind to the next."""
    problem: dict[str, Any] = {
        "type": _TYPES.get(kind.reason, "about:blank"),
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "layer": kind.layer,
        "reason": kind.reason,
    }
    if limit is not None:
        problem["limit"] = limit
        problem["violated-policies"] = [limit]
    return problem


@lru_cache(maxsize=1024)
def beginning(kind: type[Refused], detail: str, limit: str | None) -> str:
    """The same as JSON, without its last brace: writing it takes longer than all else of a refusal."""
    return json.dumps(_lasting(kind, detail, limit), separators=(",", ":"))[:-1]


def render(refused: Refused, extra: Headers | None = None) -> Whole:
    """Status, headers and body of a refusal's answer; `extra` headers come after ours."""
    begun = beginning(type(refused), refused.detail, refused.limit)  # type: ignore[arg-type]  # a class has a hash
    return whole(refused.status, begun, refused.retry_after, extra)


def whole(status: int, begun: str, seconds: float | None, extra: Headers | None) -> Whole:
    """The same of a problem whose `beginning` is there; `seconds` is its `retry_after`."""
    after = retry_after_header(seconds)
    if after is None or seconds is None:
        content = f"{begun}}}".encode()
        headers = [_PROBLEM, (b"content-length", b"%d" % len(content)), _NO_STORE]
    else:
        rounded = f"{seconds:.3f}".rstrip("0").rstrip(".")  # in a quarter of the time that `round` takes
        content = f'{begun},"retry_after":{rounded}}}'.encode()
        length = b"%d" % len(content)
        headers = [_PROBLEM, (b"content-length", length), _NO_STORE, (b"retry-after", after.encode())]
    return status, headers + extra if extra else headers, content


async def send_whole(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send an answer in the two parts of ASGI. The headers may be those of other answers as well, so
    whoever takes them is given a copy to change."""
    await send({"type": "http.response.start", "status": status, "headers": [*headers]})
    await send({"type": "http.response.body", "body": body})


async def refuse_websocket(
    scope: Mapping[str, Any],
    send: Send,
    refused: Refused,
    extra: Headers | None = None,
) -> None:
    """Answer a websocket that was not accepted yet: in HTTP where the server can, else by closing it."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": TRY_AGAIN_LATER, "reason": refused.reason})
        return
    status, headers, body = render(refused, extra)
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
    # uvicorn takes a handshake for open until its connection has closed, and says so as an error.
    await asyncio.sleep(0)
