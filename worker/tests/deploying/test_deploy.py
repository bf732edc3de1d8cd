"""`make deploy`: Modal's own commands against a double of its servers, from nothing to a URL."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytestmark = pytest.mark.process


REPOSITORY = Path(__file__).resolve().parents[3]
costs = importlib.import_module("deploy.costs")
deploy = importlib.import_module("deploy.deploy")
deploy_check = importlib.import_module("deploy.check")
double = importlib.import_module("deploy.modal_server_double")

URL = "https://double--sdxl-lora-worker-worker-web.modal.run/generate-image"


def run(
    servers: object, folder: Path, *options: str, **values: str
) -> subprocess.CompletedProcess[str]:
    """`deploy/deploy.py` as a person runs it, but with Modal's servers doubled."""
    with double.modal_server_double(servers) as (url, _), deploy_check.environment({}):
        return subprocess.run(
            [sys.executable, "-m", "deploy.deploy", *options],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "MODAL_SERVER_URL": url,
                "MODAL_TOKEN_ID": "ak-double",
                "MODAL_TOKEN_SECRET": "as-double",
                "DATA_DIR": str(folder),
                **values,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


def kept(folder: Path) -> dict[str, str]:
    path = folder / "sdxl-lora-worker.env"
    assert path.stat().st_mode & 0o077 == 0, "others can read the tokens"
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


@pytest.mark.timeout(300)
def test_one_command_goes_from_nothing_to_an_endpoint_and_again_makes_nothing_twice(
    tmp_path: Path,
) -> None:
    servers = double.ModalServerDouble({})
    first = run(servers, tmp_path, "--yes")

    assert first.returncode == 0, first.stdout + first.stderr
    assert URL in first.stdout
    assert "an hour" in first.stdout.split("$ modal")[0], "costs are said before anything is done"
    values = kept(tmp_path)
    assert values["MODAL_ENDPOINT_URL"] == URL
    assert values["MODAL_CONTROL_URL"] == "http://127.0.0.1:9"
    assert "could not be asked (ConnectError)" in first.stderr
    assert servers.kept_secrets["sdxl-worker"] == {"WORKER_API_TOKEN": values["MODAL_API_TOKEN"]}
    assert (values["MODAL_PROXY_KEY"], values["MODAL_PROXY_SECRET"]) == (
        "wk-double-1",
        "ws-double-1",
    )
    assert servers.said.called == ["download_weights"]
    assert servers.said.published.name == "sdxl-lora-worker"
    for secret in ("MODAL_API_TOKEN", "MODAL_PROXY_SECRET"):
        assert values[secret] not in first.stdout + first.stderr

    again = run(servers, tmp_path, "--yes")

    assert again.returncode == 0, again.stdout + again.stderr
    assert kept(tmp_path) == values
    assert servers.said.proxy_tokens == ["sdxl-lora-worker"]
    assert servers.said.called == ["download_weights"] * 2  # which does nothing where all is intact


@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_proxy_token_that_was_deleted_is_replaced(tmp_path: Path) -> None:
    servers = double.ModalServerDouble({})
    assert run(servers, tmp_path, "--yes").returncode == 0
    servers.deleted_proxy_tokens.add(kept(tmp_path)["MODAL_PROXY_KEY"])

    again = run(servers, tmp_path, "--yes")

    assert again.returncode == 0, again.stdout + again.stderr
    assert kept(tmp_path)["MODAL_PROXY_KEY"] == "wk-double-2"
    assert "making a new one" in again.stdout


@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_server_routed_by_loras_has_its_url_kept(tmp_path: Path) -> None:
    servers = double.ModalServerDouble({})
    done = run(servers, tmp_path, "--yes", DEPLOY_ROUTING="affinity")

    assert done.returncode == 0, done.stdout + done.stderr
    assert kept(tmp_path)["MODAL_ENDPOINT_URL"] == URL.replace("worker-web", "server")


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (200, "application/json", None),
        (401, "application/json", "--new-token"),
        (401, "text/plain", "Modal refuses the proxy token"),
        (500, "text/html", "answered 500"),
    ],
)
def test_kept_tokens_are_proven_by_a_call(
    tmp_path: Path, status: int, kind: str, says: str | None
) -> None:
    """Tokens of another workspace, or older than the secret, are kept in the same folder."""
    kept_here = deploy.Kept(tmp_path / "x.env")
    kept_here.keep(MODAL_API_TOKEN="b" * 16, MODAL_PROXY_KEY="wk-1", MODAL_PROXY_SECRET="ws-1")
    asked: list[dict[str, str]] = []

    class Control(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            asked.append(dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Control) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        try:
            problem = deploy.check_tokens(f"http://127.0.0.1:{server.server_port}", kept_here)
        except deploy.StepFailed as error:
            problem = str(error)
            assert status == 401, "only what would refuse every call ends the deployment"

    assert problem is None if says is None else says in problem
    assert asked[0]["Authorization"] == "Bearer " + "b" * 16
    assert (asked[0]["Modal-Key"], asked[0]["Modal-Secret"]) == ("wk-1", "ws-1")
    assert "b" * 16 not in (problem or "")


@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_url_that_cannot_be_looked_up_is_an_error_that_says_what_is_there(
    tmp_path: Path,
) -> None:
    kept_secrets: dict[str, dict[str, str]] = {}
    servers = double.ModalServerDouble(kept_secrets, failing=frozenset({"url"}))
    failed = run(servers, tmp_path, "--yes")

    assert failed.returncode == 1
    assert "The worker is deployed, but its URL could not be looked up" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert kept(tmp_path)["MODAL_PROXY_KEY"] == "wk-double-1", "what Modal shows once is kept"


@pytest.mark.timeout(300)
def test_nothing_is_done_unless_somebody_agrees(tmp_path: Path) -> None:
    servers = double.ModalServerDouble({})
    refused = run(servers, tmp_path)
    asked = run(servers, tmp_path, "--costs")

    assert refused.returncode == 3
    assert "Nothing was done." in refused.stdout
    assert (asked.returncode, "an hour" in asked.stdout) == (0, True)
    assert servers.said.messages == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
@pytest.mark.long
def test_weights_that_do_not_arrive_stop_it_before_anything_is_served(tmp_path: Path) -> None:
    kept_secrets: dict[str, dict[str, str]] = {}
    servers = double.ModalServerDouble(kept_secrets, failing=frozenset({"download_weights"}))
    failed = run(servers, tmp_path, "--yes")

    assert failed.returncode == 1
    assert "download_weights failed here" in failed.stdout + failed.stderr
    assert "Run it again" in failed.stderr
    # A run that was not deployed leaves no app behind under its name.
    assert servers.said.published is None or not servers.said.published.name
    assert servers.said.proxy_tokens == []

    mended = double.ModalServerDouble(kept_secrets)
    assert run(mended, tmp_path, "--yes").returncode == 0
    token = kept(tmp_path)["MODAL_API_TOKEN"]
    assert kept_secrets["sdxl-worker"] == {"WORKER_API_TOKEN": token}


@pytest.mark.timeout(300)
def test_who_is_not_signed_in_is_told_how(tmp_path: Path) -> None:
    servers = double.ModalServerDouble({}, login=False)
    answer = run(servers, tmp_path, "--yes")

    assert answer.returncode == 1
    assert ".venv/bin/modal setup" in answer.stderr
    assert servers.kept_secrets == {}


@pytest.mark.timeout(300)
@pytest.mark.long
def test_a_secret_from_elsewhere_is_left_alone_unless_a_new_token_is_asked_for(
    tmp_path: Path,
) -> None:
    servers = double.ModalServerDouble({"sdxl-worker": {"WORKER_API_TOKEN": "of-old"}})
    left = run(servers, tmp_path, "--yes")

    assert left.returncode == 0, left.stdout + left.stderr
    assert "cannot be read back" in left.stdout
    assert "--new-token" in left.stdout
    assert "MODAL_API_TOKEN" not in kept(tmp_path)
    assert servers.kept_secrets["sdxl-worker"]["WORKER_API_TOKEN"] == "of-old"

    values = {"HUGGINGFACE_HUB_TOKEN": "hf-of-this-shell"}
    replaced = run(servers, tmp_path, "--yes", "--new-token", **values)

    assert replaced.returncode == 0, replaced.stdout + replaced.stderr
    assert servers.kept_secrets["sdxl-worker"] == {
        "WORKER_API_TOKEN": kept(tmp_path)["MODAL_API_TOKEN"],
        **values,
    }
    assert "hf-of-this-shell" not in replaced.stdout + replaced.stderr


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("DEPLOY_GPU", "L40S:2", "DEPLOY_GPU: 'L40S:2' is not a GPU's name"),
        ("QUEUE_MAX", "abc", "QUEUE_MAX: Input should be a valid integer"),
        ("DTYPE", "int8", "DTYPE: Input should be 'auto'"),
        ("LORA_ALLOWED_HOSTS", "https://x.example", "LORA_ALLOWED_HOSTS: 'https://x.example'"),
        ("WORKER_API_TOKEN", "with blank", "WORKER_API_TOKEN: must be visible ASCII"),
        ("DEPLOY_LORA_MOUNT", "/weights", "would hide the other"),
        ("DEPLOY_LORA_MOUNT", "/weights/loras/", "would hide the other"),
        ("DEPLOY_CPU", "-1", "DEPLOY_CPU: Input should be greater than 0"),
        ("DEPLOY_GPUS", "T4", "DEPLOY_GPUS is not a setting of the deployment"),
        ("DEPLOY_MIN_CONTAINERS", "9", "DEPLOY_MIN_CONTAINERS is 9: it must be at most"),
        ("BASE_MODEL", "///", "BASE_MODEL is '///'"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_asked(
    name: str,
    value: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, value)

    assert deploy.main(["--costs"]) == 2
    assert says in capsys.readouterr().err


def lines(**values: str) -> str:
    with deploy_check.environment(values):
        return "\n".join(costs.cost_lines(deploy.read_deployment()))


def test_costs_are_those_of_the_dated_table() -> None:
    # (0.000542 + 2 x 0.0000131 + 16 x 0.00000222) x 3600 = 2.1734
    plain = lines()
    assert "2026-08-01" in plain
    assert "one container with L40S: 2.17 an hour" in plain
    assert "while nobody asks: nothing" in plain
    assert "at most: 8.69 an hour, as DEPLOY_MAX_CONTAINERS is 4" in plain
    # (0.001097 + 4 x 0.0000131 + 16 x 0.00000222) x 3600 = 4.2657; 730 hours of three of them
    warm = lines(DEPLOY_GPU="H100!", DEPLOY_CPU="4", DEPLOY_MIN_CONTAINERS="3")
    assert "while nobody asks: 12.80 an hour, 9,342 a month: DEPLOY_MIN_CONTAINERS is 3" in warm


@pytest.mark.parametrize(
    ("typed", "told"),
    [("l40s", "L40S"), ("rtx-pro-6000", "RTX-PRO-6000"), ("b200+", "B200+"), ("h100!", "H100!")],
)
def test_every_spelling_that_modal_takes_is_taken(typed: str, told: str) -> None:
    with deploy_check.environment({"DEPLOY_GPU": typed}):
        assert deploy.read_deployment().gpu == (told,)


def test_a_chosen_region_is_in_every_price() -> None:
    # 2.1734 an hour anywhere; a broad region costs 1.5 times that, a narrow one 1.75 times.
    assert "one container with L40S: 3.26 an hour" in lines(DEPLOY_REGION="us")
    narrow = lines(DEPLOY_REGION="us,eu-west-1")
    assert "one container with L40S: 3.80 an hour" in narrow
    assert "times 1.75, as DEPLOY_REGION is us,eu-west-1" in narrow


def test_a_picture_is_billed_as_modal_bills_it() -> None:
    def rate(**values: str) -> float | None:
        with deploy_check.environment(values):
            settings = deploy.read_deployment().worker_settings({"WORKER_API_TOKEN": "t" * 32})
        usd: float | None = settings.usd_per_second
        return usd

    assert rate() == pytest.approx(0.000542 + 2 * 0.0000131 + 16 * 0.00000222)
    assert rate(DEPLOY_REGION="eu") == pytest.approx(1.5 * (rate() or 0))
    # Which GPU it will be is not known; the worker then looks at what it got.
    assert rate(DEPLOY_GPU="H100,A100-80GB") is None


def test_a_gpu_without_a_price_is_said_to_have_none() -> None:
    unknown = lines(DEPLOY_GPU="B300")
    both = lines(DEPLOY_GPU="B300,T4")

    assert "B300: not in this project's price table" in unknown
    assert "at most" not in unknown
    assert "if all of it is GPUs with a price here" in both
    # No seconds are known of a T4, so no picture's price is made up.
    assert "one container with T4" in both
    assert "a picture" not in both


def test_what_is_kept_can_be_read_by_a_shell_whatever_the_token(tmp_path: Path) -> None:
    path = tmp_path / "x.env"
    deploy.Kept(path).keep(MODAL_API_TOKEN="a$b'c\"d=e#f")
    shell = subprocess.run(
        ["sh", "-c", f'. {path}; printf %s "$MODAL_API_TOKEN"'],
        capture_output=True,
        text=True,
        check=True,
    )

    assert shell.stdout == "a$b'c\"d=e#f"
    assert deploy.Kept(path).get("MODAL_API_TOKEN") == "a$b'c\"d=e#f"
