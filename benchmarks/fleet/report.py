"""The simulated fleet's answers as plots and as tables in markdown.

Must not know: how they were simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.fleet.studies import Answer
from deploy import timings

BEGIN, END = "<!-- make simulate: begin -->", "<!-- make simulate: end -->"
_HEADINGS = {
    "shipped": "As it is shipped (the first row), and what two of its settings change "
    "(10,000 LoRAs, the hours of a day)",
    "scaledown": "Scale-down window (L40S, 10,000 LoRAs, the hours of a day)",
    "minimum": "Containers kept warm (L40S, 10,000 LoRAs, the hours of a day, window 120 s)",
    "cache": "LoRA cache in memory (L40S, 60 requests a minute, 8 containers kept warm)",
    "gpus": "Kind of GPU and of cold start (10 requests a minute over a day, window 120 s)",
    "rates": "Request rate (100,000 LoRAs, even load, nothing kept warm, window 120 s)",
}
_NUMBERS = (
    ("p50, s", "p50_s", "{:.1f}"),
    ("p95, s", "p95_s", "{:.1f}"),
    ("USD/image", "usd_per_image", "{:.4f}"),
    ("hits in memory", "memory_hit_rate", "{:.0%}"),
    ("lane in use", "utilisation", "{:.0%}"),
    ("most containers", "peak_containers", "{:.0f}"),
)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,g}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every cell is text already."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def answers_table(answers: Sequence[Answer]) -> str:
    """One row for each answer: its words, then its numbers."""
    names = [name for name, _ in answers[0].point.labels]
    rows = [
        [_cell(value) for _, value in answer.point.labels]
        + [form.format(answer.row[key]) for _, key, form in _NUMBERS]
        for answer in answers
    ]
    return markdown_table([*names, *(title for title, _, _ in _NUMBERS)], rows)


def choice_table(choices: Sequence[tuple[float, float, Answer | None]]) -> str:
    """The cheapest setting for each (requests a minute, p95 in seconds)."""
    rows = []
    for rate, p95_s, answer in choices:
        if answer is None:
            rows.append([f"{rate:g}", f"{p95_s:g}", "none of those tried", "", "", "", "", ""])
            continue
        words = [_cell(value) for _, value in answer.point.labels]
        numbers = [form.format(answer.row[key]) for _, key, form in _NUMBERS[:3]]
        rows.append([f"{rate:g}", f"{p95_s:g}", *words, *numbers])
    header = ["requests/min", "p95 wanted, s", "GPU", "window, s", "min containers"]
    return markdown_table([*header, *(title for title, _, _ in _NUMBERS[:3])], rows)


def sources_table() -> str:
    """Every number that the simulation is fed, with where it comes from."""
    rows = [
        [f"`{name}`", f"{one.value:.4g}", one.unit, one.origin.value, one.source]
        for name, one in timings.table()
    ]
    return markdown_table(["figure", "value", "unit", "is", "source"], rows)


def full_text(
    studies: dict[str, list[Answer]], choices: Sequence[tuple[float, float, Answer | None]]
) -> str:
    """All tables, for between the marks of the document."""
    parts = ["### Cheapest setting for a latency (even load)\n", choice_table(choices)]
    for name, answers in studies.items():
        parts += [f"### {_HEADINGS[name]}\n", answers_table(answers)]
    parts += ["### What goes in\n", sources_table()]
    return "\n".join(parts)


def replace_between_marks(document: Path, text: str) -> None:
    """Put `text` in the place that `document` keeps for it.

    Raises:
        ValueError: the document has no such place.
    """
    old = document.read_text()
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        raise ValueError(f"{document.name} must hold {BEGIN} and {END} once each")
    head, _, rest = old.partition(BEGIN)
    tail = rest.partition(END)[2]
    document.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{tail}")


_PLOTS = {
    # study: (column on the x axis, its title, logarithmic, columns that make one line)
    "scaledown": ("window, s", "scale-down window, s", True, ("requests/min",)),
    "minimum": ("min containers", "containers kept warm", False, ("requests/min",)),
    "cache": ("cache, GiB", "LoRA cache per container, GiB", True, ("LoRAs", "routing")),
    "rates": ("requests/min", "requests a minute", True, ("GPU",)),
}


def plot_all(studies: dict[str, list[Answer]], folder: Path) -> list[Path]:
    """`fleet-*.png` in `folder`, one for each study."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3})
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, answers in studies.items():
        if name == "shipped":
            continue  # a table says it better
        path = folder / f"fleet-{name}.png"
        if name == "gpus":
            _bars(answers, path)
        else:
            _lines(name, answers, path)
        paths.append(path)
    return paths


