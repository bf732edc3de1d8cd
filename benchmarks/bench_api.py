"""What does the promise cost: how many jobs a second does the backend complete, and how much time
of its own does it add to each?

The worker is a double that answers in 50 ms and never fails; PostgreSQL, the object store (local
files) and the backend are the real ones, each in a process of its own, and so are the clients. The
yardstick is the least that could be written: FastAPI with BackgroundTasks, results in a dict,
nothing kept, nothing retried.

Measured for 1, 8 and 32 clients, each of which asks, waits for the end, and asks again:
- accept: seconds from sending `POST /content/generate` with `Prefer: respond-async` to the answer;
- own time: seconds from sending the same with `Prefer: wait` to the finished content, less the
  double's 50 ms. With more clients than the machine can serve it holds their waiting in line;
- jobs per second: contents that ended, by seconds;
- CPU: the backend's own seconds (PostgreSQL's not included) by jobs;
- memory: the backend's resident set after the warm-up and after all jobs.

A backend is one process, which fills one core. So the throughput of 32 clients is measured again
with a backend for each core, all on one database, which clients ask by turns (`--backends` names
another number). And once more by one backend with pictures of 1024 px that pack as photographs do:
what is decoded, held against its hash, shrunk and signed is 200 times as much then.
`MARKING=off` before the command leaves pictures unsigned.

Headline figures: throughput and accept at 32 clients, own time at 1 client. Last line: JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import psutil
import uvicorn
from fastapi import BackgroundTasks, FastAPI, Request

ROOT = Path(__file__).resolve().parent.parent

from scripts.stack import LOOPBACK, Service, free_port  # noqa: E402

WORKER_SECONDS = 0.05
# Clients: (twentieths of the jobs that are only accepted, that are waited for).
PLAN = {1: (1, 1), 8: (2, 3), 32: (2, 11)}
RESULTS = ROOT / "benchmarks" / "results"
SIDE, LARGE_SIDE = 64, 1024  # px
BODY = {"prompt": "a red apple", "width": SIDE, "height": SIDE}
Ask = Callable[[httpx2.AsyncClient], Awaitable[None]]


@dataclass
class Point:
    """One number of clients. Seconds are in milliseconds."""

    clients: int
    jobs: int
    jobs_per_second: float
    accept_p50_ms: float
    accept_p99_ms: float
    own_time_p50_ms: float
    own_time_p99_ms: float


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of `values` lie, in milliseconds."""
    ordered = sorted(values)
    return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)


async def drive(clients: int, jobs: int, ask: Ask) -> tuple[list[float], float]:
    """(seconds of each call, seconds of all) of `jobs` calls by `clients` at a time."""
    took: list[float] = []
    left = iter(range(jobs))
    limits = httpx2.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx2.AsyncClient(timeout=120, limits=limits) as http:

        async def client() -> None:
            for _ in left:
                started = time.perf_counter()
                await ask(http)
                took.append(time.perf_counter() - started)

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return took, time.perf_counter() - started


# --- the yardstick ----------------------------------------------------------------------------


def serve_yardstick(port: int, worker: str) -> None:
    """The plain app: a dict and BackgroundTasks."""
    results: dict[str, str] = {}
    ended: dict[str, asyncio.Event] = {}

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx2.AsyncClient(timeout=60) as http:
            app.state.http = http
            yield

    app = FastAPI(lifespan=lifespan)

    async def draw(job: str, body: dict[str, object]) -> None:
        answer = await app.state.http.post(worker, json=body | {"seed": 1})
        results[job] = answer.json()["image_sha256"]
        ended.pop(job).set()

    @app.post("/jobs", status_code=202)
    async def accept(request: Request, tasks: BackgroundTasks) -> dict[str, str]:
        job = uuid.uuid4().hex
        ended[job] = asyncio.Event()
        tasks.add_task(draw, job, await request.json())
        return {"id": job}

    @app.get("/jobs/{job}")
    async def wait(job: str) -> dict[str, str]:
        if job in ended:
            await ended[job].wait()
        return {"id": job, "sha256": results[job]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "live"}

    uvicorn.run(app, host=LOOPBACK, port=port, log_level="warning", access_log=False)


