"""A report on the terminal: while it grows, and at the end."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from headworks.local.load.outcome import Kind
from headworks.local.load.report import Report
from headworks.local.load.tally import Latency

STYLES = {
    Kind.SERVED: "green",
    Kind.REFUSED: "yellow",
    Kind.INVALID: "magenta",
    Kind.UNSIGNED: "bold red",
    Kind.BROKEN: "red",
}


def line(report: Report) -> str:
    """The state of a run in one line, for logs."""
    parts = [f"{report.seconds:5.1f} s  sent {report.sent}"]
    for crowd in report.crowds:
        failed = crowd.invalid + crowd.unsigned + crowd.broken
        parts.append(f"{crowd.name}: {crowd.served} served, {crowd.refused} refused, {failed} failed")
    parts += [
        f"{v.name}: {v.accepted} accepted, {sum(v.rejected.values())} rejected" for v in report.vendors
    ]
    return " | ".join(parts)


def live(report: Report, duration: float) -> RenderableType:
    """The state of a run of so many seconds, to be drawn over and over."""
    head = Table.grid(padding=(0, 1))
    head.add_row(
        Text(f"{report.profile} → {report.url}", style="bold"),
        ProgressBar(total=duration, completed=min(report.seconds, duration), width=30),
        Text(f"{min(report.seconds, duration):.0f} of {duration:.0f} s"),
    )
    parts = [head, crowds(report), decisions(report)]
    return Group(*parts, vendors(report)) if report.vendors else Group(*parts)


def closing(report: Report) -> RenderableType:
    """The closing tables."""
    parts: list[RenderableType] = []
    if report.late > 0.5:
        late = f"This machine was too slow: requests were sent up to {report.late:.1f} s late. "
        parts.append(Text(late + "Latencies and shares below say little.", style="red"))
    parts += [decisions(report), crowds(report), latencies(report)]
    if report.vendors:
        parts.append(vendors(report))
    if report.unsent:
        parts.append(
            Text(f"{report.unsent} requests were due but not sent: too many under way", style="red")
        )
    return Group(*parts)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)


def decisions(report: Report) -> Table:
    """Who decided what, why, for whom."""
    table = _table("Who decided")
    for name in ("layer", "reason", "status"):
        table.add_column(name, no_wrap=True)
    for crowd in report.crowds:
        table.add_column(crowd.name, justify="right", no_wrap=True)
    table.add_column("all", justify="right", no_wrap=True)
    for row in report.decisions:
        layer = "served" if row.kind is Kind.SERVED else row.layer
        counts = (str(row.crowds.get(crowd.name, "")) for crowd in report.crowds)
        status = str(row.status or "")
        table.add_row(layer, row.reason, status, *counts, str(row.count), style=STYLES[row.kind])
    return table


def crowds(report: Report) -> Table:
    """Each crowd's requests and how they ended."""
    table = _table("Clients")
    table.add_column("crowd", no_wrap=True)
    for name in ("sent", "served", "share", "refused", "invalid", "unsigned", "broken", "open"):
        table.add_column(name, justify="right", no_wrap=True)
    for crowd in report.crowds:
        table.add_row(
            crowd.name,
            str(crowd.sent),
            Text(str(crowd.served), style=STYLES[Kind.SERVED]),
            f"{crowd.share:.1%}" if crowd.sent else "–",
            Text(str(crowd.refused), style=STYLES[Kind.REFUSED]),
            _count(crowd.invalid, Kind.INVALID),
            _count(crowd.unsigned, Kind.UNSIGNED),
            _count(crowd.broken, Kind.BROKEN),
            str(crowd.waiting),
        )
    return table


def _count(count: int, kind: Kind) -> Text:
    return Text(str(count), style=STYLES[kind] if count else "dim")


def latencies(report: Report) -> Table:
    """Percentiles of the answers' times."""
    table = _table("Latency, ms")
    table.add_column("answers", no_wrap=True)
    for name in ("count", "p50", "p95", "p99", "highest"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, latency in (("served", report.served), ("refused", report.refused)):
        table.add_row(name, str(latency.count), *_milliseconds(latency))
    return table


def _milliseconds(latency: Latency) -> list[str]:
    if not latency.count:
        return ["–"] * 4
    return [f"{s * 1000:.1f}" for s in (latency.p50, latency.p95, latency.p99, latency.highest)]


def vendors(report: Report) -> Table:
    """The vendors' own count."""
    table = _table("What the vendors counted")
    table.add_column("vendor", no_wrap=True)
    for name in ("accepted", "rejected", "failed", "at once", "streams cut", "quota used"):
        table.add_column(name, justify="right")
    for vendor in report.vendors:
        if not vendor.answered:
            table.add_row(vendor.name, Text("unknown", style="red"))
            continue
        why = "\n".join(f"{count} {reason}" for reason, count in vendor.rejected.items())
        table.add_row(
            vendor.name + (f"\nrestarted {vendor.restarts}×" if vendor.restarts else ""),
            str(vendor.accepted),
            Text(why or "0", style="bold red" if why else "green"),
            str(vendor.failed),
            str(vendor.highest_in_flight),
            str(vendor.streams_closed_early),
            "\n".join(f"{used:.1%} {limit}" for limit, used in vendor.utilisation.items()) or "–",
        )
    return table
