"""The contract's cells as SVG: how much of its bound each limiter used, what the vendor rejected, how
long the served waited, and how fairly tenants were served."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from bench.plot import FONT

LEFT, WIDE, ROW, TOP = 250, 330, 20, 64
COLUMNS = {"Rejected": 16, "Waited: p50, p99": 96, "Jain, tenants": 216}
"""What stands right of the bars, and where."""
RIGHT = 310
MOST = 1.2
"""Of the bound, where the axis ends: whoever goes beyond it breaks the contract anyway."""
KEPT, BROKEN, GREY = "#1769aa", "#c2410c", "#6b7280"


def picture(cells: Mapping[str, Mapping[str, Any]]) -> str:
    """One row for each cell, in their order. A bar ends at 100 % of what the jitter leaves possible;
    it is red where the vendor rejected anything."""
    tall, wide = TOP + ROW * len(cells) + 30, LEFT + WIDE + RIGHT
    good = sum(not cell["rejected"] for cell in cells.values())
    says = f"{good} of {len(cells)} rows without a rejection: " + "; ".join(
        f"{name}: {cell['of_bound']:.1%} of the bound, {cell['rejected']:,} rejected"
        for name, cell in cells.items()
    )
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" {FONT} fill="#374151">',
        "<title>Ten pods on one quota, five times overloaded</title>",
        f"<desc>{escape(says)}</desc>",
        f'<rect width="{wide}" height="{tall}" fill="#ffffff"/>',
        _text(LEFT, 22, "Used, of what the injected jitter leaves possible", bold=True),
        *(_text(LEFT + WIDE + at, 22, name, bold=True) for name, at in COLUMNS.items()),
    ]
    for part in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = LEFT + part / MOST * WIDE
        drawn.append(f'<path d="M{x:.1f} {TOP - 14}V{tall - 26}" stroke="#e5e7eb"/>')
        drawn.append(_text(x, TOP - 20, f"{part:.0%}", anchor="middle"))
    for number, (name, cell) in enumerate(cells.items()):
        drawn += _row(name, cell, TOP + number * ROW)
    return "\n".join([*drawn, "</svg>", ""])


def _row(name: str, cell: Mapping[str, Any], top: int) -> list[str]:
    used, rejected = min(cell["of_bound"], MOST), cell["rejected"]
    colour = BROKEN if rejected else KEPT
    waited = [f"{seconds:.2f} s" for seconds in cell["waited"][::2]]
    told = (
        (f"{rejected:,}", colour if rejected else GREY),
        (", ".join(waited) or "–", GREY),
        (f"{cell['jain_tenants']:.3f}", GREY),
    )
    return [
        _text(LEFT - 10, top + 12, name, anchor="end"),
        f'<rect x="{LEFT}" y="{top + 3}" width="{used / MOST * WIDE:.1f}" height="{ROW - 8}" '
        f'fill="{colour}"/>',
        *(
            _text(LEFT + WIDE + at, top + 12, said, colour=shade)
            for (said, shade), at in zip(told, COLUMNS.values(), strict=True)
        ),
    ]


def _text(
    x: float, y: float, said: str, *, anchor: str = "start", bold: bool = False, colour: str = ""
) -> str:
    more = ' font-weight="600"' * bold + (f' fill="{colour}"' if colour else "")
    return f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}"{more}>{escape(said)}</text>'
