"""Every dialect that the server speaks, and where it is mounted."""

from __future__ import annotations

import functools
import re

from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import Receive, Scope, Send

from app.core.db import Database
from app.core.dialect import Dialect
from app.core.errors import PROBLEM_JSON
from app.core.settings import Settings
from app.dialects.a1111.discovery import router as a1111_discovery
from app.dialects.a1111.errors import SCHEMA as A1111_ERROR
from app.dialects.a1111.errors import as_a1111
from app.dialects.a1111.routes import router as a1111_router
from app.dialects.controlnet.routes import router as controlnet_router
from app.dialects.fal.errors import SCHEMA as FAL_ERROR
from app.dialects.fal.errors import as_fal
from app.dialects.fal.routes import router as fal_router
from app.dialects.fal.storage import PATH as FAL_STORAGE
from app.dialects.fal.storage import router as fal_storage
from app.dialects.fal.target import PATH as PROXY_PATH
from app.dialects.fal.target import TargetPath
from app.dialects.fal.webhook import RequestMessages
from app.dialects.openai.edits import router as openai_edits
from app.dialects.openai.errors import SCHEMA as OPENAI_ERROR
from app.dialects.openai.errors import as_openai
from app.dialects.openai.routes import router as openai_router
from app.dialects.replicate.files import router as replicate_files
from app.dialects.replicate.routes import router as replicate_router
from app.dialects.replicate.webhook import PredictionMessages
from app.dialects.subapp import dialect_app
from app.models.webhook import Kind
from app.schemas.common import Problem
from app.services.storage import Storage
from app.services.webhooks.sender import MessageShape
from sdxl_contract.limits import IMAGE_MAX_BYTES

OPENAI = "/v1"
A1111 = "/sdapi"
CONTROLNET = "/controlnet"
REPLICATE = "/replicate/v1"
FAL = "/fal"
MCP = "/mcp"
_EDITS = f"{OPENAI}/images/edits"
_IMG2IMG = f"{A1111}/v1/img2img"
_PNG_INFO = f"{A1111}/v1/png-info"
_DETECT = f"{CONTROLNET}/detect"
_REPLICATE_FILES = f"{REPLICATE}/files"


def dialects_of(settings: Settings) -> tuple[Dialect, ...]:
    """What holds for the paths of each dialect."""
    return (
        Dialect(
            OPENAI,
            key_headers=("api-key",),
            shape=as_openai,
            large_bodies={_EDITS: 2 * IMAGE_MAX_BYTES},
            key_first=frozenset({_EDITS}),
        ),
        Dialect(
            A1111,
            schemes=frozenset({"basic", "bearer"}),
            shape=as_a1111,
            large_bodies={_PNG_INFO: 12 * 2**20, _IMG2IMG: 24 * 2**20},
            key_first=frozenset({_PNG_INFO, _IMG2IMG}),
        ),
        Dialect(
            CONTROLNET,
            schemes=frozenset({"basic", "bearer"}),
            shape=as_a1111,
            large_bodies={_DETECT: 24 * 2**20},
            key_first=frozenset({_DETECT}),
        ),
        Dialect(
            REPLICATE,
            schemes=frozenset({"bearer", "token"}),
            large_bodies={_REPLICATE_FILES: settings.max_upload_bytes},
            key_first=frozenset({_REPLICATE_FILES}),
            polled=re.compile(rf"{REPLICATE}/predictions/[^/]+"),
        ),
        Dialect(
            FAL,
            schemes=frozenset({"key", "bearer"}),
            shape=as_fal,
            large_bodies={FAL_STORAGE: settings.max_upload_bytes},
            polled=re.compile(rf"{PROXY_PATH}|{FAL}/queue/.+/requests/.+"),
        ),
        Dialect(MCP),
    )


_ROUTERS = {
    OPENAI: ("OpenAI Images", [openai_router, openai_edits], OPENAI_ERROR),
    A1111: ("A1111", [a1111_router, a1111_discovery], A1111_ERROR),
    CONTROLNET: ("A1111 ControlNet", [controlnet_router], A1111_ERROR),
    REPLICATE: (
        "Replicate",
        [replicate_router, replicate_files],
        {PROBLEM_JSON: Problem.model_json_schema()},
    ),
    FAL: ("fal", [fal_storage, fal_router], FAL_ERROR),
}


@functools.cache
def _routes(prefix: str) -> tuple[BaseRoute, ...]:
    """A dialect's routes: their signatures are read once, however many apps there are."""
    whole = APIRouter()
    for router in _ROUTERS[prefix][1]:
        whole.include_router(router)
    return tuple(whole.routes)


def mount_dialects(app: FastAPI) -> None:
    """Put each dialect's application below its prefix."""
    for dialect in app.state.dialects.others:
        if dialect.prefix == MCP:
            app.router.routes.append(Route(MCP, _to_mcp))
            continue
        title, _, errors = _ROUTERS[dialect.prefix]
        mounted = dialect_app(title, dialect, app.state, _routes(dialect.prefix), errors)
        if dialect.prefix == FAL:
            mounted.add_middleware(TargetPath)
        mount = Mount(dialect.prefix, mounted)
        # Else a path with a line break in it were the API's own, and its error of another shape.
        mount.path_regex = re.compile(mount.path_regex.pattern, re.DOTALL)
        app.router.routes.append(mount)


class _ToMcp:
    """The endpoint of the server that runs now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await scope["app"].state.mcp(scope, receive, send)


_to_mcp = _ToMcp()


def message_shapes(
    settings: Settings, database: Database, storage: Storage
) -> dict[str, MessageShape]:
    """How webhooks' messages of each dialect look."""
    return {
        Kind.REPLICATE.value: PredictionMessages(settings, database, storage),
        Kind.FAL.value: RequestMessages(settings, database, storage),
    }
