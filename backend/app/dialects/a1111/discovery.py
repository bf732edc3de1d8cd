"""What A1111's clients ask before they draw: options, models, samplers, LoRAs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.api.deps import CallerDep, OwnerDep, Services, ServicesDep
from app.core.errors import NotFound
from app.dialects.a1111.samplers import SOLVERS, SPACINGS
from app.dialects.asking import read_json
from sdxl_contract.request import scheduler_named

router = APIRouter()
_WIDTHS = (768, 1280)  # of SDXL's text encoders
_UNSEEN = "sdxl"  # before any worker was seen nobody knows what its model is called


async def model_name(services: Services) -> str:
    """The base model's name; its title is the same, since no hash of it is known here."""
    signature = await services.base_model.signature()
    return _UNSEEN if signature is None else signature.name


async def check_checkpoint(services: Services, wanted: str | None) -> None:
    """Refuse another base model than the one that is loaded.

    Raises:
        NotFound: it is another one.
    """
    if wanted is None:
        return
    name = await model_name(services)
    if wanted.partition(" [")[0].removesuffix(".safetensors") != name:
        error = NotFound("Model not found", field="sd_model_checkpoint")
        error.details = {"hint": f"the only one is {name}"}
        raise error


@router.get("/v1/options")
async def read_options(caller: CallerDep, services: ServicesDep) -> dict[str, Any]:
    """What can be read of a server's settings."""
    return {
        "sd_model_checkpoint": await model_name(services),
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "samples_format": "png",
        "CLIP_stop_at_last_layers": 1,
        "enable_pnginfo": True,
    }


@router.post("/v1/options")
async def write_options(request: Request, caller: CallerDep, services: ServicesDep) -> None:
    """Settings are the server's, not a caller's: taken without effect, but for another model."""
    wanted = (await read_json(request)).get("sd_model_checkpoint")
    await check_checkpoint(services, wanted if isinstance(wanted, str) and wanted else None)


@router.get("/v1/sd-models")
async def list_models(caller: CallerDep, services: ServicesDep) -> list[dict[str, Any]]:
    """The one base model."""
    name = await model_name(services)
    return [
        {
            "title": name,
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": f"{name}.safetensors",
            "config": None,
        }
    ]


@router.get("/v1/samplers")
async def list_samplers(caller: CallerDep, services: ServicesDep) -> list[dict[str, Any]]:
    """One name a solver, of those that the worker offers."""
    offered = services.base_model.schedulers
    return [
        {"name": name, "aliases": [alias], "options": {}}
        for name, alias in SOLVERS.items()
        if not offered or scheduler_named(name) in offered
    ]


@router.get("/v1/schedulers")
async def list_schedulers(caller: CallerDep) -> list[dict[str, Any]]:
    """How a solver's steps may be spaced."""
    return [
        {
            "name": name,
            "label": label,
            "aliases": None,
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        for name, label in SPACINGS.items()
    ]


@router.get("/v1/loras")
async def list_loras(owner: OwnerDep, services: ServicesDep) -> list[dict[str, Any]]:
    """The key's library, by the names that a prompt's tags may use."""
    return [
        {
            "name": lora.name,
            "alias": lora.name,
            "path": f"{lora.name}.safetensors",
            "metadata": {"ss_output_name": lora.name, "trigger_words": lora.trigger_words},
        }
        for lora in await services.loras.list(owner)
    ]


@router.get("/v1/upscalers")
async def list_upscalers(caller: CallerDep, services: ServicesDep) -> list[dict[str, Any]]:
    """Lanczos, and what the worker's operator provided."""
    limits = services.base_model.limits
    provided = {one.name: one.scale for one in limits.upscalers} if limits else {}
    return [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": scale}
        for name, scale in {"None": 4, "Lanczos": 4, **provided}.items()
    ]


@router.get("/v1/latent-upscale-modes")
async def list_latent_modes(caller: CallerDep) -> list[dict[str, Any]]:
    """How latents are enlarged for a second pass: bilinear."""
    return [{"name": "Latent"}]


@router.get("/v1/embeddings")
async def list_embeddings(owner: OwnerDep, services: ServicesDep) -> dict[str, Any]:
    """The key's textual inversions: words that mean them in prompts and negative prompts."""
    signature = await services.base_model.signature()
    widths = _WIDTHS if signature is None else signature.text_encoder_hidden_sizes
    loaded = {
        one.name: {
            "step": None,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
            "shape": sum(widths),
            "vectors": one.vectors,
        }
        for one in await services.embeddings.list(owner)
    }
    return {"loaded": loaded, "skipped": {}}


@router.get("/v1/prompt-styles")
async def list_styles(owner: OwnerDep, services: ServicesDep) -> list[dict[str, str]]:
    """The caller's styles, which `styles` of a request may name."""
    return [
        {"name": one.name, "prompt": one.prompt, "negative_prompt": one.negative_prompt}
        for one in await services.words.styles(owner)
    ]


@router.get("/v1/scripts")
async def list_scripts(caller: CallerDep) -> dict[str, list[str]]:
    """None."""
    return {"txt2img": [], "img2img": []}


@router.get("/v1/memory")
async def read_memory(caller: CallerDep) -> dict[str, Any]:
    """Nothing: the worker's memory is another computer's."""
    return {"ram": {}, "cuda": {}}


@router.get("/v1/cmd-flags")
async def read_flags(caller: CallerDep) -> dict[str, Any]:
    """None."""
    return {}


@router.get("/v1/sd-vae")
@router.get("/v1/sd-modules")
@router.get("/v1/hypernetworks")
@router.get("/v1/face-restorers")
@router.get("/v1/realesrgan-models")
@router.get("/v1/script-info")
@router.get("/v1/extensions")
async def list_nothing(caller: CallerDep) -> list[Any]:
    """None of these."""
    return []


@router.post("/v1/refresh-loras")
@router.post("/v1/refresh-checkpoints")
@router.post("/v1/refresh-vae")
@router.post("/v1/refresh-embeddings")
async def refresh(caller: CallerDep) -> None:
    """Nothing to do: lists are always read anew."""


@router.post("/v1/extra-batch-images", include_in_schema=False)
async def upscale_several(caller: CallerDep) -> None:
    """Say that it is one by one."""
    raise NotFound("Pictures are enlarged one by one here: call extra-single-image")
