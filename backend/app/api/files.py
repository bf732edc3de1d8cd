"""Signed local files. The signature is the permission, so no API key is asked for."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse

from app.api.deps import ServicesDep
from app.core.errors import Forbidden, NotFound
from app.services.storage import FILES_PATH, LocalStorage

router = APIRouter(include_in_schema=False)

_MEDIA_TYPES = {
    ".png": "image/png",
    ".webp": "image/webp",
    ".safetensors": "application/octet-stream",
}


@router.api_route(FILES_PATH + "{key:path}", methods=["GET", "HEAD", "PUT", "POST", "DELETE"])
async def read_file(
    key: str, request: Request, services: ServicesDep, expires: str = "", signature: str = ""
) -> Response:
    """The file that a signed URL names; 403 where the URL expired or was changed."""
    storage = services.storage
    if not isinstance(storage, LocalStorage):
        raise NotFound("There is nothing here.")
    if not storage.verify(request.method, key, expires, signature):
        raise Forbidden("This URL has expired or was changed: ask for the content again.")
    try:
        path = storage.path(key)
        stat = path.stat()
    except (ValueError, OSError):
        raise NotFound("The file is gone.") from None
    etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=60",
        "X-Content-Type-Options": "nosniff",
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    media_type = _MEDIA_TYPES.get(Path(key).suffix, "application/octet-stream")
    return FileResponse(path, headers=headers, media_type=media_type)


def _matches(if_none_match: str | None, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or etag in tags
