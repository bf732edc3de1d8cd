"""The faults that a deployment once had, each with the case that would find it again.

Duty: the part of `make deploy-check` that no other part's subject covers: what is kept of a
workspace, what a failing lookup leaves, whose seconds are measured, who is blamed. `FAULTS` is the
list of all of them; most of its cases stand beside what they need (`check_typed`, `check_local`,
`check_control`).
Must not know: how each was mended.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from deploy import check as deploy_check
from deploy import deploy as deploying
from deploy.modal_server_double import ModalServerDouble
from sdxl_contract.result import Health, HealthStatus, StartReport
from sdxl_worker.deploying import settings as deployment_settings
from sdxl_worker.deploying import volume
from sdxl_worker.deploying.board import REPORT, Report
from sdxl_worker.deploying.single_file import WeightsError

# What was wrong, by number; the name of the section of `make deploy-check` that holds its case.
FAULTS: dict[str, str] = {
    "M1": "a rotated bearer token is not in force after a restore from a snapshot",
    "M2": "a kept token that the workspace no longer has is trusted, and every call refused",
    "M3": "a start reads the weights twice: to load them, and to hash them",
    "M4": "GPUs that Modal has are refused for their spelling",
    "M5": "a chosen region leaves every price as it was",
    "M6": "a worker's setting that cannot work fails only in the paid container",
    "M7": "two volumes mounted at one place hide one another silently",
    "M8": "a URL that cannot be looked up ends in a traceback",
    "M9": "a start that fails for good costs a new container per request",
    "M10": "health, metrics and cancels wait behind pictures, or start a container",
    "M11": "smoke and bench measure another worker than the deployed one, and not its whole price",
    "M12": "a mistyped path is blamed on the hub, a mistyped setting shown as a traceback",
}

_KEPT_TOKEN = "kept-before-and-not-known-any-more"


def check_kept_tokens(url: str, double: ModalServerDouble) -> list[str]:
    """Problems (M2): a token of another workspace is used again, or one that the deployed worker
    refuses is reported as a success. `url`: of the running double of Modal's servers."""
    values = {
        "MODAL_SERVER_URL": url,
        "MODAL_TOKEN_ID": "ak-double",
        "MODAL_TOKEN_SECRET": "as-double",
    }
    problems = []
    with (
        tempfile.TemporaryDirectory() as folder,
        deploy_check.environment(values),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        deployment = deployment_settings.Deployment()
        kept = deploying.Kept(Path(folder) / "x.env")
        kept.keep(MODAL_PROXY_KEY="wk-of-elsewhere", MODAL_PROXY_SECRET="ws-of-elsewhere")
        deploying.make_proxy_token(deployment, kept)
        if kept.get("MODAL_PROXY_KEY") != f"wk-double-{len(double.said.proxy_tokens)}":
            problems.append("M2: a proxy token of another workspace is used again")
        kept.keep(MODAL_API_TOKEN=_KEPT_TOKEN)
        with _refusing() as control:
            try:
                deploying.check_tokens(control, kept)
            except deploying.StepFailed as error:
                if _KEPT_TOKEN in str(error):
                    problems.append("M2: the refused token is shown")
            else:
                problems.append("M2: a token that the deployed worker refuses counts as a success")
    return problems


@contextlib.contextmanager
def _refusing() -> Iterator[str]:
    """The URL of a control that knows no token; it answers one call."""

    class Control(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "0")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Control) as server:
        thread = threading.Thread(target=server.handle_request, daemon=True)
        server.timeout = 20
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        thread.join()


def check_lookup() -> list[str]:
    """Problems (M8): a failing lookup of the deployed worker's URL is not said in a sentence."""
    import modal
    from modal.exception import NotFoundError

    problems = []
    for error in (NotFoundError("no such class"), ConnectionError("reset"), TimeoutError()):
        with mock.patch.object(modal.Cls, "from_name", side_effect=error):
            try:
                deploying.find_urls(deployment_settings.Deployment())
            except deploying.StepFailed as failed:
                if "The worker is deployed" not in str(failed):
                    problems.append(f"M8: it does not say what is deployed: {failed}")
            except Exception as other:  # whatever comes through is the fault that is looked for
                problems.append(f"M8: {other!r} comes through as a traceback")
            else:
                problems.append("M8: a lookup that failed counts as a success")
    return problems


