"""Results for people on a terminal, for programs elsewhere."""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

errors = Console(stderr=True)

Json = Annotated[
    bool, typer.Option("--json", help="JSON, as it also is where stdout is no terminal")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="one id or path a line, nothing else")]


class Exit(enum.IntEnum):
    """How a command ends."""

    OK = 0
    ERROR = 1
    USAGE = 2
    NOT_AS_SAID = 3  # a picture is not what it should be: unsigned, changed, or drawn otherwise
    AUTH = 4
    INTERRUPTED = 130


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return value


def wants_json(as_json: bool) -> bool:
    """Whether the result is for a program."""
    return as_json or not sys.stdout.isatty()


def show(value: Any) -> None:
    """The result as JSON."""
    print(json.dumps(plain(value), ensure_ascii=False, indent=2))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The result as a table."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*("" if cell is None else str(cell) for cell in row))
    Console().print(table)


def show_error(message: str) -> None:
    """Say what is wrong."""
    errors.print(f"[red]Error:[/red] {escape(message)}", highlight=False, soft_wrap=True)


def stop(message: str, code: Exit = Exit.ERROR) -> NoReturn:
    """Say what is wrong, and end."""
    show_error(message)
    raise typer.Exit(code)
