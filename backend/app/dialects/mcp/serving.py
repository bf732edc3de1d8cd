"""`/mcp`: MCP's streamable HTTP without sessions, for callers that have a key.

Must not know: the tools.
"""

from __future__ import annotations

import asyncio

from mcp.server.mcpserver import MCPServer
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from app.api.deps import Rights, Services, get_caller
from app.core.db import DATABASE_LOST
from app.core.dialect import dialect_of
from app.core.errors import BackendError, Fault, ProblemCode, fault_of
from app.dialects.mcp.tools import build_tools
from sdxl_contract.errors import ContractError


class McpEndpoint:
    """The tools of one running server, from the first call on."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._manager: StreamableHTTPSessionManager | None = None
        self._started = asyncio.Event()
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def _open(self) -> StreamableHTTPSessionManager:
        if self._manager is None:
            # To build them takes a third of all that a start does in Python.
            server: MCPServer[object] = build_tools(self._services)
            self._manager = StreamableHTTPSessionManager(
                app=server._lowlevel_server,
                stateless=True,
                # Whose pages and by which names the server may be called is held to outside.
                security_settings=TransportSecuritySettings(enable_dns_rebinding_protection=False),
                max_request_body_size=self._services.settings.max_request_bytes,
            )
            # A task of its own: its scope must be left by the task that entered it.
            self._running = asyncio.create_task(self._run(self._manager), name="mcp")
        await self._started.wait()
        return self._manager

    async def _run(self, manager: StreamableHTTPSessionManager) -> None:
        async with manager.run():
            self._started.set()
            await self._stop.wait()

    async def stop(self) -> None:
        """Stop; calls that wait are ended."""
        self._stop.set()
        if self._running is not None:
            await self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, if its caller may make it."""
        request = Request(scope, receive)
        shape = dialect_of(scope).shape
        try:
            caller = await get_caller(request, self._services)
        except (ContractError, BackendError) as error:
            await shape(fault_of(error))(scope, receive, send)
            return
        except DATABASE_LOST:
            fault = Fault(
                503,
                ProblemCode.DATABASE_UNAVAILABLE,
                "The database does not answer at the moment. Please try again.",
                retry_after=2,
            )
            await shape(fault)(scope, receive, send)
            return
        request.state.rights = Rights(request, self._services, caller)
        manager = await self._open()
        await manager.handle_request(scope, receive, send)