def check_bench(path: Path) -> list[str]:
    """Problems (M11): `bench` and `smoke` ask another worker than the deployed one, or leave a
    part of the price out."""
    problems = []
    with deploy_check.environment({}):
        deployment = deployment_settings.Deployment()
        price = deployment_settings.container_usd_per_second(deployment, deployment.gpu[0])
        assert price is not None
        module = deploy_check.load_app(path, {})
        asked: list[tuple[str, ...]] = []
        answer = {
            "timings": {"denoise": 1.5, "encode": 0.5},
            "cost": {"seconds": 2.0, "usd_per_second": price, "gpu": deployment.gpu[0]},
            "image_base64": "",
        }
        drawn = json.dumps(answer)
        generate = SimpleNamespace(
            remote=lambda _: json.loads(drawn),
            get_current_stats=lambda: SimpleNamespace(num_total_runners=0),
        )
        remote = SimpleNamespace(generate=generate)
        start = StartReport(way="weights", seconds={"warm_up": 0.5})
        told = Report(at=time.time(), health=Health(status=HealthStatus.READY, start=start))
        board = {f"{REPORT}ta-1": told.model_dump_json()}
        commands: tuple[tuple[str, dict[str, Any]], ...] = (
            ("bench", {"images": 2}),
            ("bench", {"images": 1, "cold": True}),
            ("smoke", {"output": "/dev/null"}),
        )

        def from_name(*names: str) -> Any:
            asked.append(names)
            return lambda: remote

        with (
            mock.patch.object(module.modal.Cls, "from_name", from_name),
            mock.patch.object(module, "board", board),
        ):
            for name, options in commands:
                said = io.StringIO()
                asked.clear()
                with contextlib.redirect_stdout(said):
                    try:
                        getattr(module, name).info.raw_f(**options)
                    except Exception as error:  # it went another way than to the deployed worker
                        problems.append(f"M11: {name} does not ask the deployed worker: {error!r}")
                        continue
                if asked != [(deployment.app_name, "Worker")]:
                    problems.append(f"M11: {name} asks {asked} instead of the deployed worker")
                elif name == "bench":
                    figures = json.loads(said.getvalue().splitlines()[-1])
                    usd = figures["warm"]["usd"]
                    if abs(usd - 2.0 * price) > 1e-8:
                        problems.append(f"M11: bench says {usd} for 2 s that cost {2 * price:.8f}")
                    parts = figures.get("cold", {}).get("phases", {})
                    priced = {"seconds": 0.5, "usd": round(0.5 * price, 8)}
                    if options.get("cold") and parts.get("warm_up") != priced:
                        problems.append(f"M11: bench --cold says {parts} of a warm-up of 0.5 s")
    return problems


def check_blame(path: Path) -> list[str]:
    """Problems (M12): a path that is not on the volume is looked for on the hub; a setting that
    cannot work is a traceback where `modal deploy` is run by hand."""
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        for source in ("/weights/mistyped", "./mistyped", "mistyped"):
            with mock.patch.object(volume, "_from_hub", side_effect=AssertionError("asked")):
                try:
                    volume.fill(Path(folder), source)
                except WeightsError as error:
                    if "not on the volume" not in str(error):
                        problems.append(f"M12: BASE_MODEL={source} is blamed wrongly: {error}")
                except AssertionError:
                    problems.append(f"M12: BASE_MODEL={source} is looked for on the hub")
    try:
        deploy_check.load_app(path, {"DEPLOY_GPU": "L40S:2"})
    except SystemExit as refusal:
        if "DEPLOY_GPU: " not in str(refusal):
            problems.append(f"M12: a refused setting is not named: {refusal}")
    except Exception as error:  # shown as a traceback by `modal deploy`
        problems.append(f"M12: a refused setting is a traceback of {type(error).__name__}")
    else:
        problems.append("M12: DEPLOY_GPU=L40S:2 is deployed")
    return problems
