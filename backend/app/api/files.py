"""Signed local files. The signature is the permission, so no API key is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse

from app.api.deps import ServicesDep
from app.core.errors import Forbidden, NotFound, RangeNotSatisfiable
from app.services.storage import FILES_PATH, LocalStorage

router = APIRouter(include_in_schema=False)

_PICTURE_SECONDS = 86400
_MAX_RANGES = 8
_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")
_MEDIA_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
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
    # Who may get it may also ask how large it is.
    method = "GET" if request.method == "HEAD" else request.method
    if not storage.verify(method, key, expires, signature):
        raise Forbidden("This URL has expired or was changed: ask for the content again.")
    try:
        path = storage.path(key)
        stat = path.stat()
    except (ValueError, OSError):
        raise NotFound("The file is gone.") from None
    etag = f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"'
    headers = {
        "ETag": etag,
        "Cache-Control": _caching(key),
    }
    if _matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    if not _wants_part(request.headers.get("range"), stat.st_size):
        # The framework answers a unit that it does not know with an error instead of the whole.
        headers_asked = request.scope["headers"]
        request.scope["headers"] = [item for item in headers_asked if item[0] != b"range"]
    media_type = _MEDIA_TYPES.get(Path(key).suffix, "application/octet-stream")
    return FileResponse(path, headers=headers, media_type=media_type)


def _caching(key: str) -> str:
    """A picture's key names these bytes for ever, and its URL stays the same for some minutes."""
    is_picture = key.endswith((".png", ".webp"))
    return f"private, max-age={_PICTURE_SECONDS}, immutable" if is_picture else "private, no-cache"


def _wants_part(header: str | None, size: int) -> bool:
    """Whether parts of a file are asked for, and are there; another unit asks for all.

    Raises:
        RangeNotSatisfiable: it cannot be answered.
    """
    unit, _, parts = (header or "").partition("=")
    if header is None or unit.strip().lower() != "bytes":
        return False
    found = [_RANGE.fullmatch(part.strip()) for part in parts.split(",", _MAX_RANGES)]
    satisfiable = [
        match is not None
        and (match[1] != "" or match[2] not in ("", "0"))
        and (match[1] == "" or int(match[1]) < size)
        and (match[1] == "" or match[2] == "" or int(match[1]) <= int(match[2]))
        for match in found
    ]
    if not all(satisfiable) or len(found) > _MAX_RANGES:
        raise RangeNotSatisfiable(
            f"Range: must be bytes=FIRST-LAST within the file's {size} bytes, and at most "
            f"{_MAX_RANGES} of those.",
            field="Range",
        )
    return True


def _matches(if_none_match: str | None, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")]
    return "*" in tags or etag in tags
