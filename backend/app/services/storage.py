"""Where images and LoRA files lie: a folder with signed URLs of our own, or S3 / R2.

Duty: put, delete and sign. A URL is valid for one method, one key and some seconds.
Must not know: what the bytes are, and who asks.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, NamedTuple, Protocol, TypeVar
from urllib.parse import quote, urlencode

import obstore
from obstore.store import S3Store

from app.core.embedded_postgres import make_private_folder
from app.core.errors import StorageFailed, is_disk_full
from app.core.pools import Duty, in_pool
from app.core.settings import Settings
from app.core.tracing import span

FILES_PATH = "/files/"
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")
_COPY_BYTES = 1 << 20
_LIST_AT_ONCE = 1000
_STABLE_SECONDS = 600  # that an image's URL stays the same
_LONGEST_SECONDS = 7 * 86400  # that SigV4 allows
_SIGNED_KEPT = 10_000
T = TypeVar("T")


class Stored(NamedTuple):
    """An object, and when it was written."""

    key: str
    modified: datetime


class Storage(Protocol):
    """What the backend needs of an object store."""

    async def put(self, key: str, data: bytes | IO[bytes]) -> None:
        """Store all of `data` (a file from its position on) under `key`, or nothing.

        Raises:
            StorageFailed: it could not be stored; the message is safe to show.
        """

    async def get(self, key: str) -> bytes:
        """All bytes of `key`.

        Raises:
            StorageFailed: it is not there, or cannot be read.
        """

    async def delete(self, key: str) -> None:
        """Remove `key`; no error where it is not there."""

    async def exists(self, key: str) -> bool:
        """Whether `key` is there."""

    async def keys(self, folder: str) -> list[str]:
        """The keys right below `folder`, which is a key's beginning without its last slash."""

    def objects(self, folder: str) -> AsyncIterator[list[Stored]]:
        """Everything below `folder`, at any depth, some at a time."""

    async def clear_partial(self, before: datetime) -> None:
        """Remove what writers that died before a moment left half written."""

    def sign_get(self, key: str, seconds: int) -> str:
        """An absolute URL by which anyone can GET `key` for `seconds`."""

    def image_url(self, key: str, seconds: int) -> str:
        """The URL that an image is shown by, for `seconds` or some minutes more."""


def build_storage(settings: Settings) -> Storage:
    """S3 or R2 where a bucket is named, else a folder in DATA_DIR."""
    return S3Storage(settings) if settings.r2_bucket_name else LocalStorage(settings)


def check_key(key: str) -> str:
    """`key` itself; refuses anything that could name another place."""
    if len(key) > 512 or not _KEY.fullmatch(key):
        raise ValueError("not a storage key")
    return key


