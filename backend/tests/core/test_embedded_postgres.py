"""The embedded PostgreSQL: nobody else reaches it, and nothing of others is opened for it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
from sqlalchemy import URL

from app.core import embedded_postgres, run_as
from app.core.embedded_postgres import DatabaseError, EmbeddedPostgres
from app.core.settings import load_settings
from app.services.storage import LocalStorage
from testkit.processes import BACKEND

pytestmark = pytest.mark.process


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def ask(url: URL) -> object:
    with psycopg.connect(url.render_as_string(hide_password=False)) as connection:
        row = connection.execute("SELECT current_setting('listen_addresses')").fetchone()
    assert row is not None
    return row[0]


@pytest.fixture(scope="module")
def long_folder() -> Iterator[Path]:
    """Longer than a socket's path may be, below a folder that is only ours, with odd characters."""
    top = Path(tempfile.mkdtemp(prefix="backend-tests-"))
    yield top / ("a 'long' ñ " + "x" * 90) / "data"
    shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="module")
def running(long_folder: Path) -> Iterator[tuple[EmbeddedPostgres, URL]]:
    server = EmbeddedPostgres(long_folder / "postgres")
    yield server, server.start()
    server.stop()


def test_where_the_path_is_long_the_socket_lies_in_a_folder_of_mode_0700(
    running: tuple[EmbeddedPostgres, URL], long_folder: Path
) -> None:
    _, url = running
    assert ask(url) == ""
    place = Path(str(url.query["host"]))
    assert place != long_folder / "postgres"
    assert mode(place) == 0o700
    assert mode(place / ".s.PGSQL.5432") & 0o077 == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_local_user_cannot_connect(running: tuple[EmbeddedPostgres, URL]) -> None:
    place = f"{running[1].query['host']}/.s.PGSQL.5432"
    code = (
        "import os, socket, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    )
    other = subprocess.run(
        [sys.executable, "-I", "-c", code, place],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in other.stderr
    with socket.socket(socket.AF_UNIX) as own:  # the control: it is there
        own.connect(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_programs_below_a_folder_of_roots_find_each_other(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    program = tmp_path / "program"
    program.write_text("")
    program.chmod(0o755)
    code = "import os, sys; print(os.getuid(), os.access(sys.argv[1], os.X_OK))"
    asked = [sys.executable, "-I", "-c", code, str(program)]
    answer = subprocess.run(
        [sys.executable, "-I", run_as.__file__, "65534", "65534", *asked],
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == ["65534", "True"]


def test_folders_above_stay_as_they_were_and_ours_are_private(
    running: tuple[EmbeddedPostgres, URL], long_folder: Path
) -> None:
    assert running[1]
    top = long_folder.parent.parent
    assert mode(top) == 0o700  # as mkdtemp made it
    assert mode(long_folder) == 0o700
    assert mode(long_folder / "postgres") == 0o700


def test_nothing_of_it_lies_outside_its_folders(
    running: tuple[EmbeddedPostgres, URL], long_folder: Path
) -> None:
    assert running[1]
    assert (long_folder / ".postgres.lock").exists()
    assert mode(long_folder / ".postgres.lock") == 0o600
    place = psutil.Process(running[0].pid).environ()
    assert not [name for name in place if "TOKEN" in name or "SECRET" in name or "KEY" in name]


def test_a_killed_server_is_reaped_and_started_again_at_the_same_address(
    running: tuple[EmbeddedPostgres, URL],
) -> None:
    server, url = running
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    server._ended(first, 20)
    gone = server.pid is None  # mypy would take its own word for what follows
    assert gone
    server.ensure_running()
    assert server.pid not in (None, first)
    assert not psutil.pid_exists(first), "it stayed a zombie"
    assert ask(url) == ""


def test_as_pid_1_what_has_lost_its_parent_is_reaped(running: tuple[EmbeddedPostgres, URL]) -> None:
    server, _ = running
    for delay in (0.0, 0.0005, 0.001, 0.002):  # it may end at any moment of the look
        # As a program in between would leave it: a child of ours that we have not started.
        orphan = os.fork()
        if orphan == 0:
            time.sleep(delay)
            os._exit(0)
        assert server._ended(orphan, 10)
        assert not psutil.pid_exists(orphan)


def test_a_pid_file_that_names_another_process_does_not_keep_it_from_starting(
    running: tuple[EmbeddedPostgres, URL], long_folder: Path
) -> None:
    server, url = running
    pid_file = long_folder / "postgres" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    server._ended(pid, 20)
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:], ""]))
    server.ensure_running()
    assert ask(url) == ""


def test_the_last_of_two_processes_stops_it(
    running: tuple[EmbeddedPostgres, URL], long_folder: Path
) -> None:
    _, url = running
    code = textwrap.dedent(
        """
        import sys, pathlib
        from app.core.embedded_postgres import EmbeddedPostgres
        server = EmbeddedPostgres(pathlib.Path(sys.argv[1]))
        print(server.start().query["host"])
        server.stop()
        """
    )
    other = subprocess.run(
        [sys.executable, "-c", code, str(long_folder / "postgres")],
        cwd=BACKEND,
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == url.query["host"]
    assert ask(url) == "", "the other one must not have stopped it"


def test_where_it_cannot_lie_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "thesis.txt").write_text("x")
    with pytest.raises(DatabaseError, match="something else"):
        EmbeddedPostgres(tmp_path / "postgres").start()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "PG_VERSION").write_text("16\n")
    with pytest.raises(DatabaseError, match="PostgreSQL 16"):
        EmbeddedPostgres(tmp_path / "old").start()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "PG_VERSION").write_text("18\n")
    monkeypatch.setattr(embedded_postgres, "_fits", lambda _: False)
    with pytest.raises(DatabaseError, match="too long"):
        EmbeddedPostgres(tmp_path / "new").start()


def test_what_the_server_keeps_is_readable_by_its_user_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    data = tmp_path / "deep" / "data"
    LocalStorage(load_settings(data_dir=data))
    assert mode(data) == mode(data / "objects") == 0o700
    assert mode(tmp_path) == 0o755
    (data / "objects").chmod(0o755)  # as earlier versions left it
    data.chmod(0o750)  # as somebody wants it
    LocalStorage(load_settings(data_dir=data))
    assert (mode(data), mode(data / "objects")) == (0o750, 0o700)
    assert mode(data / "signing.key") == 0o600


def test_a_copied_folder_starts_by_itself_also_where_root_has_copied_it_from_a_running_one(
    running: tuple[EmbeddedPostgres, URL],
) -> None:
    server, _ = running
    with tempfile.TemporaryDirectory(prefix="backend-tests-") as place:
        # As `cp -r` does: owned by whoever copies, the pid file and the list of users included.
        shutil.copytree(
            server._folder,
            Path(place, "postgres"),
            ignore=lambda _, names: [name for name in names if name.startswith(".s.")],
        )
        copy = EmbeddedPostgres(Path(place, "postgres"))
        url = copy.start()
        assert ask(url) == ""
        own = copy.pid
        assert own not in (None, server.pid)
        assert copy.others() == []
        copy.stop()
        assert copy.pid is None
    assert server.pid is not None
