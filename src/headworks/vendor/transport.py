"""The vendor pipeline as an httpx2 transport: what lets unmodified SDKs use it.

A refusal of ours is a synthetic response with `x-should-retry: false`, the one form that the openai
and anthropic SDKs both surface after exactly one attempt; `x-headworks-refusal` names its reason, and
`response.extensions["headworks.refused"]` holds the `Refused` itself, so that whatever exception the
SDK makes of it can be translated back. A vendor's own failing answer passes unchanged but carries
the same extension.
"""

from __future__ import annotations

import asyncio
import email.utils
import http.cookiejar
import math
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx2

from headworks import problem
from headworks.cleanup import Reaper
from headworks.current import current
from headworks.errors import ForeignOrigin, Refused, VendorFailed, VendorQuota
from headworks.limits.breaker import Ending
from headworks.policy.profiles import Profile
from headworks.policy.settings import VendorSettings
from headworks.telemetry import Rejected
from headworks.vendor.body import Body
from headworks.vendor.estimate import Estimate, UsageReader, estimate
from headworks.vendor.pipeline import Exchange, Pipeline, TooLate
from headworks.vendor.rejection import KIND, SPENT, Rejection, classified
from headworks.vendor.retry import Outcome
from headworks.vendor.told import Headers

REFUSED = "headworks.refused"
"""The key of a response's extensions under which its `Refused` stands."""

OVERLOADED = frozenset({429, 529})
RETRYABLE = frozenset({429, 500, 502, 503, 529})
PAUSE = 1.0
"""Seconds the fleet pauses after a 429 that names no time."""

WRITING = frozenset({"http11.send_request_headers.started", "http2.send_request_headers.started"})
"""The trace events with which a request begins to go out."""

Trace = Callable[[str, Mapping[str, Any]], Awaitable[None]]

NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout)
"""The request cannot have reached the vendor, so sending it again is safe."""

OURS = (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol)
"""Mistakes in the request itself: raised as they are, and no fault of the vendor's."""


class NoCookies(http.cookiejar.DefaultCookiePolicy):
    """Keeps nothing that a vendor sets: one client serves every caller of this pod, and a cookie of one
    must not travel with another's call. Cookies given with a request are sent."""

    def set_ok(self, cookie: http.cookiejar.Cookie, request: urllib.request.Request) -> bool:
        return False


def no_cookies() -> http.cookiejar.CookieJar:
    """A jar that stays empty."""
    return http.cookiejar.CookieJar(NoCookies())


