"""Counters and histograms that cost a dictionary's look-up, shown to Prometheus when it asks.

Everything is counted on the event loop's thread, so nothing needs a lock; the library's own counters
take one, and look their labels up, for every event.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

Labels = tuple[str, ...]

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of a histogram's buckets."""


class Count:
    """How many so far."""

    __slots__ = ("so_far",)

    def __init__(self) -> None:
        self.so_far = 0


class Spread:
    """How many seconds: how often up to each bound, and together."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts, self.sum = [0] * (len(SECONDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds


class Counts(Collector):
    """How many, by labels; `headworks_{name}_total`."""

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self._name, self._meaning, self._labels = f"headworks_{name}", meaning, labels
        self._counts: defaultdict[Labels, Count] = defaultdict(Count)

    def of(self, labels: Labels) -> Count:
        """The count of these labels, to be kept by who counts them often."""
        return self._counts[labels]

    def add(self, labels: Labels, count: int = 1) -> None:
        self._counts[labels].so_far += count

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, count in self._counts.items():
            family.add_metric(labels, count.so_far)
        yield family


class Times(Collector):
    """How many seconds, by labels; `headworks_{name}_bucket`, `_sum` and `_count`."""

    def __init__(self, name: str, meaning: str, *labels: str) -> None:
        self._name, self._meaning, self._labels = f"headworks_{name}", meaning, labels
        self._spreads: defaultdict[Labels, Spread] = defaultdict(Spread)

    def of(self, labels: Labels) -> Spread:
        """The spread of these labels, to be kept by who adds to it often."""
        return self._spreads[labels]

    def add(self, labels: Labels, seconds: float) -> None:
        self._spreads[labels].add(seconds)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, spread in self._spreads.items():
            so_far, buckets = 0, []
            for bound, count in zip((*map(str, SECONDS), "+Inf"), spread.counts, strict=True):
                so_far += count
                buckets.append((bound, so_far))
            family.add_metric(labels, buckets, spread.sum)
        yield family
