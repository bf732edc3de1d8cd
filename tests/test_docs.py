"""The documentation says what is true: links, commands, paths, settings, examples and figures.

Each check is a function from a document's text to a list of complaints. Every check has a control:
a wrong text that it must complain about.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from sdxl_contract.errors import ErrorCode
from testkit.documents import (
    REPOSITORY,
    SETTINGS,
    anchors,
    code_blocks,
    environment_names,
    files,
    inline_codes,
    prose,
)

# What a reader makes by following the text.
MADE_LATER = {"backend/.env", "demo-output", "smoke.png"}
# Pictures are made by `make demo`, `make screenshots` and `make simulate`; see their own test.
PICTURES = "docs/images"
# Variables of the shell and of libraries.
FOREIGN = {"EDITOR", "PATH", "HOME", "OTEL_EXPORTER_OTLP_ENDPOINT"}
# What other programs read that are pointed at this server (docs/clients).
FOREIGN |= {
    *("OPENAI_BASE_URL", "OPENAI_API_KEY", "IMAGE_GEN_OAI_BASEURL", "IMAGE_GEN_OAI_API_KEY"),
    *("IMAGE_GEN_OAI_MODEL", "SD_WEBUI_URL", "IMAGE_GENERATION_ENGINE"),
    *("IMAGES_OPENAI_API_BASE_URL", "IMAGES_OPENAI_API_KEY", "IMAGES_OPENAI_API_PARAMS"),
    *("AUTOMATIC1111_BASE_URL", "AUTOMATIC1111_API_AUTH", "AUTOMATIC1111_PARAMS"),
    *("REPLICATE_BASE_URL", "REPLICATE_API_TOKEN", "FAL_KEY", "FAL_RUN_HOST"),
    *("FAL_QUEUE_RUN_HOST", "SSL_CERT_FILE", "NO_COLOR"),
}

Check = Callable[[Path, str], list[str]]


@cache
def python_sources() -> str:
    return "\n".join((REPOSITORY / name).read_text() for name in files() if name.endswith(".py"))


def documents() -> list[str]:
    """What is committed: a page in the making may name what comes later."""
    found = subprocess.run(
        ["git", "ls-files", "*.md"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return sorted(name for name in found.stdout.splitlines() if (REPOSITORY / name).is_file())


# --- the checks -------------------------------------------------------------------------------


def broken_links(path: Path, text: str) -> list[str]:
    complaints = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", re.sub(r"`[^`]*`", "", prose(text))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        relative = file.relative_to(REPOSITORY).as_posix()
        if not file.exists():
            if not relative.startswith(f"{PICTURES}/"):
                complaints.append(f"the link to {target} leads nowhere")
        elif anchor and anchor not in anchors(file.read_text() if name else text):
            complaints.append(f"the link to {target} names no heading")
    return complaints


def unknown_make_targets(_: Path, text: str) -> list[str]:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (REPOSITORY / "Makefile").read_text(), re.M))
    code = "\n".join([*inline_codes(text), *(block for _, block in code_blocks(text))])
    used = re.findall(r"(?:^|&& |; )make ((?!-)[a-z][a-z-]*)", code, re.MULTILINE)
    return [f"make {target} is not in the Makefile" for target in used if target not in targets]


@cache
def _rooms() -> frozenset[str]:
    return frozenset(name.split("/")[0] for name in files() if "/" in name) | {"studio"}


def _words(path: Path, text: str) -> Iterator[tuple[Path, str]]:
    """(folder, word) of code in the text; a command's folder is where its `cd` went."""
    for code in inline_codes(text):
        yield from ((path.parent, word) for word in code.split())
    for language, block in code_blocks(text):
        folder = REPOSITORY
        for line in block.splitlines() if language == "bash" else ():
            if moved := re.match(r"cd (\S+)", line):
                folder = REPOSITORY / moved[1]
            yield from ((folder, word) for word in line.split())


