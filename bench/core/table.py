"""The figures as one table, and the lines to be reached as another."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from bench.core import alone
from bench.core.book import Book
from bench.core.contestants.floors import EMPTY, OUR_SCRIPT, SCRIPT
from bench.core.contestants.peer_limits import FIXED
from bench.core.must import Line
from bench.core.shared import IN_TURN

COLUMNS = (
    ("decisions/s", "rate", ",.0f"),
    ("p50 µs", "p50_us", ",.0f"),
    ("p99 µs", "p99_us", ",.0f"),
    ("client CPU µs", "client_us", ",.1f"),
    ("store CPU µs", "cpu_us", ".1f"),
    ("trips", "trips", ".3f"),
    ("commands", "commands", ".2f"),
    ("bytes/key", "bytes", ",.0f"),
    ("let in", "most", ".0f"),
)


def control(case: str) -> tuple[str, str]:
    """Whom a case is set beside, and by which metric: a floor for speed, a peer for the rest."""
    if case.startswith("exact"):
        return FIXED.name, "most"
    if "kept" in case:
        return FIXED.name, "bytes"
    if case == IN_TURN:
        return OUR_SCRIPT.name, "p50_us"
    return (EMPTY if case in (alone.HOT, alone.MANY) else SCRIPT).name, "rate"


def figures(book: Book) -> Table:
    """Medians of all rounds; × control is the median of the ratios within each round."""
    headings = [heading for heading, *_ in COLUMNS]
    table = Table("case", "contestant", title="medians of rounds; CPU, trips, commands: per decision")
    for heading in ("× control", *headings):
        table.add_column(heading, justify="right")
    for case in book.cases():
        beside, by = control(case)
        table.add_section()
        for number, name in enumerate(book.names(case)):
            cells = [_shown(book.median(case, name, metric), form) for _, metric, form in COLUMNS]
            cells.insert(0, _shown(book.ratio(case, name, beside, by), ".2f"))
            table.add_row("" if number else case, name, *cells)
    return table


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def verdicts(lines: Iterable[Line]) -> Table:
    """Claim, ours, bound, verdict."""
    table = Table("claim", "ours", "bound", "verdict", "beside", title="must reach")
    for line in lines:
        ours = "not taken" if line.ours is None else f"{line.ours:,.4g}"
        verdict = "[green]reached[/]" if line.reached else "[red]missed[/]"
        table.add_row(line.claim, ours, f"{line.sign} {line.bound:g}", verdict, line.beside)
    return table
