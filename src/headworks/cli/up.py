"""`headworks up`: the whole stack on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from headworks.cli.fail import complain, fail, policy_or_fail
from headworks.local.gateways import GATEWAYS, Unusable
from headworks.local.stack import OWN_STORE, Stack
from headworks.local.status import state_folder
from headworks.policy.fields import parse_base_url

USUAL = (Path("headworks.toml"), Path("examples/service/headworks.toml"))
"""Where the policy is looked for when none is named: here, else the reference service's."""


def up(
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Default: headworks.toml here, else the reference service's."),
    ] = None,
    pods: Annotated[int, typer.Option("--pods", min=1, max=64, help="How many pods.")] = 2,
    port: Annotated[
        int | None,
        typer.Option("--port", min=1, max=65535, help="The gateway's; default: the policy's."),
    ] = None,
    gateway: Annotated[
        str, typer.Option("--gateway", help=f"What stands in front: {' or '.join(GATEWAYS)}.")
    ] = "nginx",
    vendor_url: Annotated[
        list[str] | None,
        typer.Option("--vendor-url", help="NAME=URL: call this real vendor, not a fake one; repeat it."),
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="Folder for logs, kept; default: a temporary one.")
    ] = None,
) -> None:
    """Run gateway, pods, an embedded Valkey and fake vendors; Ctrl-C ends all of it.

    Example: headworks up --policy headworks.toml --pods 3 --port 8080
    """
    found = policy or next((usual for usual in USUAL if usual.is_file()), None)
    if found is None:
        fail("there is no headworks.toml here to start from; name a policy with --policy FILE")
    if gateway not in GATEWAYS:
        fail(f"--gateway {gateway}: there is no such gateway; known are {', '.join(GATEWAYS)}")
    file = found.absolute()
    settings = policy_or_fail(file, {**os.environ, **OWN_STORE})
    port = port or settings.deploy.gateway_port
    console = Console(stderr=True, highlight=False)
    try:
        stack = Stack(
            settings,
            file,
            pods=pods,
            port=port,
            gateway=gateway,
            folder=(state or state_folder(port)).absolute(),
            keep=state is not None,
            vendor_urls=_vendor_urls(vendor_url or []),
            environ=os.environ,
            say=lambda line: console.print(line, markup=False),
            rng=random.Random(),
        )
    except Unusable as error:
        fail(str(error))
    if not asyncio.run(_run(stack)):
        raise typer.Exit(2)


async def _run(stack: Stack) -> bool:
    """Start, wait to be told to leave, stop; False when it could not start, and has said why.

    The second signal kills at once.
    """
    told = asyncio.Event()

    def leave() -> None:
        if told.is_set():
            stack.kill_nowait()
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, leave)
    starting = asyncio.create_task(stack.start())
    leaving = asyncio.create_task(told.wait())
    try:
        await asyncio.wait((starting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _show(stack)
            await leaving
    except Unusable as error:
        complain(str(error))  # first of all: ending what did start may take seconds
        return False
    finally:
        for task in (starting, leaving):
            task.cancel()
        await asyncio.gather(starting, leaving, return_exceptions=True)
        await stack.stop()
        if stack.started:
            Console(stderr=True, highlight=False).print("everything has ended")
    return True


def _show(stack: Stack) -> None:
    """The one line scripts wait for, then what runs where."""
    print(f"ready {stack.url}", flush=True)
    table = Table(box=None, pad_edge=False)
    for column in ("part", "address", "pid", "log"):
        table.add_column(column, no_wrap=True)
    parts = stack.status().parts
    for part in parts:
        table.add_row(part.name, part.url, str(part.pid or "-"), Path(part.log).name)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(table)
    console.print(f"logs in {Path(parts[0].log).parent}; Ctrl-C ends all of it")


def _vendor_urls(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, _, url = pair.partition("=")
        if not name or not url:
            fail(f"--vendor-url {pair}: write NAME=URL, such as llm=https://api.openai.com/v1")
        try:
            found[name] = parse_base_url(url)
        except ValueError as error:
            fail(f"--vendor-url {name}: {error}")
    return found
