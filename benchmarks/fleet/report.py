"""The simulated fleet's answers as plots and as tables in markdown.

Must not know: how they were simulated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.fleet.studies import Answer
from deploy import timings

BEGIN, END = "<!-- make simulate: begin -->", "<!-- make simulate: end -->"
_HEADINGS = {
    "shipped": "As it is shipped (the first row), and what two of its settings change "
    "(10,000 LoRAs, the hours of a day)",
    "starts": "Ways to start, where requests are rare (one a minute, the hours of a day, all else "
    "as shipped)",
    "own": "Own GPUs for the base load, Modal for the rest (L40S, 10,000 LoRAs, the hours of "
    "a day)",
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
    rows = [
        [_cell(value) for value in answer.labels.values()]
        + [form.format(answer.row[key]) for _, key, form in _NUMBERS]
        for answer in answers
    ]
    return markdown_table([*answers[0].labels, *(title for title, _, _ in _NUMBERS)], rows)


def own_table(answers: Sequence[Answer]) -> str:
    """What own GPUs save of Modal's bill, and so what one of them may cost."""
    rows = []
    alone = previous = answers[0]
    for answer in answers:
        count = float(answer.labels["own GPUs"])
        saved = alone.row["usd_per_hour"] - answer.row["usd_per_hour"]
        if not count:
            alone = previous = answer
            worth = ["", ""]
        else:
            more = count - float(previous.labels["own GPUs"])
            last = (previous.row["usd_per_hour"] - answer.row["usd_per_hour"]) / more
            worth = [f"{saved / count:.2f}", f"{last:.2f}"]
            previous = answer
        rows.append(
            [
                *(_cell(value) for value in answer.labels.values()),
                f"{answer.row['own_share']:.0%}",
                f"{answer.row['p50_s']:.1f}",
                f"{answer.row['p95_s']:.1f}",
                f"{answer.row['usd_per_hour']:.2f}",
                *worth,
            ]
        )
    header = [
        *answers[0].labels, "drawn by own", "p50, s", "p95, s", "Modal, USD/h",
        "break-even, USD/h each", "of the last one",
    ]  # fmt: skip
    return markdown_table(header, rows)


@dataclass(frozen=True)
class Choice:
    """The cheapest answer to one wish; None where none of those tried will do.

    Attributes:
        usual: the cheapest of those that need no GPU's memory in a snapshot.
    """

    per_minute: float
    p95_s: float
    download_mb_s: float
    answer: Answer | None
    usual: Answer | None


def choice_table(choices: Sequence[Choice]) -> str:
    """The cheapest setting for each wish, and beside it the cheapest without a GPU snapshot."""
    words = next((list(one.answer.labels) for one in choices if one.answer), [])
    rows = []
    for one in choices:
        asked = [f"{one.per_minute:g}", f"{one.p95_s:g}", f"{one.download_mb_s:g}"]
        if one.answer is None:
            rows.append([*asked, "none of those tried", *[""] * (len(words) + 3)])
            continue
        numbers = [form.format(one.answer.row[key]) for _, key, form in _NUMBERS[:3]]
        labels = (_cell(value) for value in one.answer.labels.values())
        rows.append([*asked, *labels, *numbers, _beside(one)])
    header = ["requests/min", "p95 wanted, s", "download, MB/s", *words]
    titles = (title for title, _, _ in _NUMBERS[:3])
    return markdown_table([*header, *titles, "without a GPU snapshot"], rows)


def _beside(one: Choice) -> str:
    """The cheapest without a GPU snapshot, in a few words."""
    if one.usual == one.answer:
        return "the same"
    if one.usual is None:
        return "none of those tried"
    labels, row = one.usual.labels, one.usual.row
    kept = _cell(labels["min containers"])
    p95, usd = row["p95_s"], row["usd_per_image"]
    return f"{labels['GPU']}, {kept} kept warm: {p95:.1f} s, {usd:.4f} USD"


def sources_table() -> str:
    """Every number that the simulation is fed, with where it comes from."""
    rows = [
        [f"`{name}`", f"{one.value:.4g}", one.unit, one.origin.value, one.source]
        for name, one in timings.table()
    ]
    return markdown_table(["figure", "value", "unit", "is", "source"], rows)


@dataclass(frozen=True)
class Results:
    """All that was simulated: what the document shows, and the file beside it holds."""

    seed: int
    scale: float
    choices: Sequence[Choice]
    studies: Mapping[str, Sequence[Answer]]

    def dump(self) -> str:
        """As JSON; nothing in it but what settings and seed decide."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def load(cls, text: str) -> Results:
        """What `dump` wrote."""
        raw = json.loads(text)
        choices = [
            Choice(**one | {k: one[k] and Answer(**one[k]) for k in ("answer", "usual")})
            for one in raw["choices"]
        ]
        studies = {
            name: [Answer(**answer) for answer in answers]
            for name, answers in raw["studies"].items()
        }
        return cls(raw["seed"], raw["scale"], choices, studies)


def full_text(results: Results) -> str:
    """All tables, for between the marks of the document."""
    parts = [
        "### Cheapest setting for a latency (even load, 10,000 LoRAs)\n",
        choice_table(results.choices),
    ]
    for name, answers in results.studies.items():
        table = own_table if name == "own" else answers_table
        parts += [f"### {_HEADINGS[name]}\n", table(answers)]
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


def plot_all(studies: Mapping[str, Sequence[Answer]], folder: Path) -> list[Path]:
    """`fleet-*.png` in `folder`, one for each study."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3})
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, answers in studies.items():
        if name not in {*_PLOTS, "gpus"}:
            continue  # a table says it better
        path = folder / f"fleet-{name}.png"
        if name == "gpus":
            _bars(answers, path)
        else:
            _lines(name, answers, path)
        paths.append(path)
    return paths


def _label(answer: Answer, name: str) -> str | float:
    return answer.labels[name]


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
    keys = list(dict.fromkeys(tuple(_label(a, g) for g in groups) for a in answers))
    for index, key in enumerate(keys):
        line = [a for a in answers if tuple(_label(a, g) for g in groups) == key]
        x = [float(_label(a, column)) for a in line]
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
            ticks = sorted({float(_label(a, column)) for a in answers})
            axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
            axes.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    handles += [Line2D([], [], color="grey"), Line2D([], [], color="grey", linestyle=":")]
    right.legend(handles, [*labels, "p95 (latency)", "p50 (latency)"], fontsize=8)
    _save(figure, _HEADINGS[name], path)


def _bars(answers: Sequence[Answer], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8))
    gpus = list(dict.fromkeys(str(_label(a, "GPU")) for a in answers))
    starts = list(dict.fromkeys(str(_label(a, "weights from")) for a in answers))
    for index, start in enumerate(starts):
        bars = [a for a in answers if _label(a, "weights from") == start]
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