def missing_paths(path: Path, text: str) -> list[str]:
    """Paths and test names in backticks and commands that are not there."""
    complaints = []
    bare = {name.rpartition("/")[2] for name in files()}
    for folder, word in _words(path, text):
        name, _, function = word.strip(",;()'\"").partition("::")
        if re.search(r"[<>…{}$*=:]", name) or name.rstrip("/") in MADE_LATER | {PICTURES}:
            continue
        found = [place / name for place in (REPOSITORY, folder) if (place / name).exists()]
        if "/" in name and name.split("/")[0] in _rooms():
            if not found:
                complaints.append(f"{name} does not exist")
            elif function and f"def {function}(" not in found[0].read_text():
                complaints.append(f"{name} has no function {function}")
        elif "/" not in name and name.endswith(".py") and name not in bare:
            complaints.append(f"no file is named {name}")
        elif re.fullmatch(r"test_\w+", name) and f"def {name}(" not in python_sources():
            complaints.append(f"there is no test {name}")
    return complaints


@cache
def known_variables() -> frozenset[str]:
    """Variables that a settings class, a script, the CLI or the Makefile reads."""
    names = {name for settings in SETTINGS for name in environment_names(settings)}
    reads = (
        r'''(?:environ(?:\.get\(|\[|\.setdefault\()|envvar=|port_from\()\s*"([A-Z][A-Z0-9_]*)"'''
    )
    names |= set(re.findall(reads, python_sources()))
    names |= set(re.findall(r"^([A-Z_]+) [?:]?=", (REPOSITORY / "Makefile").read_text(), re.M))
    for source in [(REPOSITORY / name).read_text() for name in files() if name.endswith(".py")]:
        if prefix := re.search(r'env_prefix="([A-Z_]+)"', source):
            fields = re.findall(r"^    ([a-z][a-z0-9_]*): [^\n]*= ", source, re.MULTILINE)
            names |= {prefix[1] + field.upper() for field in fields}
    return frozenset(names | FOREIGN)


@cache
def known_constants() -> frozenset[str]:
    """Error codes, and names that the source defines."""
    defined = re.findall(r"^\s*([A-Z][A-Z0-9_]+)(?::[^=\n]+)? =", python_sources(), re.MULTILINE)
    return frozenset(defined) | {code.value for code in ErrorCode}


