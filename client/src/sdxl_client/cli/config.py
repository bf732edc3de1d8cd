"""Which server, and with which key: the environment first, then a file of its user's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import typer

from sdxl_client.client import DEFAULT_URL


class Login(NamedTuple):
    """A server and the key for it."""

    url: str
    api_key: str | None


def config_path() -> Path:
    """Where the login is kept."""
    return Path(typer.get_app_dir("sdxl")) / "login.json"


def read_login() -> Login:
    """The login: `SDXL_URL` and `SDXL_API_KEY` where they are set, else what was kept."""
    try:
        kept = json.loads(config_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    kept = kept if isinstance(kept, dict) else {}
    url = os.environ.get("SDXL_URL") or kept.get("url") or DEFAULT_URL
    key = os.environ.get("SDXL_API_KEY")
    # A kept key is for the server that it was kept with, and is sent to no other.
    if not key and url == kept.get("url"):
        key = kept.get("api_key")
    return Login(str(url), key or None)


def keep_login(login: Login) -> Path:
    """Write the login where only this user reads it."""
    path = config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump({"url": login.url, "api_key": login.api_key}, file)
    temporary.replace(path)
    return path


def forget_login() -> bool:
    """Remove the kept login; whether there was one."""
    try:
        config_path().unlink()
    except FileNotFoundError:
        return False
    return True
