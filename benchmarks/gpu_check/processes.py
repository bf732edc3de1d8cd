"""What runs as processes of their own: the worker, diffusers' start and its hotswap, the tests
marked `gpu`; and a server of LoRA files beside them.

Must not know: what is checked of their answers.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from benchmarks.full_size import REPOSITORY
from benchmarks.gpu_check.inputs import LoraFiles
from benchmarks.gpu_check.speeds import Rows

IMPORTED_FROM = [str(REPOSITORY / room) for room in (".", "contract/src", "worker/src")]

# A UNet that is compiled as a whole, for two shapes, takes minutes on slow cores.
START_S, COMPILED_START_S = 150.0, 480.0
_CALL_S = 280
_PEER_S, _TESTS_S = 200, 240
# To load and compile, and to time.
_HOTSWAP_S = 150.0, 60.0
_TESTS = ("worker/tests", "benchmarks/tests")
_PEER_START = """
import sys, time
import diffusers, torch
dtype = torch.bfloat16 if sys.argv[2] == "cuda" else torch.float32
cls = diffusers.StableDiffusionXLPipeline
try:
    pipe = cls.from_pretrained(sys.argv[1], variant="fp16", dtype=dtype, add_watermarker=False)
except (OSError, ValueError):
    pipe = cls.from_pretrained(sys.argv[1], dtype=dtype, add_watermarker=False)
pipe.to(sys.argv[2])
if sys.argv[2] == "cuda":
    torch.cuda.synchronize()
# The system's clock, the same in all processes.
print("ready", time.perf_counter(), flush=True)
side, steps = int(sys.argv[3]), int(sys.argv[4])
if steps:
    pipe("x", width=side, height=side, num_inference_steps=steps)
    print("drawn", time.perf_counter(), flush=True)
"""
# Says when it has compiled, and times when it is told to.
_PEER_HOTSWAP = """
import os, sys, traceback
from pathlib import Path
try:
    from benchmarks.gpu_check.inputs import LoraFiles
    from benchmarks.gpu_check.speeds import Theirs, median_ms
    from sdxl_worker.loading.imports import share_the_interpreter
    model, device, side, steps, runs, compiled, loras, *names = sys.argv[1:]
    theirs = Theirs(Path(model), device, int(side), int(steps))
    swap = theirs.hotswaps(LoraFiles(Path(loras), names), compiled=compiled == "True")
    share_the_interpreter()
    print("ready", flush=True)
    sys.stdin.readline()
    print("ms", median_ms(device, swap, int(runs)), flush=True)
except BaseException:
    traceback.print_exc()
finally:
    # Those who compile for torch would be waited for, up to five minutes.
    sys.stderr.flush()
    os._exit(0)
"""
# All that the worker's process imports.
_IMPORTS = """
import sdxl_worker.serve
from sdxl_worker.loading.imports import import_libraries
import_libraries()
import sdxl_worker.api, sdxl_worker.engine, sdxl_worker.loading.pipeline
"""


def environment_of_a_child() -> dict[str, str]:
    """Which finds this checkout's code where nothing of it is installed, and keeps its bytecode, as
    what is installed does."""
    places = [*IMPORTED_FROM, os.environ.get("PYTHONPATH", "")]
    found = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))}
    found.pop("PYTHONDONTWRITEBYTECODE", None)
    return found


@dataclass
class Service:
    """A worker that is ready.

    Attributes:
        start_s: from the process's start to ready.
    """

    url: str
    start_s: float
    health: Mapping[str, Any]

    def call(self, body: Mapping[str, Any], path: str = "/generate-image") -> dict[str, Any]:
        """The answer, or the error's body; `http` is its status, `wall_s` how long it took."""
        # A loopback address of ours.
        request = urllib.request.Request(  # noqa: S310
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        started = time.perf_counter()
        try:
            with urllib.request.urlopen(request, timeout=_CALL_S) as answer:  # noqa: S310
                found: dict[str, Any] = json.load(answer)
                found["http"] = answer.status
        except urllib.error.HTTPError as error:
            found = json.loads(error.read()) | {"http": error.code}
        found["wall_s"] = time.perf_counter() - started
        return found


class _Store(http.server.BaseHTTPRequestHandler):
    """Files as object stores serve them: with ETags, conditions and ranges. Under `/fresh/N/` each
    is another file for each N from 1 to 255, as valid: its last number's last bits differ."""

    protocol_version = "HTTP/1.1"
    files: Mapping[str, bytes]
    etags: Mapping[str, str]

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        *fresh, name = self.path.partition("?")[0].strip("/").split("/")
        data = self.files.get(name)
        if data is None:
            self._answer(404, b"")
        elif fresh:
            # Not a copy of all of it, which would take as long as to fetch it.
            view = memoryview(data)
            self._answer(200, view[:-2], last=bytes([data[-2] ^ int(fresh[-1]), data[-1]]))
        elif self.headers.get("If-None-Match") == self.etags[name]:
            self._answer(304, b"", self.etags[name])
        elif wanted := self.headers.get("Range"):
            first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
            self._answer(206, data[first : last + 1], self.etags[name])
        else:
            self._answer(200, data, self.etags[name])

    def _answer(
        self, status: int, data: bytes | memoryview, etag: str | None = None, last: bytes = b""
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) + len(last)))
        if etag is not None:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.write(last)


