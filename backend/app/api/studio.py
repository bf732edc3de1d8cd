"""`/`: the page, as files that were built beforehand.

Duty: the built files with the headers that keep them fast and safe.
Must not know: what the page does.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import hashlib
import mimetypes
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response

from app.api.deps import Services, ServicesDep
from app.core.db import DATABASE_LOST
from app.core.errors import NotFound
from app.core.settings import Settings
from app.services.callers import is_key_required

STATIC = Path(__file__).resolve().parent.parent / "static" / "studio"
_COMPRESSED = {".css", ".html", ".js", ".json", ".svg"}
# mimetypes asks the system, which may not know these or say otherwise.
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}

# By its language, the page with the form in it; the first is for whoever reads none of them.
_PAGES = {"en": "index.html", "es": "index.es.html"}
_KEYS_WAIT_SECONDS = 1.0
_ACCEPTED_CHARS = 1000
_MODEL = '<link rel="preload" as="fetch" crossorigin href="/api/v1/model">'

router = APIRouter(include_in_schema=False)


class Built(NamedTuple):
    """A built file's bytes, plain and, where it helps, with gzip."""

    data: bytes
    compressed: bytes | None
    etag: str
    media_type: str


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed_ns: int, opens: bool | None) -> Built:
    data = path.read_bytes()
    if opens is not None:
        data = _completed(data.decode(), opens).encode()
    smaller = gzip.compress(data, 9, mtime=0) if path.suffix in _COMPRESSED else None
    return Built(
        data,
        smaller,
        f'"{hashlib.sha256(data).hexdigest()[:32]}"',
        _MEDIA_TYPES.get(path.suffix)
        or mimetypes.guess_type(path.name)[0]
        or "application/octet-stream",
    )


def _completed(page: str, opens: bool) -> str:
    """The built page for a server that is open, or for one that needs keys.

    Where it is open, the browser asks for the model's limits at once, and the form that stands in
    the page is shown; otherwise only to whoever has signed in on that device before.
    """
    if opens:
        return page.replace("</head>", f"  {_MODEL}\n  </head>", 1)
    return page.replace("<html ", "<html data-keys ", 1)


def language_of(accepted: str) -> str:
    """The page's language for an Accept-Language header: the first that it is written in."""
    ranked = []
    for place, part in enumerate(accepted[:_ACCEPTED_CHARS].split(",")):
        tag, *options = part.strip().lower().split(";")
        weight = next((one.strip()[2:] for one in options if one.strip().startswith("q=")), "1")
        try:
            ranked.append((-float(weight), place, tag[:2]))
        except ValueError:
            continue
    known = (tag for weight, _, tag in sorted(ranked) if tag in _PAGES and weight < 0)
    return next(known, next(iter(_PAGES)))


async def _is_open(services: Services) -> bool:
    """Whether the server needs no key; where the database does not say, it is taken to need one."""
    try:
        async with asyncio.timeout(_KEYS_WAIT_SECONDS):
            return not await is_key_required(services.database)
    except (*DATABASE_LOST, TimeoutError):
        return False


def read_built(name: str, *, opens: bool | None = None) -> Built:
    """The built file `name`, a path below the build's folder; the page completed by `opens`.

    Raises:
        NotFound: it is not there.
    """
    try:
        path = (STATIC / name).resolve()
        if path.is_relative_to(STATIC) and path.is_file():
            return _read(path, path.stat().st_mtime_ns, opens)
    except (OSError, ValueError):
        pass
    raise NotFound("There is nothing here.")


def content_security_policy(settings: Settings) -> str:
    """Only this server's own files; pictures also from where they are stored."""
    places = (settings.base_url, settings.r2_public_url, settings.r2_endpoint_url)
    split = [urlsplit(url) for url in places if url]
    origins = sorted({f"{url.scheme}://{url.netloc}" for url in split})
    pictures = " ".join(["'self'", *origins])
    return "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "font-src 'self'",
            f"img-src {pictures} data: blob:",
            f"connect-src {pictures}",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _answer(request: Request, built: Built, headers: dict[str, str]) -> Response:
    headers = {
        "ETag": built.etag,
        "Vary": "Accept-Encoding",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        **headers,
    }
    known = request.headers.get("if-none-match", "").replace("W/", "")
    if built.etag in (tag.strip() for tag in known.split(",")):
        return Response(status_code=304, headers=headers)
    accepted = request.headers.get("accept-encoding", "")
    data = built.data
    if built.compressed is not None and "gzip" in accepted:
        data, headers["Content-Encoding"] = built.compressed, "gzip"
    return Response(data, headers=headers, media_type=built.media_type)


@router.api_route("/", methods=["GET", "HEAD"])
async def read_page(request: Request, services: ServicesDep) -> Response:
    """The page. Browsers ask again each time, so that a new build is seen at once."""
    language = language_of(request.headers.get("accept-language", ""))
    return _answer(
        request,
        read_built(_PAGES[language], opens=await _is_open(services)),
        {
            "Cache-Control": "no-cache",
            "Vary": "Accept-Encoding, Accept-Language",
            "Content-Security-Policy": content_security_policy(services.settings),
            "X-Frame-Options": "DENY",
        },
    )


@router.api_route("/studio/{name:path}", methods=["GET", "HEAD"])
async def read_file(name: str, request: Request) -> Response:
    """What the page consists of. Names below assets/ hold a hash of their bytes."""
    built = read_built(name)
    lasting = name.startswith("assets/")
    caching = "public, max-age=31536000, immutable" if lasting else "no-cache"
    return _answer(request, built, {"Cache-Control": caching})
