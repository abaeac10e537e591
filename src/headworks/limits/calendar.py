"""Quotas of a calendar day: what a vendor counts from midnight to midnight of its own time zone.

    days that a send may fall into    the dates of  now − M  and of  now + H + M
    they change next at               the first midnight after  now − M,  plus M

Units: H, how far ahead a send may be booked, and M, by how much clocks and the way to the vendor may
differ, in seconds; times are aware datetimes. A send is counted against every day it may fall into, so
that around midnight it is counted twice, and never against a day that it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

LONGEST_DAY = 26 * 3600.0
"""Seconds that what is spent on a day is remembered: longer than any day, the one of 25 hours too."""


@dataclass(frozen=True, slots=True)
class Calendar:
    """The days of a time zone, with `margin` M."""

    zone: ZoneInfo
    margin: float

    def days(self, now: datetime, ahead: float) -> tuple[str, ...]:
        """The days, as 2026-01-31, that a send from `now` to `ahead` seconds later may fall into."""
        margin = timedelta(seconds=self.margin)
        first = (now - margin).astimezone(self.zone).date()
        last = (now + timedelta(seconds=ahead) + margin).astimezone(self.zone).date()
        return tuple(dict.fromkeys((first.isoformat(), last.isoformat())))

    def turns(self, now: datetime) -> float:
        """Seconds until what was used up before midnight is surely no longer counted, > 0."""
        margin = timedelta(seconds=self.margin)
        tomorrow = (now - margin).astimezone(self.zone).date() + timedelta(days=1)
        midnight = datetime.combine(tomorrow, time(), self.zone).astimezone(UTC)
        return (midnight + margin - now).total_seconds()
