"""The lines to be reached, in a Markdown page between two markers, so that nobody types figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bench.core.must import Line


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


def markers(bench: str) -> tuple[str, str]:
    """What a benchmark's lines stand between."""
    return f"<!-- {bench}: begin -->", f"<!-- {bench}: end -->"


def put(path: Path, lines: Iterable[Line], bench: str) -> None:
    """Replace what stands between a benchmark's markers; `ValueError` when the page has none."""
    first, last = markers(bench)
    text = path.read_text("utf-8")
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"{path} has no place for the figures: {first} … {last}")
    path.write_text(f"{before}{first}\n{block(lines)}\n{last}{after}", "utf-8")
