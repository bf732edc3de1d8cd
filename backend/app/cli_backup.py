"""`backup` and `restore`, from a terminal.

Must not know: HTTP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.core.db import database_url
from app.core.embedded_postgres import DatabaseError, EmbeddedPostgres, make_private_folder
from app.core.settings import load_settings
from app.services.upkeep.backup import BackupError, as_json, back_up, restore
from app.startup import StartRefused, prepare

console = Console()


def backup(file: Annotated[Path, typer.Argument(help="a new file, .tar")]) -> None:
    """Write rows, pictures, LoRA files and the signing key into one file. The backend may run.

    Of a bucket only the rows: its objects are the bucket's to keep.
    """
    settings = load_settings(host="127.0.0.1")
    try:
        prepared = prepare(settings)
        try:
            local = settings.r2_bucket_name is None
            done = back_up(prepared.url, settings.data_dir, file.resolve(), with_objects=local)
        finally:
            prepared.release()
    except (DatabaseError, StartRefused, BackupError) as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from error
    print(as_json(done))


def restore_backup(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False)],
    replace: Annotated[
        bool, typer.Option("--replace", help="lose what the database holds now")
    ] = False,
) -> None:
    """Bring a backup back into DATA_DIR and the database. Stop the backend first."""
    settings = load_settings(host="127.0.0.1")
    make_private_folder(settings.data_dir)
    embedded = None
    if settings.database_url is None:
        embedded = EmbeddedPostgres(settings.data_dir / "postgres")
    try:
        if embedded is not None and embedded.others():
            raise BackupError("the backend runs on this DATA_DIR: stop it first")
        url = database_url(settings, embedded)
        try:
            done = restore(url, settings.data_dir, file.resolve(), replace=replace)
        finally:
            if embedded is not None:
                embedded.stop()
    except (DatabaseError, BackupError) as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from error
    print(json.dumps(done))
