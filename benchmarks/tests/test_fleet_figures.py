"""What the simulated fleet is fed, and the page that it writes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from benchmarks.fleet import __main__ as simulate_fleet
from benchmarks.fleet import report, studies
from benchmarks.fleet.shipped import shipped_fleet
from deploy.timings import GPUS, ColdStart, Origin, cold_start_seconds, table, timings
from sdxl_worker.deploying.settings import Deployment, Snapshot, container_usd_per_second
from sdxl_worker.settings import Settings

pytestmark = pytest.mark.process


BENCHMARKS = Path(__file__).parents[1]


def test_an_own_gpu_may_cost_what_it_saves() -> None:
    def answer(count: int, usd_per_hour: float) -> studies.Answer:
        row = {"own_share": 0.0, "p50_s": 1.0, "p95_s": 2.0, "usd_per_hour": usd_per_hour}
        return studies.Answer({"requests/min": 1, "own GPUs": count}, row)

    rows = report.own_table([answer(0, 10.0), answer(1, 7.0), answer(3, 4.0), answer(0, 5.0)])
    ends = [row.split(" | ")[-3:] for row in rows.splitlines()[2:]]

    # 3 saved by one; 6 by three, of which the last two saved 1.5 each.
    assert ends[1] == ["7.00", "3.00", "3.00 |"]
    assert ends[2] == ["4.00", "2.00", "1.50 |"]
    assert ends[3] == ["5.00", "", " |"]


def test_every_figure_says_where_it_comes_from() -> None:
    for name, figure in table():
        assert figure.source, name
        named = re.search(r"benchmarks/results/\S+\.json", figure.source)
        assert named is None or (BENCHMARKS.parent / named.group()).is_file(), name
        if figure.origin is Origin.PUBLISHED:
            assert len(figure.source) > 15, name


@pytest.mark.parametrize("gpu", GPUS)
def test_a_nearer_source_of_weights_starts_sooner(gpu: str) -> None:
    ways = [start for start in ColdStart if start is not ColdStart.IMPORTS]
    seconds = [timings(gpu, start).cold_start_s for start in ways]

    assert seconds == sorted(seconds, reverse=True)


def test_a_snapshot_of_imports_gives_up_what_the_reading_hid() -> None:
    """Imports and weights go side by side without it; after it the weights come alone."""
    alone, beside = (cold_start_seconds(start) for start in (ColdStart.IMPORTS, ColdStart.VOLUME))

    assert alone["weights"] == beside["imports_and_weights"]
    assert sum(alone.values()) - sum(beside.values()) == pytest.approx(alone["restore"])


def test_a_start_from_the_gpu_s_snapshot_takes_some_five_seconds() -> None:
    assert 4.0 < timings("L40S", ColdStart.GPU_SNAPSHOT).cold_start_s < 6.0


def test_an_h200_is_as_it_was_measured() -> None:
    # 28 steps in a graph and the VAE by our kernels; text and the middles of apply and restore.
    measured = 28 * 0.03585 + 0.0675 + 0.04827 + 0.143 + 0.069
    assert timings("H200").lane_s == pytest.approx(measured, abs=1e-4)
    assert timings("H200").lane_s < timings("H100").lane_s
    assert {figure.origin for name, figure in table() if name.startswith("H200")} == {
        Origin.MEASURED
    }


@pytest.mark.parametrize(("region", "factor"), [("", 1.0), ("us", 1.5), ("us-east", 1.75)])
def test_a_chosen_region_is_in_the_price(region: str, factor: float) -> None:
    deployment = Deployment(region=tuple(filter(None, [region])))

    price = timings("L40S", region=region).usd_per_second
    assert price == pytest.approx(factor * timings("L40S").usd_per_second)
    assert price == pytest.approx(container_usd_per_second(deployment, "L40S"))


def test_the_cheapest_setting_holds_its_latency(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--rate", "20", "--scale", "0.1", "--processes", "1", "--loras", "100"]

    def ask(p95: str) -> dict[str, float]:
        assert simulate_fleet.main(["--p95", p95, *common]) == 0
        last: dict[str, float] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return last

    quick, slow, never = ask("15"), ask("60"), ask("0.5")
    assert quick["found"]
    assert quick["p95_s"] <= 15
    assert slow["usd_per_image"] <= quick["usd_per_image"]
    assert not never["found"]


def test_the_first_row_is_what_make_deploy_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated defaults are the deployment's and the worker's, prices included."""
    for name in list(os.environ):
        if name.startswith("DEPLOY_") or name.lower() in Settings.model_fields:
            monkeypatch.delenv(name)
    deployment = Deployment.from_environment({})
    worker = deployment.worker_settings({"WORKER_API_TOKEN": "t" * 16})
    fleet = studies.shipped(1.0)[0].fleet

    assert fleet == shipped_fleet()
    assert fleet.timings.gpu == deployment.gpu[0]
    assert fleet.timings.usd_per_second == pytest.approx(worker.usd_per_second)
    assert fleet.timings.cold_start_s == timings(deployment.gpu[0], ColdStart.SNAPSHOT).cold_start_s
    assert deployment.snapshot is Snapshot.WEIGHTS
    assert (fleet.min_containers, fleet.max_containers, fleet.scaledown_window_s) == (
        deployment.min_containers,
        deployment.max_containers,
        deployment.scaledown_window_seconds,
    )
    assert fleet.read_ahead == deployment.max_inputs - 1
    assert (fleet.cache_bytes, fleet.volume_bytes) == (
        worker.lora_cache_bytes,
        worker.lora_cache_dir_bytes,
    )


def test_the_page_is_what_the_simulation_says_today() -> None:
    """Figures that were measured anew, or a changed model, call for `make simulate`."""
    page = (BENCHMARKS.parent / "docs" / "scaling.md").read_text()
    results = report.Results.load(simulate_fleet.RESULTS.read_text())

    assert report.full_text(results) in page, "run make simulate"
    assert results.dump() == simulate_fleet.RESULTS.read_text()
    assert list(results.studies) == list(studies.STUDIES)
    for name, at in (("shipped", 0), ("starts", 1), ("own", 1), ("scaledown", 0)):
        point = studies.STUDIES[name](1.0)[at]
        assert studies.run([point], seed=0) == [results.studies[name][at]], "run make simulate"


def test_the_page_answers_every_wish() -> None:
    results = report.Results.load(simulate_fleet.RESULTS.read_text())
    wishes = {(one.per_minute, one.p95_s, one.download_mb_s) for one in results.choices}

    assert wishes == {
        (rate, p95, download)
        for rate in (1, 10, 60, 600)
        for p95 in (5, 8, 15)
        for download in studies.DOWNLOADS_MB_S
    }
    for one in results.choices:
        assert one.answer is None or one.answer.row["p95_s"] <= one.p95_s
        if one.usual is not None:
            assert one.answer is not None
            assert one.answer.row["usd_per_image"] <= one.usual.row["usd_per_image"]
            assert one.usual.labels["weights from"] == "snapshot"
            assert one.usual.row["p95_s"] <= one.p95_s
    beside = report.choice_table(results.choices)
    # Where it is the cheapest itself, where it is dearer, and where nothing else will do.
    assert "the same |" in beside
    assert "kept warm: " in beside


def test_tables_stand_between_their_marks(tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.replace_between_marks(page, "new")

    assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n{report.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="once each"):
        report.replace_between_marks(page, "new")


@pytest.mark.parametrize(("option", "value"), [("--rate", "20000"), ("--p95", "0")])
def test_options_out_of_range_are_refused_by_name(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        simulate_fleet.main([option, value])

    assert option in capsys.readouterr().err
