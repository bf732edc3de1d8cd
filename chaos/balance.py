"""The balance after a chaos run: what was accepted, what became of it, and what lies in the bucket.

A trigger in the database writes down every change of a content that had ended already: that is
what a completion by a process that had lost its content would be.
Must not know: how the chaos was made.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import obstore
import psycopg
from PIL import Image as PictureFile
from sqlalchemy import make_url

from app.core.db import Database
from app.core.settings import Settings
from app.services.marking.unsigned import without_manifest
from app.services.storage import S3Storage
from app.services.thumbnails import make_thumbnail
from app.services.upkeep.sweep import sweep
from chaos.scene import PICTURE_SIDE
from chaos.worker_double import draw
from sdxl_contract.errors import ErrorCode

_AUDIT = """
    CREATE TABLE chaos_late (content_id uuid, was text, becomes text, attempt int);
    CREATE FUNCTION chaos_late() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO chaos_late VALUES (OLD.id, OLD.status, NEW.status, NEW.attempt);
        RETURN NEW;
    END $$;
    CREATE TRIGGER chaos_late BEFORE UPDATE ON generation FOR EACH ROW
    WHEN (OLD.finished_at IS NOT NULL) EXECUTE FUNCTION chaos_late();
"""
_CONTENTS = """
    SELECT id, status, error, attempt, prompt, (parameters->>'seed')::bigint
    FROM generation
"""
_PIECES = "SELECT generation_id, object_key, thumbnail_key, sha256 FROM content_piece"
_LORAS = "SELECT object_key, sha256 FROM lora_model"
_ENDS = """
    SELECT g.id, count(e.id) FROM generation g LEFT JOIN generation_event e
    ON e.generation_id = g.id AND e.type IN ('succeeded', 'failed', 'cancelled')
    GROUP BY g.id HAVING count(e.id) <> 1
"""
UNFINISHED = "generation WHERE status IN ('queued', 'running')"
RUNNING = "generation WHERE status = 'running'"
CHANGED_LATE = "chaos_late"
# By its deadline, or by what was asked: a picture that is too large for the GPU.
_RIGHTLY_FAILED = frozenset({ErrorCode.TIMEOUT, ErrorCode.CUDA_OOM})
Piece = tuple[uuid.UUID, str, str | None, str]


@dataclass
class Balance:
    """Figures, and everything that is not as it must be."""

    accepted: int
    succeeded: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    orphans_swept: int = 0
    thumbnails: int = 0
    wrong: list[str] = field(default_factory=list)

    def shown(self) -> dict[str, object]:
        """For a report."""
        return {
            "accepted": self.accepted,
            "succeeded": self.succeeded,
            "failed": dict(self.failed),
            "attempts_per_job": dict(sorted(self.attempts.items())),
            "orphans_swept": self.orphans_swept,
            "thumbnails": self.thumbnails,
            "violations": self.wrong,
        }


def install_audit(conninfo: str) -> None:
    """Begin to write down what is done to contents that have ended."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(_AUDIT)


def count(conninfo: str, of: str) -> int:
    """How many rows there are of `UNFINISHED`, `RUNNING` or `CHANGED_LATE`."""
    with psycopg.connect(conninfo) as connection:
        row = connection.execute(f"SELECT count(*) FROM {of}").fetchone()
    assert row is not None
    return int(row[0])


def draw_up(settings: Settings, accepted: Mapping[str, uuid.UUID]) -> Balance:
    """Sweep, then compare. `accepted` maps each Idempotency-Key to the content that it gave.

    The sweep is the backend's own: processes that were killed between storing a picture and
    naming it leave objects, and their removal is part of the promise.
    """
    assert settings.database_url is not None
    conninfo = settings.database_url.get_secret_value()
    balance = Balance(accepted=len(accepted))
    swept = asyncio.run(_sweep(settings))
    balance.orphans_swept = swept
    with psycopg.connect(conninfo) as connection:
        contents = {row[0]: row[1:] for row in connection.execute(_CONTENTS).fetchall()}
        images = [_image(row) for row in connection.execute(_PIECES).fetchall()]
        loras: dict[str, str] = dict(connection.execute(_LORAS).fetchall())
        waiters = connection.execute(_ENDS).fetchall()
        late = connection.execute("SELECT * FROM chaos_late").fetchall()
    _compare_contents(balance, set(accepted.values()), contents)
    for content_id, was, becomes, attempt in late:
        balance.wrong.append(
            f"content {content_id} had ended ({was}) and was changed again (to {becomes}, "
            f"attempt {attempt})"
        )
    for content_id, times in waiters:
        balance.wrong.append(f"the end of content {content_id} was told {times} times")
    objects = _objects(settings)
    _compare_objects(balance, images, loras, objects)
    _compare_pictures(balance, contents, images, objects)
    return balance


def _image(row: tuple[object, ...]) -> Piece:
    content_id, key, thumbnail, digest = row
    assert isinstance(content_id, uuid.UUID)
    return content_id, str(key), None if thumbnail is None else str(thumbnail), str(digest)