@contextmanager
def lora_server(files: LoraFiles) -> Iterator[dict[str, dict[str, str]]]:
    """File name → the `url` and `sha256` of a request's LoRA."""
    held = {name: (files.folder / name).read_bytes() for name in files.names}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in held.items()}
    etags = {name: f'"{digest}"' for name, digest in hashes.items()}
    handler = type("Store", (_Store,), {"files": held, "etags": etags})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield {name: {"url": f"{url}/{name}", "sha256": hashes[name]} for name in files.names}
    finally:
        server.shutdown()
        server.server_close()


def fresh(lora: Mapping[str, str], number: int) -> dict[str, str]:
    """The LoRA as a file that nobody has seen yet, for each `number` from 1 to 255."""
    base, _, name = lora["url"].rpartition("/")
    return {"url": f"{base}/fresh/{number}/{name}"}


@contextmanager
def service(
    model: Path, device: str, log: Path, *, start_s: float = START_S, **settings: str
) -> Iterator[Service]:
    """A worker process with `model`; ended at the end of the block.

    Raises:
        RuntimeError: it was not ready within `start_s` seconds.
    """
    # Not the test kit's, which needs the backend: a bare machine has none.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = environment_of_a_child() | {
        "BASE_MODEL": str(model), "DEVICE": device, "WORKER_PORT": str(port),
        "LORA_ALLOW_LOOPBACK": "true", "RESULT_KEEP_SECONDS": "0", "HF_HUB_OFFLINE": "1",
    } | settings  # fmt: skip
    started = time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "sdxl_worker.serve"],
            env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        health = _ready(process, url, started, log, start_s)
        yield Service(url, time.perf_counter() - started, health)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(
    process: subprocess.Popen[bytes], url: str, started: float, log: Path, start_s: float
) -> Mapping[str, Any]:
    while time.perf_counter() - started < start_s:
        try:
            with urllib.request.urlopen(f"{url}/health?include=modules", timeout=5) as answer:  # noqa: S310
                found: Mapping[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            if json.loads(error.read()).get("status") == "failed":
                break
        except OSError:
            pass
        if process.poll() is not None:
            break
        # Not more often: it is answered by the interpreter that is to become ready.
        time.sleep(0.1)
    raise RuntimeError(f"the worker did not become ready: {log.read_text()[-1500:]}")


@contextmanager
def gpu_tests() -> Iterator[Callable[[], Rows]]:
    """The tests marked `gpu`, each a promise that no CPU can show, beside the block; what is given
    waits for their end, and says it.

    By pytest alone, whatever its version and plugins here: the project's own settings ask for some.

    Raises:
        RuntimeError: by what is given: one failed, or none ran.
    """
    files = [
        str(path) for room in _TESTS for path in sorted((REPOSITORY / room).rglob("test_*.py"))
        if re.search(r"^ *@?pytest\.mark\.gpu", path.read_text(), re.MULTILINE)
    ]  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "-m", "gpu", "-p", "no:cacheprovider",
               "-p", "no:warnings", "--tb=short",
               "-c", os.devnull, "--rootdir", str(REPOSITORY), "--import-mode=importlib",
               *files]  # fmt: skip
    environment = environment_of_a_child() | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "",
    }  # fmt: skip
    # No pipe, which would fill while nobody waits.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield lambda: _told(process, output)
        finally:
            process.kill()
            process.wait()


