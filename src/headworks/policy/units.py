"""Durations, rates, sizes, networks and secrets, read the way people write them.

Every parser raises `ValueError` with a sentence that names the value and says what would be right.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from headworks.errors import PolicyError, Problem

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Unit = Literal["requests", "tokens", "input_tokens", "output_tokens"]

MAX_AMOUNT = 1_000_000_000
"""Units per period a rate may have at most."""
MIN_PERIOD, MAX_PERIOD = 0.1, 31 * 86400.0
"""Seconds a rate's period may have."""
COUNTED = 3600.0
"""Seconds of a period from which on a quota says how many, not how fast."""

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PERIODS = _SECONDS | {
    "sec": 1.0,
    "second": 1.0,
    "minute": 60.0,
    "hour": 3600.0,
    "day": 86400.0,
}
_BYTES = {
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_UNITS: dict[str, Unit] = {
    "": "requests",
    "request": "requests",
    "token": "tokens",
    "input token": "input_tokens",
    "output token": "output_tokens",
}
_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([a-z]*)", re.IGNORECASE | re.ASCII)
_RATE = re.compile(
    r"(?P<amount>[0-9][0-9_]{0,20})\s*(?P<unit>[a-z][a-z_ ]*?)?\s*(?:/|\bper\b)\s*"
    r"(?P<count>[0-9]{1,9}(?:\.[0-9]{1,6})?)?\s*(?P<period>[a-z]+)"
    r"(?:\s+burst\s+(?P<burst>[0-9][0-9_]{0,20}))?",
    re.IGNORECASE | re.ASCII,
)
_RATE_HINT = (
    'write an amount and a period, such as "10/min", "2000/s", "200000 tokens/min", "10/30s" or '
    '"10/min burst 3"'
)


_CREDENTIALS = re.compile(r"(://)[^/@\s'\"]*@")


def shown(value: object) -> str:
    """A value as an error message shows it: quoted, without credentials, no longer than a line."""
    text = _CREDENTIALS.sub(r"\1********@", repr(value))
    return text if len(text) <= 80 else text[:76] + "…" + text[-1]


def parse_duration(value: object) -> float:
    """Seconds of "50ms", "60s", "5m", "1h", "1d"; a bare number is seconds."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = match[2].lower() if match else None
    if match is None or unit not in _SECONDS:
        raise ValueError(
            f"{shown(value)} is not a duration; write a number and a unit, such as "
            '"50ms", "60s", "5m", "1h" or "1d"'
        )
    # Rounded to the microsecond, the finest the system counts in, so that "300ms" is 0.3 exactly.
    return round(float(match[1]) * _SECONDS[unit], 6)


def duration_text(seconds: float) -> str:
    """A duration as people write it, which `parse_duration` reads back; a minute is "60s"."""
    if seconds == 0:
        return "0s"
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size and seconds % size == 0 and not (seconds == 60 and unit == "m"):
            return f"{int(seconds // size)}{unit}"
    if seconds >= 1:
        return f"{round(seconds, 6):.6f}".rstrip("0").rstrip(".") + "s"
    return f"{round(seconds * 1000, 3):.3f}".rstrip("0").rstrip(".") + "ms"


def parse_size(value: object) -> int:
    """Bytes of "64KiB", "1MiB" (powers of 1024), "1MB" (powers of 1000); a bare number is bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = (match[2].lower() or "b") if match else None
    if match is None or unit not in _BYTES:
        raise ValueError(
            f'{shown(value)} is not a size; write a number and a unit: "64KiB", "1MiB" or "1MB"'
        )
    return round(float(match[1]) * _BYTES[unit])


def size_text(size: int) -> str:
    """The shortest way to write a size that `parse_size` reads back."""
    for unit in ("GiB", "MiB", "KiB", "GB", "MB", "kB"):
        if size and size % _BYTES[unit.lower()] == 0:
            return f"{size // _BYTES[unit.lower()]}{unit}"
    return f"{size}B"


@dataclass(frozen=True, slots=True)
class Rate:
    """So many units per period.

    amount  units per period, 1 to 1 000 000 000
    period  seconds, 0.1 to 2 678 400 (31 days)
    unit    what is counted: requests, tokens, input_tokens or output_tokens
    burst   None: a window, at most `amount` in any period; a number ≥ 1: a bucket, evenly paced, of
            which so many may come at once
    """

    amount: int
    period: float
    unit: Unit = "requests"
    burst: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.amount <= MAX_AMOUNT:
            raise ValueError(f"{self.amount} per period: the amount of a rate is 1 to {MAX_AMOUNT}")
        if not MIN_PERIOD <= self.period <= MAX_PERIOD:
            low, high = duration_text(MIN_PERIOD), duration_text(MAX_PERIOD)
            raise ValueError(f"{self.period:g} seconds: the period of a rate is {low} to {high}")
        if self.unit not in get_args(Unit):
            raise ValueError(f"{shown(self.unit)}: a rate counts {', '.join(get_args(Unit))}")
        if self.burst is not None and not 1 <= self.burst <= self.amount:
            raise ValueError(f"burst {self.burst}: a burst is 1 to the rate's own amount, {self.amount}")

    @property
    def per_second(self) -> float:
        """Units per second, on average."""
        return self.amount / self.period

    @property
    def counted(self) -> bool:
        """Whether it is kept by counting alone: nobody spaces out a quota over hours or days."""
        return self.period >= COUNTED

    def __str__(self) -> str:
        names = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "d"}
        unit = "" if self.unit == "requests" else f" {self.unit.replace('_', ' ')}"
        burst = "" if self.burst is None else f" burst {self.burst}"
        return f"{self.amount}{unit}/{names.get(self.period) or duration_text(self.period)}{burst}"