def _compare_contents(
    balance: Balance, accepted: set[uuid.UUID], contents: Mapping[uuid.UUID, tuple[object, ...]]
) -> None:
    for content_id in accepted - contents.keys():
        balance.wrong.append(f"content {content_id} was accepted and is gone")
    for content_id in contents.keys() - accepted:
        balance.wrong.append(f"content {content_id} is there and nobody was told")
    for content_id, (status, error, attempt, *_) in contents.items():
        balance.attempts[int(str(attempt))] += 1
        if status == "succeeded":
            balance.succeeded += 1
            if error is not None:
                balance.wrong.append(f"content {content_id} succeeded with an error")
        elif status == "failed" and isinstance(error, dict) and error.get("message"):
            balance.failed[str(error["code"])] += 1
            if error["code"] not in _RIGHTLY_FAILED:
                balance.wrong.append(f"content {content_id} failed: {error}")
        else:
            balance.wrong.append(f"content {content_id} ended as {status} with {error}")
    ended = balance.succeeded + balance.failed.total()
    if ended != balance.accepted:
        balance.wrong.append(f"{balance.accepted} were accepted and {ended} have ended")


def _compare_objects(
    balance: Balance, images: list[Piece], loras: Mapping[str, str], objects: Mapping[str, str]
) -> None:
    """Every object has its row and every row its object: pictures, thumbnails, LoRA files."""
    thumbnails = {thumbnail for _, _, thumbnail, _ in images if thumbnail is not None}
    balance.thumbnails = len(thumbnails)
    named = {key for _, key, _, _ in images} | thumbnails | loras.keys()
    for key in objects.keys() - named:
        balance.wrong.append(f"object {key} has no row")
    for key in named - objects.keys():
        balance.wrong.append(f"row of {key} has no object")
    for digest, times in Counter(objects.values()).items():
        if times > 1:
            balance.wrong.append(f"the bytes {digest} are stored {times} times")
    for key, digest in loras.items():
        if objects.get(key, digest) != digest:
            balance.wrong.append(f"object {key} is not the LoRA that was uploaded")


def _compare_pictures(
    balance: Balance,
    contents: Mapping[uuid.UUID, tuple[object, ...]],
    images: list[Piece],
    objects: Mapping[str, str],
) -> None:
    """Every success has one picture, of its last attempt, and the one that was asked for."""
    of_content: dict[uuid.UUID, list[Piece]] = {}
    for image in images:
        of_content.setdefault(image[0], []).append(image)
    for content_id, (status, _, attempt, prompt, seed) in contents.items():
        mine = of_content.get(content_id, [])
        if len(mine) != (status == "succeeded"):
            balance.wrong.append(f"content {content_id} {status} with {len(mine)} rows")
        if not mine:
            continue
        picture = draw(str(prompt), int(str(seed)), PICTURE_SIDE)
        small = make_thumbnail(picture)
        assert small is not None
        expected = hashlib.sha256(picture).hexdigest()
        expected_small = _pixels(small)
        for _, key, thumbnail, digest in mine:
            if not key.rpartition("/")[2].startswith(f"{attempt}-"):
                balance.wrong.append(f"object {key} is not the last attempt's ({attempt})")
            if digest != expected or objects.get(key, expected) != expected:
                balance.wrong.append(f"object {key} is not the picture that was asked for")
            # A store that is away leaves a picture without a small copy, which is allowed.
            if thumbnail and objects.get(thumbnail, expected_small) != expected_small:
                balance.wrong.append(f"object {thumbnail} is not {key}, small")


def _objects(settings: Settings) -> dict[str, str]:
    """Every object in the bucket and the SHA-256 of its bytes.

    Left out: `.tmp.…`, which the S3 server lists as an object where it was killed while writing.
    """
    store = S3Storage(settings)._store
    listed = [str(item["path"]) for page in obstore.list(store, "owners/") for item in page]
    keys = [key for key in listed if not key.rpartition("/")[2].startswith(".tmp.")]
    return {key: _digest(key, bytes(obstore.get(store, key).bytes())) for key in keys}


def _digest(key: str, data: bytes) -> str:
    """SHA-256 of what does not change from one signature to the next: a picture's unsigned bytes,
    a small copy's pixels, anything else's bytes."""
    if key.endswith(".png"):
        data = without_manifest(data) or data
    elif key.endswith(".webp"):
        return _pixels(data)
    return hashlib.sha256(data).hexdigest()


def _pixels(picture: bytes) -> str:
    with PictureFile.open(io.BytesIO(picture)) as opened:
        return hashlib.sha256(opened.convert("RGB").tobytes()).hexdigest()


async def _sweep(settings: Settings) -> int:
    assert settings.database_url is not None
    url = settings.database_url.get_secret_value()
    database = Database(make_url(url).set(drivername="postgresql+psycopg"))
    try:
        return (await sweep(database, S3Storage(settings), -60)).removed
    finally:
        await database.close()
