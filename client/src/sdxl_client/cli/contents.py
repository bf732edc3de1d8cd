"""`sdxl generate`, `ls`, `get`, `cancel`, `batch`."""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sdxl_client.cli.config import read_login
from sdxl_client.cli.output import Exit, Json, Quiet, errors, show, show_table, stop, wants_json
from sdxl_client.client import Client
from sdxl_client.models import FINAL, Content, LoraUse

_SIZE = re.compile(r"([0-9]{1,5})[xX×]([0-9]{1,5})")


def make_folder(out: Path | None) -> Path | None:
    """`out`, which is there from here on: a picture without a place for it is not drawn."""
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise typer.BadParameter(f"{out} cannot be made a folder: {error.strerror}") from None
        if not os.access(out, os.W_OK | os.X_OK):
            raise typer.BadParameter(f"{out} cannot be written into")
    return out


def id_listed_by(command: str) -> Callable[[str], str]:
    """Reads an id that `command` lists."""

    def read(text: str) -> str:
        try:
            return str(uuid.UUID(text))
        except ValueError:
            raise typer.BadParameter(
                f"{text!r} is no id. One looks like 0f8fad5b-d9cb-469f-a165-70867728950e; "
                f"`{command}` lists them"
            ) from None

    return read


read_content_id = id_listed_by("sdxl ls")
ContentId = Annotated[str, typer.Argument(callback=read_content_id, help="as `sdxl ls` shows it")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", callback=make_folder, help="folder that the pictures are written into"
    ),
]


def connect() -> Client:
    """A client of the server that one is logged in to."""
    login = read_login()
    return Client(login.url, login.api_key)


def read_lora(client: Client, text: str) -> LoraUse:
    """`NAME[:SCALE]` of the library, or a `.safetensors` file, which is put into it first."""
    name, colon, number = text.rpartition(":")
    scale = 1.0
    if colon:
        try:
            scale = float(number)
        except ValueError:
            if Path(name).is_file():
                raise typer.BadParameter(
                    f"{number!r} is no number: FILE.safetensors:0.8", param_hint="--lora"
                ) from None
            name = text
    else:
        name = text
    file = Path(name)
    if file.suffix == ".safetensors" and file.is_file():
        lora = client.upload_lora(file)
        return LoraUse(lora_model_id=lora.id, scale=scale)
    if file.suffix == ".safetensors" and file.parent != Path():
        raise typer.BadParameter(f"{name} is not there", param_hint="--lora")
    return LoraUse(name=name, scale=scale)


def read_size(text: str | None) -> tuple[int | None, int | None]:
    """(width, height) of `WIDTHxHEIGHT`."""
    if text is None:
        return None, None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise typer.BadParameter("WIDTHxHEIGHT, such as 1024x768", param_hint="--size")
    return int(match[1]), int(match[2])


def generate(
    prompt: str,
    lora: Annotated[
        list[str] | None, typer.Option(help="NAME[:SCALE], or FILE.safetensors[:SCALE]; repeatable")
    ] = None,
    negative: Annotated[str | None, typer.Option(help="what the picture must not show")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed, the same picture")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in px")] = None,
    steps: Annotated[int | None, typer.Option()] = None,
    cfg: Annotated[float | None, typer.Option()] = None,
    scheduler: Annotated[str | None, typer.Option(help="sampler, by any tool's name")] = None,
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="pictures")] = 1,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="return as soon as accepted")] = False,
) -> None:
    """Draw pictures. Ctrl-C cancels what is being drawn."""
    width, height = read_size(size)
    with connect() as client:
        content = client.submit(
            prompt,
            loras=[read_lora(client, text) for text in lora] if lora else None,
            negative_prompt=negative,
            seed=seed,
            width=width,
            height=height,
            steps=steps,
            cfg=cfg,
            scheduler=scheduler,
            num_images=n,
        )
        if not no_wait:
            content = follow(client, content)
        finish(client, content, out, as_json=as_json, quiet=quiet)


