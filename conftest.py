"""For all tests: threads, order, what is left out, and a word on what did not run.

`make test` runs the files side by side, one file in one process (`--dist loadfile`), so that what a
file's tests share, a running worker for instance, is started once in each process and not once for
each test. It leaves out what is marked `long`, which `make test-all` runs. `make check` runs
`--quick`: what needs neither a process nor a model.
"""

from __future__ import annotations

import functools
import gc
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before torch is imported. The processes of a run share the cores already: more threads than one in
# each cost more than they bring, the small model's matrices being tiny. Children inherit it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402

# Until everything is imported and collected (below): none of it is garbage, and looking for some
# takes a third of that time.
gc.disable()

# Fixtures that start a process or load a model, whoever asks for them.
STARTS = frozenset({"postgres", "worker", "studio", "browser", "chromium_path", "rig", "any_rig"})
LONG = frozenset({"slow", "long", "gpu", "browser", "process"})
# A file that says of itself, as a whole, that it is none of the quick ones.
WHOLE_FILE_IS_LONG = re.compile(
    rf"^pytestmark = [^=]*?\bpytest\.mark\.(?:{'|'.join(sorted(LONG))})\b", re.MULTILINE
)
PAGE = "tests/browser/"
TAKES_LONG = "takes long: make test-all runs it"
PLUGINS = {
    "pytest_timeout": ("timeout",),
    "pytest_asyncio": ("asyncio_mode", "asyncio_default_fixture_loop_scope"),
}


@pytest.fixture(autouse=True, scope="session")
def _certificates_are_read_once() -> Iterator[None]:
    """Not by each client of HTTP that a test or an app opens: reading those of this computer takes
    longer than starting a backend."""
    if find_spec("httpcore2") is None:
        yield
        return
    import httpcore2

    read = httpcore2.default_ssl_context

    @functools.cache
    def kept(trust_env: bool, *_: str | None) -> Any:
        return read(_trust_env=trust_env)

    def context(*, _trust_env: bool = True) -> Any:
        return kept(_trust_env, os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(httpcore2, "default_ssl_context", context)
        yield


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--quick`, `--all` and `--long`."""
    parser.addoption(
        "--quick", action="store_true", help="only tests that need neither a process nor a model"
    )
    parser.addoption("--all", action="store_true", help="also the tests that are marked `long`")
    parser.addoption(
        "--long", action="store_true", help="outages of minutes where there are such of seconds"
    )
    # A bare machine with a GPU may have pytest alone, which refuses its plugins' settings.
    for plugin, names in PLUGINS.items():
        if find_spec(plugin) is None:
            for name in names:
                parser.addini(name, f"of {plugin}, which is not installed")


def pytest_configure(config: pytest.Config) -> None:
    """Under `--quick` a test that starts a process all the same is left out as it does."""
    if config.getoption("--quick"):
        sys.addaudithook(_leave_out_processes)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What is left of the page's tests in `make test` is run by one process: its files share one
    server and one worker, whose start takes longer than most of them do. Otherwise as told."""
    if config.getoption("dist") != "loadfile" or config.getoption("--all"):
        return None
    from xdist.scheduler import LoadFileScheduling

    scheduling = LoadFileScheduling(config, log)
    file_of = scheduling._split_scope
    scheduling._split_scope = lambda test: PAGE if test.startswith(PAGE) else file_of(test)
    return scheduling


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """One process more than there are cores: a quarter of their time tests wait for others.

    The quick ones wait for nobody, and each process costs the time to import what they test.
    """
    return None if config.getoption("--quick") else (os.cpu_count() or 1) + 1


def _leave_out_processes(event: str, arguments: tuple[Any, ...]) -> None:
    # pytest names the test that runs; between tests, pytest's own plugins may start what they need.
    if event != "subprocess.Popen" or "PYTEST_CURRENT_TEST" not in os.environ:
        return
    if os.path.basename(str(arguments[0])) not in ("git", "uname"):
        raise pytest.skip.Exception("starts a process (`make test` runs it)")


def is_quick(item: pytest.Item) -> bool:
    """Whether a test needs neither a process nor a model, by its fixtures and marks."""
    fixtures = set(getattr(item, "fixturenames", ()))
    marks = {mark.name for mark in item.iter_markers()}
    return not (fixtures & STARTS or marks & LONG)


def longest_files_first(items: list[pytest.Item]) -> None:
    """Files with slow tests begin, so that no process ends a run alone with one of them."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Under `--quick` a file without a quick test is not even imported: that takes longest."""
    if not config.getoption("--quick") or collection_path.suffix != ".py":
        return None
    return bool(WHOLE_FILE_IS_LONG.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_finish() -> None:
    """What was imported and collected stays: looking through it for garbage again and again took
    a tenth of the tests' time. What tests leave is looked through less often than by default."""
    gc.freeze()
    gc.set_threshold(5_000, 10, 20)
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Choose and order."""
    longest_files_first(items)
    if not (config.getoption("--all") or config.getoption("--long")):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason=TAKES_LONG))
    if config.getoption("--quick"):
        left_out = [item for item in items if not is_quick(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if is_quick(item)]


def left_out_lines(skipped: list[Any]) -> list[str]:
    """One line for each reason: how many tests it left out."""
    reasons: Counter[str] = Counter()
    for report in skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        reasons[str(reason).removeprefix("Skipped: ")] += 1
    return [f"left out: {count} × {reason}" for reason, count in reasons.most_common()]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Before the closing line: what did not run, and why."""
    for line in left_out_lines(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line)
