"""`/session`: the page's login. The key is sent once; a cookie that no script can read follows."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from app.api.deps import ServicesDep, check_page_header, find_caller, refuse_foreign_page
from app.core.errors import RateLimited
from app.core.security import SESSION_COOKIE
from app.core.settings import Settings
from app.models.base import utc_now
from app.schemas.access import SessionOut, SignIn
from app.services.callers import begin_session, end_session, is_key_required, key_of
from sdxl_contract.errors import Unauthorized

router = APIRouter(prefix="/session", tags=["session"])

_PATH = "/api/v1"


@router.post("", status_code=204)
async def sign_in(
    asked: SignIn, request: Request, services: ServicesDep, response: Response
) -> None:
    """Begin a session: 204 and a cookie, or 401 where the key is not valid.

    After ten keys that are not, an address waits a minute, whatever it brings then.
    """
    settings = services.settings
    address = request.client.host if request.client else ""
    if wait := services.sign_in_tries.wait(address):
        raise RateLimited(
            "Too many keys were tried that are not valid: wait a minute.",
            free_at=utc_now() + timedelta(seconds=wait),
            retry_after=wait,
        )
    key = await key_of(services.database, token=asked.api_key.get_secret_value())
    if key is None:
        services.sign_in_tries.fail(address)
        raise Unauthorized("This API key is not valid.", details={"field": "api_key"})
    token = await begin_session(
        services.database,
        key,
        settings.session_seconds,
        earlier=request.cookies.get(SESSION_COOKIE),
    )
    response.set_cookie(
        SESSION_COOKIE,
        token,
        max_age=settings.session_seconds,
        path=_PATH,
        secure=_is_https(request, settings),
        httponly=True,
        samesite="strict",
    )


@router.get("")
async def read_session(request: Request, services: ServicesDep) -> SessionOut:
    """Whether this call is signed in, and whether it needs to be."""
    caller = await find_caller(request, services)
    keys_required = await is_key_required(services.database)
    if not keys_required:
        refuse_foreign_page(request, services)
    return SessionOut(
        signed_in=caller is not None,
        keys_required=keys_required,
        name=None if caller is None else caller.name,
    )


@router.delete("", status_code=204)
async def sign_out(request: Request, services: ServicesDep, response: Response) -> None:
    """End the cookie's session; 204 also where there is none."""
    token = request.cookies.get(SESSION_COOKIE)
    if token is None:
        return
    check_page_header(request)
    await end_session(services.database, token)
    response.delete_cookie(
        SESSION_COOKIE,
        path=_PATH,
        secure=_is_https(request, services.settings),
        httponly=True,
        samesite="strict",
    )


def _is_https(request: Request, settings: Settings) -> bool:
    """Whether browsers reach this server by https, directly or through what stands before it."""
    return request.scope["scheme"] == "https" or settings.base_url.startswith("https://")
