"""The kinds of fields a policy has: how each is read, and between which bounds.

A kind stands in an annotation, `Annotated[float, Seconds(0.001, 3600)]`. It turns what the file says
into the value the program uses, refuses with the value and the allowed range, and tells the
reference table (`reference.py`) its unit and range.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit
from zoneinfo import available_timezones

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, core_schema

from headworks.policy.units import (
    Network,
    Rate,
    Secret,
    duration_text,
    parse_duration,
    parse_network,
    parse_rate,
    parse_secret,
    parse_size,
    shown,
    size_text,
)

ROLLING = "rolling"
"""A day that is any 24 hours, instead of one from midnight to midnight."""


class Section(BaseModel):
    """A table of the policy: frozen, and closed to names it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=True,
    )


class Kind:
    """How one kind of field is read; `unit` and `allowed` are for people."""

    unit: str

    def allowed(self) -> str:
        """The allowed values in words."""
        raise NotImplementedError

    def parse(self, value: object, info: ValidationInfo) -> object:
        """The program's value for the file's, or `ValueError` naming value and range."""
        raise NotImplementedError

    def write(self, value: Any) -> str:
        """The value as the file would say it."""
        return str(value)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(self.parse)


@dataclass(frozen=True)
class Seconds(Kind):
    """A duration between `low` and `high` seconds."""

    low: float
    high: float
    unit = "duration"

    def allowed(self) -> str:
        return f"{'0' if self.low == 0 else duration_text(self.low)} to {duration_text(self.high)}"

    def parse(self, value: object, info: ValidationInfo) -> float:
        seconds = parse_duration(value)
        if not self.low <= seconds <= self.high:
            raise ValueError(f"{shown(value)} is out of range; allowed is {self.allowed()}")
        return seconds

    def write(self, value: float) -> str:
        return f'"{duration_text(value)}"'


@dataclass(frozen=True)
class Whole(Kind):
    """A whole number between `low` and `high`."""

    low: int
    high: int
    unit = "number"

    def allowed(self) -> str:
        return f"{self.low} to {self.high}" if self.low < self.high else str(self.low)

    def parse(self, value: object, info: ValidationInfo) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"{shown(value)} is not a whole number; allowed is {self.allowed()}")
        if not self.low <= value <= self.high:
            raise ValueError(f"{shown(value)} is out of range; allowed is {self.allowed()}")
        return value


@dataclass(frozen=True)
class Ratio(Kind):
    """A part of a whole: more than 0, at most 1; or 0 too, where `none` says so."""

    none: bool = False
    unit = "ratio"

    def allowed(self) -> str:
        return "0 to 1" if self.none else "more than 0, at most 1"

    def parse(self, value: object, info: ValidationInfo) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{shown(value)} is not a number; allowed is {self.allowed()}")
        if not 0 <= value <= 1 or not (value or self.none):
            raise ValueError(f"{shown(value)} is out of range; allowed is {self.allowed()}")
        return float(value)


@dataclass(frozen=True)
class YesNo(Kind):
    """Yes or no."""

    unit = "yes or no"

    def allowed(self) -> str:
        return "true, false"

    def parse(self, value: object, info: ValidationInfo) -> bool:
        # A variable of the environment comes as text.
        found = {"true": True, "false": False}.get(value) if isinstance(value, str) else value
        if not isinstance(found, bool):
            raise ValueError(f"{shown(value)} is neither true nor false")
        return found

    def write(self, value: bool) -> str:
        return "true" if value else "false"


@dataclass(frozen=True)
class Bytes(Kind):
    """A size between `low` and `high` bytes."""

    low: int
    high: int
    unit = "size"

    def allowed(self) -> str:
        return f"{size_text(self.low)} to {size_text(self.high)}"

    def parse(self, value: object, info: ValidationInfo) -> int:
        size = parse_size(value)
        if not self.low <= size <= self.high:
            raise ValueError(f"{shown(value)} is out of range; allowed is {self.allowed()}")
        return size

    def write(self, value: int) -> str:
        return f'"{size_text(value)}"'


