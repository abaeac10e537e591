"""Adding up a vendor's own count, across its restarts."""

from __future__ import annotations

from typing import Any

from headworks.local.load.vendors import VendorWatch


def _stats(accepted: int, seconds: float, **rejected: int) -> dict[str, Any]:
    """What a vendor of 500 requests a minute answers."""
    plain = 500 / 60 * seconds
    return {
        "accepted": accepted,
        "rejected": {"requests": 0, "tokens": 0} | rejected,
        "failed": 0,
        "in_flight": 0,
        "highest_in_flight": 7,
        "streams_closed_early": 1,
        "seconds": seconds,
        "utilisation": {"requests": {"accepted": accepted, "of_rate": round(accepted / plain, 4)}},
    }


def _watch(*looks: dict[str, Any]) -> VendorWatch:
    watch = VendorWatch("llm", "http://127.0.0.1:9")
    for stats in looks:
        watch._add(stats)
    return watch


def test_only_what_happened_since_the_first_look_counts() -> None:
    count = _watch(_stats(400, 60), _stats(500, 70), _stats(640, 90, requests=2)).count()
    assert (count.accepted, count.rejected, count.streams_closed_early) == (240, {"requests": 2}, 0)
    assert count.restarts == 0


def test_a_restarted_vendor_goes_on_being_counted() -> None:
    count = _watch(
        _stats(400, 60, requests=3), _stats(450, 66, requests=3), _stats(80, 9, requests=1)
    ).count()
    assert (count.accepted, count.rejected, count.restarts) == (130, {"requests": 1}, 1)


def test_the_quota_used_is_measured_over_the_sending_time() -> None:
    """240 calls in 30 s of 250 that 500/min allows."""
    watch = _watch(_stats(400, 60), _stats(640, 90))
    watch.mark(30.0)
    assert abs(watch.count().utilisation["requests"] - 0.96) < 0.001


def test_a_vendor_never_read_says_so() -> None:
    assert not _watch().count().answered
