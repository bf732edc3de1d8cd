"""What `make gpu-check` says: rows, aims, what it leaves out, and its last line in any case."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.full_size import REPOSITORY
from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check.plan import SECTIONS, Plan
from benchmarks.gpu_check.report import AIMS, EXACT, LEAST, Report

pytestmark = pytest.mark.process


def test_a_part_that_fails_is_a_row_and_no_end() -> None:
    kept: list[int] = []
    report = Report(lambda one: kept.append(len(one.rows)))
    nothing: dict[str, Any] = {}
    report.part("broken", lambda: nothing["x"])
    report.part("ours", lambda: {"switch_ms": 20.0, "text_ms": 10.0})
    report.part("http", lambda: {"cached_lora_ms": 1000.0})
    report.part("http_start", lambda: {"ready_s": 5.0})
    report.part("start", lambda: {"ours_s": 4.0, "diffusers_s": 16.0})
    report.part("diffusers", lambda: {"fused_cycle_ms": 2400.0})
    report.part("http_exactness", lambda: {"ok": False})

    assert report.failed == ["broken"]
    assert kept == [1, 2, 3, 4, 5, 6, 7]
    assert report.rows["broken"]["error"].startswith("KeyError")
    aims = report.aims()
    assert set(aims) == {*AIMS, *LEAST, *EXACT}
    assert {name: aim["met"] for name, aim in aims.items() if aim["met"] is not None} == {
        "ours.switch_ms": False,
        "ours.text_ms": True,
        "http.cached_lora_ms": True,
        "compared.start_of_diffusers": True,
        "compared.fused_cycle_times_ours": False,
        "http_exactness.ok": False,
    }


def test_a_file_that_cannot_be_written_is_no_end() -> None:
    def keep(_: Report) -> None:
        raise PermissionError("read-only")

    report = Report(keep)
    report.part("ours", lambda: {"switch_ms": 2.0})
    assert report.failed == ["json"]


@pytest.mark.parametrize("speed", ["fp8", "compiled", "exact", "exact+fp8"])
def test_another_speed_s_row_meets_no_aim(speed: str) -> None:
    report = Report()
    drawing = {"speed": speed, "speeds_unavailable": {"fp8": "wrong"}}
    report.part("fp8", lambda: {"cached_lora_ms": 600.0, "drawing": drawing})
    aim = report.aims()["fp8.cached_lora_ms"]
    assert aim["met"] is aim["further"]["met"] is (speed == "fp8")
    assert ("wrong" in aim.get("because", "")) is (speed != "fp8")
    # Faster than the aim, and not as fast as what is aimed at then.
    report.part("fp8", lambda: {"cached_lora_ms": 800.0, "drawing": drawing | {"speed": "fp8"}})
    aim = report.aims()["fp8.cached_lora_ms"]
    assert (aim["met"], aim["further"]["met"]) == (True, False)


def planned(report: Report, **fields: Any) -> Plan:
    given: dict[str, Any] = {"device": "cuda", "small": False, "only": None, "seconds": 0}
    return Plan(report, **given | fields)


def test_a_row_without_a_value_says_why() -> None:
    report = Report()
    plan = planned(report, seconds=SECTIONS["ours"] + 10)
    assert not plan.begins("compiled")
    assert plan.begins("ours")
    nothing: dict[str, Any] = {}
    report.part("fp8_run", lambda: nothing["x"])
    report.part("ours", lambda: nothing["y"])
    aims = report.aims()
    assert all(aim["because"] for aim in aims.values())
    assert "--only compiled" in aims["compiled.cached_lora_ms"]["because"]
    assert aims["fp8.cached_lora_ms"]["because"] == "KeyError: 'x'"
    assert aims["ours.text_ms"]["because"] == "KeyError: 'y'"
    another = Report()
    planned(another, only={"ours"})
    assert another.aims()["http.cached_lora_ms"]["because"] == "not among --only"


def test_a_dry_run_and_one_without_an_end_leave_nothing_out_for_want_of_time() -> None:
    small = planned(Report(), device="cpu", small=True, seconds=1)
    assert set(SECTIONS) - small.wanted == {"tests", "start"}
    assert all(map(small.begins, small.wanted))
    assert all(map(planned(Report()).begins, SECTIONS))
    assert not planned(Report(), only={"tests", "fetch"}).needs_model
    # What was asked for by name is tried: it says what it has when its time is over.
    assert planned(Report(), only={"compiled", "fp8"}, seconds=1).begins("fp8")
    # Control: a second is too short for anything.
    short = Report()
    assert not any(map(planned(short, seconds=1).begins, SECTIONS))
    row = "compared.hotswap_cycle_times_ours"
    assert not planned(short, seconds=1).has_time(100, row, "diffusers")
    assert "--only diffusers" in short.aims()[row]["because"]


def test_the_last_line_is_json_whatever_goes_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def breaks(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(command, "run", breaks)
    file = tmp_path / "found.json"
    arguments = ["gpu_check", "--small", "--device", "cpu", "--json", str(file)]
    monkeypatch.setattr("sys.argv", arguments)

    assert command.main() == 1
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["ok"], last["device"], last["failed"]) == (False, "cpu", ["run"])
    assert json.loads(file.read_text())["rows"] == last["rows"]


HANGING = """
import sys, signal, threading, time
from benchmarks.gpu_check import __main__ as command, plan, report as reporting

plan._GRACE_S, how = 0.5, sys.argv[1]
# Python's search for garbage takes a second of the three where others work, too.
reporting.release = lambda: None
def run(report, options, folder):
    def hangs():
        while True:
            try:
                print("HANGS", folder, flush=True)
                time.sleep(100)
            except plan.Stopped:
                if "deaf" not in how:
                    raise
    report.part("ours", lambda: {"switch_ms": 2.0})
    report.part("http", hangs)
command.run = run
sys.argv = ["gpu_check", "--small", "--device", "cpu", "--seconds", sys.argv[2],
            "--json", sys.argv[3]]
sys.exit(command.main())
"""


@pytest.mark.parametrize(
    "how",
    [
        "in time",
        "deaf, asked",
        pytest.param("asked", marks=pytest.mark.long),
        pytest.param("deaf", marks=pytest.mark.long),
    ],
)
def test_what_was_found_is_told_whatever_hangs(how: str, tmp_path: Path) -> None:
    # Long enough to begin in, on a machine that has other things to do.
    seconds = "600" if "asked" in how else "3"
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, how, seconds, str(tmp_path / "found.json")],
        cwd=REPOSITORY, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        folder = Path(next(one for one in process.stdout if one.startswith("HANGS")).split()[1])
        if "asked" in how:
            process.terminate()
        told = process.stdout.read().splitlines()
        assert process.wait(30) == 1
    last = json.loads(told[-1])
    assert last["ok"] is False
    assert last["rows"]["ours"] == {"switch_ms": 2.0}
    assert ("nothing answered" in last["rows"]["run"]["error"]) is ("deaf" in how)
    assert "run" in last["failed"]
    assert not folder.exists()
    assert json.loads((tmp_path / "found.json").read_text())["failed"] == last["failed"]


def test_without_a_gpu_it_says_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu_check", "--json", str(Path("unused.json"))])

    assert command.main() == 2
    assert json.loads(capsys.readouterr().out)["ok"] is False
