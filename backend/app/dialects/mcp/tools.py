"""The tools: drawing, looking, stopping, and what there is to draw with.

Must not know: how MCP's messages travel.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ContentBlock, ImageContent, TextContent, ToolAnnotations
from pydantic import Field

from app.api.deps import Caller, Rights, Services
from app.core.errors import BackendError, Conflict
from app.dialects.asking import failure_of, read_as, read_images
from app.dialects.lora_tags import read_tags
from app.dialects.pictures import as_base64, small_jpeg
from app.models import Content, Status
from app.schemas.content import GenerateIn
from app.services.contents.events import Event
from sdxl_contract.errors import ContractError

# Most hosts give a call up after a minute; the id leads on.
WAIT_SECONDS = 50.0
_SHOWN_LORAS = 50
_READS = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_DRAWS = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
Wait = Annotated[
    float, Field(ge=0, le=WAIT_SECONDS, description="seconds to wait for the end; 0: not at all")
]


def build_tools(services: Services, wait_seconds: float = WAIT_SECONDS) -> MCPServer[Any]:
    """A server with the tools; whose call one is, the HTTP request that brought it says."""
    server: MCPServer[Any] = MCPServer(
        "modal-sdxl-lora",
        instructions="Draws pictures with SDXL and LoRAs. A drawing that takes longer than a call "
        "goes on: ask for it again with get_image and its id.",
    )

    @server.tool(annotations=_DRAWS)
    async def generate_image(
        ctx: Context[Any, Any],
        prompt: Annotated[
            str, Field(description="what to draw; <lora:name:0.8> applies a LoRA of list_loras")
        ],
        negative_prompt: Annotated[str | None, Field(description="what not to draw")] = None,
        width: Annotated[int | None, Field(description="px, a multiple of 8")] = None,
        height: Annotated[int | None, Field(description="px, a multiple of 8")] = None,
        steps: Annotated[int | None, Field(description="1 to 100")] = None,
        cfg: Annotated[float | None, Field(description="1 to 20")] = None,
        seed: Annotated[int | None, Field(description="the same seed, the same picture")] = None,
        num_images: Annotated[int, Field(ge=1, le=4)] = 1,
    ) -> CallToolResult:
        """Draw pictures. Returns small previews, the id and the URLs of the full pictures."""
        caller, rights = _who(ctx)
        with _told():
            tagged = read_tags(prompt)
            values = {
                "prompt": tagged.prompt,
                "negative_prompt": negative_prompt,
                "width": width,
                "height": height,
                "steps": steps,
                "cfg": cfg,
                "seed": seed,
                "num_images": num_images,
                "loras": [use.model_dump(exclude_none=True) for use in tagged.loras] or None,
            }
            asked = read_as(GenerateIn, {k: v for k, v in values.items() if v is not None})
            accepted = await services.contents.accept(caller.owner, asked, None, caller.allowance)
            return await _followed(ctx, services, caller, rights, accepted.content.id, wait_seconds)

    @server.tool(annotations=_READS)
    async def get_image(ctx: Context[Any, Any], id: str, wait: Wait = 0.0) -> CallToolResult:
        """A drawing by its id: previews once it is drawn, else how far it is."""
        caller, rights = _who(ctx)
        with _told():
            content = await services.contents.get(caller.owner, _id(id))
            seconds = min(wait, wait_seconds)
            return await _followed(ctx, services, caller, rights, content.id, seconds)

    @server.tool(annotations=_READS)
    async def list_loras(
        ctx: Context[Any, Any],
        query: Annotated[str, Field(description="part of a name or tag; empty: all")] = "",
    ) -> dict[str, Any]:
        """LoRAs of the library, with the words that trigger them."""
        caller, _ = _who(ctx)
        with _told():
            wanted = query.casefold()
            found = [
                lora
                for lora in await services.loras.list(caller.owner)
                if any(wanted in text.casefold() for text in (lora.name, *lora.tags))
            ]
            shown = [
                {
                    "name": lora.name,
                    "description": lora.description,
                    "trigger_words": lora.trigger_words[:10],
                    "tags": lora.tags,
                }
                for lora in found[:_SHOWN_LORAS]
            ]
            return {"loras": shown, "total": len(found)}

    @server.tool(annotations=_READS)
    async def get_model(ctx: Context[Any, Any]) -> dict[str, Any]:
        """The base model and the sizes that it draws."""
        _who(ctx)
        with _told():
            signature, limits = await services.base_model.signature(), services.base_model.limits
            return {
                "base_model": None if signature is None else signature.name,
                "native_size": None if limits is None else limits.native_size,
                "min_side": None if limits is None else limits.min_side,
                "max_side": None if limits is None else limits.max_side,
            }

    @server.tool(annotations=_DRAWS)
    async def cancel(ctx: Context[Any, Any], id: str) -> dict[str, Any]:
        """Stop a drawing that waits or is being drawn."""
        caller, _ = _who(ctx)
        with _told():
            content_id = _id(id)
            with contextlib.suppress(Conflict):  # it has ended
                await services.contents.cancel(caller.owner, content_id)
            content = await services.contents.get(caller.owner, content_id)
            return {"id": str(content.id), "status": str(content.status)}

    return server


def _who(ctx: Context[Any, Any]) -> tuple[Caller, Rights]:
    """Whose call it is: written into the request before it came here."""
    request: Any = ctx.request_context.request
    rights: Rights = request.scope["state"]["rights"]
    return rights.caller, rights


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Errors that a caller may read as those of a tool."""
    try:
        yield
    except (ContractError, BackendError) as error:
        raise ToolError(error.message) from None


