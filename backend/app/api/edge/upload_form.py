"""A form with one file, as clients really send it, and nothing in it passed over.

Duty: each field once and by a name that the route knows, so that no second file is silently lost;
a file that has its name only in the extended spelling is one all the same.
Must not know: what the fields mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from sdxl_contract.errors import InvalidRequest

_MAX_FILES, _MAX_FIELDS = 10, 100
_EXTENDED = re.compile(rb";\s*filename\*\s*=", re.IGNORECASE)
_PLAIN = re.compile(rb";\s*filename\s*=", re.IGNORECASE)


class _Parser(MultiPartParser):
    """Takes `filename*=` alone for a file, too; what the file is called is asked of no one."""

    def on_headers_finished(self) -> None:
        """A part begins."""
        part = self._current_part
        disposition = part.content_disposition or b""
        if _EXTENDED.search(disposition) and not _PLAIN.search(disposition):
            part.content_disposition = disposition + b'; filename="file"'
        super().on_headers_finished()


class UploadRoute(APIRoute):
    """A route whose form is read as above before the framework looks at it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, given the form."""
        usual = super().get_route_handler()
        fields = {field.alias for field in self.dependant.body_params}
        if "file" not in fields:
            return usual

        async def handle(request: Request) -> Response:
            if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
                form = await _read(request)
                try:
                    _check(form, fields)
                except InvalidRequest:
                    await form.close()
                    raise
                request._form = form  # where the framework keeps one that it has read
            return await usual(request)

        return handle


async def _read(request: Request) -> FormData:
    parser = _Parser(
        request.headers, request.stream(), max_files=_MAX_FILES, max_fields=_MAX_FIELDS
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(
            f"request: cannot be read: {error.message}", details={"field": "request"}
        ) from None
    except ClientDisconnect as error:
        raise HTTPException(400, "There was an error parsing the body") from error


def _check(form: FormData, fields: set[str]) -> None:
    for name, value in form.multi_items():
        if name not in fields:
            raise InvalidRequest(
                f"{name[:60]}: is not a field of this request", details={"field": name[:60]}
            )
        is_list = name == "tags"
        if not is_list and len(form.getlist(name)) > 1:
            what = "one file at a time" if isinstance(value, UploadFile) else "it once"
            raise InvalidRequest(f"{name}: send {what}", details={"field": name})
