"""A line chart as SVG, in as few lines as say it: some series over one logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, TOP, GAP = 330, 210, 52, 40, 24
COLOURS = ("#1769aa", "#c2410c", "#6b7280", "#15803d")
FONT = 'font-family="system-ui, sans-serif" font-size="12"'

Series = Mapping[str, Sequence[float]]


def chart(
    title: str, says: str, panels: Mapping[str, Series], at: Sequence[float], *, below: str
) -> str:
    """The chart: one panel beside the other, each with the same series over the same places.

    says    what there is to see, for who cannot
    panels  by heading: values from 0 to 1 by name of the series, one for each place of `at`
    at      places on the horizontal axis, > 0, spaced by their logarithms
    below   what the horizontal axis is
    """
    wide = len(panels) * (LEFT + WIDTH + GAP)
    tall = TOP + HEIGHT + 78
    drawn = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" {FONT} fill="#374151">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(says)}</desc>",
        f'<rect width="{wide}" height="{tall}" fill="#ffffff"/>',
    ]
    for number, (heading, series) in enumerate(panels.items()):
        drawn += _panel(heading, series, at, LEFT + number * (LEFT + WIDTH + GAP), below)
    names = list(next(iter(panels.values())))
    for number, name in enumerate(names):
        x, y = LEFT + number * 200, tall - 14
        drawn.append(_line([(x, y - 4), (x + 22, y - 4)], COLOURS[number]))
        drawn.append(f'<text x="{x + 28}" y="{y}">{escape(name)}</text>')
    return "\n".join([*drawn, "</svg>", ""])


def _panel(heading: str, series: Series, at: Sequence[float], left: float, below: str) -> list[str]:
    low, high = math.log(min(at)), math.log(max(at))

    def point(place: float, value: float) -> tuple[float, float]:
        across = (math.log(place) - low) / (high - low)
        return left + across * WIDTH, TOP + (1.0 - min(value, 1.05)) * HEIGHT

    drawn = [f'<text x="{left}" y="{TOP - 16}" font-weight="600">{escape(heading)}</text>']
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        _, y = point(min(at), value)
        drawn.append(_line([(left, y), (left + WIDTH, y)], "#e5e7eb", 1))
        drawn.append(f'<text x="{left - 8}" y="{y + 4:.0f}" text-anchor="end">{value:.0%}</text>')
    for place in at:
        x, y = point(place, 0.0)
        drawn.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">{place:g}×</text>')
    middle = left + WIDTH / 2
    drawn.append(
        f'<text x="{middle}" y="{TOP + HEIGHT + 38}" text-anchor="middle">{escape(below)}</text>'
    )
    for (name, values), colour in zip(series.items(), COLOURS, strict=False):
        points = [point(place, value) for place, value in zip(at, values, strict=True)]
        drawn.append(_line(points, colour, title=name))
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return drawn


def _line(
    points: Sequence[tuple[float, float]], colour: str, thick: float = 2.5, *, title: str = ""
) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    named = f"<title>{escape(title)}</title>" if title else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{thick}">'
        f"{named}</polyline>"
    )
