"""Which refusal stands behind an exception that the application let escape."""

from __future__ import annotations

from typing import Final

from headworks.errors import Refused

EXTENSION: Final = "headworks.refused"
"""Where a vendor client's synthetic response carries the refusal it stands for."""
DEPTH: Final = 16
"""Causes and groups looked through at most."""


def refused_behind(error: BaseException, depth: int = DEPTH) -> Refused | None:
    """The refusal that `error` is, carries in its response, was raised from, or is a group of.

    SDK errors carry the response that caused them. A group counts only if every member does: a
    defect among refusals is a defect. Of several refusals the longest wait speaks.
    """
    if isinstance(error, Refused):
        return error
    if depth == 0:
        return None
    if isinstance(error, BaseExceptionGroup):
        found = [refused_behind(member, depth - 1) for member in error.exceptions]
        refusals = [refused for refused in found if refused is not None]
        return max(refusals, key=_wait) if len(refusals) == len(found) else None
    carried = _carried(error)
    if carried is None and error.__cause__ is not None:
        return refused_behind(error.__cause__, depth - 1)
    return carried


def _carried(error: BaseException) -> Refused | None:
    # The attribute itself: a property of the same name may raise.
    response = getattr(error, "__dict__", {}).get("response")
    extensions = getattr(response, "extensions", None)
    carried = extensions.get(EXTENSION) if isinstance(extensions, dict) else None
    return carried if isinstance(carried, Refused) else None


def _wait(refused: Refused) -> float:
    return refused.retry_after or 0.0
