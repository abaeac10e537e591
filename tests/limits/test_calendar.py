"""Days that begin at midnight of a time zone, and what is counted around it."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from headworks.limits.calendar import LONGEST_DAY, Calendar

PACIFIC, UTC = ZoneInfo("America/Los_Angeles"), ZoneInfo("UTC")


@pytest.mark.parametrize(
    ("zone", "now", "days", "turns"),
    [
        (UTC, "2026-01-31T12:00:00+00:00", ("2026-01-31",), 12 * 3600 + 2),
        (UTC, "2026-01-31T23:59:54+00:00", ("2026-01-31",), 8),
        (UTC, "2026-01-31T23:59:56+00:00", ("2026-01-31", "2026-02-01"), 6),
        (UTC, "2026-02-01T00:00:01+00:00", ("2026-01-31", "2026-02-01"), 1),
        (UTC, "2026-02-01T00:00:02+00:00", ("2026-02-01",), 24 * 3600),
        (PACIFIC, "2026-02-01T07:59:00+00:00", ("2026-01-31",), 62),
        (PACIFIC, "2026-02-01T08:01:00+00:00", ("2026-02-01",), 24 * 3600 - 58),
        (PACIFIC, "2026-03-08T08:01:00+00:00", ("2026-03-08",), 23 * 3600 - 58),
        (PACIFIC, "2026-11-01T07:01:00+00:00", ("2026-11-01",), 25 * 3600 - 58),
    ],
)
def test_a_send_counts_on_every_day_it_may_fall_into(
    zone: ZoneInfo, now: str, days: tuple[str, ...], turns: float
) -> None:
    """Clocks differ by two seconds at most, and a send may lie three ahead; days of 23 and 25 hours."""
    calendar = Calendar(zone, 2.0)
    assert calendar.days(datetime.fromisoformat(now), 3.0) == days
    assert calendar.turns(datetime.fromisoformat(now)) == pytest.approx(turns)


def test_a_day_is_remembered_to_its_end() -> None:
    assert LONGEST_DAY > 25 * 3600
