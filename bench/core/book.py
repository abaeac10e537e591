"""Every figure taken, round by round, and the two things read from them: medians and ratios."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median
from typing import Any


class Book:
    """Values by case, contestant and metric; one value per round, in the order of the rounds."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )

    def add(self, case: str, name: str, **metrics: float) -> None:
        for metric, value in metrics.items():
            self._values[case][name][metric].append(value)

    def cases(self) -> list[str]:
        return list(self._values)

    def names(self, case: str) -> list[str]:
        return list(self._values[case])

    def median(self, case: str, name: str, metric: str) -> float | None:
        """The median over the rounds; None when it was not taken."""
        values = self._of(case, name, metric)
        return median(values) if values else None

    def worst(self, case: str, name: str, metric: str) -> float | None:
        """The highest value of any round."""
        return max(self._of(case, name, metric), default=None)

    def least(self, case: str, name: str, metric: str) -> float | None:
        """The lowest value of any round."""
        return min(self._of(case, name, metric), default=None)

    def ratio(self, case: str, name: str, control: str, metric: str) -> float | None:
        """The median over the rounds of this one's value by the control's in the same round."""
        pairs = zip(self._of(case, name, metric), self._of(case, control, metric), strict=False)
        ratios = [value / beside for value, beside in pairs if beside]
        return median(ratios) if ratios else None

    def best(self, case: str, names: Iterable[str], metric: str) -> str | None:
        """Who of these has the highest median."""
        taken = [
            (found, name) for name in names if (found := self.median(case, name, metric)) is not None
        ]
        return max(taken)[1] if taken else None

    def as_json(self) -> dict[str, Any]:
        """Medians and rounds, for a file."""
        return {
            case: {
                name: {
                    metric: {"median": median(values), "rounds": values}
                    for metric, values in metrics.items()
                }
                for name, metrics in names.items()
            }
            for case, names in self._values.items()
        }

    def _of(self, case: str, name: str, metric: str) -> list[float]:
        return self._values.get(case, {}).get(name, {}).get(metric, [])
