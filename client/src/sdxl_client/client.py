"""The client that waits: `AsyncClient` has the same methods."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2

from sdxl_client import calls
from sdxl_client.calls import Call, Id
from sdxl_client.errors import ApiError, ConnectionLost, ContentFailed, SdxlError
from sdxl_client.models import (
    FINAL,
    Batch,
    Comparison,
    Content,
    Event,
    Key,
    Lora,
    LoraUse,
    Verification,
    Webhook,
)
from sdxl_client.retrying import EventLines, pause
from sdxl_client.saving import save_files

T = TypeVar("T")
DEFAULT_URL = "http://127.0.0.1:8000"
_STREAM_SILENCE_SECONDS = 60.0  # the server sends a sign of life each 15 s
_GENERATE_WAIT_SECONDS = 60.0


class Client:
    """Calls to one server.

    Args:
        base_url: of the server; else `SDXL_URL`.
        api_key: else `SDXL_API_KEY`; a server on loopback without keys needs none.
        timeout: seconds for an answer, beside what the server was asked to wait.
        retries: of a call whose answer was lost, or that was refused for the moment.
        transport: for tests.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.base_url = (base_url or os.environ.get("SDXL_URL") or DEFAULT_URL).rstrip("/")
        key = api_key or os.environ.get("SDXL_API_KEY")
        self._timeout = timeout
        self._retries = retries
        self._http = httpx2.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            transport=transport,
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    # Contents

    def generate(
        self,
        prompt: str | None = None,
        *,
        loras: Sequence[LoraUse | str] | None = None,
        wait: float | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Content:
        """Draw, and return the content once it has its pictures.

        Args:
            loras: of the library, by name or as `LoraUse`.
            wait: seconds until it is given up waiting for (not: cancelled); None: as long as it
                takes.
            fields: any other of `POST /content/generate`: seed, width, height, steps, …

        Raises:
            ContentFailed: it ended without pictures.
            TimeoutError: `wait` is over.
            ApiError: it was refused.
        """
        first = _GENERATE_WAIT_SECONDS if wait is None else min(wait, _GENERATE_WAIT_SECONDS)
        body = {"prompt": prompt, "loras": loras, **fields}
        content = self._send(calls.generate(body, wait=first, idempotency_key=idempotency_key))
        if not content.is_final:
            content = self.wait(content.id, None if wait is None else max(0.0, wait - first))
        if content.status != "succeeded":
            raise ContentFailed(content)
        return content

    def submit(
        self,
        prompt: str | None = None,
        *,
        loras: Sequence[LoraUse | str] | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Content:
        """As `generate`, without waiting."""
        body = {"prompt": prompt, "loras": loras, **fields}
        return self._send(calls.generate(body, wait=0, idempotency_key=idempotency_key))

    def wait(self, content_id: Id, seconds: float | None = None) -> Content:
        """The content once it has ended, however it did.

        Raises:
            TimeoutError: `seconds` are over.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        for event in self.stream(content_id, until=deadline):
            if event.type in FINAL:
                break
        content = self.get(content_id)
        if not content.is_final:
            raise TimeoutError(f"the content {content_id} is still {content.status}")
        return content

    def stream(
        self, content_id: Id, *, last_event_id: str | None = None, until: float | None = None
    ) -> Iterator[Event]:
        """What happens to a content, to its end; a lost connection is taken up again.

        Args:
            until: when to stop, by `time.monotonic()`.
        """
        lines = EventLines()
        lines.last_id = last_event_id
        call: Call[object] = Call("GET", f"{calls.API}/content/{content_id}/events", _itself)
        tried = 0
        while until is None or time.monotonic() < until:
            try:
                for event in self._events(call, lines, until):
                    tried = 0
                    yield event
                    if event.type in FINAL:
                        return
                if until is not None and time.monotonic() >= until:
                    return
                raise ConnectionLost("the stream ended before the content")
            except SdxlError as error:
                tried += 1
                seconds = pause(call, error, tried, self._retries)
                if seconds is None:
                    raise
                time.sleep(seconds)

    def _events(
        self, call: Call[object], lines: EventLines, until: float | None
    ) -> Iterator[Event]:
        silence = _STREAM_SILENCE_SECONDS
        if until is not None:
            silence = max(0.05, min(silence, until - time.monotonic()))
        headers = {"Last-Event-ID": lines.last_id} if lines.last_id else {}
        try:
            with self._http.stream(
                call.method, call.path, headers=headers, timeout=silence
            ) as response:
                if response.status_code != 200:
                    response.read()
                    raise _error(response)
                for line in response.iter_lines():
                    event = lines.take(line)
                    if event is not None:
                        yield event
                    if until is not None and time.monotonic() >= until:
                        return
        except httpx2.TimeoutException:
            if until is None or time.monotonic() < until:
                raise ConnectionLost("the stream was silent for too long") from None
        except httpx2.HTTPError as error:
            raise ConnectionLost(f"the connection failed ({type(error).__name__})") from error

    def contents(
        self, *, status: str | None = None, batch_id: Id | None = None, page_size: int = 50
    ) -> Iterator[Content]:
        """All contents, newest first."""
        cursor = None
        while True:
            page = self._send(
                calls.contents(limit=page_size, cursor=cursor, status=status, batch_id=batch_id)
            )
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def get(self, content_id: Id) -> Content:
        """One content; its URLs are signed anew."""
        return self._send(calls.read_content(content_id))

    def delete(self, content_id: Id) -> None:
        """Remove a content and its pictures."""
        self._send(calls.delete_content(content_id))

    def cancel(self, content_id: Id) -> Content:
        """Stop a content."""
        return self._send(calls.cancel(content_id))

    def replay(self, content_id: Id) -> Content:
        """The same request again, its seed included, as a new content."""
        return self._send(calls.replay(content_id))

    def verify(self, file: Path | str) -> Verification:
        """What a picture says of itself, and whether that is so; needs no key."""
        return self._send(calls.verify(Path(file)))

    def replay_file(self, file: Path | str) -> Content:
        """Draw a picture again from its own receipt: the file, or its manifest alone (.c2pa)."""
        return self._send(calls.replay_file(Path(file)))

    def compare(self, file: Path | str, content_id: Id) -> Comparison:
        """The file, pixel by pixel, against what was drawn from its receipt."""
        return self._send(calls.compare(Path(file), content_id))

    def batch(self, prompts: Sequence[str], **fields: Any) -> Batch:
        """Ask for many pictures at once, all or none."""
        batch_id = self._send(calls.batch({"prompts": list(prompts), **fields}))
        return self.read_batch(batch_id)

    def read_batch(self, batch_id: Id) -> Batch:
        """How far a batch is."""
        return self._send(calls.read_batch(batch_id))

    def download(self, content: Content) -> list[bytes]:
        """The bytes of a content's pictures, in order."""
        return [self._fetch(image.url) for image in content.images]

    def save(self, content: Content, folder: Path | str = ".") -> list[Path]:
        """Write a content's pictures into `folder`; returns their paths."""
        return save_files(content, self.download(content), Path(folder))

    # LoRAs and webhooks

    def loras(self) -> list[Lora]:
        """The library, newest first."""
        return self._send(calls.loras()).items

    def upload_lora(
        self,
        file: Path | str,
        *,
        name: str | None = None,
        description: str = "",
        tags: Sequence[str] = (),
    ) -> Lora:
        """Put a `.safetensors` file into the library; the same bytes again give the same LoRA."""
        return self._send(calls.upload_lora(Path(file), name, description, tags))

    def delete_lora(self, lora_id: Id) -> None:
        """Remove a LoRA that nothing needs any more."""
        self._send(calls.delete_lora(lora_id))

    def webhooks(self) -> list[Webhook]:
        """All webhooks."""
        return self._send(calls.webhooks()).items

    def add_webhook(self, url: str, **fields: Any) -> Webhook:
        """A new webhook, with its secret."""
        return self._send(calls.add_webhook({"url": url, **fields}))

    def delete_webhook(self, webhook_id: Id) -> None:
        """Remove a webhook and its messages."""
        self._send(calls.delete_webhook(webhook_id))

    def test_webhook(self, webhook_id: Id) -> dict[str, Any]:
        """Send it a message that means nothing."""
        return self._send(calls.test_webhook(webhook_id))

    def rotate_webhook(self, webhook_id: Id) -> Webhook:
        """A new secret; the old one signs, too, for a day."""
        return self._send(calls.rotate_webhook(webhook_id))

    # Keys

    def keys(self) -> list[Key]:
        """The valid keys of this key's owner."""
        return self._send(calls.keys()).items

    def add_key(self, name: str) -> Key:
        """A new key for the same things, with its secret."""
        return self._send(calls.add_key(name))

    def revoke_key(self, key_id: Id) -> None:
        """Make a key that this one made invalid, or this one itself."""
        self._send(calls.revoke_key(key_id))

    # The server

    def session(self) -> dict[str, Any]:
        """Whose key this is, and whether one is needed."""
        return self._send(calls.session())

    def model(self) -> dict[str, Any]:
        """The base model and its limits."""
        return self._send(calls.model())

    def ready(self) -> dict[str, Any]:
        """Whether the server is ready; what is not."""
        return self._send(calls.ready())

    def _send(self, call: Call[T]) -> T:
        tried = 0
        while True:
            try:
                return self._once(call)
            except SdxlError as error:
                tried += 1
                seconds = pause(call, error, tried, self._retries)
                if seconds is None:
                    raise
                time.sleep(seconds)

    def _once(self, call: Call[T]) -> T:
        file = call.file.open("rb") if call.file is not None else None
        try:
            response = self._http.request(
                call.method,
                call.path,
                json=call.json,
                params=call.params or None,
                headers=dict(call.headers),
                data=call.form,
                files=None if file is None else {"file": (Path(file.name).name, file)},
                timeout=httpx2.Timeout(self._timeout + call.wait_seconds, connect=10.0),
            )
        except httpx2.HTTPError as error:
            raise ConnectionLost(
                f"{self.base_url} could not be reached, or broke off ({type(error).__name__})"
            ) from error
        finally:
            if file is not None:
                file.close()
        return call.read(_answer(response))

    def _fetch(self, url: str) -> bytes:
        # A client of its own: the key is the server's, and pictures may lie elsewhere.
        try:
            with httpx2.Client(timeout=self._timeout) as http:
                response = http.get(url)
        except httpx2.HTTPError as error:
            raise ConnectionLost(
                f"a picture could not be fetched ({type(error).__name__})"
            ) from error
        if response.status_code != 200:
            raise _error(response)
        return response.content


def _itself(answer: object) -> object:
    return answer


def _answer(response: httpx2.Response) -> Any:
    """The JSON of an answer; raises what it stands for where it is an error."""
    if response.status_code >= 300:
        raise _error(response)
    return response.json() if response.content else None


def _error(response: httpx2.Response) -> ApiError:
    try:
        body = response.json()
    except ValueError:
        body = None
    return calls.error_of(response.status_code, body, response.headers.get("retry-after"))
