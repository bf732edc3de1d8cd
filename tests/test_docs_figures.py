"""The documents' figures, tables, examples and translations are those of the source."""

from __future__ import annotations

import json
import re
from enum import Enum
from typing import Any

import pytest
from pydantic import TypeAdapter
from pydantic_settings import BaseSettings

from sdxl_contract.errors import ErrorBody
from sdxl_contract.request import dump_request, parse_request
from sdxl_contract.result import GenerateResult, Health, WorkerEvent
from sdxl_worker.deploying.settings import Deployment
from testkit.documents import (
    REPOSITORY,
    SETTINGS,
    TRANSLATIONS,
    code_blocks,
    environment_names,
    headings,
    inline_codes,
    prose,
    table_rows,
)

DOCS = REPOSITORY / "docs"
GOLDEN = REPOSITORY / "contract" / "tests" / "golden"

# --- translations -----------------------------------------------------------------------------


def differences(english: str, spanish: str) -> list[str]:
    """What two texts that should have one structure do not share."""

    def exact(text: str) -> list[tuple[str, str]]:
        return [(lang, code) for lang, code in code_blocks(text) if lang != "text"]

    def commands(text: str) -> list[str]:
        return sorted(
            code for code in inline_codes(text) if re.match(r"make |modal |npx |wk-", code)
        )

    same: dict[str, list[Any]] = {
        "the levels of headings": [[level for level, _ in headings(t)] for t in (english, spanish)],
        "code blocks": [exact(t) for t in (english, spanish)],
        "the number of code blocks": [len(code_blocks(t)) for t in (english, spanish)],
        "commands": [commands(t) for t in (english, spanish)],
        "the number of table rows": [len(list(table_rows(t))) for t in (english, spanish)],
        "names in code": [sorted(set(inline_codes(t))) for t in (english, spanish)],
    }
    return [
        f"{what}: {[x for x in one if x not in other]} / {[x for x in other if x not in one]}"
        if isinstance(one, list)
        else f"{what}: {one} / {other}"
        for what, (one, other) in same.items()
        if one != other
    ]


@pytest.mark.parametrize(("english", "spanish"), TRANSLATIONS)
def test_a_translation_has_the_original_s_structure(english: str, spanish: str) -> None:
    found = differences((REPOSITORY / english).read_text(), (REPOSITORY / spanish).read_text())
    assert not found, "\n".join(found)


def test_a_translation_that_lacks_something_is_found() -> None:
    english = "# A\n\n## B\n\n`make demo`\n\n```bash\nmake demo\n```\n\n| a |\n|---|\n| `b` |\n"

    assert differences(english, english) == []
    for lost in ("## B\n", "`make demo`", "| `b` |\n", "```bash\nmake demo\n```\n"):
        assert differences(english, english.replace(lost, ""))


# --- settings, examples, figures, decisions ---------------------------------------------------


def shown_default(settings: type[BaseSettings], field: str, unset: str) -> str:
    value: Any = settings.model_fields[field].get_default(call_default_factory=True)
    if isinstance(value, Enum):
        value = value.value
    if value is None or value in ((), ""):
        return unset
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        value = ",".join(value)
    return f"`{value:.12g}`" if isinstance(value, float) else f"`{value}`"


def settings_problems(text: str, unset: str) -> list[str]:
    """Settings without a row, rows without a setting, and wrong defaults."""
    problems = []
    sections = re.split(r"^### ", prose(text), flags=re.MULTILINE)[1:]
    for settings, section in zip(SETTINGS, sections, strict=True):
        listed = [row for row in table_rows(section) if row[0].startswith("`")]
        rows = {row[0].strip("`"): row[1] for row in listed}
        if len(rows) < len(listed):
            problems.append(f"a setting has two rows under {section.splitlines()[0]}")
        names = environment_names(settings)
        if settings is Deployment:
            names = {name: field for name, field in names.items() if name.startswith("DEPLOY_")}
        problems += [f"{name} has no row" for name in names.keys() - rows.keys()]
        problems += [f"{name} is no setting" for name in rows.keys() - names.keys()]
        problems += [
            f"{name} is {rows[name]} and must be {shown_default(settings, field, unset)}"
            for name, field in names.items()
            if name in rows and rows[name] != shown_default(settings, field, unset)
        ]
    return sorted(problems)


@pytest.mark.parametrize(("place", "unset"), [(0, "unset"), (1, "sin definir")])
def test_the_guide_lists_every_setting_with_its_default(place: int, unset: str) -> None:
    text = (REPOSITORY / TRANSLATIONS[1][place]).read_text()

    problems = settings_problems(text, unset)
    assert not problems, "\n".join(problems)
    wrong = text.replace("| `R2_REGION` | `auto` |", "| `R2_REGIO` | `auto` |")
    assert settings_problems(wrong, unset) == ["R2_REGIO is no setting", "R2_REGION has no row"]
    assert settings_problems(text.replace("`PORT` | `8000`", "`PORT` | `8080`"), unset)
    assert settings_problems(
        text.replace("| `HOST` |", "| `PORT` | `8000` | x |\n| `HOST` |"), unset
    )


def test_the_contract_s_examples_are_the_golden_files_and_parse() -> None:
    text = (DOCS / "WORKER_CONTRACT.md").read_text()
    marked = re.findall(r"<!-- (golden|model): (\S+) -->\n```json\n(.*?)^```", text, re.M | re.S)

    assert len(marked) == len([1 for language, _ in code_blocks(text) if language == "json"])
    models: dict[str, TypeAdapter[Any]] = {
        "Health": TypeAdapter(Health),
        "WorkerEvent": TypeAdapter(WorkerEvent),
        "result_given.json": TypeAdapter(GenerateResult),
        "error_body.json": TypeAdapter(ErrorBody),
    }
    for kind, name, example in marked:
        if kind == "golden":
            assert json.loads(example) == json.loads((GOLDEN / name).read_text()), name
        if name in models:
            models[name].validate_json(example)
        elif name.startswith("request_"):
            assert parse_request(dump_request(parse_request(example))) == parse_request(example)
        else:
            assert name == "errors.json"
    shown = {name for kind, name, _ in marked if kind == "golden"}
    assert shown == {p.name for p in GOLDEN.glob("*.json")} - {"request_minimal.defaults.json"}


@pytest.mark.parametrize("readme", TRANSLATIONS[0])
def test_the_readme_s_figures_are_the_measured_ones(readme: str) -> None:
    results = json.loads((REPOSITORY / "benchmarks/results/lora_swap.json").read_text())
    text = (REPOSITORY / readme).read_text()
    figures = {
        row[0].strip("`"): float(row[1]) for row in table_rows(text) if row[0].strip("`") in results
    }

    assert {"peer_s", "ours_s", "ratio", "changed_weights"} <= figures.keys()
    assert figures == {name: float(f"{results[name]:.3g}") for name in figures}
    for fact in (results["hardware"], results["torch"]):
        assert fact in " ".join(text.split())


def test_decisions_are_numbered_short_and_of_one_form() -> None:
    pages = sorted((DOCS / "decisions").glob("*.md"))
    index = (DOCS / "README.md").read_text()

    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    for page in pages:
        text = page.read_text()
        assert text.startswith(f"# {page.name[:4]}: "), page.name
        parts = re.findall(r"^\*\*(Context|Decision|Consequences)\.\*\*", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences"], page.name
        assert len(text.splitlines()) <= 50, f"{page.name} is longer than a page"
        assert f"decisions/{page.name}" in index, f"docs/README.md does not list {page.name}"
