"""What latency and what price would a fleet of workers have?

Simulates containers, cold starts, LoRAs by popularity, caches and read-ahead, request by request,
with the seconds, bytes and prices of `deploy/timings.py` (measured, published or assumed, each with
its source). Without `--p95`: every study as plots and tables, written into the documentation.
With it: the cheapest setting whose p95 stays below that many seconds.

    python -m benchmarks.fleet [--seed N] [--scale X] [--out FOLDER]
    python -m benchmarks.fleet --p95 8 [--rate 60] [--loras 10000] [--download 43]

The same seed gives the same numbers. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from benchmarks.fleet import report, studies

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = Path(__file__).parents[1] / "results" / "fleet.json"
# The wishes whose cheapest setting the document shows.
RATES = (1, 10, 60, 600)
P95_S = (5, 8, 15)
_LORAS = 10_000


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: must be a number greater than 0")
    return value


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--p95", type=_positive, help="seconds; only look for the cheapest setting")
    parser.add_argument("--rate", type=_positive, default=60.0, help="requests a minute, to 10,000")
    parser.add_argument("--loras", type=int, default=_LORAS, help="different LoRAs, to 100,000")
    parser.add_argument(
        "--download", type=_positive, default=43.0, help="MB/s at which a LoRA comes from its store"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=_positive, default=1.0, help="how much is simulated")
    parser.add_argument("--out", type=Path, default=DOCS, help="holds scaling.md and images/")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the figures, as JSON")
    parser.add_argument("--processes", type=int, default=min(8, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    if options.rate > 10_000:
        parser.error(f"--rate {options.rate:g}: at most 10000")
    if not 1 <= options.loras <= 100_000:
        parser.error(f"--loras {options.loras}: between 1 and 100000")
    return options


def choose(options: argparse.Namespace) -> dict[str, object]:
    """Print the cheapest setting for `--p95`, and the quickest where none will do."""
    points = studies.candidates(
        options.rate, options.loras, options.scale, options.download, options.p95
    )
    if not points:
        print(f"No GPU draws a picture in {options.p95:g} s.")
        return {"p95_s": options.p95, "found": False}
    answers = studies.run(points, options.seed, options.processes)
    best = studies.cheapest(answers, options.p95)
    if best is None:
        quickest = min(answers, key=lambda answer: answer.row["p95_s"])
        print(f"None of {len(answers)} settings has a p95 of {options.p95:g} s. The quickest:\n")
        print(report.answers_table([quickest]))
        return {"p95_s": options.p95, "found": False, **quickest.labels, **quickest.row}
    print(f"The cheapest of {len(answers)} settings with a p95 of {options.p95:g} s:\n")
    print(report.answers_table([best]))
    return {"p95_s": options.p95, "found": True, **best.labels, **best.row}


def write_all(options: argparse.Namespace) -> dict[str, object]:
    """Simulate every study, write the figures, the plots and the tables."""
    begun = time.perf_counter()
    found = {
        name: studies.run(study(options.scale), options.seed, options.processes)
        for name, study in studies.STUDIES.items()
    }
    choices = []
    for rate in RATES:
        for download in studies.DOWNLOADS_MB_S:
            points = studies.candidates(rate, _LORAS, options.scale, download, max(P95_S))
            answers = studies.run(points, options.seed, options.processes)
            usual = studies.without_gpu_snapshots(answers)
            choices += [
                report.Choice(
                    rate, p95, download,
                    studies.cheapest(answers, p95), studies.cheapest(usual, p95),
                )
                for p95 in P95_S
            ]  # fmt: skip
    choices.sort(key=lambda one: (one.per_minute, one.p95_s))
    results = report.Results(options.seed, options.scale, choices, found)
    options.results.write_text(results.dump())
    report.replace_between_marks(options.out / "scaling.md", report.full_text(results))
    paths = report.plot_all(results.studies, options.out / "images")
    return {
        "seed": options.seed,
        "images": sum(answer.row["images"] for answers in found.values() for answer in answers),
        "seconds": round(time.perf_counter() - begun, 1),
        "plots": [path.name for path in paths],
    }


def main(arguments: list[str] | None = None) -> int:
    """Run, and print the last line."""
    options = parse(arguments)
    print(json.dumps(choose(options) if options.p95 is not None else write_all(options)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