def parse_rate(value: object) -> Rate:
    """A `Rate` of "10/min", "2000/s", "200000 tokens/min", "10 per 30s" or "10/min burst 3"."""
    if isinstance(value, Rate):
        return value
    match = _RATE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{shown(value)} is not a rate; {_RATE_HINT}")
    words = " ".join((match["unit"] or "").lower().replace("_", " ").split())
    unit = _UNITS.get(words.removesuffix("s"))
    if unit is None:
        raise ValueError(
            f"{shown(value)} counts {shown(words)}; a rate counts requests (or nothing said), tokens, "
            "input tokens or output tokens"
        )
    length = _PERIODS.get(match["period"].lower())
    if length is None:
        raise ValueError(
            f"{shown(value)} is not a rate: {shown(match['period'])} is no period; {_RATE_HINT}"
        )
    period = round(float(match["count"] or 1) * length, 6)
    burst = None if match["burst"] is None else int(match["burst"])
    try:
        return Rate(int(match["amount"]), period, unit, burst)
    except ValueError as error:
        raise ValueError(f"{shown(value)}: {error}") from None


def parse_network(value: object) -> Network:
    """A network of "10.0.0.0/8", "2001:db8::/32" or a single address."""
    if isinstance(value, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        return value
    text = value.strip() if isinstance(value, str) else ""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        if "host bits" in str(error):
            wide = ipaddress.ip_network(text, strict=False)
            raise ValueError(f'{shown(value)} has host bits set; the network is "{wide}"') from None
    raise ValueError(
        f'{shown(value)} is not a network; write "10.0.0.0/8", "2001:db8::/32" or a single address'
    )


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that is never shown: a literal without a password in it, or a reference.

    References are resolved when they are used, so that a policy can be checked and rendered where
    its secrets are not: `{ env = "NAME" }` reads an environment variable, `{ file = "/path" }` the
    text of a file. `path` is where in the policy it stands.
    """

    kind: Literal["literal", "env", "file"]
    name: str = field(repr=False)
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ, repr=False, compare=False)
    path: str = field(default="", compare=False)

    def __str__(self) -> str:
        return "********" if self.kind == "literal" else f"{{ {self.kind} = {self.name!r} }}"

    def __repr__(self) -> str:
        return f"Secret({self})"

    def reveal(self) -> str:
        """The value itself; `PolicyError` says which variable is unset or which file cannot be read."""
        if self.kind == "literal":
            return self.name
        if self.kind == "env":
            found = self.environ.get(self.name)
            if not found:
                raise self._missing(f"the environment variable {self.name} is not set")
            return found
        try:
            return Path(self.name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise self._missing(f"the file {self.name} cannot be read: {error}") from None

    def _missing(self, why: str) -> PolicyError:
        return PolicyError("policy", [Problem(self.path, why)])


class FromEnvironment(str):
    """A text that came from an environment override, and so may hold a password itself."""

    __slots__ = ()


def parse_secret(value: object, environ: Mapping[str, str] | None = None, *, path: str = "") -> Secret:
    """A `Secret` of a reference, or of a text that holds no password."""
    environ = os.environ if environ is None else environ
    if isinstance(value, Secret):
        return value
    if isinstance(value, str):
        if not isinstance(value, FromEnvironment) and _has_password(value):
            raise ValueError(
                "the value (not shown) holds a password, which does not belong into a policy file; "
                'write { env = "NAME" } or { file = "/path" }'
            )
        return Secret("literal", str(value), environ, path)
    if isinstance(value, Mapping) and len(value) == 1:
        kind, name = next(iter(value.items()))
        if kind in ("env", "file") and isinstance(name, str) and name:
            return Secret(cast(Literal["env", "file"], kind), name, environ, path)
    raise ValueError('is neither a text nor a reference; write { env = "NAME" } or { file = "/path" }')


def _has_password(text: str) -> bool:
    """Whether a URL carries a password, as user information or as a query parameter."""
    try:
        parts = urlsplit(text)
        return bool(parts.password) or "password=" in parts.query.lower()
    except ValueError:
        return "@" in text
