"""What was asked, with the avatar's part in it, as the request that the worker will get.

Must not know: HTTP, jobs.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import Conflict, NotFound
from app.models import Avatar, Content, LoraModel
from app.repositories.avatars import AvatarRepository
from app.repositories.loras import LoraRepository
from app.schemas.content import GenerateIn
from app.services.inputs.using import with_urls
from app.services.lora_names import find_by_name
from app.services.worker.base_model import BaseModel
from sdxl_contract.drawing.hires import Hires
from sdxl_contract.errors import ContractError, InvalidPrompt, InvalidRequest
from sdxl_contract.limits import MAX_LORAS, ModelLimits
from sdxl_contract.pictures import Area
from sdxl_contract.request import GenerateRequest, LoraRef, Scheduler, explain_validation

# What a request may leave open.
PARAMETERS = (
    "width", "height", "steps", "cfg", "seed", "num_images", "scheduler", "output_format",
    "strength", "fit", "inpaint", "outpaint", "guidance_rescale", "hires", "prompt_syntax",
    "clip_skip", "upscale",
)  # fmt: skip
# Stands for a URL that is signed only at dispatch, so that the contract's own checks apply.
_NO_URL = "https://unsigned.invalid/lora.safetensors"


async def find_avatar(
    session: AsyncSession, owner: str, avatar_id: uuid.UUID | None
) -> Avatar | None:
    """The avatar that was named, if one was.

    Raises:
        NotFound: it is not there.
    """
    if avatar_id is None:
        return None
    avatar = await AvatarRepository(session, owner).get(avatar_id)
    if avatar is None:
        raise NotFound("There is no avatar with this id.", field="avatar_id")
    return avatar


async def find_loras(
    session: AsyncSession, owner: str, asked: GenerateIn, avatar: Avatar | None
) -> list[tuple[LoraModel, float]]:
    """The avatar's LoRA first, then the caller's; of the same one twice the caller's scale."""
    scales: dict[uuid.UUID, float] = {}
    if avatar is not None and avatar.lora_model_id is not None:
        scales[avatar.lora_model_id] = avatar.lora_scale
    repository = LoraRepository(session, owner)
    names = await repository.names() if any(use.name for use in asked.loras) else {}
    wanted: dict[uuid.UUID, str] = {}  # and the field that asks for it
    for position, use in enumerate(asked.loras):
        field, lora_id = f"loras[{position}].lora_model_id", use.lora_model_id
        if lora_id is None:
            field = f"loras[{position}].name"
            lora_id = find_by_name(use.name or "", names, field)
        if lora_id in wanted:
            raise InvalidRequest(f"{field}: this LoRA is named twice", details={"field": field})
        wanted[lora_id] = field
        scales[lora_id] = use.scale
    found = await repository.get_many(scales) if scales else {}
    for lora_id, field in wanted.items():
        if lora_id not in found:
            name = await repository.former_name(lora_id)
            if name is None:
                raise NotFound("There is no LoRA with this id.", field=field)
            raise NotFound(
                f"The LoRA {name!r} was deleted.",
                field=field,
                details={"reason": "lora_deleted", "name": name},
            )
    if avatar is not None and not found.keys() >= scales.keys():
        raise Conflict(
            f"The LoRA of the avatar {avatar.name!r} was deleted: give it another, or none.",
            field="avatar_id",
        )
    if len(scales) > MAX_LORAS:
        raise InvalidRequest(
            f"loras: with the avatar's there are {len(scales)}: at most {MAX_LORAS}",
            details={"field": "loras", "maximum": MAX_LORAS},
        )
    return [(found[lora_id], scale) for lora_id, scale in scales.items()]


def as_request(
    asked: GenerateIn,
    avatar: Avatar | None,
    loras: list[tuple[LoraModel, float]],
    parameters: Mapping[str, Any],
) -> GenerateRequest:
    """What the worker will be asked, as far as it is known now; ranges are checked here.

    Args:
        parameters: those that were `given`, and what is kept of the pictures to draw from.
    """
    try:
        request = GenerateRequest(
            prompt=_join(avatar.base_prompt if avatar else "", _prompt(asked, avatar)),
            negative_prompt=_join(avatar.negative_prompt if avatar else "", asked.negative_prompt),
            **with_urls(parameters),
            loras=[LoraRef(url=_NO_URL, scale=scale, sha256=lora.sha256) for lora, scale in loras],
        )
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=True)
        raise explain_validation([dict(item) for item in found]) from None
    request.check_prompts()
    return request