async def measure_yardstick(url: str, clients: int, jobs: int) -> tuple[float, float]:
    """(jobs per second, p50 of the own time in ms) of the plain app."""

    async def ask(http: httpx2.AsyncClient) -> None:
        accepted = await http.post(f"{url}/jobs", json=BODY)
        answer = await http.get(f"{url}/jobs/{accepted.json()['id']}")
        answer.raise_for_status()

    took, seconds = await drive(clients, jobs, ask)
    return jobs / seconds, quantile(took, 0.5) - 1000 * WORKER_SECONDS


# --- the backend ------------------------------------------------------------------------------


async def measure_backend(
    urls: list[str], clients: int, jobs: int, accepts: int, side: int = SIDE
) -> Point:
    """Accept and completion with so many clients, which ask the backends by turns."""
    body = BODY | {"width": side, "height": side}
    turns = itertools.cycle([f"{url}/api/v1/content/generate" for url in urls])

    async def accept(http: httpx2.AsyncClient) -> None:
        answer = await http.post(next(turns), json=body, headers={"Prefer": "respond-async"})
        assert answer.status_code == 202, answer.text

    async def complete(http: httpx2.AsyncClient) -> None:
        answer = await http.post(next(turns), json=body, headers={"Prefer": "wait=60"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "succeeded", answer.text

    accepted, _ = await drive(clients, accepts, accept)
    await drained(urls[0])
    took, seconds = await drive(clients, jobs, complete)
    own = [value - WORKER_SECONDS for value in took]
    return Point(
        clients=clients,
        jobs=jobs,
        jobs_per_second=round(jobs / seconds, 1),
        accept_p50_ms=quantile(accepted, 0.5),
        accept_p99_ms=quantile(accepted, 0.99),
        own_time_p50_ms=quantile(own, 0.5),
        own_time_p99_ms=quantile(own, 0.99),
    )


async def drained(url: str) -> None:
    """Return when nothing waits or runs."""
    async with httpx2.AsyncClient(timeout=30) as http:
        for status in ("queued", "running"):
            while True:
                page = await http.get(f"{url}/api/v1/content", params={"status": status})
                if not page.json()["items"]:
                    break
                await asyncio.sleep(0.2)


@contextlib.contextmanager
def running(count: int, side: int = SIDE) -> Iterator[tuple[list[Service], list[str], str]]:
    """`services` in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="bench-api-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the embedded PostgreSQL may run as another user
        with services(folder, count, side) as found:
            yield found


@contextlib.contextmanager
def services(
    folder: Path, count: int, side: int = SIDE
) -> Iterator[tuple[list[Service], list[str], str]]:
    """The double with pictures of `side` px, `count` backends on one database, and the yardstick:
    (backends, their URLs, the yardstick's URL)."""
    ports = [free_port() for _ in range(2 + count)]
    worker_url, plain_url, *backend_urls = (f"http://{LOOPBACK}:{port}" for port in ports)
    worker = Service(
        name="worker double",
        command=[sys.executable, "-m", "chaos.worker_double"],
        folder=ROOT,
        environment={
            "DOUBLE_PORT": str(ports[0]),
            "DOUBLE_SECONDS": str(WORKER_SECONDS),
            "DOUBLE_SIDE": str(side),
            "DOUBLE_PHOTO": "1" if side == LARGE_SIDE else "0",
        },
        ready_url=f"{worker_url}/health",
        log=folder / "worker.log",
    )
    backends = [
        Service(
            name=f"backend {number}",
            command=[sys.executable, "-m", "app.serve"],
            folder=ROOT / "backend",
            environment={
                "HOST": LOOPBACK,
                "PORT": url.rpartition(":")[2],
                "DATA_DIR": str(folder / "data"),
                "MODAL_ENDPOINT_URL": f"{worker_url}/generate-image",
                "JOB_CONCURRENCY": "16",
                "LOG_LEVEL": "WARNING",
            },
            ready_url=f"{url}/health/ready",
            log=folder / f"backend{number}.log",
        )
        for number, url in enumerate(backend_urls)
    ]
    plain = Service(
        name="yardstick",
        command=[
            *(sys.executable, "-m", "benchmarks.bench_api", "--yardstick", str(ports[1])),
            f"{worker_url}/generate-image",
        ],
        folder=ROOT,
        environment={},
        ready_url=f"{plain_url}/health",
        log=folder / "yardstick.log",
    )
    everyone = (worker, plain, *backends)
    try:
        # One after the other: the first one makes the database that all share.
        for service in everyone:
            service.start()
            service.wait_ready(120)
        yield backends, backend_urls, plain_url
    finally:
        for service in reversed(everyone):
            service.stop()


def plot(points: list[Point], yardstick: dict[int, float], path: Path) -> None:
    """Throughput against the yardstick, and the backend's own time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    names = [str(point.clients) for point in points]
    left.plot(names, [yardstick[point.clients] for point in points], "o--", label="yardstick")
    left.plot(names, [point.jobs_per_second for point in points], "o-", label="backend")
    left.set(xlabel="clients", ylabel="jobs per second")
    left.legend()
    for share in ("p50", "p99"):
        right.plot(
            names,
            [getattr(point, f"own_time_{share}_ms") for point in points],
            "o-",
            label=f"own time {share}",
        )
        right.plot(
            names, [getattr(point, f"accept_{share}_ms") for point in points], "s--",
            label=f"accept {share}",
        )  # fmt: skip
    right.set(xlabel="clients", ylabel="ms", yscale="log")
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measure, write benchmarks/results/bench_api.{json,png}, print the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs of the backend in all")
    parser.add_argument(
        "--backends",
        type=int,
        default=os.cpu_count() or 1,
        help="processes on one database, measured after a single one",
    )
    parser.add_argument("--yardstick", nargs=2, metavar=("PORT", "WORKER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.yardstick:
        serve_yardstick(int(arguments.yardstick[0]), arguments.yardstick[1])
        return 0
    share = max(20, arguments.jobs // 20)
    with running(1) as (backends, urls, plain_url):
        (process,) = [psutil.Process(one.process.pid) for one in backends if one.process]
        asyncio.run(measure_backend(urls, 8, share, share))  # warm-up
        load_before = os.getloadavg()[0]
        rss, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
        points = [
            asyncio.run(measure_backend(urls, clients, complete * share, accept * share))
            for clients, (accept, complete) in PLAN.items()
        ]
        grown, cpu = process.memory_info().rss - rss, sum(process.cpu_times()[:2]) - cpu
        yardstick = {
            clients: asyncio.run(measure_yardstick(plain_url, clients, 2 * share))
            for clients in PLAN
        }
    rates = {1: points[-1].jobs_per_second}
    if arguments.backends > 1:
        with running(arguments.backends) as (_, urls, _):
            asyncio.run(measure_backend(urls, 8, share, share))  # warm-up
            several = asyncio.run(measure_backend(urls, 32, PLAN[32][1] * share, share))
        rates[arguments.backends] = several.jobs_per_second
    with running(1, LARGE_SIDE) as (_, urls, _):
        asyncio.run(measure_backend(urls, 8, share // 20 + 8, 1, LARGE_SIDE))  # warm-up
        large = asyncio.run(measure_backend(urls, 32, share // 2 + 32, 1, LARGE_SIDE))
    result = {
        "jobs_per_second": points[-1].jobs_per_second,
        "jobs_per_second_by_backends": {str(count): rate for count, rate in rates.items()},
        "jobs_per_second_1024": large.jobs_per_second,
        "own_time_p50_ms": points[0].own_time_p50_ms,
        "own_time_p99_ms": points[0].own_time_p99_ms,
        "accept_p99_ms": points[-1].accept_p99_ms,
        "yardstick_jobs_per_second": round(yardstick[32][0], 1),
        "rss_growth_mb": round(grown / 2**20, 1),
        # Does not depend on what else the machine does, as all the others do.
        "cpu_ms_per_job": round(1000 * cpu / (20 * share), 1),
        "jobs": 20 * share,
        "worker_ms": 1000 * WORKER_SECONDS,
        "points": [asdict(point) for point in points],
        "yardstick": {
            str(clients): {"jobs_per_second": round(rate, 1), "own_time_p50_ms": round(own, 1)}
            for clients, (rate, own) in yardstick.items()
        },
        "machine": {
            "cpus": os.cpu_count(),
            "load_at_start": round(load_before, 1),
            "python": platform.python_version(),
            "system": platform.system(),
        },
    }
    RESULTS.mkdir(exist_ok=True)
    plot(points, {n: rate for n, (rate, _) in yardstick.items()}, RESULTS / "bench_api.png")
    (RESULTS / "bench_api.json").write_text(json.dumps(result, indent=2) + "\n")
    for point in points:
        print(point)
    print(json.dumps({name: value for name, value in result.items() if name != "points"}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
