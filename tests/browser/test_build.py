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
    page = (studio.STATIC / ("index.html" if language == "en" else "index.es.html")).read_text()
    names = set(re.findall(r"/studio/(assets/[\w.-]+\.js)", page))
    words = [name for name in names if re.match(r"assets/(en|es)-", name)]
    assert [name[:10] for name in words] == [f"assets/{language}-"], "the words of one language"
    assert len(names) <= 3, "each further file may wait for a free connection"
    scripts = [studio.STATIC / name for name in names]

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
def keys_are_required(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the server needs keys, as its database says; empty: the database is lost."""
    answers = [False]

    async def is_key_required(_: object) -> bool:
        if not answers:
            raise TimeoutError
        return answers[-1]

    monkeypatch.setattr(studio, "is_key_required", is_key_required)
    return answers


@pytest.fixture
def http(keys_are_required: list[bool]) -> httpx2.AsyncClient:
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
    services = SimpleNamespace(settings=settings, database=None)
    app.dependency_overrides[get_services] = lambda: services
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
    ("accepted", "language"),
    [
        ("", "en"),
        ("es-MX,es;q=0.9,en;q=0.8", "es"),
        ("en;q=0.5, es;q=0.7", "es"),
        ("fr, es;q=0.1", "es"),
        ("fr, de", "en"),
        ("es;q=0", "en"),
        ("es;q=nan, en;q=x, *", "en"),
        ("," * 100_000 + "es", "en"),
    ],
)
async def test_the_page_comes_in_the_language_that_the_browser_asks_for(
    http: httpx2.AsyncClient, accepted: str, language: str
) -> None:
    page = await http.get("/", headers={"Accept-Language": accepted})

    assert f'lang="{language}"' in page.text
    assert "Accept-Language" in page.headers["vary"]
    assert ("Descripción negativa" in page.text) == (language == "es")


async def test_the_form_is_drawn_beforehand_and_asks_for_the_model_only_where_no_key_is_needed(
    http: httpx2.AsyncClient, keys_are_required: list[bool]
) -> None:
    opened = await http.get("/")
    keys_are_required.append(True)
    keyed = await http.get("/")
    keys_are_required.clear()
    lost = await http.get("/")

    assert re.search(r'<textarea [^>]*name="prompt"', opened.text)
    assert "/api/v1/model" in opened.text
    assert "data-keys" not in opened.text
    for page in (keyed, lost):
        assert page.status_code == 200
        assert "<html data-keys " in page.text
        assert "/api/v1/model" not in page.text
    assert opened.headers["etag"] != keyed.headers["etag"]


@pytest.mark.parametrize("name", ["index.html", "index.es.html"])
def test_nothing_in_the_page_needs_a_weaker_policy(name: str) -> None:
    page = (studio.STATIC / name).read_text()

    assert not re.search(r"\sstyle=|<style|\son\w+=", page)
    assert all(re.search(r"\ssrc=", tag) for tag in re.findall(r"<script[^>]*>", page))


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