@dataclass(frozen=True)
class Text(Kind):
    """A text that `pattern` matches; `words` say what that is."""

    pattern: str
    words: str
    unit = "text"

    def allowed(self) -> str:
        return self.words

    def parse(self, value: object, info: ValidationInfo) -> str:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value, re.ASCII):
            raise ValueError(f"{shown(value)} is not allowed; write {self.words}")
        return str(value)

    def write(self, value: str) -> str:
        return f'"{value}"'


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]
    unit = "word"

    def allowed(self) -> str:
        return ", ".join(f'"{word}"' for word in self.words)

    def parse(self, value: object, info: ValidationInfo) -> str:
        if value not in self.words:
            raise ValueError(f"{shown(value)} is not one of {self.allowed()}")
        return str(value)

    def write(self, value: str) -> str:
        return f'"{value}"'


@dataclass(frozen=True)
class Parsed(Kind):
    """Anything one of the parsers of `units` reads."""

    parser: Callable[[object], object]
    unit: str
    words: str

    def allowed(self) -> str:
        return self.words

    def parse(self, value: object, info: ValidationInfo) -> object:
        return self.parser(value)

    def write(self, value: object) -> str:
        return f'"{value}"'


@dataclass(frozen=True)
class StoreUrl(Kind):
    """Where the store is: a URL, or a reference to one."""

    unit = "url or reference"
    servers = ("valkey", "valkeys", "redis", "rediss")
    kinds = ("", "sentinel", "cluster")

    def allowed(self) -> str:
        known = "valkey://, valkeys://, redis:// or rediss://"
        return f"{known}, as in valkey+sentinel:// and valkey+cluster://; a password only by reference"

    def parse(self, value: object, info: ValidationInfo) -> Secret:
        environ = (info.context or {}).get("environ")
        secret = parse_secret(value, environ, path="store.url")
        server, _, kind = secret.name.partition("://")[0].lower().partition("+")
        if secret.kind == "literal" and (server not in self.servers or kind not in self.kinds):
            raise ValueError(
                f"{shown(secret.name)} is not a store's address; allowed is {self.allowed()}"
            )
        return secret


def parse_base_url(value: object) -> str:
    """An http or https URL without user, query or fragment; a trailing slash is dropped."""
    example = 'write "https://api.vendor.example/v1"'
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a URL; {example}")
    try:
        parts = urlsplit(value)
        if parts.port == 0:
            raise ValueError("Port out of range 1-65535")
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not a URL ({error}); {example}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{shown(value)} is not an http or https URL; {example}")
    if "@" in parts.netloc:
        raise ValueError(f"{shown(value)} holds credentials; they belong to the vendor's client")
    if parts.query or parts.fragment or any(c.isspace() or not c.isprintable() for c in value):
        raise ValueError(f"{shown(value)} has a query, a fragment or blanks; {example}")
    return str(value).rstrip("/")


def parse_request_rate(value: object) -> Rate:
    """A rate that counts requests."""
    rate = parse_rate(value)
    if rate.unit != "requests":
        raise ValueError(f'{shown(value)} counts {rate.unit}; this limit counts requests: "10/min"')
    return rate


def parse_day(value: object) -> str:
    """`rolling`, or the name of a time zone."""
    if value == ROLLING or value in available_timezones():
        return str(value)
    raise ValueError(f'{shown(value)} is no time zone; write "UTC", "America/Los_Angeles" or "rolling"')


def _as_list(value: object) -> object:
    return [value] if isinstance(value, (str, Rate)) else value


RequestRate = Annotated[Rate, Parsed(parse_request_rate, "rate", '"10/min", "2000/s", "10/min burst 3"')]
QuotaRate = Annotated[
    Rate, Parsed(parse_rate, "rate", '"500/min", "200000 tokens/min", "1000000 tokens/d"')
]
Quota = Annotated[tuple[QuotaRate, ...], BeforeValidator(_as_list)]
Networks = tuple[Annotated[Network, Parsed(parse_network, "network", '"10.0.0.0/8" or an address')], ...]
BaseUrl = Annotated[str, Parsed(parse_base_url, "url", "http:// or https://, no credentials, no query")]
Day = Annotated[str, Parsed(parse_day, "time zone", '"UTC", "America/Los_Angeles" or "rolling"')]
Name = Annotated[
    str, Text("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "1 to 63 of a-z, 0-9 and -, such as fastapi-app")
]