def _load_or_make_secret(path: Path) -> bytes:
    """The signing key in `path`, made once; whoever comes second reads the first one's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
        temporary.unlink()
    secret = path.read_bytes()
    if len(secret) != 32:
        raise StorageFailed("The signing key in DATA_DIR is damaged.")
    return secret


class LocalStorage:
    """Files under DATA_DIR/objects; a route of this server answers the signed URLs."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        self.root = (settings.data_dir / "objects").resolve()
        make_private_folder(settings.data_dir)
        make_private_folder(self.root)
        with contextlib.suppress(PermissionError):  # another user's, who has let us in
            self.root.chmod(0o700)  # earlier versions made it for everybody
        self._incoming = self.root / ".incoming"
        self._incoming.mkdir(exist_ok=True)
        self._secret = _load_or_make_secret(settings.data_dir / "signing.key")
        self._base_url = settings.base_url
        self._clock = clock

    def path(self, key: str) -> Path:
        """Where `key` lies.

        Raises:
            ValueError: the key would leave the root.
        """
        path = (self.root / check_key(key)).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError("not a storage key")
        return path

    async def put(self, key: str, data: bytes | IO[bytes]) -> None:
        """Written beside, synced, then renamed: a reader sees all of it or nothing."""
        with span("object.put", key=key):
            await _in_thread(self._put, key, data, duty=_duty(data))

    def _put(self, key: str, data: bytes | IO[bytes]) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._incoming / secrets.token_hex(16)
        try:
            with temporary.open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    while block := data.read(_COPY_BYTES):
                        file.write(block)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)

    async def get(self, key: str) -> bytes:
        """Read the file."""
        return await _in_thread(lambda: self.path(key).read_bytes())

    async def delete(self, key: str) -> None:
        """Remove the file."""
        await _in_thread(lambda: self.path(key).unlink(missing_ok=True))

    async def exists(self, key: str) -> bool:
        """Whether the file is there."""
        return await _in_thread(lambda: self.path(key).is_file())

    async def keys(self, folder: str) -> list[str]:
        """The files in a folder."""

        def look() -> list[str]:
            path = self.path(folder)
            return [f"{folder}/{file.name}" for file in path.iterdir()] if path.is_dir() else []

        return await _in_thread(look)

    async def objects(self, folder: str) -> AsyncIterator[list[Stored]]:
        """The files below a folder."""
        root = self.path(folder)
        walk = os.walk(root)

        def some() -> list[Stored]:
            found: list[Stored] = []
            for place, _, names in walk:
                for name in names:
                    file = Path(place, name)
                    with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                        modified = datetime.fromtimestamp(file.stat().st_mtime, UTC)
                        found.append(Stored(str(file.relative_to(self.root)), modified))
                if len(found) >= _LIST_AT_ONCE:
                    break
            return found

        while page := await _in_thread(some):
            yield page

    async def clear_partial(self, before: datetime) -> None:
        """Files of writers that were killed."""

        def clear() -> None:
            for file in self._incoming.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    if file.stat().st_mtime < before.timestamp():
                        file.unlink()

        await _in_thread(clear)

    def sign_get(self, key: str, seconds: int) -> str:
        """A URL of this server; its signature covers method, key and expiry."""
        expires = int(self._clock()) + seconds
        query = urlencode({"expires": expires, "signature": self._signature("GET", key, expires)})
        return f"{self._base_url}{FILES_PATH}{quote(check_key(key))}?{query}"

    def image_url(self, key: str, seconds: int) -> str:
        """Signed, and the same for some minutes, so that browsers keep what they have fetched."""
        window = min(_STABLE_SECONDS, seconds)
        now = int(self._clock())
        return self.sign_get(key, -(-(now + seconds) // window) * window - now)

    def verify(self, method: str, key: str, expires: str, signature: str) -> bool:
        """Whether this signature allows `method` on `key` now."""
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12):
            return False
        expected = self._signature(method, key, int(expires))
        genuine = hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace"))
        return genuine and self._clock() < int(expires)

    def _signature(self, method: str, key: str, expires: int) -> str:
        message = f"{method}\n{key}\n{expires}".encode("utf-8", "replace")
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()


class S3Storage:
    """A bucket of S3 or R2."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.time) -> None:
        assert settings.r2_bucket_name is not None
        assert settings.r2_access_key_id is not None
        assert settings.r2_secret_access_key is not None
        endpoint = settings.r2_endpoint_url or ""
        self._public_url = settings.r2_public_url
        self._clock = clock
        # Images' URLs by key and seconds, with the moment of signing; the oldest first.
        self._signed: dict[tuple[str, int], tuple[float, str]] = {}
        self._store = S3Store(
            settings.r2_bucket_name,
            endpoint=endpoint,
            region=settings.r2_region,
            access_key_id=settings.r2_access_key_id.get_secret_value(),
            secret_access_key=settings.r2_secret_access_key.get_secret_value(),
            virtual_hosted_style_request=False,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "timeout": timedelta(seconds=120),
                "connect_timeout": timedelta(seconds=5),
            },
            retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=30)},
        )

    async def put(self, key: str, data: bytes | IO[bytes]) -> None:
        """One PUT, or a multipart upload where the file is large."""
        with span("object.put", key=key):
            await _in_thread(
                lambda: obstore.put(self._store, check_key(key), data), duty=_duty(data)
            )

    async def get(self, key: str) -> bytes:
        """One GET."""
        return await _in_thread(lambda: bytes(obstore.get(self._store, check_key(key)).bytes()))

    async def delete(self, key: str) -> None:
        """Remove the object."""

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, check_key(key))

        await _in_thread(remove)

    async def exists(self, key: str) -> bool:
        """Whether the object is there."""

        def look() -> bool:
            try:
                obstore.head(self._store, check_key(key))
            except FileNotFoundError:
                return False
            return True

        return await _in_thread(look)

    async def keys(self, folder: str) -> list[str]:
        """The objects below a prefix."""

        def look() -> list[str]:
            found = obstore.list_with_delimiter(self._store, f"{check_key(folder)}/")
            return [str(item["path"]) for item in found["objects"]]

        return await _in_thread(look)

    async def objects(self, folder: str) -> AsyncIterator[list[Stored]]:
        """The objects below a prefix."""
        pages = obstore.list(self._store, f"{check_key(folder)}/", chunk_size=_LIST_AT_ONCE)

        def some() -> list[Stored]:
            page = next(pages, [])
            return [Stored(str(item["path"]), item["last_modified"]) for item in page]

        while page := await _in_thread(some):
            yield page

    async def clear_partial(self, before: datetime) -> None:
        """Nothing: unfinished uploads are the bucket's to forget, by a lifecycle rule."""

    def sign_get(self, key: str, seconds: int) -> str:
        """A presigned URL (SigV4); made here, without asking the server."""
        return obstore.sign(self._store, "GET", check_key(key), timedelta(seconds=seconds))

    def image_url(self, key: str, seconds: int) -> str:
        """Below R2_PUBLIC_URL where that is set: its keys hold random ids. Else signed."""
        if self._public_url:
            return f"{self._public_url}/{quote(check_key(key))}"
        window = min(_STABLE_SECONDS, seconds, _LONGEST_SECONDS - seconds)
        signed = self._signed.get((key, seconds))
        now = self._clock()
        if signed is None or not 0 <= now - signed[0] < window:
            signed = (now, self.sign_get(key, seconds + window))
            self._signed.pop((key, seconds), None)
            self._signed[key, seconds] = signed
            if len(self._signed) > _SIGNED_KEPT:
                del self._signed[next(iter(self._signed))]
        return signed[1]


def _duty(data: bytes | IO[bytes]) -> Duty:
    """Whole files take minutes: not in the threads that pictures need."""
    return Duty.STORAGE if isinstance(data, bytes) else Duty.UPLOADS


async def _in_thread(work: Callable[..., T], *arguments: object, duty: Duty = Duty.STORAGE) -> T:
    """Run blocking `work` in a thread; foreign errors become StorageFailed."""
    try:
        return await in_pool(duty, work, *arguments)
    except StorageFailed:
        raise
    except (OSError, obstore.exceptions.BaseError) as error:
        if is_disk_full(error):
            raise StorageFailed("There is no space left on the server's disk.") from error
        raise StorageFailed("The object store did not take or give the file.") from error


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
