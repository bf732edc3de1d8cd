"""`mcp`: the tools, a picture with a LoRA, by the protocol that the client chooses."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx2
from asked import KEY, PROMPT, TAG, URL, WANTED, fetched, tell
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def main() -> None:
    """Draw once."""
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        transport = streamable_http_client(f"{URL}/mcp", http_client=http)
        async with Client(transport) as client:
            tools = sorted(tool.name for tool in (await client.list_tools()).tools)
            given = {name: WANTED[name] for name in ("seed", "steps", "cfg", "width", "height")}
            drawn: Any = await client.call_tool(
                "generate_image", {"prompt": f"{PROMPT} {TAG}", **given}
            )
            loras: Any = await client.call_tool("list_loras", {"query": WANTED["lora"]})
    preview = next(part for part in drawn.content if part.type == "image")
    told = drawn.structured_content
    tell(
        [fetched(told["images"][0]["url"])],
        tools=tools,
        preview=base64.b64decode(preview.data)[:2].hex(),
        loras=str(loras.structured_content),
    )


asyncio.run(main())
