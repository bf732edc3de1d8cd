"""What the service's tests share: LoRA files, a misbehaving file server, a running worker."""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from PIL import Image

from sdxl_worker.api import create_app
from sdxl_worker.engine import Engine
from sdxl_worker.settings import Settings
from testkit.loras.plain_bytes import build

MODEL = Path(__file__).resolve().parents[1] / "demo_model" / "sdxl-demo"
SIDE = 64  # px: the smallest that the small model allows


def settings(**changes: Any) -> Settings:
    """Settings of a worker on loopback with the small model; the environment does not count."""
    values: dict[str, Any] = {
        "base_model": str(MODEL),
        "device": "cpu",
        "dtype": "float32",
        "lora_allow_loopback": True,
        "warmup": False,
        "worker_port": 0,
    }
    return Settings(**(values | changes))


def safetensors_bytes(
    tensors: Mapping[str, np.ndarray[Any, Any]], metadata: dict[str, str] | None = None
) -> bytes:
    """A .safetensors file of these arrays as float16."""
    return build(
        {name: ("F16", array.shape) for name, array in tensors.items()},
        metadata,
        b"".join(array.astype(np.float16).tobytes() for array in tensors.values()),
    )


def kohya_lora(
    shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0, rank: int = 4, strength: float = 0.3
) -> bytes:
    """A kohya LoRA on every two-dimensional module of `shapes` (diffusers name → weight shape)."""
    rng = np.random.default_rng(seed)
    prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name, shape in shapes.items():
        if len(shape) != 2 or not any(p in name for p in ("attn", "ff.net", "mlp")):
            continue
        root, _, rest = name.partition(".")
        stem = f"{prefixes[root]}_{rest.replace('.', '_')}"
        tensors[f"{stem}.lora_down.weight"] = rng.normal(0, 0.1, (rank, shape[1]))
        tensors[f"{stem}.lora_up.weight"] = rng.normal(0, strength, (shape[0], rank))
        tensors[f"{stem}.alpha"] = np.array(rank / 2)
    return safetensors_bytes(tensors, {"ss_base_model_version": "sdxl"})


def hashes(engine: Engine) -> dict[str, str]:
    """SHA-256 of every parameter and buffer of the UNet and both text encoders, with pointers."""
    assert engine._ready is not None
    pipe = engine._ready.model.pipe
    found = {}
    for root in ("unet", "text_encoder", "text_encoder_2"):
        module = getattr(pipe, root)
        for kind in ("named_parameters", "named_buffers"):
            for name, tensor in getattr(module, kind)():
                data = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
                digest = hashlib.sha256(data).hexdigest()
                found[f"{root}.{name}"] = f"{digest} {tensor.data_ptr()} {tensor.stride()}"
    return found


@dataclass
class FileServer:
    """A loopback HTTP server whose answers a test scripts; `hits` counts what was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    scripts: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    hits: list[str] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    puts: dict[str, bytes] = field(default_factory=dict)
    etags: bool = True
    ranges: bool = True
    put_status: int = 200
    put_delay_s: float = 0
    port: int = 0

    def url(self, path: str, signature: str = "X-Amz-Signature=secret") -> str:
        """A URL of `path` that looks signed."""
        return f"http://127.0.0.1:{self.port}{path}?{signature}"

    def add(self, data: bytes, path: str = "/lora.safetensors") -> str:
        """Serve `data`; returns its URL."""
        self.files[path] = data
        return self.url(path)


@contextmanager
def file_server() -> Iterator[FileServer]:
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_PUT(self) -> None:
            length = int(self.headers["Content-Length"])
            state.puts[self.path.partition("?")[0]] = self.rfile.read(length)
            time.sleep(state.put_delay_s)
            with suppress(BrokenPipeError, ConnectionResetError):
                self._answer(state.put_status, b"")

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            state.hits.append(path)
            if path in state.scripts:
                with suppress(BrokenPipeError, ConnectionResetError):
                    state.scripts[path](self)
                self.close_connection = True
                return
            data = state.files.get(path)
            if data is None:
                self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
                return
            etag = f'"{hashlib.md5(data).hexdigest()}"'
            if state.etags and self.headers.get("If-None-Match") == etag:
                self._answer(304, b"", etag)
                return
            wanted = self.headers.get("Range") if state.ranges else None
            if wanted:
                first, last = (int(text) for text in wanted.removeprefix("bytes=").split("-"))
                self._answer(206 if first < len(data) else 416, data[first : last + 1])
                return
            self._answer(200, data, etag if state.etags else None)

        def _answer(self, status: int, data: bytes, etag: str | None = None) -> None:
            state.statuses.append(status)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if etag:
                self.send_header("ETag", etag)
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    # Polled often, so that a test does not wait for the server's end.
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()


@dataclass
class RunningWorker:
    """A worker under uvicorn in a thread of this process, reached over loopback."""

    url: str
    engine: Engine


@contextmanager
def running_worker(config: Settings, engine: Engine | None = None) -> Iterator[RunningWorker]:
    engine = engine or Engine(config)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(engine, config), host="127.0.0.1", port=0, log_config=None, access_log=False
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 90
    while (engine._ready is None and engine._failure is None) or not server.started:
        if time.monotonic() > deadline or not thread.is_alive():
            raise RuntimeError("the worker did not start")
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield RunningWorker(f"http://127.0.0.1:{port}", engine)
    finally:
        server.should_exit = True
        thread.join(30)


def photo_like(side: int) -> Image.Image:
    """A picture with a photo's statistics: smooth shapes with grain, `side` × `side` px."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.normal(0, 3, (side, side, 1)).astype(np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def png_of(body: Mapping[str, Any]) -> Image.Image:
    """The picture of a result."""
    import base64

    return Image.open(io.BytesIO(base64.b64decode(body["image_base64"])))


class Borrowing(Engine):
    """An engine around a running worker's model, with a patcher, caches and settings of its own."""

    def __init__(self, config: Settings, worker: RunningWorker) -> None:
        assert worker.engine._ready is not None
        loaded = worker.engine._ready.model
        super().__init__(config, load=lambda _: loaded)


def traces_of_a_lora(running: RunningWorker, body: dict[str, Any], lora_url: str) -> set[str]:
    """What a picture with a LoRA leaves behind or fails to prove, in words; empty if all is well.

    Asked over HTTP, before and after: the same picture without it, and every weight's bytes.
    """
    found: set[str] = set()
    weights = hashes(running.engine)
    # Only here: the rest is used where there is no such package.
    import httpx2

    with httpx2.Client(base_url=running.url, timeout=60) as http:
        before = http.post("/generate-image", json=body).json()
        styled = http.post("/generate-image", json=body | {"lora_url": lora_url}).json()
        after = http.post("/generate-image", json=body).json()
        health = http.get("/health").json()
    if styled.get("image_base64") == before["image_base64"]:
        found.add("the LoRA changes nothing")
    if styled.get("model_clean") is not True:
        found.add("nobody states that the model is clean")
    if after.get("image_base64") != before["image_base64"]:
        found.add("the next picture differs")
    if health["status"] != "ready":
        found.add("no longer ready")
    if hashes(running.engine) != weights:
        found.add("weights differ")
    return found