def unknown_variables(_: Path, text: str) -> list[str]:
    """Settings in backticks, and variables in shell examples, that nothing reads."""
    codes = " ".join(inline_codes(text))
    inline = re.findall(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+\b", codes)
    allowed = known_variables() | known_constants()
    complaints = [f"{name} is no setting or constant" for name in inline if name not in allowed]
    for language, block in code_blocks(text):
        if language in ("bash", "sh"):
            used = re.findall(r"(?:^|\s|export )([A-Z][A-Z0-9_]*)=", block, re.MULTILINE)
            used += re.findall(r"\$\{?([A-Z][A-Z0-9_]*)", block)
            complaints += [f"{n} is read by nothing" for n in used if n not in known_variables()]
    return complaints


def bad_json(_: Path, text: str) -> list[str]:
    complaints = []
    for language, block in code_blocks(text):
        if language == "json":
            try:
                json.loads(block)
            except ValueError as error:
                complaints.append(f"a JSON example does not parse: {error}")
        for body in re.findall(r"-d '(\{.*?\})'", block, re.DOTALL):
            try:
                json.loads(body)
            except ValueError as error:
                complaints.append(f"the JSON of a curl example does not parse: {error}")
    return complaints


@cache
def routes() -> frozenset[tuple[str, str]]:
    """(method, path with `{}` for parameters) of backend and worker, read from the source."""
    found = set()
    for file in [
        *(REPOSITORY / "backend/app/api").rglob("*.py"),
        REPOSITORY / "worker/src/sdxl_worker/api.py",
    ]:
        source = file.read_text()
        prefixes = dict(re.findall(r'^(\w*router) = APIRouter\(prefix="([^"]+)"', source, re.M))
        decorators = r'@(\w+)\.(get|post|put|patch|delete)\(\s*"([^"]*)"'
        for owner, method, path in re.findall(decorators, source):
            path = re.sub(r"\{\w+(:\w+)?\}", "{}", prefixes.get(owner, "") + path)
            found.add((method.upper(), path))
    found |= {("GET", "/metrics"), ("GET", "/docs"), ("GET", "/openapi.json")}
    return frozenset(found | dialect_routes())


def dialect_routes() -> set[tuple[str, str]]:
    """The same of the dialects, each below its prefix."""
    found = set()
    folder = REPOSITORY / "backend/app/dialects"
    prefixes = re.findall(r'^([A-Z0-9]+) = "(/[^"]+)"$', (folder / "mounting.py").read_text(), re.M)
    for name, prefix in prefixes:
        for file in (folder / name.lower()).glob("*.py"):
            calls = re.findall(r'@router\.(get|post|put|delete)\(\s*"([^"]*)"', file.read_text())
            for method, path in calls:
                found.add((method.upper(), re.sub(r"\{\w+(:\w+)?\}", "{}", prefix + path)))
    return found


def unknown_calls(_: Path, text: str) -> list[str]:
    """`METHOD /path` in backticks that no service answers."""
    complaints = []
    for code in inline_codes(text):
        match = re.fullmatch(r"(GET|POST|PUT|PATCH|DELETE) (/\S*)", code)
        if match is None:
            continue
        path = match[2].partition("?")[0].removeprefix("/api/v1")
        if (match[1], re.sub(r"\{\w+\}", "{}", path)) not in routes():
            complaints.append(f"no service answers {code}")
    return complaints


CHECKS: dict[Check, str] = {
    broken_links: "see [there](no-such-file.md)",
    unknown_make_targets: "run `make no-such-target`",
    missing_paths: "look into `backend/app/no_such_file.py`",
    unknown_variables: "set `R2_NO_SUCH_SETTING`",
    bad_json: '```json\n{"a": 1,}\n```\n',
    unknown_calls: "call `GET /api/v1/no-such-path`",
}


@pytest.mark.parametrize("name", documents())
def test_a_document_says_nothing_that_is_not_there(name: str) -> None:
    path = REPOSITORY / name
    text = path.read_text()

    complaints = [complaint for check in CHECKS for complaint in check(path, text)]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_each_check_finds_what_is_wrong(check: Check) -> None:
    path = REPOSITORY / "README.md"

    assert check(path, CHECKS[check])


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        (broken_links, "see [there](docs/architecture.md#no-such-heading)"),
        (broken_links, "see [below](#no-such-heading)\n\n# Other"),
        (unknown_make_targets, "```bash\nmake no-such-target\n```\n"),
        (missing_paths, "shown by `test_that_was_never_written`" + "_at_all"),
        (missing_paths, "run `worker/app.py::no_such_function`"),
        (missing_paths, "see `no_such_module.py`"),
        (unknown_variables, "```bash\nNO_SUCH_SETTING=1 make serve\n```\n"),
        (unknown_variables, "```bash\necho $NO_SUCH_SETTING\n```\n"),
        (bad_json, "```bash\ncurl -d '{\"a\": }'\n```\n"),
        (unknown_calls, "call `DELETE /health`"),
    ],
)
def test_each_check_finds_the_less_obvious_too(check: Check, wrong: str) -> None:
    assert check(REPOSITORY / "README.md", wrong)


def test_the_pictures_of_the_docs_are_there() -> None:
    wanted = {
        (REPOSITORY / name).parent.joinpath(target).resolve().relative_to(REPOSITORY).as_posix()
        for name in documents()
        for target in re.findall(
            r"!\[[^\]]*\]\(([^)\s]+)\)", prose((REPOSITORY / name).read_text())
        )
    }
    pictures = {name for name in wanted if name.startswith(f"{PICTURES}/")}
    missing = sorted(name for name in pictures if not (REPOSITORY / name).exists())

    assert "docs/images/demo.png" in pictures
    for name in pictures - set(missing):
        assert (REPOSITORY / name).read_bytes()[:4] in (b"\x89PNG", b"RIFF"), name
    if missing:
        pytest.skip(f"not made yet: {', '.join(missing)}")


def test_the_source_defines_what_the_docs_are_held_against() -> None:
    """The sets that the checks look names up in are not empty, or they would accept nothing."""
    assert {"MODAL_ENDPOINT_URL", "WORKER_API_TOKEN", "DEPLOY_GPU", "API_KEY"} <= known_variables()
    assert ("POST", "/content/generate") in routes()
    assert ("POST", "/requests/{}/cancel") in routes()
