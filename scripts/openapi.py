"""Write the API's OpenAPI document into docs/openapi.json, from which clients are generated.

`python -m scripts.openapi --check` writes nothing and fails where the file is not up to date.
"""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

from sqlalchemy import make_url

from app.core.settings import Settings
from app.main import create_app
from app.startup import Prepared

FILE = Path(__file__).resolve().parents[1] / "docs" / "openapi.json"


@functools.cache
def document() -> str:
    """The document as the file holds it; no server and no database is needed."""
    # Never connected to: the app is only asked what it would answer.
    prepared = Prepared(make_url("postgresql+psycopg://nobody@127.0.0.1/none"))
    app = create_app(Settings.model_construct(), prepared)
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or check the file."""
    text = document()
    if "--check" in sys.argv[1:]:
        if FILE.read_text(encoding="utf-8") == text:
            return 0
        print("docs/openapi.json is not what the app says: run `make openapi`", file=sys.stderr)
        return 1
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
