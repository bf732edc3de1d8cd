"""`make deploy`: from a clone to a private endpoint on Modal that costs nothing while nobody asks.

Says what it will cost, asks, and then runs Modal's own commands, each printed before it runs:
login, the secret with the worker's bearer token, the weights onto the volume, the deployment, a
token for Modal's proxy. What the backend must know is kept in `<app>.env` in DATA_DIR (`.data`),
readable by you alone. Run it again whenever settings or code change: what is there already is not
made twice.

    python -m deploy.deploy [--yes] [--costs] [--new-token]

Settings are the environment variables DEPLOY_… and the worker's own.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx2

from deploy.costs import cost_lines
from sdxl_worker.deploying.settings import Deployment, Routing

REPOSITORY = Path(__file__).resolve().parents[1]
APP = "worker/app.py"
_TOKEN = "MODAL_API_TOKEN"
# The control may have to start.
_CALL_S = 60.0


class StepFailed(Exception):
    """A step did not work; the message says which and what to do."""


class Kept:
    """What the backend must know of a deployment: a file of NAME=value lines, mode 0600."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        pairs = (line.split("=", 1) for line in lines if "=" in line)
        self._values = {name: "".join(shlex.split(value)) for name, value in pairs}

    def get(self, name: str) -> str | None:
        """A value, if it is kept."""
        return self._values.get(name)

    def keep(self, **values: str) -> None:
        """Write `values` now: what Modal shows only once must not be lost to a later failure."""
        self._values |= values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        part.unlink(missing_ok=True)
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.writelines(f"{name}={shlex.quote(v)}\n" for name, v in self._values.items())
        part.replace(self.path)


def modal(*arguments: str, show: bool = False) -> str:
    """The output of a command of Modal's, which goes to the terminal instead if `show`.

    Raises:
        StepFailed: it ended with an error.
    """
    print(f"$ modal {shlex.join(arguments)}", flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        cwd=REPOSITORY,
        stdout=None if show else subprocess.PIPE,
        stderr=None if show else subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr or done.stdout or "").strip()
        raise StepFailed(
            f"modal {shlex.join(arguments[:2])} failed" + (f":\n{said[-1500:]}" if said else "")
        )
    return done.stdout or ""


def log_in(interactive: bool) -> None:
    """Make sure that Modal knows who is calling.

    Raises:
        StepFailed: it does not, and nobody is there to sign in.
    """
    try:
        modal("token", "info")
    except StepFailed as error:
        if not interactive:
            raise StepFailed(
                f"{error}\nSign in first: .venv/bin/modal setup, or set MODAL_TOKEN_ID and "
                "MODAL_TOKEN_SECRET"
            ) from error
        modal("setup", show=True)


def make_secret(deployment: Deployment, kept: Kept, new: bool) -> None:
    """The secret that the worker's bearer token is in; made if there is none, or anew if `new`."""
    name = deployment.secret_name
    there = {row["name"] for row in json.loads(modal("secret", "list", "--json"))}
    if name in there and not new:
        if kept.get(_TOKEN) is None:
            print(
                f"The secret {name} exists and cannot be read back: put its WORKER_API_TOKEN into "
                f"{_shown(kept.path)} as {_TOKEN}, or run this again with --new-token."
            )
        return
    token = os.environ.get("WORKER_API_TOKEN") or (None if new else kept.get(_TOKEN))
    values = {"WORKER_API_TOKEN": token or secrets.token_hex(32)}
    if os.environ.get("HUGGINGFACE_HUB_TOKEN"):
        values["HUGGINGFACE_HUB_TOKEN"] = os.environ["HUGGINGFACE_HUB_TOKEN"]
    with tempfile.TemporaryDirectory() as folder:
        # By a file, not as an argument: other users of this computer see arguments.
        path = Path(folder) / "secret.json"
        path.write_text(json.dumps(values))
        modal("secret", "create", name, "--from-json", str(path), *(["--force"] if new else []))
    kept.keep(**{_TOKEN: values["WORKER_API_TOKEN"]})


def make_proxy_token(deployment: Deployment, kept: Kept) -> None:
    """The token that Modal's proxy asks for before it starts a container.

    A kept one is used again only if this workspace still has it: one of another workspace, or one
    that was deleted since, would have every call refused.
    """
    if not deployment.proxy_auth:
        return
    if (known := kept.get("MODAL_PROXY_KEY")) is not None:
        rows = json.loads(modal("workspace", "proxy-tokens", "list", "--json"))
        if any(known in row.values() for row in rows):
            return
        print("The kept proxy token is not one of this workspace any more: making a new one.")
    command = ("workspace", "proxy-tokens", "create", "--name", deployment.app_name, "--json")
    made = json.loads(modal(*command))
    kept.keep(MODAL_PROXY_KEY=made["Modal-Key"], MODAL_PROXY_SECRET=made["Modal-Secret"])


