"""What `make gpu-check` runs as processes beside itself: timed, ended, and heard when they fail."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import processes
from benchmarks.gpu_check.inputs import LoraFiles, module_shapes, write_loras
from benchmarks.gpu_check.over_http import Pictures, Size, Worker
from benchmarks.gpu_check.plan import Plan
from benchmarks.gpu_check.report import Report
from testkit.worker import MODEL

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LoraFiles:
    return write_loras(tmp_path_factory.mktemp("loras"), module_shapes(MODEL), 4)


@pytest.mark.slow
@pytest.mark.long
def test_starts_are_timed_to_ready_and_to_a_first_picture(tmp_path: Path, files: LoraFiles) -> None:
    report, size = Report(), Size(MODEL, "cpu", 64, 1, 1)
    plan = Plan(report, device="cpu", small=False, only={"start"}, seconds=0)
    started = Worker("http", 0, tmp_path / "log")
    with command._starts(report, plan, size):
        report.part("http_run", lambda: started.served(report, files, size, Pictures()))
    found = report.rows["start"]
    for side in ("ours", "diffusers"):
        assert 0 < found[f"{side}_s"] < found[f"{side}_first_picture_s"]
    assert len(found["diffusers_s_all"]) == 2
    assert not report.failed
    assert report.found("compared.start_of_diffusers")


@pytest.mark.slow
@pytest.mark.long
def test_hotswap_is_timed_in_a_process_of_its_own(files: LoraFiles) -> None:
    with processes.Hotswap(MODEL, files, "cpu", 64, 1, compiled=False) as hotswap:
        hotswap.wait_until_compiled()
        assert hotswap.timed()["hotswap_cycle_ms"] > 0
    assert hotswap._process.poll() is not None


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise OSError('no adapter')", "not compiled.*(\n.*)*no adapter"),
        ("print('half made', flush=True)\nwhile 1: pass", "not compiled.*half made"),
        ("print('ready', flush=True)\ninput()\nraise OSError('gone')", "not timed.*(\n.*)*gone"),
    ],
)
def test_a_hotswap_that_does_not_work_is_a_row_that_says_why(
    code: str, why: str, files: LoraFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_PEER_HOTSWAP", code)
    monkeypatch.setattr(processes, "_HOTSWAP_S", (5.0, 5.0))
    with (
        processes.Hotswap(MODEL, files, "cpu", 64, 1, compiled=False) as hotswap,
        pytest.raises(RuntimeError, match=why),
    ):
        hotswap.timed()


def test_what_is_not_timed_is_begun_beside_the_requests_and_done_after_them(
    files: LoraFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    class Slow(processes.Hotswap):
        """Has compiled when it is waited for."""

        def __init__(self) -> None: ...

        def wait_until_compiled(self) -> None:
            told.append("compiled")

    @contextmanager
    def tests() -> Iterator[Any]:
        told.append("tests")
        yield lambda: {"ok": True, "summary": ""}

    monkeypatch.setattr(command, "gpu_tests", tests)
    for has_room, wanted in ((True, ["hotswap", "tests", "drawn", "compiled"]), (False, ["drawn"])):
        monkeypatch.setattr(command, "_has_room", lambda found=has_room: found)
        report = Report()
        plan = Plan(report, device="cuda", small=False, only=None, seconds=0)

        def begin() -> processes.Hotswap:
            told.append("hotswap")
            return Slow()

        told.clear()
        with command._beside(report, plan, begin):
            told.append("drawn")
        assert told == wanted
        assert ("tests" in report.rows) is has_room


def test_a_test_of_a_gpu_that_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(subprocess.Popen[bytes]):
        """Begins a test, and never ends."""

        def __init__(self, command: list[str], stdout: IO[str], **_: Any) -> None:
            super().__init__(["sh", "-c", "echo test_that_hangs; exec sleep 60"], stdout=stdout)

    monkeypatch.setattr("subprocess.Popen", Hangs)
    monkeypatch.setattr(processes, "_TESTS_S", 0.5)
    with processes.gpu_tests() as end, pytest.raises(RuntimeError, match="test_that_hangs"):
        end()


def test_the_tests_of_a_gpu_run_by_any_pytest_and_must_have_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []

    class Ends(subprocess.Popen[bytes]):
        """Ends at once, and says `said`."""

        def __init__(self, command: list[str], stdout: IO[str], **_: Any) -> None:
            asked.append(command)
            super().__init__(["echo", said], stdout=stdout)

    monkeypatch.setattr("subprocess.Popen", Ends)
    said = "2 deselected"
    with processes.gpu_tests() as end, pytest.raises(RuntimeError, match="2 deselected"):
        end()
    said = "SKIPPED [1] a: no fp8\n30 passed, 1 skipped\n[W1] driver shutting down"
    with processes.gpu_tests() as end:
        assert end() == {
            "ok": True, "summary": "30 passed, 1 skipped", "skipped": ["SKIPPED [1] a: no fp8"],
        }  # fmt: skip
    names = {Path(one).name for one in asked[0] if one.endswith(".py")}
    assert names == {
        "test_devices.py", "test_grouped.py", "test_gpu_generate.py", "test_on_gpu.py",
        "test_fp8_on_gpu.py", "test_kernels_on_gpu.py",
    }  # fmt: skip
    # Not this project's settings, which ask for plugins that a bare machine has not.
    assert asked[0][asked[0].index("-c") + 1] == "/dev/null"
