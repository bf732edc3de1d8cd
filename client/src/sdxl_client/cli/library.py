"""`sdxl loras …`, `sdxl webhooks …` and `sdxl keys …`."""

from __future__ import annotations

import contextlib
import uuid
from pathlib import Path
from typing import Annotated

import typer

from sdxl_client.cli.contents import connect, id_listed_by
from sdxl_client.cli.output import Json, Quiet, show, show_table, stop, wants_json
from sdxl_client.client import Client

loras = typer.Typer(help="The LoRA library.", no_args_is_help=True)
webhooks = typer.Typer(help="URLs that are told when contents end.", no_args_is_help=True)
keys = typer.Typer(help="API keys for the same things as yours.", no_args_is_help=True)
WebhookId = Annotated[str, typer.Argument(callback=id_listed_by("sdxl webhooks ls"))]
KeyId = Annotated[str, typer.Argument(callback=id_listed_by("sdxl keys ls"))]


@loras.command("ls")
def list_loras(as_json: Json = False, quiet: Quiet = False) -> None:
    """All LoRAs, newest first."""
    with connect() as client:
        found = client.loras()
    if quiet:
        for lora in found:
            print(lora.id)
    elif wants_json(as_json):
        show(found)
    else:
        rows = [
            (one.name, one.algorithm, one.rank, f"{one.size_bytes / 1e6:.1f} MB", one.id)
            for one in found
        ]
        show_table(("NAME", "KIND", "RANK", "SIZE", "ID"), rows)


@loras.command("upload")
def upload_lora(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="else the file's own")] = None,
    description: str = "",
    tag: Annotated[list[str] | None, typer.Option(help="repeatable")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Put a .safetensors file into the library."""
    with connect() as client:
        lora = client.upload_lora(file, name=name, description=description, tags=tag or ())
    if quiet:
        print(lora.id)
    elif wants_json(as_json):
        show(lora)
    else:
        print(f"{lora.id}  {lora.name}")


def _lora_id(client: Client, text: str) -> uuid.UUID:
    with contextlib.suppress(ValueError):
        return uuid.UUID(text)
    found = [lora.id for lora in client.loras() if lora.name == text]
    return found[0] if found else stop(f"there is no LoRA with the name {text!r}")


@loras.command("rm")
def delete_lora(lora: Annotated[str, typer.Argument(help="name or id")]) -> None:
    """Remove a LoRA that nothing needs any more."""
    with connect() as client:
        client.delete_lora(_lora_id(client, lora))


@webhooks.command("ls")
def list_webhooks(as_json: Json = False, quiet: Quiet = False) -> None:
    """All webhooks."""
    with connect() as client:
        found = client.webhooks()
    if quiet:
        for hook in found:
            print(hook.id)
    elif wants_json(as_json):
        show(found)
    else:
        rows = [
            (h.id, "on" if h.enabled else h.disabled_reason, h.url, ", ".join(h.events))
            for h in found
        ]
        show_table(("ID", "STATE", "URL", "EVENTS"), rows)


@webhooks.command("add")
def add_webhook(
    url: str,
    event: Annotated[list[str] | None, typer.Option(help="repeatable; else all")] = None,
    signing: Annotated[str, typer.Option(help="hmac or ed25519")] = "hmac",
    as_json: Json = False,
) -> None:
    """A new webhook; its secret is shown here, and not again."""
    with connect() as client:
        hook = client.add_webhook(url, events=event, signing=signing)
    if wants_json(as_json):
        show(hook)
    else:
        print(f"{hook.id}\n{hook.secret}")


@webhooks.command("rm")
def delete_webhook(webhook_id: WebhookId) -> None:
    """Remove a webhook and its messages."""
    with connect() as client:
        client.delete_webhook(webhook_id)


@webhooks.command("test")
def test_webhook(webhook_id: WebhookId) -> None:
    """Send a webhook a message that means nothing."""
    with connect() as client:
        show(client.test_webhook(webhook_id))


@webhooks.command("rotate")
def rotate_webhook(webhook_id: WebhookId, as_json: Json = False) -> None:
    """A new secret; the old one signs, too, for a day."""
    with connect() as client:
        hook = client.rotate_webhook(webhook_id)
    if wants_json(as_json):
        show(hook)
    else:
        print(hook.secret)


@keys.command("ls")
def list_keys(as_json: Json = False, quiet: Quiet = False) -> None:
    """The valid keys that see what yours sees."""
    with connect() as client:
        found = client.keys()
    if quiet:
        for key in found:
            print(key.id)
    elif wants_json(as_json):
        show(found)
    else:
        rows = [
            (
                key.name,
                f"{key.created_at:%Y-%m-%d %H:%M}",
                "this one" if key.current else "by a key" if key.made_by else "by the operator",
                key.id,
            )
            for key in found
        ]
        show_table(("NAME", "MADE", "", "ID"), rows)


@keys.command("add")
def add_key(name: str, as_json: Json = False) -> None:
    """A new key, within the limits of yours; it is shown here, and not again."""
    with connect() as client:
        key = client.add_key(name)
    if wants_json(as_json):
        show(key)
    else:
        print(f"{key.id}\n{key.key}")


@keys.command("rm")
def revoke_key(key_id: KeyId) -> None:
    """Make a key invalid at once: one that yours made, or yours."""
    with connect() as client:
        client.revoke_key(key_id)
