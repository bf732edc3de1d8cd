"""`/docs`: the API's reference for people, made from its own document.

Must not know: what the routes do.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.core.pools import Duty, in_pool
from sdxl_contract.reference_page import HEADERS, reference_page

router = APIRouter(include_in_schema=False)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def read_reference(request: Request) -> HTMLResponse:
    """The page; it loads nothing but itself."""
    state = request.app.state
    if getattr(state, "reference", None) is None:
        state.reference = await in_pool(Duty.ANSWERS, reference_page, request.app.openapi())
    return HTMLResponse(state.reference, headers=HEADERS)
