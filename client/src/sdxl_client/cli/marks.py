"""`sdxl verify` and `sdxl replay`: what a picture says of itself, and drawing it again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdxl_client.cli.contents import Out, connect, finish, follow, read_content_id
from sdxl_client.cli.output import Exit, Json, Quiet, show, stop, wants_json
from sdxl_client.client import Client
from sdxl_client.models import Content, Verification

File = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, readable=True, help="PNG, JPEG or WebP")
]


def verify(file: File, as_json: Json = False, quiet: Quiet = False) -> None:
    """What a picture says of itself: signed by whom, made with what, changed or not. Needs no key.

    Ends with 0 where it is signed and unchanged, with 3 where it is unsigned or was changed.
    """
    with connect() as client:
        found = client.verify(file)
    if quiet:
        print(found.state)
    elif wants_json(as_json):
        show(found)
    else:
        _print_report(found)
    if found.state not in ("trusted", "valid"):
        raise typer.Exit(Exit.NOT_AS_SAID)


def _print_report(found: Verification) -> None:
    print(f"{found.state}: {found.summary}")
    manifest: dict[str, Any] = found.manifest or {}
    for problem in manifest.get("problems", []):
        print(f"  problem    {problem}")
    facts: dict[str, Any] = manifest.get("facts") or {}
    lines = [
        ("signed by", manifest.get("signed_by")),
        ("made by", manifest.get("generator")),
        ("made at", manifest.get("made_at")),
        ("prompt", facts.get("prompt")),
        ("seed", facts.get("seed")),
        ("base model", facts.get("base_model")),
        *(("LoRA", _lora(lora)) for lora in facts.get("loras", [])),
        ("watermark", _watermark(found.watermark)),
        ("text", None if found.parameters is None else "unsigned settings are in the file"),
    ]
    for name, value in lines:
        if value is not None:
            print(f"  {name:10} {_line(value)}")


def _watermark(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    mark = f"{found.get('method')}, {found.get('payload')}"
    if not found.get("is_known"):
        return f"{mark}: of no picture that this server has"
    own = ", ".join(str(content) for content in found.get("contents", []))
    return f"{mark}: of your content {own}" if own else f"{mark}: of a picture of this server"


def _lora(lora: dict[str, Any]) -> str:
    return f"{lora.get('name')} at {lora.get('scale')}, SHA-256 {lora.get('sha256')}"


def _line(value: object) -> str:
    """A stranger's text on one line of a terminal, without signs that would steer it."""
    return "".join(sign if sign.isprintable() else " " for sign in str(value))[:500]


def replay(
    what: Annotated[
        str, typer.Argument(metavar="ID|FILE", help="a content's id, or a picture with a receipt")
    ],
    out: Out = None,
    as_json: Json = False,
    quiet: Quiet = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="return as soon as accepted")] = False,
) -> None:
    """The same request again, its seed included.

    Of a FILE (a picture with a signed manifest, or a manifest alone, .c2pa) the receipt is drawn
    from, and the two are compared pixel by pixel: 0 where they are equal, 3 where they are not.
    """
    file = Path(what)
    with connect() as client:
        if file.is_file():
            _replay_file(client, file, out, as_json=as_json, quiet=quiet, no_wait=no_wait)
            return
        if file.suffix or len(file.parts) > 1:
            stop(f"{what} is not there", Exit.USAGE)
        content = client.replay(read_content_id(what))
        if not no_wait:
            content = follow(client, content)
        finish(client, content, out, as_json=as_json, quiet=quiet)


def _replay_file(
    client: Client, file: Path, out: Path | None, *, as_json: bool, quiet: bool, no_wait: bool
) -> None:
    content: Content = client.replay_file(file)
    if no_wait:
        finish(client, content, out, as_json=as_json, quiet=quiet)
        return
    content = follow(client, content)
    if content.status != "succeeded":
        finish(client, content, out, as_json=as_json, quiet=quiet)
        return
    found = client.compare(file, content.id)
    paths = client.save(content, out) if out is not None else []
    if quiet:
        print("equal" if found.is_equal else "different")
    elif wants_json(as_json):
        show({**found.model_dump(mode="json"), "files": [str(path) for path in paths]})
    else:
        print(f"{'equal' if found.is_equal else 'DIFFERENT'}: {found.summary}")
        print("\n".join([str(content.id), *(str(path) for path in paths)]))
    if not found.is_equal:
        raise typer.Exit(Exit.NOT_AS_SAID)
