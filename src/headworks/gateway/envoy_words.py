"""How Envoy's configuration says durations, rates and types."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from headworks.gateway.shares import Share
from headworks.manifest import Said

TYPE = "type.googleapis.com/envoy."
EXTENSIONS = f"{TYPE}extensions."


def bucket(share: Share) -> dict[str, Any]:
    """A token bucket that fills at the share's pace, exactly, a few tokens at a time."""
    tokens = max(1, math.ceil(share.per_second / 20))  # Envoy fills every 50 ms at most
    interval = Fraction(tokens) / share.per_second
    return {
        "max_tokens": Said(share.burst, share.why),
        "tokens_per_fill": Said(tokens, share.why),
        "fill_interval": Said(seconds(float(interval)), share.why),
    }


def seconds(value: float) -> str:
    """A duration as protocol buffers read it."""
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
