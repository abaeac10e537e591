"""The verbs of the command line, put together."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated

import typer

from headworks.cli import check, fake_vendor, load, render, serve, up

app = typer.Typer(
    name="headworks",
    help="Layered traffic control for FastAPI services that call rate-limited vendors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def version_or_verb(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if version:
        print(f"headworks {metadata.version('headworks')}")
        raise typer.Exit


app.command("up")(up.up)
app.command("check")(check.check)
app.command("serve")(serve.serve)
app.command("render")(render.render)
app.command("fake-vendor")(fake_vendor.fake_vendor)
app.command("load")(load.load)
