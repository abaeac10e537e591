"""The caller's own deadline: seconds it will still wait, in a header, as a plain decimal ("2.5")."""

from __future__ import annotations

import re
from typing import Final

from starlette.types import Scope

from headworks.errors import BadDeadline

SECONDS: Final = re.compile(rb"-?\d{1,9}(\.\d{1,9})?")


def asked_for(scope: Scope, header: bytes) -> float | None:
    """Seconds the caller will still wait, ≤ 0 when it no longer does; None when it does not say.

    Of several the smallest counts. Raises `BadDeadline` for what is no plain decimal: a caller who
    believes in a deadline that nobody keeps would be worse off than one who is told.
    """
    found = None
    for name, value in scope["headers"]:
        if name == header:
            if not SECONDS.fullmatch(value.strip()):
                said = value.decode("latin-1")[:40]
                raise BadDeadline(
                    f"{header.decode()}: {said!r} is not allowed; write the seconds that are left as a "
                    'decimal number, such as "2.5"'
                )
            seconds = float(value)
            found = seconds if found is None else min(found, seconds)
    return found
