"""The lines to be reached, in a Markdown page between two markers, so that nobody types figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.core.must import Line

BEGIN, END = "<!-- bench.core: begin -->", "<!-- bench.core: end -->"


def block(lines: Iterable[Line]) -> str:
    """A Markdown table."""
    rows = ["| Claim | Ours | Bound | Verdict | Beside |", "|---|---|---|---|---|"]
    for line in lines:
        ours = "not taken" if line.ours is None else f"{line.ours:,.4g}"
        verdict = "reached" if line.reached else "**missed**"
        rows.append(
            f"| {line.claim} | {ours} | {line.sign} {line.bound:g} | {verdict} | {line.beside} |"
        )
    return "\n".join(rows)


def put(path: Path, lines: Iterable[Line]) -> None:
    """Replace what stands between the markers; `ValueError` when the page has none."""
    text = path.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the figures: {BEGIN} … {END}")
    path.write_text(f"{before}{BEGIN}\n{block(lines)}\n{END}{after}", "utf-8")