def _told(process: subprocess.Popen[bytes], output: IO[str]) -> Rows:
    try:
        failed = process.wait(_TESTS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        failed = process.wait()
    output.seek(0)
    said = output.read()
    # Not the very last line: libraries may have their say when the process ends.
    passed = re.findall(r"^.*\b\d+ passed\b.*$", said, re.MULTILINE)
    if failed or not passed:
        # What failed, and how it began: a row has no place for all of it.
        print(said, flush=True)
        told = re.findall(r"^(?:E  |FAILED|ERROR).*", said, re.MULTILINE)
        raise RuntimeError("\n".join([*told[:12], said[-1200:] if not told else said[-200:]]))
    skipped = re.findall(r"^SKIPPED.*", said, re.MULTILINE)
    return {"ok": True, "summary": passed[-1]} | ({"skipped": skipped} if skipped else {})


class Hotswap:
    """Diffusers' adapters that replace each other in place, in a process that loads and compiles
    beside whatever this one does; ended at the end of the `with` block.

    Args:
        compiled: its blocks.
    """

    def __init__(
        self, model: Path, files: LoraFiles, device: str, side: int, steps: int, *, compiled: bool
    ) -> None:
        self._compiled = compiled
        self._log = files.folder / "hotswap.log"
        command = [
            sys.executable, "-c", _PEER_HOTSWAP, str(model), device, str(side), str(steps), "2",
            str(compiled), str(files.folder), *files.names,
        ]  # fmt: skip
        self._until = time.perf_counter() + _HOTSWAP_S[0]
        with self._log.open("wb") as output:
            # With those who compile for it in a group of its own, to end them together.
            self._process = subprocess.Popen(
                command, env=environment_of_a_child(), stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._end()

    def wait_until_compiled(self) -> None:
        """Or until it has failed, or its time is over: then nothing is beside what is timed."""
        while self._process.poll() is None and not self._has_said("ready"):
            if time.perf_counter() > self._until:
                self._end()
                return
            time.sleep(0.2)

    def timed(self) -> Rows:
        """A cycle's milliseconds.

        Raises:
            RuntimeError: it did not work.
        """
        self.wait_until_compiled()
        with suppress(OSError, subprocess.TimeoutExpired):
            self._process.communicate(b"\n", timeout=_HOTSWAP_S[1])
        found = self._has_said(r"ms ([\d.]+)")
        if found is None:
            where = "timed" if self._has_said("ready") else "compiled"
            raise RuntimeError(f"not {where} in its time: {self._log.read_text()[-1000:]}")
        name = "hotswap_compiled_cycle_ms" if self._compiled else "hotswap_cycle_ms"
        return {name: float(found[1])}

    def _has_said(self, line: str) -> re.Match[str] | None:
        return re.search(f"^{line}$", self._log.read_text(errors="replace"), re.MULTILINE)

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def bytecode() -> subprocess.Popen[bytes]:
    """A process that imports what the worker does: where libraries came without bytecode, its first
    start would make it, as installing does. The peer's are imported by this process."""
    return subprocess.Popen([sys.executable, "-c", _IMPORTS], env=environment_of_a_child())


def peer_start(folder: Path, device: str, side: int, steps: int) -> dict[str, float]:
    """Seconds of diffusers from a process's start to a pipeline on the device (`ready`), and to its
    first picture (`drawn`), which no `steps` leave out."""
    started = time.perf_counter()
    command = [sys.executable, "-c", _PEER_START, str(folder), device, str(side), str(steps)]
    done = subprocess.run(
        command, env=environment_of_a_child(), check=False, capture_output=True, text=True,
        timeout=_PEER_S,
    )  # fmt: skip
    told = dict(re.findall(r"^(ready|drawn) ([\d.]+)$", done.stdout, re.MULTILINE))
    if done.returncode:
        raise RuntimeError(done.stderr[-1200:])
    return {name: float(at) - started for name, at in told.items()}
