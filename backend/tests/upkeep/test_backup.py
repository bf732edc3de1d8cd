"""What the docs tell one to type brings everything back."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL

from app.core.settings import Settings
from app.services.upkeep.backup import BackupError, back_up, restore
from testkit.backend import StartBackend
from testkit.loras.plain_bytes import kohya_lora
from testkit.processes import BACKEND


def empty_database(url: URL, name: str) -> URL:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0".encode())
    return url.set(database=name)


def cli(url: URL, data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=BACKEND,
        env={**kept, "DATABASE_URL": plain, "DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        check=False,
    )


async def test_a_backup_of_a_running_server_is_restored_by_the_documented_commands(
    start_backend: StartBackend, settings: Settings, database_url: URL, tmp_path: Path
) -> None:
    file, new = tmp_path / "backup.tar", tmp_path / "new"
    async with start_backend() as backend:
        content = await backend.generate()
        lora = await backend.upload(kohya_lora())
        picture = (await backend.http.get(content["image_url"])).content
        done = await asyncio.to_thread(cli, database_url, settings.data_dir, "backup", str(file))
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["objects"] >= 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    url = empty_database(database_url, f"{database_url.database}_new")
    try:
        done = await asyncio.to_thread(cli, url, new, "restore", str(file))
        assert done.returncode == 0, done.stderr + done.stdout
        with pytest.raises(BackupError, match="--replace"):
            await asyncio.to_thread(restore, url, new, file, replace=False)
        # A second time round: of the one that was brought back.
        second = tmp_path / "second.tar"
        await asyncio.to_thread(back_up, url, new, second, with_objects=True)
        await asyncio.to_thread(restore, url, new, second, replace=True)
        async with start_backend(database=url, data_dir=new) as backend:
            path = f"/api/v1/content/{content['id']}"
            there = (await backend.http.get(path)).json()
            assert (await backend.http.get(there["image_url"])).content == picture
            assert (await backend.http.get(content["image_url"])).content == picture
            listed = (await backend.http.get("/api/v1/loras/models")).json()["items"]
            assert [one["id"] for one in listed] == [lora["id"]]
            assert (await backend.generate())["status"] == "succeeded"
    finally:
        empty_database(database_url, f"{database_url.database}_new")


def test_what_is_no_backup_changes_nothing(database_url: URL, tmp_path: Path) -> None:
    wrong = tmp_path / "x.tar"
    wrong.write_bytes(b"no archive")
    with pytest.raises(BackupError, match="is no backup"):
        restore(database_url, tmp_path, wrong, replace=True)
    with tarfile.open(wrong, "w") as archive:
        archive.add(__file__, "database.dump")
    with pytest.raises(BackupError, match="is no backup"):
        restore(database_url, tmp_path, wrong, replace=True)
    plain = database_url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain) as connection:
        assert connection.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    with pytest.raises(BackupError, match="is there already"):
        back_up(database_url, tmp_path, wrong, with_objects=True)


def test_a_password_is_in_no_message_of_a_database_that_is_away(tmp_path: Path) -> None:
    away = URL.create("postgresql+psycopg", "me", "s3cret", "127.0.0.1", 1, "x")
    with pytest.raises(BackupError) as caught:
        back_up(away, tmp_path, tmp_path / "x.tar", with_objects=False)
    assert "s3cret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