def _id(text: str) -> uuid.UUID:
    try:
        return uuid.UUID(text)
    except ValueError:
        raise ToolError("id: must be one that generate_image gave") from None


async def _followed(
    ctx: Context[Any, Any],
    services: Services,
    caller: Caller,
    rights: Rights,
    content_id: uuid.UUID,
    seconds: float,
) -> CallToolResult:
    """The content as it is at its end or when the seconds are over, told of meanwhile."""
    is_final: Callable[[Event], bool] = lambda event: event.is_final  # noqa: E731
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            events = services.events.follow(content_id)
            async for event in rights.while_they_hold(events, is_final):
                if event.type == "progress" and event.data.get("steps"):
                    await ctx.report_progress(
                        float(event.data.get("step") or 0),
                        float(event.data["steps"]),
                        str(event.data.get("phase", "")),
                    )
    await rights.check()
    return await _result(services, await services.contents.get(caller.owner, content_id))


async def _result(services: Services, content: Content) -> CallToolResult:
    facts: dict[str, Any] = {"id": str(content.id), "status": str(content.status)}
    if not Status(content.status).is_final:
        text = f"Not drawn yet ({content.status}). Ask get_image for id {content.id}."
        return CallToolResult(content=[_text(text)], structured_content=facts)
    failure = failure_of(content)
    if failure is not None:
        return CallToolResult(
            content=[_text(failure.detail)],
            structured_content={**facts, "error": failure.detail},
            is_error=True,
        )
    seconds = services.settings.image_url_seconds
    facts["images"] = [
        {
            "url": services.storage.image_url(image.object_key, seconds),
            "seed": image.seed,
            "width": image.width,
            "height": image.height,
        }
        for image in content.images
    ]
    blocks: list[ContentBlock] = []
    for data in await read_images(services, content):
        small = as_base64(await small_jpeg(data, services.marking.sign_copy))
        blocks.append(ImageContent(type="image", data=small, mime_type="image/jpeg"))
    lines = [f"id {content.id}"]
    lines += [f"seed {image['seed']}: {image['url']}" for image in facts["images"]]
    return CallToolResult(content=[*blocks, _text("\n".join(lines))], structured_content=facts)


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)
