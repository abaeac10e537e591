"""`headworks fake-vendor`: a vendor on this machine that enforces what it is told to."""

from __future__ import annotations

import random
import time
from typing import Annotated

import typer

from headworks.cli.fail import fail
from headworks.policy.units import parse_duration
from headworks.testing.fake_vendor import Delay, FakeVendor, Faults, Limit, limit, model_limits
from headworks.testing.fake_vendor.judge import MECHANISMS, TOKENS
from headworks.testing.fake_vendor.server import PortTaken, run


def _limits(
    requests: list[str],
    tokens: list[str],
    models: list[str],
    mechanism: str,
    window: str | None,
    burst: int | None,
) -> list[Limit]:
    if mechanism not in MECHANISMS:
        raise ValueError(f"--mechanism: '{mechanism}' is not one of {', '.join(MECHANISMS)}")
    seconds = None if window is None else parse_duration(window)
    if seconds is not None and seconds <= 0:
        raise ValueError(f"--window: '{window}' must be longer than 0s")
    found = [limit(text, mechanism=mechanism, window=seconds, burst=burst) for text in requests]
    found += [limit(text, unit=TOKENS, mechanism=mechanism, window=seconds) for text in tokens]
    for text in models:
        found += model_limits(text, mechanism=mechanism, window=seconds)
    return found


def fake_vendor(
    limits: Annotated[
        list[str], typer.Option("--limit", help="Requests allowed, e.g. 500/min. May be repeated.")
    ] = [],  # noqa: B006  # typer reads it and copies it
    tokens: Annotated[
        list[str], typer.Option("--tokens", help="Tokens allowed, e.g. 200000/min. May be repeated.")
    ] = [],  # noqa: B006  # as above
    model: Annotated[
        list[str],
        typer.Option(
            "--model", help="More limits for one model, e.g. 'gpt-large=60/min,40000 tokens/min'."
        ),
    ] = [],  # noqa: B006  # as above
    mechanism: Annotated[
        str, typer.Option(help="How limits are enforced: bucket, sliding or fixed.")
    ] = "bucket",
    window: Annotated[
        str | None,
        typer.Option(help="Enforce the same rates over this window; default: each rate's own period."),
    ] = None,
    burst: Annotated[
        int | None,
        typer.Option(min=1, help="Capacity of the requests bucket; default: the limit itself."),
    ] = None,
    arrival_jitter: Annotated[
        str, typer.Option(help="Delay before the vendor decides, uniform between the two.")
    ] = "0:0",
    latency: Annotated[
        str, typer.Option(help="const:1s, uniform:200ms:2s or lognormal:0.8s:0.5 (median, sigma).")
    ] = "lognormal:0.8s:0.5",
    fail_ratio: Annotated[
        float, typer.Option(help="Share of accepted calls answered 500, 0 to 1.")
    ] = 0.0,
    max_concurrency: Annotated[
        int | None, typer.Option(min=1, help="Accepted calls at once; more are refused.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")
    ] = 9100,
    seed: Annotated[int, typer.Option(help="Seed of delays, failures and ids.")] = 0,
) -> None:
    """Serve a vendor that speaks OpenAI's chat and Anthropic's messages and really enforces its limits.

    GET /stats tells what was accepted and rejected, POST /stats/reset starts counting anew, and POST
    /faults changes latency, arrival_jitter, fail_ratio, fail_status, hang, disconnect and error_after
    while it runs. Without --limit, --tokens or --model nothing is limited.

    Example: headworks fake-vendor --limit 500/min --tokens 200000/min --mechanism sliding
    --arrival-jitter 0:250ms --port 9100
    """
    try:
        vendor = FakeVendor(
            _limits(limits, tokens, model, mechanism, window, burst),
            faults=Faults(Delay.parse(latency), Delay.parse(arrival_jitter), fail_ratio),
            max_concurrency=max_concurrency,
            rng=random.Random(seed),
            wall=time.time,
        )
        run(
            vendor,
            host=host,
            port=port,
            ready=lambda base: print(f"fake vendor on {base}", flush=True),
        )
    except (ValueError, PortTaken) as error:
        fail(f"fake-vendor: {error}")
