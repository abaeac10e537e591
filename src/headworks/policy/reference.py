"""The tables of all settings and laws, made from the code: `python -m headworks.policy.reference FILE`.

Writes them between the markers of `docs/layers/policy.md`; a test holds the two together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from headworks.policy.fields import Kind
from headworks.policy.laws import LAWS
from headworks.policy.settings import Policy
from headworks.policy.units import Rate

BEGIN, END = "<!-- {}: begin -->\n", "<!-- {}: end -->\n"

_NAMED = {
    "fairness.tiers": "NAME",
    "fairness.endpoints": '"/PATH"',
    "fairness.keys": "KEY",
    "vendors": "NAME",
    "vendors.NAME.models": "NAME",
}


def refreshed(page: str) -> str:
    """The page with what stands between its markers made anew."""
    for name, lines in (("settings", _section("", Policy)), ("laws", _laws())):
        before, _, rest = page.partition(BEGIN.format(name))
        _, _, after = rest.partition(END.format(name))
        made = "\n".join(lines).strip("\n")
        page = f"{before}{BEGIN.format(name)}\n{made}\n\n{END.format(name)}{after}"
    return page


def _laws() -> Iterator[str]:
    for law in LAWS:
        yield f"- {' '.join((law.__doc__ or '').split())}"


def _section(path: str, model: type[BaseModel]) -> Iterator[str]:
    rows, below = [], []
    for name, field in model.model_fields.items():
        inner = f"{path}.{field.alias or name}".lstrip(".")
        found = _model_in(field.annotation)
        if found is None:
            rows.append(_row(field.alias or name, field))
            continue
        named = get_origin(field.annotation) is dict
        below.append((f"{inner}.{_NAMED[inner]}" if named else inner, found))
    if rows:
        yield f"### `[{path}]`\n" if path else "### At the top\n"
        yield f"{' '.join((model.__doc__ or '').split())}\n"
        yield "| Setting | What | Unit and range | Default |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""
    for inner, found in below:
        yield from _section(inner, found)


def _row(name: str, field: FieldInfo) -> str:
    kind = _kind(field)
    says = f"{kind.unit}: {kind.allowed()}" if kind else "name: of what exists"
    what = " ".join((field.description or "").split())
    cells = (f"`{name}`", what, says, _default(field, kind))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo, kind: Kind | None) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "absent"
    if value in ((), {}):
        return "none"
    return f"`{kind.write(value)}`" if kind and not isinstance(value, Rate) else f'`"{value}"`'


def _kind(field: FieldInfo) -> Kind | None:
    """The kind that reads a field, wherever in its annotation it stands."""
    return next(
        (found for found in (*field.metadata, *_metadata(field.annotation)) if isinstance(found, Kind)),
        None,
    )


def _metadata(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        yield from annotation.__metadata__
    elif get_origin(annotation) is dict:
        return
    for part in get_args(annotation):
        yield from _metadata(part)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation holds, alone, as an option, or by name."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType, dict, tuple, Annotated):
        return next((m for m in map(_model_in, get_args(annotation)) if m is not None), None)
    return None


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(refreshed(file.read_text(encoding="utf-8")), encoding="utf-8")