def _save(figure: Any, title: str, path: Path) -> None:
    from matplotlib import pyplot as plt

    figure.suptitle(title)
    figure.tight_layout()
    # Without the version of matplotlib in it: the same numbers give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _lines(name: str, answers: Sequence[Answer], path: Path) -> None:
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D

    column, title, logarithmic, groups = _PLOTS[name]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8))
    keys = list(dict.fromkeys(tuple(a.point.label(g) for g in groups) for a in answers))
    for index, key in enumerate(keys):
        line = [a for a in answers if tuple(a.point.label(g) for g in groups) == key]
        x = [float(a.point.label(column)) for a in line]
        # Lines that differ in routing alone share a colour.
        color = f"C{[k[0] for k in keys].index(key[0]) // (2 if len(groups) > 1 else 1)}"
        mark = "o" if index % 2 == 0 or len(groups) == 1 else "^"
        words = f"{groups[0]} {_cell(key[0])}" + "".join(f", {_cell(k)}" for k in key[1:])
        # The later the smaller: of lines that lie on one another all are seen.
        style = {"color": color, "markersize": 9 - 5 * index / len(keys)}
        left.plot(x, [a.row["p95_s"] for a in line], f"{mark}-", label=words, **style)
        left.plot(x, [a.row["p50_s"] for a in line], f"{mark}:", alpha=0.7, **style)
        right.plot(x, [1000 * a.row["usd_per_image"] for a in line], f"{mark}-", **style)
    for axes, label in ((left, "latency, s"), (right, "USD per 1,000 images")):
        axes.set_xlabel(title)
        axes.set_ylabel(label)
        axes.margins(y=0.08)
        axes.set_ylim(bottom=0)
        if logarithmic:
            axes.set_xscale("log")
            ticks = sorted({float(a.point.label(column)) for a in answers})
            axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axes.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    handles += [Line2D([], [], color="grey"), Line2D([], [], color="grey", linestyle=":")]
    right.legend(handles, [*labels, "p95 (latency)", "p50 (latency)"], fontsize=8)
    _save(figure, _HEADINGS[name], path)


def _bars(answers: Sequence[Answer], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8))
    gpus = list(dict.fromkeys(str(a.point.label("GPU")) for a in answers))
    starts = list(dict.fromkeys(str(a.point.label("weights from")) for a in answers))
    for index, start in enumerate(starts):
        bars = [a for a in answers if a.point.label("weights from") == start]
        x = [position + 0.27 * (index - 1) for position in range(len(gpus))]
        p95 = [a.row["p95_s"] for a in bars]
        axes[0].bar(x, p95, 0.25, label=f"p95, weights from {start}", color=f"C{index}", alpha=0.5)
        axes[0].bar(x, [a.row["p50_s"] for a in bars], 0.25, color=f"C{index}")
        axes[1].bar(x, [1000 * a.row["usd_per_image"] for a in bars], 0.25, color=f"C{index}")
    for one, label in zip(axes, ("latency, s (dark: p50)", "USD per 1,000 images"), strict=True):
        one.set_xticks(range(len(gpus)), gpus)
        one.set_ylabel(label)
    axes[0].legend(fontsize=8)
    _save(figure, _HEADINGS["gpus"], path)