def given(asked: GenerateIn, avatar: Avatar | None) -> dict[str, Any]:
    """The parameters that the caller chose, and the avatar's sampler where they named none; what
    was left out stays open for the worker."""
    values = asked.model_dump(mode="json", include=set(PARAMETERS))
    if avatar is not None and values["scheduler"] is None and asked.upscale is None:
        values["scheduler"] = avatar.scheduler
    if asked.hires is not None:
        values["hires"] = _second_pass(asked.hires, avatar)
    return {name: value for name, value in values.items() if value is not None}


def _second_pass(hires: Hires, avatar: Avatar | None) -> dict[str, Any]:
    """A second pass with the avatar's part in its words, where it has words of its own."""
    values = hires.model_dump(mode="json", exclude_none=True)
    for field, first in (("prompt", "base_prompt"), ("negative_prompt", "negative_prompt")):
        if avatar is not None and field in values:
            values[field] = _join(getattr(avatar, first), values[field])
    return values


def _prompt(asked: GenerateIn, avatar: Avatar | None) -> str:
    field = "prompt"
    prompt = asked.prompt
    if asked.custom_prompt is not None:
        if prompt is not None and prompt != asked.custom_prompt:
            raise InvalidRequest(
                "custom_prompt: send either prompt or custom_prompt",
                details={"field": "custom_prompt"},
            )
        field, prompt = "custom_prompt", asked.custom_prompt
    # An enlargement is of what is there: nothing is to be said.
    if asked.upscale is not None and not (prompt or "").strip():
        return ""
    if prompt is None and avatar is not None:
        return ""
    if prompt is None or not prompt.strip():
        raise InvalidPrompt(
            f"{field} is blank: say what the picture shows", details={"field": field}
        )
    return prompt


def _join(first: str, second: str) -> str:
    return ", ".join(part.strip() for part in (first, second) if part.strip())


def asked_of(content: Content) -> dict[str, Any]:
    """The parameters that a content asks of the worker."""
    # Older versions chose every one at acceptance.
    return content.parameters if content.asked is None else content.asked


def is_part_of_its_source(asked: Mapping[str, Any]) -> bool:
    """Whether the picture's sides are its source's, whole or a number of times."""
    return bool(asked.get("upscale")) or (asked.get("inpaint") or {}).get("area") == Area.MASKED


def asked_again(content: Content) -> dict[str, Any]:
    """The parameters that give the same picture again: where it was drawn, those it was drawn with.

    The sampler stays open where it was: the worker states its own by a name that is none of ours.
    """
    asked = asked_of(content)
    sides = () if is_part_of_its_source(asked) else ("width", "height")
    drawn = {name: content.parameters.get(name) for name in (*sides, "steps", "cfg")}
    known = {name: value for name, value in drawn.items() if value is not None}
    return {**asked, **known, "seed": content.parameters["seed"]}


def again_request(content: Content) -> GenerateRequest:
    """What an earlier content asked for; its LoRAs' URLs are signed only at dispatch."""
    return GenerateRequest(
        prompt=content.prompt,
        negative_prompt=content.negative_prompt,
        loras=[
            LoraRef(url=_NO_URL, scale=lora["scale"], sha256=lora["sha256"])
            for lora in content.loras
        ],
        **with_urls(asked_again(content)),
    )


async def check_limits(request: GenerateRequest, base_model: BaseModel) -> None:
    """Hold a request against what the worker was seen to allow; against nothing where it never was.

    The worker that draws has the last word in any case.

    Raises:
        InvalidPrompt, InvalidRequest: a field is not allowed; the message names it.
    """
    limits = base_model.limits
    if limits is None:
        return
    try:
        _hold(request, limits, base_model.schedulers)
    except ContractError:
        # Nothing is refused by limits of long ago while newer ones are to be had.
        newer = await base_model.fresh_limits()
        if newer is not None:
            _hold(request, newer, base_model.schedulers)


def _hold(request: GenerateRequest, limits: ModelLimits, schedulers: Sequence[str]) -> None:
    request.check_limits(limits)
    for field, sampler in request.samplers():
        name = sampler.value
        if schedulers and name != Scheduler.DEFAULT and name not in schedulers:
            raise InvalidRequest(
                f"{field}: the worker's model does not offer {name}; it offers "
                + ", ".join(schedulers),
                details={"field": field, "allowed": list(schedulers)},
            )
