"""`python -m app.cli`: the API from a terminal, and the first API key.

Duty: what a person types, as calls of the HTTP API. Only the keys' and the maintenance commands
open the database themselves: they are for who runs the server, not for who calls it.
Must not know: services.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

import httpx2
import typer
from rich.console import Console
from rich.table import Table

from app.cli_backup import backup, restore_backup
from app.cli_keys import create_key, list_keys, revoke_key
from app.cli_maintenance import remove_old_contents, sweep_storage

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="Pictures from a terminal.")
for _command in (create_key, list_keys, revoke_key, sweep_storage, remove_old_contents, backup):
    cli.command()(_command)
cli.command("restore")(restore_backup)
console = Console()
_POLL_SECONDS = 1.0

Server = Annotated[
    str, typer.Option("--server", envvar="BACKEND_URL", help="where the backend listens")
]
Key = Annotated[str, typer.Option("--key", envvar="API_KEY", help="API key, if one is needed")]
_SERVER = "http://127.0.0.1:8000"


def _client(server: str, key: str) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx2.Client(base_url=server, headers=headers, timeout=120)


def _answer(response: httpx2.Response) -> dict[str, Any]:
    try:
        body: dict[str, Any] = response.json()
    except ValueError:
        body = {"detail": f"the server answered {response.status_code} without JSON"}
    if response.is_error:
        console.print(f"[red]{body.get('error_code', response.status_code)}[/]", end=" ")
        console.print(str(body.get("detail", "")), markup=False)
        raise typer.Exit(1)
    return body


@cli.command()
def upload_lora(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    name: Annotated[str, typer.Option(help="the file's name if left out")] = "",
    server: Server = _SERVER,
    key: Key = "",
) -> None:
    """Put a LoRA file into the library."""
    with _client(server, key) as http, file.open("rb") as data:
        lora = _answer(
            http.post(
                "/api/v1/loras/models/upload",
                files={"file": (file.name, data, "application/octet-stream")},
                data={"name": name or file.stem},
            )
        )
    console.print_json(json.dumps(lora))


@cli.command()
def create_avatar(
    name: str,
    base_prompt: str,
    negative_prompt: Annotated[str, typer.Option()] = "",
    lora: Annotated[str, typer.Option(help="id of a LoRA in the library")] = "",
    lora_scale: Annotated[float, typer.Option(min=0.0, max=1.0)] = 0.9,
    server: Server = _SERVER,
    key: Key = "",
) -> None:
    """Make a named character."""
    body: dict[str, Any] = {
        "name": name,
        "base_prompt": base_prompt,
        "negative_prompt": negative_prompt,
        "lora_scale": lora_scale,
    }
    if lora:
        body["lora_model_id"] = lora
    with _client(server, key) as http:
        console.print_json(json.dumps(_answer(http.post("/api/v1/identities/avatars", json=body))))


@cli.command()
def generate(
    prompt: str,
    avatar: Annotated[str, typer.Option(help="id of an avatar")] = "",
    lora: Annotated[list[str] | None, typer.Option(help="id or id:scale; may be repeated")] = None,
    negative_prompt: Annotated[str, typer.Option()] = "",
    width: Annotated[int | None, typer.Option(help="px")] = None,
    height: Annotated[int | None, typer.Option(help="px")] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    cfg: Annotated[float | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    output: Annotated[Path | None, typer.Option(help="where to write the PNG")] = None,
    server: Server = _SERVER,
    key: Key = "",
) -> None:
    """Draw a picture and wait for it."""
    body: dict[str, Any] = {"prompt": prompt}
    optional = {
        "avatar_id": avatar or None,
        "negative_prompt": negative_prompt or None,
        "width": width,
        "height": height,
        "steps": steps,
        "cfg": cfg,
        "seed": seed,
    }
    body.update({field: value for field, value in optional.items() if value is not None})
    if lora:
        body["loras"] = [_lora_use(text) for text in lora]
    with _client(server, key) as http:
        content = _answer(http.post("/api/v1/content/generate", json=body))
        while content["status"] in ("queued", "running"):
            time.sleep(_POLL_SECONDS)
            content = _answer(http.get(f"/api/v1/content/{content['id']}"))
        if content["status"] != "succeeded":
            error = content["error"] or {"code": content["status"], "message": ""}
            console.print(f"{error['code']}: {error['message']}", markup=False, style="red")
            raise typer.Exit(1)
        if output is not None:
            # Not with this client: the URL is its own permission, and may be another host's.
            image = httpx2.get(content["image_url"], timeout=120)
            image.raise_for_status()
            output.write_bytes(image.content)
    console.print_json(json.dumps(content))


def _lora_use(text: str) -> dict[str, Any]:
    lora_id, _, scale = text.partition(":")
    try:
        return {"lora_model_id": lora_id, "scale": float(scale or 1.0)}
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not an id or id:scale") from None


@cli.command()
def show(
    content_id: Annotated[str, typer.Argument(help="the last ones if left out")] = "",
    limit: Annotated[int, typer.Option(min=1, max=200)] = 20,
    server: Server = _SERVER,
    key: Key = "",
) -> None:
    """One content in full, or a table of the last ones."""
    with _client(server, key) as http:
        if content_id:
            console.print_json(json.dumps(_answer(http.get(f"/api/v1/content/{content_id}"))))
            return
        page = _answer(http.get("/api/v1/content", params={"limit": limit}))
    table = Table("id", "status", "seconds", "prompt")
    for content in page["items"]:
        seconds = sum((content["timings"] or {}).values())
        table.add_row(content["id"], content["status"], f"{seconds:.1f}", content["prompt"][:60])
    console.print(table)


if __name__ == "__main__":
    os.environ.setdefault("COLUMNS", "120")
    cli()
