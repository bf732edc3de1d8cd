"""Answers as HTTP: one shape for every error, whoever of the worker's programs gives it.

Must not know: torch, what was asked.
"""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from sdxl_contract.errors import ContractError, Details, InvalidRequest, Unauthorized


class RequestState(BaseModel):
    """Where a request is on this worker."""

    request_id: str
    state: str


def json_answer(model: BaseModel, status: int = 200) -> Response:
    """`model` as JSON, without what is None."""
    return Response(
        model.model_dump_json(exclude_none=True), status_code=status, media_type="application/json"
    )


def error_answer(error: ContractError) -> Response:
    """The contract's body, with the headers that go with it."""
    response = json_answer(error.body(), error.status)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, round(error.retry_after)))
    if isinstance(error, Unauthorized):
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def answer_errors(app: FastAPI) -> None:
    """Give `app` the contract's answers to the contract's errors and to the framework's."""

    @app.exception_handler(ContractError)
    async def _contract_error(_request: Request, error: ContractError) -> Response:
        return error_answer(error)

    @app.exception_handler(HTTPException)
    async def _http_error(_request: Request, error: HTTPException) -> Response:
        details: Details = {"field": "path" if error.status_code == 404 else "method"}
        return error_answer(
            InvalidRequest(str(error.detail), details=details, status=error.status_code)
        )
