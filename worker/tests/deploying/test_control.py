"""A fleet's control: what containers tell of themselves, and what is answered without them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from sdxl_contract.errors import ModelLoadFailed
from sdxl_contract.limits import BaseModelSignature
from sdxl_contract.result import CachedLora, Health, HealthStatus
from sdxl_worker.deploying.board import MODEL, NOTE, NOTE_SECONDS, REPORT, Report, Reporter
from sdxl_worker.deploying.control import Fleet, create_control_app
from sdxl_worker.watching.metrics import Metrics

NOW = 1_000_000.0
FAILED_S = 300.0
TOKEN = "a-token-of-the-control"
READY = Health(status=HealthStatus.READY, base_model="demo", gpu="L40S")
LOADING = Health(status=HealthStatus.LOADING)
FAILED = Health(status=HealthStatus.FAILED, error=ModelLoadFailed("no weights").body())


@dataclass
class DictBoard:
    """A board in this process; `away`: it cannot be reached."""

    texts: dict[str, str] = field(default_factory=dict)
    away: bool = False
    writes: int = 0

    def _reach(self) -> None:
        if self.away:
            raise ConnectionError("nobody there")

    async def put(self, key: str, text: str) -> None:
        self._reach()
        self.writes += 1
        self.texts[key] = text

    async def pop(self, key: str) -> str | None:
        self._reach()
        return self.texts.pop(key, None)

    async def items(self) -> dict[str, str]:
        self._reach()
        return dict(self.texts)


@dataclass
class FakeEngine:
    """As much of an engine as a report needs."""

    state: Health = field(default_factory=lambda: LOADING)
    running: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)

    @property
    def runs(self) -> FakeEngine:
        return self

    def ids(self) -> tuple[list[str], list[str]]:
        return list(self.running), list(self.kept)

    def cancel(self, request_id: str) -> bool:
        self.cancelled.append(request_id)
        return True

    def health(self, *, include_modules: bool = False) -> Health:
        return self.state

    def metrics_text(self) -> bytes:
        return Metrics().text()


def told(health: Health, age_s: float = 0.0, **fields: Any) -> str:
    return Report(at=NOW - age_s, health=health, **fields).model_dump_json(exclude_none=True)


def fleet(**reports: str) -> Fleet:
    model = {MODEL: reports.pop("model")} if "model" in reports else {}
    items = {REPORT + name: text for name, text in reports.items()}
    return Fleet(model | items, NOW, FAILED_S)


def client(board: DictBoard, token: str | None = TOKEN) -> httpx2.AsyncClient:
    app = create_control_app(
        board,
        SecretStr(token) if token else None,
        failed_start_s=FAILED_S,
        clock=lambda: NOW,
        second_look_s=0.01,
    )
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app),
        base_url="http://127.0.0.1",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )


@pytest.mark.parametrize(
    ("reports", "status"),
    [
        ({}, "ready"),  # the first request starts a container
        ({"a": told(READY)}, "ready"),
        ({"a": told(LOADING)}, "loading"),
        ({"a": told(LOADING, 181)}, "ready"),  # it died without a word
        ({"a": told(LOADING), "model": told(READY, 9e5)}, "ready"),  # it has worked before
        ({"a": told(FAILED, 299)}, "failed"),
        ({"a": told(FAILED, 301)}, "ready"),  # it is time for another try
        ({"a": told(FAILED, 299), "model": told(READY, 9e5)}, "failed"),
        ({"a": told(FAILED, 1), "b": told(READY, 2)}, "ready"),
        # Failed while it served: another start has nothing against it.
        ({"a": told(FAILED, 1, served=True), "model": told(READY, 9e5)}, "ready"),
        ({"a": told(READY, 31)}, "ready"),
    ],
)
def test_the_fleet_is_ready_where_a_request_would_be_drawn(
    reports: dict[str, str], status: str
) -> None:
    assert fleet(**reports).health(include_modules=False).status == status


def test_what_no_container_has_said_is_not_said() -> None:
    nothing = fleet().health(include_modules=True)
    gone = fleet(a=told(READY, 31)).health(include_modules=True)

    for health in (nothing, gone):
        assert "limits" not in health.model_fields_set
        assert health.base_model is None


def test_two_containers_are_shown_as_one_worker() -> None:
    loras = [CachedLora(sha256=letter * 64, bytes=n) for n, letter in enumerate("ab")]
    one = READY.model_copy(update={"queue_length": 2, "cached_loras": loras[:1]})
    other = READY.model_copy(update={"queue_length": 3, "cached_loras": loras})
    health = fleet(a=told(one), b=told(other)).health(include_modules=False)

    assert (health.queue_length, health.cached_loras) == (5, loras)


def test_modules_are_told_to_who_asks_also_while_nothing_runs() -> None:
    small = BaseModelSignature(
        name="demo", family="SDXL", cross_attention_dim=4, text_encoder_hidden_sizes=(2, 2)
    )
    whole = small.model_copy(update={"modules": {"unet.x": (4, 4)}})
    model = told(READY.model_copy(update={"signature": whole}), 9e5)
    running = told(READY.model_copy(update={"signature": small}))

    for found in (fleet(model=model), fleet(model=model, a=running)):
        shown, hidden = (found.health(include_modules=one).signature for one in (True, False))
        assert shown is not None
        assert hidden is not None
        assert dict(shown.modules) == {"unet.x": (4, 4)}
        assert not hidden.modules


def test_every_container_s_figures_stand_apart() -> None:
    counts = []
    for outcomes in (2, 5):
        metrics = Metrics()
        for _ in range(outcomes):
            metrics.request_done("ok", 1.0)
        counts.append(metrics.text().decode())
    found = fleet(
        a=told(READY, metrics=counts[0]), b=told(READY, metrics=counts[1]), c=told(LOADING)
    )
    text = found.metrics().decode()

    assert 'sdxl_worker_requests_total{container="a",outcome="ok"} 2.0' in text
    assert 'sdxl_worker_requests_total{container="b",outcome="ok"} 5.0' in text
    assert 'sdxl_worker_containers{state="ready"} 2.0' in text
    assert text.count("# TYPE sdxl_worker_requests_total counter") == 1


async def test_a_request_is_known_wherever_it_is_drawn() -> None:
    board = DictBoard(
        {
            REPORT + "a": told(READY, running=["r1"]),
            REPORT + "b": told(READY, kept=["r2"]),
            REPORT + "c": told(READY, 31, running=["r3"]),  # it was killed
        }
    )
    async with client(board) as http:
        states = [(await http.get(f"/requests/r{n}")).json()["state"] for n in (1, 2, 3, 4)]

    assert states == ["running", "succeeded", "unknown", "unknown"]


async def test_a_cancel_leaves_a_note_that_only_the_drawing_container_takes() -> None:
    board = DictBoard()
    engines = {name: FakeEngine(state=READY, running=[f"of-{name}"]) for name in "ab"}
    reporters = {n: Reporter(e, board, n, clock=lambda: NOW) for n, e in engines.items()}
    for reporter in reporters.values():
        await reporter.tell()
    async with client(board) as http:
        answer = await http.post("/requests/of-b/cancel")
        unknown = await http.post("/requests/of-c/cancel")
    for reporter in reporters.values():
        await reporter.take_notes()

    assert (answer.status_code, answer.json()["state"]) == (202, "cancelling")
    assert unknown.json()["state"] == "unknown"
    assert (engines["a"].cancelled, engines["b"].cancelled) == ([], ["of-b"])
    assert not [key for key in board.texts if key.startswith(NOTE)]


async def test_a_request_posted_just_now_is_looked_for_twice() -> None:
    board = DictBoard({REPORT + "a": told(READY)})

    class Later(DictBoard):
        async def items(self) -> dict[str, str]:
            found = await super().items()
            self.texts[REPORT + "a"] = told(READY, running=["r1"])
            return found

    async with client(Later(board.texts)) as http:
        assert (await http.post("/requests/r1/cancel")).json()["state"] == "cancelling"


async def test_an_old_note_is_no_reason_to_cancel() -> None:
    board = DictBoard({NOTE + "r1": str(NOW - NOTE_SECONDS - 1)})
    engine = FakeEngine(state=READY, running=["r1"])
    await Reporter(engine, board, "a", clock=lambda: NOW).take_notes()

    assert engine.cancelled == []
    assert not board.texts


async def test_what_nobody_comes_back_to_is_taken_off_the_board() -> None:
    fresh, old = told(READY), told(READY, 8000)
    board = DictBoard(
        {
            REPORT + "a": fresh,
            REPORT + "b": old,
            NOTE + "r1": str(NOW - 61),
            NOTE + "r2": str(NOW - 1),
            "another version's": "{}",
            REPORT + "c": "no report",
        }
    )
    async with client(board) as http:
        assert (await http.get("/health")).status_code == 200

    assert set(board.texts) == {
        REPORT + "a", NOTE + "r2", "another version's", REPORT + "c"
    }  # fmt: skip


async def test_a_report_is_written_when_it_changes_or_grows_old() -> None:
    board, engine, now = DictBoard(), FakeEngine(READY), [NOW]
    reporter = Reporter(engine, board, "a", clock=lambda: now[0])
    await reporter.tell()
    first = board.writes  # the report, and the model's description once
    for _ in range(5):
        await reporter.tell()
    assert (first, board.writes) == (2, 2)
    engine.running.append("r1")
    await reporter.tell()
    now[0] += 10
    await reporter.tell()

    assert board.writes == 4
    assert Report.model_validate_json(board.texts[REPORT + "a"]).at == NOW + 10


@pytest.mark.parametrize(("state", "stays"), [(READY, False), (FAILED, True)])
async def test_a_container_that_ends_says_so_but_a_failure_stays_to_be_read(
    state: Health, stays: bool
) -> None:
    board = DictBoard()
    running = asyncio.create_task(Reporter(FakeEngine(state), board, "a", look_s=0.01).run())
    while REPORT + "a" not in board.texts:
        await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert (REPORT + "a" in board.texts) is stays


async def test_a_board_that_is_away_stops_neither_the_start_nor_the_loop() -> None:
    board, engine = DictBoard(away=True), FakeEngine(running=["r1"])
    reporter = Reporter(engine, board, "a", look_s=0.01)

    async def load() -> None:
        engine.state = READY

    await reporter.through_start(load)
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0.03)
    assert not running.done()
    board.away = False
    while REPORT + "a" not in board.texts:
        await asyncio.sleep(0.005)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_without_the_token_only_health_is_answered_and_no_loras() -> None:
    lora = CachedLora(sha256="a" * 64, bytes=1)
    board = DictBoard({REPORT + "a": told(READY.model_copy(update={"cached_loras": [lora]}))})
    async with client(board) as http:
        own = (await http.get("/health")).json()
        http.headers["Authorization"] = "Bearer wrong"
        other = await http.get("/health")
        refused = [(await http.get(route)).status_code for route in ("/metrics", "/requests/x")]
        missing = await http.post("/generate-image", json={})

    assert own["cached_loras"]
    assert (other.status_code, other.json()["cached_loras"]) == (200, [])
    assert refused == [401, 401]
    assert (missing.status_code, missing.json()["error_code"]) == (404, "INVALID_REQUEST")
