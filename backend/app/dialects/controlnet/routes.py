"""`/controlnet`: what clients of A1111's ControlNet extension ask before they send its units.

Says what is true of this server: the networks are those of the worker that was seen, and what makes
a map of a picture is Canny.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from app.api.deps import CallerDep, RightsDep, Services, ServicesDep
from app.core.pools import Duty, in_pool
from app.dialects.a1111.values import OFF, Number
from app.dialects.asking import fields_called, read_as, read_json
from app.dialects.from_pictures import picture_of
from app.dialects.pictures import as_base64
from app.dialects.subapp import json_body
from app.schemas.common import Storable
from app.services.inputs.edges import edges_of
from app.services.inputs.reading import look_at
from sdxl_contract.drawing.controls import CONTROLS_MAX, Canny
from sdxl_contract.errors import ImageLoadFailed, InvalidRequest
from sdxl_contract.limits import AdapterInfo, ControlInfo

_VERSION = 2  # of the extension's API: units are objects in alwayson_scripts
_NONE, _CANNY, _ADAPTER = "none", "canny", "ip-adapter-auto"
_CANNY_MOST = 255  # of the extension's sliders
_RES, _RES_LEAST, _RES_MOST = 512, 64, 2048  # px, of the extension's slider
# Both: where one is above the other.
_THRESHOLDS = {
    "": "controlnet_threshold_a", "low": "controlnet_threshold_a", "high": "controlnet_threshold_b",
}  # fmt: skip
# How the extension calls what union networks call otherwise.
_TITLES = {"normal": "NormalMap", "segment": "Segmentation", "repaint": "Inpaint"}
router = APIRouter()


_Info = ControlInfo | AdapterInfo


def _titled(*networks: _Info) -> list[str]:
    """As the extension shows files: with the beginning of their hashes."""
    return [f"{one.name} [{one.sha256[:8]}]" for one in networks]


def _known(services: Services) -> tuple[list[ControlInfo], list[AdapterInfo]]:
    limits = services.base_model.limits
    return ([*limits.controls], [*limits.adapters]) if limits else ([], [])


@router.get("/version")
async def read_version(caller: CallerDep) -> dict[str, int]:
    """Of the extension's API."""
    return {"version": _VERSION}


@router.get("/settings")
async def read_settings(caller: CallerDep) -> dict[str, int]:
    """How many units may be on."""
    return {"control_net_unit_count": CONTROLS_MAX}


@router.get("/model_list")
async def list_models(caller: CallerDep, services: ServicesDep) -> dict[str, list[str]]:
    """The worker's control networks and adapters."""
    controls, adapters = _known(services)
    return {"model_list": [*_titled(*controls), *_titled(*adapters)]}


@router.get("/module_list")
async def list_modules(caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """What a unit's `module` may be."""
    modules = [_NONE, _CANNY, *([_ADAPTER] if _known(services)[1] else [])]
    sliders = [
        None,  # of the resolution: edges are found at the drawing's
        *(
            {"name": f"Canny {name} Threshold", "value": value, "min": 0, "max": _CANNY_MOST}
            for name, value in (("Low", Canny().low), ("High", Canny().high))
        ),
    ]
    return {
        "module_list": modules,
        "module_detail": {
            name: {"model_free": False, "sliders": sliders if name == _CANNY else []}
            for name in modules
        },
    }


@router.get("/control_types")
async def list_types(caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """Modules and networks by what they hold a drawing to."""
    controls, adapters = _known(services)
    kinds: dict[str, tuple[list[str], list[str]]] = {
        "All": ([_NONE, _CANNY], [*_titled(*controls), *_titled(*adapters)])
    }
    of_one = _titled(*(one for one in controls if not one.types))
    named = sorted({kind for one in controls for kind in one.types} | {_CANNY})
    for kind in named:
        fitting = _titled(*(one for one in controls if kind in one.types))
        if kind == _CANNY:  # what a network of one kind holds to its name alone says
            fitting += of_one
        modules = [_NONE, _CANNY] if kind == _CANNY else [_NONE]
        kinds[_TITLES.get(kind, kind.capitalize())] = (modules, fitting)
    if adapters:
        kinds["All"][0].append(_ADAPTER)
        kinds["IP-Adapter"] = ([_ADAPTER], _titled(*adapters))
    return {
        "control_types": {
            kind: {
                "module_list": modules,
                "model_list": ["None", *models],
                "default_option": modules[-1] if kind != "All" else _NONE,
                "default_model": models[0] if models and kind != "All" else "None",
            }
            for kind, (modules, models) in kinds.items()
        }
    }


class DetectIn(BaseModel):
    """`POST /detect`, as far as it has a meaning here."""

    model_config = ConfigDict(extra="ignore")

    controlnet_module: Storable | None = _NONE
    controlnet_input_images: list[Any] | None = None
    controlnet_images: list[Any] | None = None  # as webuiapi calls them
    controlnet_processor_res: Number = None
    controlnet_threshold_a: Number = None
    controlnet_threshold_b: Number = None


@router.post("/detect", openapi_extra=json_body(DetectIn))
async def detect(request: Request, caller: CallerDep, rights: RightsDep) -> dict[str, Any]:
    """Maps of pictures: ready ones as they are, or edges.

    What is drawn has its edges found anew, at the drawing's size.
    """
    asked = read_as(DetectIn, await read_json(request))
    await rights.check()
    field = "controlnet_module"
    module = (asked.controlnet_module or _NONE).strip().lower()
    if module != _CANNY and module not in OFF:
        raise InvalidRequest(
            f"{field}: Module not available: is none or canny: send a map that is ready",
            details={"field": field, "allowed": [_NONE, _CANNY]},
        )
    edges = _edges(asked) if module == _CANNY else None
    field = "controlnet_images" if asked.controlnet_images else "controlnet_input_images"
    sent = getattr(asked, field) or []
    if not 1 <= len(sent) <= CONTROLS_MAX:
        raise InvalidRequest(
            f"{field}: must hold 1 to {CONTROLS_MAX} pictures", details={"field": field}
        )
    maps = []
    for place, one in enumerate(sent):
        data = picture_of(one, f"{field}[{place}]")
        try:
            await in_pool(Duty.IMAGES, look_at, data)
        except ImageLoadFailed as error:
            error.details = {**(error.details or {}), "field": f"{field}[{place}]"}
            raise
        if edges is not None:
            data = await in_pool(Duty.IMAGES, edges_of, data, *edges)
        maps.append(as_base64(data))
    return {"images": maps, "info": "Success"}


def _edges(asked: DetectIn) -> tuple[int, Canny]:
    """The map's shorter side and where edges begin and end.

    Raises:
        InvalidRequest: one is out of bounds; the message names its field.
    """
    field = "controlnet_processor_res"
    # Below 0 the extension means its own.
    sent = asked.controlnet_processor_res
    side = _RES if sent is None or sent < 0 else round(sent)
    if not _RES_LEAST <= side <= _RES_MOST:
        raise InvalidRequest(
            f"{field}: must be {_RES_LEAST} to {_RES_MOST}",
            details={"field": field, "minimum": _RES_LEAST, "maximum": _RES_MOST},
        )
    sides = {"low": asked.controlnet_threshold_a, "high": asked.controlnet_threshold_b}
    with fields_called(_THRESHOLDS):
        values = {name: round(one) for name, one in sides.items() if one is not None and one >= 0}
        return side, read_as(Canny, values)