def find_urls(deployment: Deployment) -> tuple[str, str]:
    """The URLs of the worker and of its control, as Modal says them.

    Raises:
        StepFailed: they could not be looked up, or there are none.
    """
    import modal as modal_package

    name = deployment.app_name
    try:
        if deployment.routing is Routing.QUEUE:
            worker = modal_package.Cls.from_name(name, "Worker")().web.get_web_url()
        else:
            worker = modal_package.Server.from_name(name, "Server").get_url()
        control = modal_package.Function.from_name(name, "control").get_web_url()
    except Exception as error:  # of the package, of gRPC, of the network: all mean the same here
        raise StepFailed(
            f"The worker is deployed, but its URL could not be looked up ({type(error).__name__}). "
            "It is on the app's page on modal.com"
        ) from error
    if not worker or not control:
        raise StepFailed("Modal has no URL for the worker: look at its page on modal.com")
    return str(worker).rstrip("/"), str(control).rstrip("/")


def check_tokens(control: str, kept: Kept) -> str | None:
    """Prove what is kept by a call that starts no GPU; words where it could not be proven.

    Tokens may be kept of another workspace, or be older than the secret.

    Raises:
        StepFailed: the deployment refuses them, as it would refuse every call of the backend's.
    """
    if (token := kept.get(_TOKEN)) is None:
        return None  # none is kept, as was said
    headers = {"Authorization": f"Bearer {token}"}
    for header, name in (("Modal-Key", "MODAL_PROXY_KEY"), ("Modal-Secret", "MODAL_PROXY_SECRET")):
        if value := kept.get(name):
            headers[header] = value
    try:
        answer = httpx2.get(f"{control}/requests/deployed", headers=headers, timeout=_CALL_S)
    except httpx2.HTTPError as error:
        return (
            f"The deployment could not be asked ({type(error).__name__}); its tokens are unproven."
        )
    if answer.status_code == 200:
        return None
    if answer.status_code != 401:
        return f"The deployment answered {answer.status_code} where it should have said 200."
    if answer.headers.get("content-type", "").startswith("application/json"):
        raise StepFailed(
            "The deployed worker refuses the bearer token that is kept here: run this again with "
            "--new-token, which replaces it on both sides."
        )
    raise StepFailed(
        f"Modal refuses the proxy token in {_shown(kept.path)}: delete its lines MODAL_PROXY_…, "
        "and a new one is made."
    )


def deploy(deployment: Deployment, kept: Kept, *, new_token: bool, interactive: bool) -> str:
    """Every step in order; the endpoint.

    Raises:
        StepFailed: one did not work; running it again goes on from there.
    """
    log_in(interactive)
    make_secret(deployment, kept, new_token)
    modal("run", f"{APP}::download_weights", show=True)
    modal("deploy", APP, show=True)
    make_proxy_token(deployment, kept)
    worker, control = find_urls(deployment)
    endpoint = worker + "/generate-image"
    kept.keep(
        LORA_PROVIDER="modal_sdxl_lora", MODAL_ENDPOINT_URL=endpoint, MODAL_CONTROL_URL=control
    )
    if (problem := check_tokens(control, kept)) is not None:
        print(problem, file=sys.stderr)
    return endpoint


def _shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def agreed(ask: Callable[[str], str]) -> bool:
    """Whether somebody at the terminal says yes."""
    try:
        return ask("Deploy? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def read_deployment() -> Deployment:
    """The deployment that the environment states.

    Raises:
        StepFailed: a setting cannot work; its name is in the message.
    """
    try:
        return Deployment.from_environment()
    except ValueError as error:
        raise StepFailed(str(error)) from error


def main(arguments: list[str] | None = None) -> int:
    """0 when the endpoint is there, or only costs were asked for; 1 when a step failed; 2 for a
    setting that cannot work; 3 when nobody agreed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--yes", action="store_true", help="do not ask before spending")
    parser.add_argument("--costs", action="store_true", help="say what it would cost, and end")
    parser.add_argument(
        "--new-token", action="store_true", help="replace the worker's bearer token"
    )
    options = parser.parse_args(arguments)
    try:
        deployment = read_deployment()
        model = deployment.model_folder.name
    except (StepFailed, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{deployment.app_name}: the worker with {model}, on Modal")
    print("\n".join(cost_lines(deployment)), flush=True)
    if options.costs:
        return 0
    interactive = sys.stdin.isatty()
    if not options.yes and not agreed(input):
        print("Nothing was done.")
        return 3
    folder = Path(os.environ.get("DATA_DIR") or REPOSITORY / ".data")
    kept = Kept(folder / f"{deployment.app_name}.env")
    try:
        endpoint = deploy(deployment, kept, new_token=options.new_token, interactive=interactive)
    except StepFailed as error:
        print(f"{error}\nRun it again when that is mended: it goes on from there.", file=sys.stderr)
        return 1
    place = _shown(kept.path)
    print(
        f"\n{endpoint}\n"
        f"What the backend needs is in {place}:\n"
        f"  set -a; . {place}; set +a; cd backend && ../.venv/bin/python -m app.serve\n"
        "One picture, saved as smoke.png: .venv/bin/modal run worker/app.py::smoke\n"
        f"To end it: .venv/bin/modal app stop {deployment.app_name}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
