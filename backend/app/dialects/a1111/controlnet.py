"""A1111's ControlNet extension, `alwayson_scripts.controlnet`: each unit as one of our controls,
or, where its module is an IP-Adapter's, of our references.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from app.api.deps import Caller, Services
from app.dialects.a1111.values import OFF, Number, not_offered
from app.dialects.asking import fields_called, read_as
from app.dialects.from_pictures import kept_picture, picture_of
from app.schemas.common import Storable
from app.schemas.content import GenerateIn
from sdxl_contract.drawing.controls import CONTROLS_MAX
from sdxl_contract.errors import InvalidRequest
from sdxl_contract.request import explain_validation

SCRIPT = "controlnet"
_ARGS = "alwayson_scripts.controlnet.args"
# As the extension shows a file: with the beginning of its hash.
_HASH = re.compile(r"\s*\[[0-9a-f]{4,64}\]$")
_BALANCED = (*OFF, "Balanced")
_BOTH = (*OFF, "Both", "HiResFixOption.BOTH")
# Of its union networks; ours are called as the networks' makers call them.
_TYPES = {"normal map": "normal", "segmentation": "segment", "inpaint": "repaint"}
_REFERRING = "ip-adapter"
_OURS = {
    "model": "model", "adapter": "model", "type": "union_control_type", "scale": "weight",
    "image": "image", "start": "guidance_start", "end": "guidance_end", "canny": "threshold_a",
    "canny.low": "threshold_a", "canny.high": "threshold_b",
}  # fmt: skip


class UnitIn(BaseModel):
    """One unit, as far as it has a meaning here."""

    model_config = ConfigDict(extra="ignore")

    enabled: bool | None = True
    image: Any = None
    input_image: Any = None
    mask: Any = None
    module: Storable | None = None
    model: Storable | None = None
    union_control_type: Storable | None = None
    weight: Number = 1.0
    guidance_start: Number = 0.0
    guidance_end: Number = 1.0
    threshold_a: Number = None
    threshold_b: Number = None
    control_mode: Any = None
    hr_option: Any = None
    effective_region_mask: Any = None


class Unit(NamedTuple):
    """A unit that is on: its place, of which list of ours it is, what it says in our words, and
    its picture in base64.
    """

    field: str
    kind: str
    values: dict[str, Any]
    picture: object


def read_units(scripts: Mapping[str, Any] | None) -> list[Unit]:
    """The units that are on.

    Raises:
        InvalidRequest: one asks for what is not offered; the message names its field.
    """
    found = []
    for name, script in (scripts or {}).items():
        if name.lower() != SCRIPT:
            continue
        units = script.get("args") if isinstance(script, dict) else script
        units = [units] if isinstance(units, dict) else units
        for number, unit in enumerate(units if isinstance(units, list) else ()):
            if isinstance(unit, dict) and unit.get("enabled", True):
                found.append(_read(unit, f"{_ARGS}[{number}]"))
    if len(found) > CONTROLS_MAX:
        raise InvalidRequest(
            f"{_ARGS}: at most {CONTROLS_MAX} units may be on",
            details={"field": _ARGS, "maximum": CONTROLS_MAX},
        )
    return found


def _read(sent: Mapping[str, Any], field: str) -> Unit:
    try:
        unit = UnitIn.model_validate(sent)
    except ValidationError as error:
        told = explain_validation(
            [{**one, "loc": (f"{field}.{one['loc'][0]}",)} for one in error.errors()]
        )
        raise told from None
    for name, allowed in (
        ("mask", OFF), ("effective_region_mask", OFF), ("control_mode", _BALANCED),
        ("hr_option", _BOTH),
    ):  # fmt: skip
        if getattr(unit, name) not in allowed:
            raise not_offered(f"{field}.{name}")
    name = _HASH.sub("", unit.model or "")
    values: dict[str, Any] = {
        "scale": 1.0 if unit.weight is None else unit.weight,
        "start": unit.guidance_start or 0.0,
        "end": 1.0 if unit.guidance_end is None else unit.guidance_end,
    }
    if name in OFF:
        raise InvalidRequest(
            f"{field}.model: must name one of limits.controls or limits.adapters of "
            "GET /api/v1/model",
            details={"field": f"{field}.model"},
        )
    picture = _picture_in(unit, field)
    module = (unit.module or "none").strip().lower()
    if module.startswith(_REFERRING):
        return Unit(field, "references", {**values, "adapter": name}, picture)
    values["model"] = name
    if unit.union_control_type not in (*OFF, "Unknown"):
        kind = str(unit.union_control_type).strip().lower()
        values["type"] = _TYPES.get(kind, kind)
    if module == "canny":
        thresholds = {"low": unit.threshold_a, "high": unit.threshold_b}
        values["canny"] = {
            # Below 0 the extension means its own.
            name: round(value)
            for name, value in thresholds.items()
            if value is not None and value >= 0
        }
    elif module != "none":
        raise InvalidRequest(
            f"{field}.module: is canny, an IP-Adapter's or none: send a map that is ready",
            details={"field": f"{field}.module", "allowed": ["none", "canny", _REFERRING]},
        )
    return Unit(field, "controls", values, picture)


def _picture_in(unit: UnitIn, field: str) -> object:
    picture = unit.image or unit.input_image
    # Older versions of the extension put a picture and its mask into one object.
    if isinstance(picture, dict):
        if picture.get("mask") not in OFF:
            raise not_offered(f"{field}.image.mask")
        picture = picture.get("image")
    return picture


async def with_units(
    services: Services,
    caller: Caller,
    asked: GenerateIn,
    units: list[Unit],
    source: dict[str, Any] | None = None,
) -> GenerateIn:
    """`asked` with the units' controls and references, their pictures kept.

    Args:
        source: the picture of units that bring none.

    Raises:
        InvalidRequest, ImageLoadFailed, TooLarge: one is wrong; the message names its field.
    """
    if not units:
        return asked
    found: dict[str, list[dict[str, Any]]] = {}
    for unit in units:
        image, field = source, f"{unit.field}.image"
        if unit.picture or image is None:
            data = picture_of(unit.picture, field)
            image = await kept_picture(services, caller, data, field)
        found.setdefault(unit.kind, []).append({**unit.values, "image": image})
    values = asked.model_dump(exclude_unset=True, mode="json")
    with fields_called(unit_fields(units)):
        return read_as(GenerateIn, {**values, **found})


def unit_fields(units: list[Unit]) -> dict[str, str]:
    """Our name of each of the units' fields → what A1111 calls it."""
    named, counts = {}, Counter[str]()
    for unit in units:
        ours = f"{unit.kind}[{counts[unit.kind]}]"
        counts[unit.kind] += 1
        # Of a whole one: its times are out of order.
        named[ours] = f"{unit.field}.guidance_end"
        named |= {f"{ours}.{name}": f"{unit.field}.{theirs}" for name, theirs in _OURS.items()}
    return named