class VendorTransport(httpx2.AsyncBaseTransport):
    """Runs every request of a client through a vendor's pipeline.

    engine  an httpx2 client that does the sending: with the policy's pool and the environment's
            proxies, which a client built around a transport would otherwise ignore
    reaper  closes what nobody waits for
    now     wall-clock time, for `Retry-After` given as a date
    """

    def __init__(
        self,
        vendor: str,
        settings: VendorSettings,
        profile: Profile,
        pipeline: Pipeline,
        *,
        engine: httpx2.AsyncClient,
        reaper: Reaper,
        now: Callable[[], datetime],
    ) -> None:
        self._vendor, self._settings, self._profile = vendor, settings, profile
        self._pipeline, self._engine, self._now = pipeline, engine, now
        self._reaper, self._headers = reaper, Headers(vendor, profile.headers)
        self._origin = origin(httpx2.URL(settings.base_url))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if origin(request.url) != self._origin:
            raise ForeignOrigin(vendor=self._vendor, asked=origin(request.url), allowed=self._origin)
        expected = estimate(_content(request), self._profile.charges)
        _tighten(request, self._settings)

        extensions = dict(request.extensions)

        async def send(until: float) -> httpx2.Response:
            request.extensions = {**extensions, "trace": _punctual(until, extensions.get("trace"))}
            answer = await self._engine.send(request, stream=True)
            for told in self._headers.read(answer.headers, self._now()):
                self._pipeline.telemetry.emit(told)
            return await self._rejected(answer) if answer.status_code in OVERLOADED else answer

        patient = request.extensions["timeout"]["read"] >= self._settings.timeouts.read

        def judge(result: httpx2.Response | Exception) -> Outcome:
            outcome = self._judge(result, patient=patient)
            return outcome if _replayable(request) else replace(outcome, retryable=False)

        exchange = Exchange(send=send, judge=judge, discard=self._discard)
        try:
            answer, attempt = await self._pipeline.call(expected.model, expected.cost(), exchange)
        except Refused as refused:
            return synthetic(refused, request)
        outcome = self._judge(answer)
        body = Body(
            answer,
            attempt,
            current(),
            gap=self._settings.call_timeout,
            reaper=self._reaper,
            settle=lambda reader, whole: self._used(expected, reader, whole),
        )
        told = {key: value for key, value in answer.extensions.items() if key != REFUSED}
        headers = list(answer.headers.raw)
        if outcome.refusal is not None:
            told[REFUSED] = outcome.refusal
            if outcome.retryable:  # our retries are spent; an SDK's would only multiply them
                headers = [pair for pair in headers if pair[0].lower() != b"x-should-retry"]
                headers.append((b"x-should-retry", b"false"))
        return httpx2.Response(
            answer.status_code, headers=headers, stream=body, extensions=told, request=request
        )

    async def aclose(self) -> None:
        await self._engine.aclose()

    def _used(self, expected: Estimate, reader: UsageReader, whole: bool) -> Mapping[str, int] | None:
        """What to settle: by the profile's refund rule, what was used or at least what was booked."""
        usage = reader.usage()
        if not usage:
            return None
        if self._profile.refunds:
            return usage
        return {unit: max(usage[unit], cost) for unit, cost in expected.cost().items() if unit in usage}

    def _judge(self, result: httpx2.Response | Exception, *, patient: bool = True) -> Outcome:
        """Name what came back from the vendor; `patient`, if it was given the policy's time for it."""
        if isinstance(result, Exception):
            return self._judge_error(result, patient=patient)
        status = result.status_code
        if status in OVERLOADED:
            after = self._retry_after(result.headers)
            wait = after or PAUSE  # none named, or one that is over: it was too early all the same
            kind = result.extensions.get(KIND, Rejection.RATE)
            spent = kind is Rejection.SPEND
            if spent:
                wait = max(wait, SPENT)
            detail = f"vendor '{self._vendor}' answered {status} ({kind})"
            refusal = VendorQuota(detail, retry_after=wait, limit=self._vendor)
            return Outcome(Ending.OVERLOADED, refusal, not spent, wait, status)
        if status >= 500:
            after = self._retry_after(result.headers)
            detail = f"vendor '{self._vendor}' answered {status}"
            refused = VendorFailed(detail, retry_after=PAUSE if after is None else after)
            return Outcome(Ending.FAILED, refused, status in RETRYABLE, after, status)
        return Outcome(Ending.OK)

    def _judge_error(self, error: Exception, *, patient: bool) -> Outcome:
        if isinstance(error, httpx2.PoolTimeout):
            refused = VendorFailed("no connection of the pool came free in time", retry_after=PAUSE)
            return Outcome(Ending.IGNORED, refused)
        if isinstance(error, httpx2.TransportError) and not isinstance(error, OURS):
            detail = f"vendor '{self._vendor}': {type(error).__name__}: {error}"
            late = isinstance(error, httpx2.TimeoutException) and not isinstance(error, NOT_SENT)
            ending = Ending.OVERLOADED if late else Ending.FAILED
            if isinstance(error, httpx2.ReadTimeout) and not patient:
                ending = Ending.IGNORED
            refused = VendorFailed(detail, retry_after=PAUSE)
            return Outcome(ending, refused, retryable=isinstance(error, NOT_SENT))
        return Outcome(Ending.IGNORED)

    async def _rejected(self, answer: httpx2.Response) -> httpx2.Response:
        """Read why the vendor rejected the call; a body that does not come is closed by the reaper."""
        try:
            answer = await classified(answer)
        except BaseException:
            self._discard(answer)
            raise
        self._pipeline.telemetry.emit(Rejected(self._vendor, answer.extensions[KIND]))
        return answer

    def _discard(self, answer: httpx2.Response) -> None:
        """Close an answer that is about to be replaced by another attempt, which waits for nothing."""
        self._reaper.hand_over(f"closing an answer of vendor '{self._vendor}'", answer.aclose)

    def _retry_after(self, headers: httpx2.Headers) -> float | None:
        """Seconds from `retry-after-ms` or `Retry-After` (seconds or an HTTP date); None without one
        that can be read."""
        for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
            value = headers.get(name, "").strip()
            try:
                seconds = float(value) * scale
                if math.isfinite(seconds):
                    return max(0.0, seconds)
                continue
            except ValueError:
                pass
            try:
                when = email.utils.parsedate_to_datetime(value)
            except (ValueError, OverflowError):
                continue
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            return max(0.0, (when - self._now()).total_seconds())
        return None


def origin(url: httpx2.URL) -> str:
    """Scheme, host and port of a URL, the port always named."""
    port = url.port or {"https": 443, "http": 80}.get(url.scheme, 0)
    return f"{url.scheme}://{url.host}:{port}"


def synthetic(refused: Refused, request: httpx2.Request) -> httpx2.Response:
    """A refusal in the form that SDKs surface at once, after one attempt."""
    markers = [
        (b"x-should-retry", b"false"),
        (b"x-headworks-refusal", refused.reason.encode()),
    ]
    status, headers, content = problem.render(refused, markers)
    return httpx2.Response(
        status, headers=headers, content=content, request=request, extensions={REFUSED: refused}
    )


def _punctual(until: float, theirs: Trace | None) -> Trace:
    """Let nothing be written after `until`: the last moment at which a late call can still be held
    back, when it has its connection. `theirs` is the caller's own trace, told as ever."""

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        if event in WRITING and asyncio.get_running_loop().time() > until:
            raise TooLate
        if theirs is not None:
            await theirs(event, info)

    return trace


def _content(request: httpx2.Request) -> bytes:
    """The body, where it is at hand without reading a stream."""
    try:
        return request.content
    except httpx2.RequestNotRead:
        return b""


def _replayable(request: httpx2.Request) -> bool:
    """A body of plain bytes can be sent again; a streamed upload is gone once it was read."""
    return isinstance(request.stream, httpx2.ByteStream)


def _tighten(request: httpx2.Request, settings: VendorSettings) -> None:
    """The stricter of the caller's and the policy's transport timeouts wins, one by one."""
    policy = settings.timeouts
    ours = {
        "connect": policy.connect,
        "pool": policy.pool,
        "write": policy.write,
        "read": policy.read,
    }
    theirs = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        name: bound if theirs.get(name) is None else min(bound, theirs[name])
        for name, bound in ours.items()
    }
