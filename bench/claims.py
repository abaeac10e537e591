"""What a claim is, and when it holds. No clock, no sockets: figures in, verdict out.

figure    a number, the bound it must keep, and a control: the same number taken where the thing
          claimed is missing. The control must break the bound; a bound that nothing breaks shows
          nothing
claim     a sentence and its figures
verdict   fails   a figure is missing or breaks its bound, or measuring it ended in an error
          void    no figure has a control, or a control keeps the bound or is missing
          holds   otherwise
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.table import Table

COMPARE: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq,
    "<=": operator.le,
    ">=": operator.ge,
}


class Verdict(StrEnum):
    """What became of a claim."""

    HOLDS = "holds"
    FAILS = "fails"
    VOID = "void"


@dataclass(frozen=True, slots=True)
class Control:
    """The same figure without what is claimed. `value` is None when it could not be taken."""

    about: str
    value: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number and its bound; yes and no are 1 and 0. `value` is None when it is missing."""

    name: str
    value: float | None
    relation: str
    bound: float
    control: Control | None = None

    @property
    def kept(self) -> bool:
        """The number is there and keeps its bound."""
        return self._keeps(self.value)

    @property
    def tried(self) -> bool:
        """There is a control, and it breaks the bound."""
        control = self.control
        return control is not None and control.value is not None and not self._keeps(control.value)

    def _keeps(self, value: float | None) -> bool:
        return value is not None and COMPARE[self.relation](value, self.bound)


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, and what was measured for it.

    beside  further numbers worth keeping, without a bound
    error   why measuring ended early; empty when it did not
    """

    name: str
    says: str
    figures: tuple[Figure, ...]
    beside: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.error or not self.figures or not all(figure.kept for figure in self.figures):
            return Verdict.FAILS
        with_control = [figure for figure in self.figures if figure.control is not None]
        if not with_control or not all(figure.tried for figure in with_control):
            return Verdict.VOID
        return Verdict.HOLDS

    def as_json(self) -> dict[str, Any]:
        """Plain data, with the verdicts spelled out."""
        return {
            "name": self.name,
            "says": self.says,
            "verdict": self.verdict,
            "figures": [_plain(figure) for figure in self.figures],
            "beside": self.beside,
            "error": self.error,
        }


def _plain(figure: Figure) -> dict[str, Any]:
    plain: dict[str, Any] = {
        "figure": figure.name,
        "value": figure.value,
        "must be": figure.relation,
        "bound": figure.bound,
        "kept": figure.kept,
    }
    if figure.control is not None:
        control = figure.control
        plain["control"] = {"about": control.about, "value": control.value, "fails": figure.tried}
    return plain


def all_hold(claims: Iterable[Claim]) -> bool:
    """Whether there is a claim, and every one holds."""
    verdicts = [claim.verdict for claim in claims]
    return bool(verdicts) and all(verdict is Verdict.HOLDS for verdict in verdicts)


def table(claims: Iterable[Claim]) -> Table:
    """One row per figure; the claim's verdict stands in its first."""
    shown = Table(header_style="bold", pad_edge=False, show_lines=False)
    for heading in ("claim", "figure", "value", "bound", "control, which must fail", "verdict"):
        shown.add_column(heading, justify="right" if heading in ("value", "bound") else "left")
    for claim in claims:
        colour = {"holds": "green", "fails": "red", "void": "yellow"}[claim.verdict]
        first = (claim.name, f"[{colour}]{claim.verdict}[/]")
        for figure in claim.figures:
            bound = f"{figure.relation} {number(figure.bound)}"
            value = number(figure.value) if figure.kept else f"[red]{number(figure.value)}[/]"
            shown.add_row(first[0], figure.name, value, bound, _control(figure), first[1])
            first = ("", "")
        if claim.error:
            shown.add_row(first[0], f"[red]{claim.error}[/]", "", "", "", first[1])
        shown.add_section()
    return shown


def _control(figure: Figure) -> str:
    if figure.control is None:
        return ""
    told = f"{number(figure.control.value)} ({figure.control.about})"
    return told if figure.tried else f"[yellow]{told}: does not fail[/]"


def number(value: float | None) -> str:
    """As few digits as say it; a dash for what is missing."""
    if value is None:
        return "–"
    return str(int(value)) if value == int(value) else f"{value:.4g}"
