"""The examples in the pages of clients, and what those pages say is entered into a program."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path

from testkit.documents import REPOSITORY, code_blocks

FOLDER = REPOSITORY / "docs" / "clients"
PROGRAMS = FOLDER / "programs"
# What every page writes for the server and for a user's key.
ADDRESS, KEY, SECRET = "http://127.0.0.1:8000", "sdxl_…", "whsec_…"
_HOST = ADDRESS.removeprefix("http://")
# fal's client calls by https only: its page has a name in place of the address.
NAME = "pictures.example.org"
_URL = re.compile(r"https?://\S*127\.0\.0\.1:8000[^\s'\",]*")


@dataclass(frozen=True)
class Example:
    """One fenced block of a page."""

    page: Path
    number: int
    language: str
    code: str

    @property
    def name(self) -> str:
        """What a test calls it."""
        return f"{self.page.stem}-{self.number}-{self.language}"

    def pointed(self, url: str, key: str) -> str:
        """The code with a server's own address and key in it."""
        return self.code.replace(_HOST, url.partition("://")[2]).replace(KEY, key)

    def imports(self, package: str) -> bool:
        """Whether it uses a package of Python."""
        return re.search(rf"^(import|from) {package}\b", self.code, re.MULTILINE) is not None


def pages() -> list[Path]:
    """Every page of a client or dialect; `README.md` is the table of them."""
    found = [*FOLDER.glob("*.md"), *PROGRAMS.glob("*.md")]
    return sorted(page for page in found if page.name != "README.md")


def examples(*languages: str) -> list[Example]:
    """The blocks of all pages in these languages; all blocks where none is named."""
    return [
        Example(page, number, language, code)
        for page in pages()
        for number, (language, code) in enumerate(code_blocks(page.read_text()))
        if not languages or language in languages
    ]


@dataclass(frozen=True)
class Entered:
    """What a page has entered into a program, as the first call that the program then makes."""

    url: str
    authorization: str


def entered(example: Example, url: str, key: str) -> list[Entered]:
    """The calls that a block of settings leads to: of `/v1` for the models, else for the options.

    Raises:
        AssertionError: it names an address, and no key.
    """
    found = []
    for place in _URL.findall(example.pointed(ADDRESS, KEY)):
        assert KEY in example.code, f"{example.name} names {place} and no key"
        user, at, _ = place.partition("://")[2].rpartition("@")
        if "/v1" in place:
            base = place.replace(ADDRESS, url).removesuffix("/images/generations")
            found.append(Entered(f"{base}/models", f"Bearer {key}"))
            continue
        name = user.replace(KEY, key) if at else f"x:{key}"
        basic = base64.b64encode(name.encode()).decode()
        found.append(Entered(f"{url}/sdapi/v1/options", f"Basic {basic}"))
    return found
