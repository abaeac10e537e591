"""`headworks render TARGET`: configuration for what stands around the pods, from the policy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headworks.cli.fail import fail, policy_or_fail
from headworks.gateway import nginx
from headworks.gateway.shares import Address


class Target(StrEnum):
    """What can be rendered."""

    NGINX = "nginx"


def render(
    target: Annotated[Target, typer.Argument(help="What to render.")],
    policy: Annotated[Path, typer.Option("--policy", help="The policy file.")] = Path("headworks.toml"),
    pod: Annotated[
        list[str] | None,
        typer.Option("--pod", help="HOST:PORT of a pod; repeat it. Default: 127.0.0.1 and deploy.port."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files; default: standard output.")
    ] = None,
) -> None:
    """Render configuration from the policy.

    Example: headworks render nginx --policy headworks.toml --pod 10.0.0.7:8000 --out edge/
    """
    settings = policy_or_fail(policy)
    pods = [_address(text) for text in pod or [f"127.0.0.1:{settings.deploy.port}"]]
    match target:
        case Target.NGINX:
            files = nginx.render(settings, pods=pods, port=settings.deploy.gateway_port, host="0.0.0.0")
    if out is None:
        for name, text in files.items():
            typer.echo(f"# ---- {name}\n{text}" if len(files) > 1 else text, nl=False)
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            out.joinpath(name).write_text(text, encoding="utf-8")
            typer.echo(out / name)
    except OSError as error:
        fail(f"cannot write to {out}: {error.strerror}")


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        fail(f"--pod {text}: write HOST:PORT, such as 10.0.0.7:8000")
    return Address(host.strip("[]"), int(port))
