"""`sdxl`: the command itself, and logging in.

Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 a picture is not what it should be (`verify`,
`replay`), 4 no valid key, 130 interrupted.
"""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer

from sdxl_client.cli import contents, library, marks
from sdxl_client.cli.config import Login, forget_login, keep_login, read_login
from sdxl_client.cli.mcp import mcp
from sdxl_client.cli.output import Exit, Json, errors, show, show_error, stop, wants_json
from sdxl_client.client import DEFAULT_URL, Client
from sdxl_client.errors import SdxlError, Unauthorized

app = typer.Typer(
    help="Draw with SDXL and any LoRA on a modal-sdxl-lora server.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"sdxl {version('sdxl-client')}")
        raise typer.Exit


@app.callback()
def sdxl(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="show the version, and end"
        ),
    ] = False,
) -> None:
    """Draw with SDXL and any LoRA on a modal-sdxl-lora server."""


app.command()(contents.generate)
app.command("ls")(contents.list_contents)
app.command()(contents.get)
app.command()(contents.cancel)
app.command()(marks.replay)
app.command()(marks.verify)
app.command()(contents.batch)
app.command("mcp")(mcp)
app.add_typer(library.loras, name="loras")
app.add_typer(library.webhooks, name="webhooks")
app.add_typer(library.keys, name="keys")


@app.command()
def login(
    url: Annotated[str, typer.Option(help="of the server")] = DEFAULT_URL,
    key_stdin: Annotated[bool, typer.Option("--key-stdin", help="read the key from stdin")] = False,
) -> None:
    """Keep a server and a key for it, in a file that only you read."""
    url = url.rstrip("/")
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter("must begin with http:// or https://", param_hint="--url")
    if not key_stdin and not sys.stdin.isatty():
        stop("no terminal to ask for the key on: send it with --key-stdin", Exit.USAGE)
    key = sys.stdin.readline() if key_stdin else getpass.getpass("API key (empty: none): ")
    with Client(url, key.strip() or None) as client:
        told = client.session()
        if told.get("keys_required") and not told.get("signed_in"):
            stop("This API key is not valid.", Exit.AUTH)
    path = keep_login(Login(url, key.strip() or None))
    errors.print(f"kept in {path}", soft_wrap=True)


@app.command()
def logout() -> None:
    """Forget the kept server and key."""
    errors.print("forgotten" if forget_login() else "nothing was kept")


@app.command()
def whoami(as_json: Json = False) -> None:
    """Which server, and whose key."""
    kept = read_login()
    with Client(kept.url, kept.api_key) as client:
        told = client.session()
    if told.get("keys_required") and not told.get("signed_in"):
        stop(f"{kept.url}: no valid API key: sdxl login", Exit.AUTH)
    if wants_json(as_json):
        show({"url": kept.url, **told})
    else:
        print(f"{kept.url}  {told.get('name') or 'no key needed'}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Look at everything that a picture needs: server, key, worker, base model, library."""
    kept = read_login()
    found: list[dict[str, Any]] = []

    def look(name: str, ask: Callable[[], str]) -> None:
        try:
            found.append({"check": name, "ok": True, "detail": ask()})
        except (SdxlError, ValueError) as error:
            found.append({"check": name, "ok": False, "detail": str(error)})

    def key_of(client: Client) -> str:
        told = client.session()
        if told.get("keys_required") and not told.get("signed_in"):
            raise ValueError("no valid API key: sdxl login")
        return str(told.get("name") or "no key needed")

    with Client(kept.url, kept.api_key, retries=0) as client:
        look("server", lambda: f"{kept.url}: {client.ready().get('status', 'answers')}")
        look("key", lambda: key_of(client))
        look("model", lambda: str(client.model().get("base_model") or "known"))
        look("library", lambda: f"{len(client.loras())} LoRAs")
    if wants_json(as_json):
        show(found)
    else:
        for line in found:
            print(f"{'ok  ' if line['ok'] else 'FAIL'}  {line['check']}: {line['detail']}")
    if not all(line["ok"] for line in found):
        raise typer.Exit(Exit.ERROR)


def main() -> None:
    """Run the command; what goes wrong is one line on stderr and an exit code."""
    try:
        app()
    except Unauthorized as error:
        _fail(f"{error.detail} Log in: sdxl login", Exit.AUTH)
    except (SdxlError, TimeoutError, OSError) as error:
        _fail(str(error), Exit.ERROR)
    except KeyboardInterrupt:
        sys.exit(Exit.INTERRUPTED)


def _fail(message: str, code: Exit) -> None:
    show_error(message)
    sys.exit(code)


if __name__ == "__main__":
    main()
