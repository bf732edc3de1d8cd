"""The controls of `make deploy-check`: with what mended a fault taken out, its case finds it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sdxl_contract import prices
from sdxl_worker.deploying import settings, starting, volume
from sdxl_worker.deploying.image import LOCKS

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).resolve().parents[3]
check = importlib.import_module("deploy.check")
faults = importlib.import_module("deploy.check_faults")
local = importlib.import_module("deploy.check_local")
control = importlib.import_module("deploy.check_control")
typed = importlib.import_module("deploy.check_typed")
deploy = importlib.import_module("deploy.deploy")
double = importlib.import_module("deploy.modal_server_double")

# What mends each fault, and what stands there instead when it is taken out again: in a module, or
# in app.py (None). M10 is taken out in test_modal_app.py.
Mend = tuple[str, ModuleType | None, str, str]
SETTINGS: list[Mend] = [
    ("M4", settings, "tuple(name.upper() for name in value)", "tuple(value)"),
    ("M5", settings, " * deployment.region_factor\n", "\n"),
    ("M5", prices, 'if "-" in region', "if False"),
    ("M6", settings, "deployment._check_worker(environment)", "pass"),
    ("M7", settings, "if first == second or", "if False and"),
]
KEPT: list[Mend] = [
    ("M2", deploy, "if any(known in row.values() for row in rows):", "if True:"),
    ("M2", deploy, "if answer.status_code == 200:", "if answer.status_code:"),
]
OTHERS: list[Mend] = [
    ("M8", deploy, "except Exception as error:", "except ZeroDivisionError as error:"),
    ("M11", None, 'modal.Cls.from_name(name, "Worker")()', "Worker()"),
    ("M12", None, "except ValueError as error:", "except ZeroDivisionError as error:"),
    ("M12", volume, "not path.exists() and _is_path(source)", "False"),
]
STARTS: list[Mend] = [
    ("M1", None, "settings = deployment.worker_settings()", "settings = self.before"),
    ("M3", starting, "reading.sha256s() if reading else None", "None"),
    ("M9", None, "patience_s=deployment.failed_start_seconds", "patience_s=0.0"),
    ("M11", settings, "(prices.USD_PER_SECOND[row] + rest)", "prices.USD_PER_SECOND[row]"),
]


def test_every_fault_has_a_case_and_a_control() -> None:
    checks = check.checks(check.APP, ("", double.ModalServerDouble()), pictures=True)
    cases = {fault for _, named, _ in checks for fault in named.split()}
    listed = (REPOSITORY / "worker" / "README.md").read_text()

    assert cases == set(faults.FAULTS) == {f"M{number}" for number in range(1, 13)}
    assert {m[0] for m in SETTINGS + KEPT + OTHERS + STARTS} | {"M10"} == cases
    rows = re.findall(r"^\| (M\d+) \| (.+) \| (.+) \|$", listed, re.MULTILINE)
    assert rows == [
        (fault, wrong, "; ".join(title for title, named, _ in checks if fault in named.split()))
        for fault, wrong in faults.FAULTS.items()
    ]


@contextlib.contextmanager
def taken_out(module: ModuleType, mend: str, instead: str) -> Iterator[None]:
    """`module` as it would be with `instead` where `mend` is."""
    source = inspect.getsource(module)
    assert source.count(mend) == 1, mend
    before = dict(vars(module))
    exec(compile(source.replace(mend, instead), str(module.__file__), "exec"), vars(module))
    try:
        yield
    finally:
        vars(module).clear()
        vars(module).update(before)


def app_without(tmp_path: Path, *mends: Mend) -> Path:
    """app.py with the mends taken out that are in it, beside a copy of what it reads."""
    source = check.APP.read_text()
    for _, module, mend, instead in mends:
        if module is None:
            source = source.replace(mend, instead)
    path: Path = tmp_path / "worker" / "app.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    for name in ("constraints.txt", "worker/pyproject.toml", "contract/pyproject.toml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / LOCKS, tmp_path / LOCKS)
    return path


def found_without(mend: Mend, tmp_path: Path, case: Callable[[Path], Any]) -> set[str]:
    """The faults that `case` names while `mend` is taken out."""
    _, module, text, instead = mend
    path = app_without(tmp_path, mend) if module is None else check.APP
    with taken_out(module, text, instead) if module else contextlib.nullcontext():
        return {problem.partition(":")[0] for problem in case(path)}


def test_no_case_finds_a_fault_where_none_is() -> None:
    assert typed.check_typed() + faults.check_lookup() + faults.check_bench(check.APP) == []
    assert faults.check_blame(check.APP) == []


@pytest.mark.parametrize("mend", SETTINGS, ids=lambda mend: mend[0])
def test_a_setting_s_fault_is_found_again(mend: Mend, tmp_path: Path) -> None:
    assert found_without(mend, tmp_path, lambda _: typed.check_typed()) == {mend[0]}


@pytest.mark.parametrize("mend", OTHERS, ids=lambda mend: mend[0])
def test_a_command_s_fault_is_found_again(mend: Mend, tmp_path: Path) -> None:
    cases = {
        "M8": lambda _: faults.check_lookup(),
        "M11": faults.check_bench,
        "M12": faults.check_blame,
    }
    assert found_without(mend, tmp_path, cases[mend[0]]) == {mend[0]}


@pytest.fixture(scope="module")
def servers() -> Iterator[Any]:
    with double.modal_server_double() as running:
        yield running


@pytest.mark.parametrize("mend", KEPT, ids=lambda mend: mend[2][:20])
def test_a_trusted_token_is_found_again(mend: Mend, tmp_path: Path, servers: Any) -> None:
    assert found_without(mend, tmp_path, lambda _: faults.check_kept_tokens(*servers)) == {"M2"}


@pytest.mark.slow
def test_a_start_s_faults_are_found_again(tmp_path: Path, servers: Any) -> None:
    """All at once, as a start takes its seconds: each must still be told."""
    path = app_without(tmp_path, *STARTS)
    # What is read before the snapshot, secrets included, is what is used after it.
    early = "        self.before = deployment.worker_settings()\n"
    line = "        self.begun = begin("
    source = path.read_text()
    assert source.count(line) == 1
    path.write_text(source.replace(line, early + line))
    with contextlib.ExitStack() as stack:
        for _, module, mend, instead in STARTS:
            if module is not None:
                stack.enter_context(taken_out(module, mend, instead))
        problems = local.check_container(path, servers[0])

    assert {p.partition(":")[0] for p in problems} >= {mend[0] for mend in STARTS}
