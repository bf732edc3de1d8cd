"""The committed files are what the source builds, complete in both languages, and served safely."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest
from fastapi import FastAPI

from app.api import studio
from app.api.deps import get_services
from app.core.errors import install_error_handlers
from app.core.settings import load_settings
from testkit.documents import codes_and_fields

REPOSITORY = Path(__file__).resolve().parent.parent.parent
STUDIO = REPOSITORY / "studio"
# The same as in studio/vite.config.mjs.
INPUTS = ("index.html", "package-lock.json", "public", "src", "tsconfig.json", "vite.config.mjs")
MAX_SCRIPT_BYTES = 60_000


def digests(root: Path, paths: list[Path]) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def source_files() -> list[Path]:
    found = []
    for name in INPUTS:
        path = STUDIO / name
        found += [path] if path.is_file() else list(path.rglob("*"))
    return found


def dictionaries() -> dict[str, dict[str, str]]:
    folder = STUDIO / "src" / "i18n"
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def test_the_committed_build_was_made_from_this_source() -> None:
    record = json.loads((studio.STATIC / "build.json").read_text())
    built = [path for path in studio.STATIC.rglob("*") if path.name != "build.json"]

    assert record["inputs"] == digests(STUDIO, source_files()), "run `make studio`"
    assert record["files"] == digests(studio.STATIC, built), "run `make studio`"


def test_a_changed_source_file_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "main.tsx").write_text("one")
    before = digests(tmp_path, [tmp_path / "main.tsx"])
    (tmp_path / "main.tsx").write_text("two")

    assert digests(tmp_path, [tmp_path / "main.tsx"]) != before


@pytest.mark.parametrize("language", ["en", "es"])
def test_the_first_load_is_under_60_kb_of_script(language: str) -> None:
    """What the page names, and a language's words; other views are fetched when they are opened."""
    page = (studio.STATIC / "index.html").read_text()
    names = set(re.findall(r"/studio/(assets/[\w.-]+\.js)", page))
    words = list((studio.STATIC / "assets").glob(f"{language}-*.js"))
    assert len(words) == 1, "nobody fetches the words of two languages"
    scripts = [studio.STATIC / name for name in names] + words

    assert names
    assert sum(len(gzip.compress(path.read_bytes(), 9)) for path in scripts) < MAX_SCRIPT_BYTES


def test_both_languages_are_complete_and_fill_in_the_same_values() -> None:
    words = dictionaries()

    assert list(words) == ["en", "es"]
    assert words["en"].keys() == words["es"].keys()
    for key, text in words["en"].items():
        assert text.strip(), key
        assert words["es"][key].strip(), key
        places = re.findall(r"\{\w+\}", text)
        assert sorted(places) == sorted(re.findall(r"\{\w+\}", words["es"][key])), key


def test_every_field_of_the_api_has_a_name_in_both_languages() -> None:
    _, fields = codes_and_fields()
    for language, words in dictionaries().items():
        nameless = [name for name in fields if f"field.{name.lower()}" not in words]
        assert nameless == [], language


def test_every_word_of_the_dictionary_is_used() -> None:
    source = "\n".join(
        path.read_text() for path in (STUDIO / "src").rglob("*.ts*") if path.suffix != ".json"
    )
    # Keys that are put together from a part known only at run time.
    built = tuple({match[1] for match in re.finditer(r"`((?:\w+\.)+)\$\{", source)})
    unused = [
        key
        for key in dictionaries()["en"]
        if key.removesuffix(".one").removesuffix(".other") not in source
        and not key.startswith(built)
    ]

    assert unused == []


@pytest.fixture
def http() -> httpx2.AsyncClient:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(studio.router)
    settings = load_settings(
        r2_endpoint_url="https://account.example",
        r2_public_url="https://pictures.example/base",
        r2_bucket_name="pictures",
        r2_access_key_id="id",
        r2_secret_access_key="secret",
    )
    app.dependency_overrides[get_services] = lambda: SimpleNamespace(settings=settings)
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://127.0.0.1:8000")


async def test_the_page_is_asked_for_each_time_and_its_parts_only_once(
    http: httpx2.AsyncClient,
) -> None:
    page = await http.get("/")
    script = re.search(r'src="(/studio/assets/[^"]+\.js)"', page.text)
    assert script
    part = await http.get(script[1])
    again = await http.get("/", headers={"If-None-Match": page.headers["etag"]})

    assert page.headers["cache-control"] == "no-cache"
    assert again.status_code == 304
    assert "immutable" in part.headers["cache-control"]
    assert part.headers["content-encoding"] == "gzip"
    assert part.headers["content-type"].startswith("text/javascript")


async def test_the_policy_allows_only_this_server_and_where_pictures_lie(
    http: httpx2.AsyncClient,
) -> None:
    policy = (await http.get("/")).headers["content-security-policy"]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}

    assert rules["default-src"] == ["'none'"]
    assert rules["script-src"] == rules["style-src"] == ["'self'"]
    assert rules["frame-ancestors"] == ["'none'"]
    assert {"https://pictures.example", "https://account.example"} <= set(rules["img-src"])
    assert "unsafe" not in policy
    assert "*" not in policy


@pytest.mark.parametrize(
    "path",
    ["/studio/../__init__.py", "/studio/%2e%2e/%2e%2e/main.py", "/studio/", "/studio/assets", "/x"],
)
async def test_nothing_else_is_served(http: httpx2.AsyncClient, path: str) -> None:
    answer = await http.get(path)

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_built_page_names_no_other_host() -> None:
    allowed = {"http://www.w3.org", "http://127.0.0.1", "https://preactjs.com"}
    for path in studio.STATIC.rglob("*"):
        if path.suffix in {".js", ".css", ".html", ".svg"}:
            found = set(re.findall(r"https?://[\w.-]+", path.read_text()))
            assert found <= allowed, path.name
