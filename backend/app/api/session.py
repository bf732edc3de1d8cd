"""`/session`: the page's login. The key is sent once; a cookie that no script can read follows."""

from __future__ import annotations

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from app.api.deps import ServicesDep, check_page_header, find_caller, refuse_foreign_page
from app.core.errors import RateLimited
from app.core.security import SESSION_COOKIE, key_digest, new_session_token
from app.core.settings import Settings
from app.models.base import utc_now
from app.repositories.api_keys import CallerRepository
from app.repositories.sessions import SessionRepository
from app.schemas.session import SessionOut, SignIn
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
    token = new_session_token()
    async with services.database.direct() as connection:
        key = await CallerRepository(connection).find(key_digest(asked.api_key.get_secret_value()))
    if key is None:
        services.sign_in_tries.fail(address)
        raise Unauthorized("This API key is not valid.", details={"field": "api_key"})
    async with services.database.session() as session:
        repository = SessionRepository(session)
        await repository.end_expired()
        if (earlier := request.cookies.get(SESSION_COOKIE)) is not None:
            await repository.end(key_digest(earlier))
        await repository.add(
            key_digest(token), key, utc_now() + timedelta(seconds=settings.session_seconds)
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
    async with services.database.direct() as connection:
        keys_required = await CallerRepository(connection).any_made()
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
    async with services.database.session() as session:
        await SessionRepository(session).end(key_digest(token))
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
