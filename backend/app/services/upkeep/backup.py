"""One file with all that a deployment would miss, and the way back from it.

Duty: rows by PostgreSQL's own tools of the embedded server's version, objects and the signing key
where they lie in DATA_DIR; a bucket's objects are the bucket's to keep.
Must not know: HTTP, what the tables mean.
"""

from __future__ import annotations

import io
import json
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import psycopg
from sqlalchemy import URL

from app.core.db import migrate
from app.core.embedded_postgres import make_private_folder, programs

_DUMP, _MANIFEST, _KEY, _OBJECTS = "database.dump", "backup.json", "signing.key", "objects"
_FORMAT = 1
_INCOMING = ".incoming"


class BackupError(RuntimeError):
    """It cannot be made or taken back; the message says why, and holds no password."""


@dataclass(frozen=True)
class BackedUp:
    """What a backup holds."""

    bytes: int
    objects: int
    with_objects: bool


def back_up(url: URL, data_dir: Path, target: Path, *, with_objects: bool) -> BackedUp:
    """Write a backup to `target`, which appears whole or not at all. The backend may run.

    The rows are of one moment, the objects of a little later: so no row lacks its object, unless
    it is deleted in between.

    Raises:
        BackupError: it could not be written.
    """
    if target.exists():
        raise BackupError(f"{target} is there already: name another file")
    written = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    count = 0
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            dump = Path(folder, _DUMP)
            _run("pg_dump", url, "--format=custom", "--no-owner", f"--file={dump}")
            descriptor = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with (
                os.fdopen(descriptor, "wb") as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
            ):
                about = {"format": _FORMAT, "made_at": int(time.time()), "objects": with_objects}
                _add_bytes(archive, _MANIFEST, json.dumps(about).encode())
                archive.add(dump, _DUMP)
                if with_objects:
                    count = _add_objects(archive, data_dir)
                archive.close()
                file.flush()
                os.fsync(file.fileno())
        os.replace(written, target)
    except OSError as error:
        raise BackupError(f"the backup could not be written: {error.strerror}") from error
    finally:
        written.unlink(missing_ok=True)
    return BackedUp(target.stat().st_size, count, with_objects)


def restore(url: URL, data_dir: Path, source: Path, *, replace: bool) -> dict[str, object]:
    """Bring back what `source` holds, then bring its schema up to date. The backend must not run.

    Raises:
        BackupError: `source` is no backup, or the database holds something and may not lose it.
    """
    try:
        with tarfile.open(source) as archive:
            about = _manifest(archive)
            if not replace and _holds_something(url):
                raise BackupError(
                    "the database holds data: restore into an empty DATA_DIR or database, or say "
                    "--replace to lose what is there"
                )
            with tempfile.TemporaryDirectory(dir=data_dir) as folder:
                archive.extract(_DUMP, folder, filter="data")
                dump = str(Path(folder, _DUMP))
                with psycopg.connect(_conninfo(url), autocommit=True) as connection:
                    connection.execute("DROP SCHEMA IF EXISTS public CASCADE")
                    connection.execute("CREATE SCHEMA public")
                _run("pg_restore", url, "--no-owner", "--exit-on-error", dump)
            count = _take_objects(archive, data_dir) if about["objects"] else 0
    except (tarfile.TarError, KeyError, ValueError) as error:
        raise BackupError(f"{source} is no backup of this program") from error
    except OSError as error:
        raise BackupError(f"the backup could not be read back: {error.strerror}") from error
    migrate(url)
    return {"objects": count, "made_at": about["made_at"]}


def as_json(done: BackedUp) -> str:
    """For whoever typed the command."""
    return json.dumps(asdict(done))


def _add_bytes(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
    archive.addfile(entry, io.BytesIO(data))


def _add_objects(archive: tarfile.TarFile, data_dir: Path) -> int:
    count = 0
    root = data_dir / _OBJECTS
    for place, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name != _INCOMING)
        for name in sorted(names):
            file = Path(place, name)
            try:
                archive.add(file, f"{_OBJECTS}/{file.relative_to(root).as_posix()}")
            except FileNotFoundError:  # deleted meanwhile
                continue
            count += 1
    if (data_dir / _KEY).exists():
        archive.add(data_dir / _KEY, _KEY)
    return count


def _manifest(archive: tarfile.TarFile) -> dict[str, object]:
    file = archive.extractfile(_MANIFEST)
    about = json.loads(file.read(10_000)) if file else None
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise ValueError("another format")
    return about


def _take_objects(archive: tarfile.TarFile, data_dir: Path) -> int:
    """Write the objects, each whole or not at all; what is there under other names stays."""
    count = 0
    root = data_dir / _OBJECTS
    make_private_folder(root)
    for entry in archive:
        parts = PurePosixPath(entry.name).parts
        is_object = len(parts) > 1 and parts[0] == _OBJECTS and ".." not in parts
        if not entry.isfile() or not (is_object or entry.name == _KEY):
            continue
        target = data_dir.joinpath(*parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = data_dir / f".restored-{secrets.token_hex(8)}"
        source = archive.extractfile(entry)
        assert source is not None
        with temporary.open("xb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o600)
        os.replace(temporary, target)
        count += is_object
    return count


def _holds_something(url: URL) -> bool:
    with psycopg.connect(_conninfo(url)) as connection:
        for table in ("api_key", "generation", "lora_model", "avatar"):
            found = connection.execute("SELECT to_regclass(%s)", (f"public.{table}",)).fetchone()
            if found is None or found[0] is None:
                continue
            if connection.execute(f"SELECT 1 FROM {table} LIMIT 1".encode()).fetchone():
                return True
    return False


def _conninfo(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _run(program: str, url: URL, *arguments: str) -> None:
    """Run one of PostgreSQL's tools on the database."""
    # The password goes by the environment: other users can see what a command was given.
    place = url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    if url.password:
        environment["PGPASSWORD"] = str(url.password)
    done = subprocess.run(
        [str(programs() / program), f"--dbname={place}", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[-500:]
        raise BackupError(f"{program} did not do it: {said}")
