"""What a vendor's headers say of its limits: shown, never believed (`HeaderNames`)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime

from headworks.policy.profiles import HeaderNames
from headworks.telemetry import Told

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")


class Headers:
    """Reads the limits that one vendor tells of; names are put together once."""

    def __init__(self, vendor: str, names: HeaderNames) -> None:
        self._vendor, self._dialect = vendor, names.dialect
        self._names = [
            (unit, names.remaining.format(unit=word), names.reset.format(unit=word))
            for unit, word in names.units.items()
            if names.remaining
        ]

    def read(self, headers: Mapping[str, str], now: datetime) -> list[Told]:
        """What these say; units of which nothing is said, or nothing that can be read, are left out."""
        found = []
        for unit, remaining, reset in self._names:
            left = _number(headers.get(remaining))
            if left is not None:
                found.append(Told(self._vendor, unit, left, self._seconds(headers.get(reset), now)))
        return found

    def _seconds(self, text: str | None, now: datetime) -> float | None:
        if not text:
            return None
        if self._dialect == "openai":
            parts = _PART.findall(text)
            return sum(float(number) * UNITS[unit] for number, unit in parts) if parts else _number(text)
        if self._dialect == "anthropic":
            try:
                return max(0.0, (datetime.fromisoformat(text) - now).total_seconds())
            except (ValueError, TypeError):
                return None
        return _number(text)


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