def follow(client: Client, content: Content) -> Content:
    """Wait for the end, with a bar on a terminal; an interruption cancels the content."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(
            *columns, console=errors, transient=True, disable=not errors.is_terminal
        ) as bar:
            task = bar.add_task("waiting", total=None)
            for event in client.stream(content.id):
                if event.type == "queued":
                    before = event.data.get("position", 0)
                    bar.update(task, description=f"{before} before it" if before else "next")
                elif event.type == "progress":
                    bar.update(
                        task,
                        description=str(event.data.get("phase", "drawing")),
                        completed=event.data.get("step") or 0,
                        total=event.data.get("steps") or None,
                    )
                elif event.type in FINAL:
                    break
    except KeyboardInterrupt:
        cancelled = client.cancel(content.id)
        errors.print(f"cancelled {cancelled.id}")
        raise typer.Exit(Exit.INTERRUPTED) from None
    return client.get(content.id)


def finish(
    client: Client, content: Content, out: Path | None, *, as_json: bool, quiet: bool
) -> None:
    """Show what became of a content; ends with an error where it failed."""
    paths = client.save(content, out) if out is not None and content.images else []
    if quiet:
        print("\n".join(str(path) for path in paths) if paths else content.id)
    elif wants_json(as_json):
        shown = content.model_dump(mode="json")
        show({**shown, "files": [str(path) for path in paths]} if out is not None else shown)
    else:
        seeds = ", ".join(str(image.seed) for image in content.images)
        print(f"{content.id}  {content.status}" + (f"  seed {seeds}" if seeds else ""))
        for path in paths:
            print(path)
        if not paths:
            for image in content.images:
                print(image.url)
    if content.status in FINAL and content.status != "succeeded":
        reason = f"{content.error.message} ({content.error.code})" if content.error else ""
        stop(f"the content {content.status}: {reason}")


def list_contents(
    limit: Annotated[int, typer.Option("--limit", "-l", min=1)] = 20,
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, …")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Contents, newest first."""
    with connect() as client:
        found = []
        for content in client.contents(status=status, page_size=min(limit, 200)):
            found.append(content)
            if len(found) == limit:
                break
    if quiet:
        for content in found:
            print(content.id)
    elif wants_json(as_json):
        show(found)
    else:
        rows = [(c.id, c.status, f"{c.created_at:%Y-%m-%d %H:%M}", c.prompt[:60]) for c in found]
        show_table(("ID", "STATUS", "CREATED", "PROMPT"), rows)


def get(
    content_id: ContentId, out: Out = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """One content; with --out its pictures."""
    with connect() as client:
        finish(client, client.get(content_id), out, as_json=as_json, quiet=quiet)


def cancel(content_id: ContentId, as_json: Json = False, quiet: Quiet = False) -> None:
    """Stop a content."""
    with connect() as client:
        content = client.cancel(content_id)
    if quiet:
        print(content.id)
    elif wants_json(as_json):
        show(content)
    else:
        print(f"{content.id}  {content.status}")


def batch(
    file: Annotated[Path, typer.Argument(help="a prompt a line; - is stdin")],
    count: Annotated[int, typer.Option(min=1, help="pictures of each prompt")] = 1,
    lora: Annotated[list[str] | None, typer.Option(help="NAME[:SCALE] or FILE[:SCALE]")] = None,
    seed: Annotated[int | None, typer.Option(help="of the first; counts upwards")] = None,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in px")] = None,
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="return as soon as accepted")] = False,
) -> None:
    """Draw every prompt of a file, all or none."""
    if str(file) != "-" and not file.is_file():
        raise typer.BadParameter(f"{file} is not there", param_hint="file")
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        stop("the file holds no prompt", Exit.USAGE)
    width, height = read_size(size)
    fields: dict[str, Any] = {"count": count, "seed": seed, "width": width, "height": height}
    with connect() as client:
        if lora:
            fields["loras"] = [read_lora(client, one) for one in lora]
        made = client.batch(prompts, **fields)
        contents = list(client.contents(batch_id=made.batch_id))
        paths: list[Path] = []
        if not no_wait:
            contents = [client.wait(content.id) for content in reversed(contents)]
            if out is not None:
                paths = [path for one in contents if one.images for path in client.save(one, out)]
            made = client.read_batch(made.batch_id)
    if quiet:
        lines = [str(path) for path in paths] or [str(content.id) for content in contents]
        print("\n".join(lines))
    elif wants_json(as_json):
        show({**made.model_dump(mode="json"), "files": [str(path) for path in paths]})
    else:
        print(f"{made.batch_id}  {made.succeeded} of {made.total} drawn, {made.failed} failed")
        for path in paths:
            print(path)
    if made.failed:
        raise typer.Exit(Exit.ERROR)
