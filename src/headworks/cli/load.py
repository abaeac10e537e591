"""`headworks load`: traffic with named profiles against the stack on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live

from headworks.cli.fail import fail
from headworks.local import status
from headworks.local.load import PROFILES, CannotStart, LoadRun, Report, loopback
from headworks.local.load import show as tables
from headworks.policy.units import parse_duration

DRAWN = 0.5
"""Seconds between two drawings of the live display."""
TOLD = 5.0
"""Seconds between two lines when nobody watches a terminal."""


class Name(StrEnum):
    """The profiles there are."""

    STEADY = "steady"
    BURST = "burst"
    FLOOD = "flood"


def load(
    profile: Annotated[Name, typer.Option(help="Which traffic: " + ", ".join(PROFILES))] = Name.STEADY,
    url: Annotated[str, typer.Option(help="The gateway; loopback only.")] = "http://127.0.0.1:8080",
    duration: Annotated[str, typer.Option(help="How long to send, such as 30s or 2m.")] = "30s",
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, max=20_000, help="Requests a second; default: the profile's own."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests.")] = 1,
    vendor_stats: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL", help="A vendor to ask for its count; default: the running stack's."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Drive the running stack and show who was served, who was refused, and why.

    steady: customers ask for just about the vendor's quota. burst: quiet, then ten times as much.
    flood: four addresses hammer with invented keys, and one polite client must not notice.

    Example: headworks load --profile flood --duration 30s
    """
    chosen = PROFILES[profile.value]
    try:
        seconds, vendors = _seconds(duration), _vendors(vendor_stats, url)
        wanted = chosen if rate is None else chosen.scaled(rate)
        run = LoadRun(wanted, url, seconds=seconds, seed=seed, vendors=vendors)
    except ValueError as error:  # `NotLoopback` is one
        fail(str(error))
    try:
        report = _loop_runner()(_watched(run, seconds, quiet=as_json))
    except CannotStart as error:
        fail(str(error))
    if as_json:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 110).print(tables.closing(report))


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        text = f"{float(text)}s"
    seconds = parse_duration(text)
    if not 0 < seconds <= 86_400:
        raise ValueError(f"--duration {text} must be more than nothing and at most a day")
    return seconds


def _vendors(given: list[str] | None, url: str) -> dict[str, str]:
    """The vendors named, else the fake ones of the stack whose gateway is at `url`."""
    if not given:
        stack = status.read(loopback(url)[1])
        return stack.vendors if stack is not None else {}
    vendors = {}
    for item in given:
        name, equals, address = item.partition("=")
        if not (name and equals and address):
            raise ValueError(
                f"--vendor-stats '{item}' must be NAME=URL, such as llm=http://127.0.0.1:9001"
            )
        vendors[name] = address
    return vendors


def _loop_runner() -> Callable[[Coroutine[Any, Any, Report]], Report]:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.run
    return uvloop.run


async def _watched(run: LoadRun, seconds: float, *, quiet: bool) -> Report:
    """Run, drawing the state meanwhile; Ctrl-C ends the run early and still reports."""
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(run.run())
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, run.stop)
    with _drawing(run, seconds, quiet=quiet) as (draw, every):
        while not (await asyncio.wait((task,), timeout=every))[0]:
            draw()
    return await task


@contextlib.contextmanager
def _drawing(run: LoadRun, seconds: float, *, quiet: bool) -> Iterator[tuple[Callable[[], None], float]]:
    console = Console(stderr=True)
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=True) as display:
            yield lambda: display.update(tables.live(run.report(), seconds), refresh=True), DRAWN
    elif quiet:
        yield lambda: None, TOLD
    else:
        yield lambda: print(tables.line(run.report()), file=sys.stderr, flush=True), TOLD
