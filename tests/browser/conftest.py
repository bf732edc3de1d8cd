"""The real thing for the page's tests: Chromium, the backend, a worker with the small model."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy import URL

from app.core.db import migrate
from app.core.embedded_postgres import EmbeddedPostgres
from scripts.stack import LOOPBACK, REPOSITORY, Service, build_stack, free_port
from testkit.browser import SMALL, WAIT_MS, OpenPage, Studio, Watch

expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="session")
def chromium_path() -> str:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium on this computer: `apt-get install chromium` brings it")
    return path


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> Iterator[Browser]:
    # Of one module: Playwright's event loop would be in the way of other modules' own.
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    folder = Path(tempfile.mkdtemp(prefix="studio-tests-"))
    server = EmbeddedPostgres(folder / "postgres")
    yield server.start()
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def _new_database(postgres: URL, name: str) -> str:
    plain = postgres.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    made = postgres.set(database=name)
    migrate(made.set(drivername="postgresql+psycopg"))
    return made.set(drivername="postgresql").render_as_string(hide_password=False)


# Two backends share one worker.
_TOKENS = dict.fromkeys(("WORKER_API_TOKEN", "MODAL_API_TOKEN"), "a-token-for-the-browser-tests")


@pytest.fixture(scope="session")
def studio(
    chromium_path: str, postgres: URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    """A server without keys, and its worker."""
    folder = tmp_path_factory.mktemp("studio")
    database = _new_database(postgres, "studio")
    stack = build_stack(
        port=free_port(),
        worker_port=free_port(),
        data_dir=folder / "data",
        logs=folder / "logs",
        extra={"DATABASE_URL": database, "MODEL_REFRESH_SECONDS": "2", **_TOKENS},
    )
    try:
        stack.start()
        yield Studio(stack.backend_url, stack.worker_url, folder / "data", database, stack.backend)
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def keyed(
    studio: Studio, postgres: URL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Studio]:
    """Another server on the same worker; tests make keys for it."""
    folder = tmp_path_factory.mktemp("keyed")
    database = _new_database(postgres, "keyed")
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    backend = Service(
        name="backend with keys",
        command=[sys.executable, "-m", "app.serve"],
        folder=REPOSITORY / "backend",
        environment={
            "HOST": LOOPBACK,
            "PORT": str(port),
            "DATA_DIR": str(folder / "data"),
            "DATABASE_URL": database,
            "MODAL_ENDPOINT_URL": f"{studio.worker_url}/generate-image",
            **_TOKENS,
        },
        ready_url=f"{url}/health/ready",
        log=folder / "backend.log",
    )
    try:
        backend.start()
        backend.wait_ready(60)
        yield Studio(url, studio.worker_url, folder / "data", database, backend)
    finally:
        backend.stop()


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Fails a test whose page had an error, or asked anything but this computer."""
    watched = Watch()
    yield watched
    assert watched.unexpected == []
    assert watched.hosts <= {LOOPBACK}


@pytest.fixture
def open_page(browser: Browser, watch: Watch) -> Iterator[OpenPage]:
    """Opens the page in a browser profile of its own; `draft` is what its form begins with."""
    contexts: list[BrowserContext] = []

    def open_(
        url: str, *, draft: dict[str, Any] | None = None, path: str = "", **options: Any
    ) -> Page:
        options = {"viewport": {"width": 1280, "height": 800}, "locale": "en-GB", **options}
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        begun = json.dumps(json.dumps({**SMALL, **(draft or {})}))
        context.add_init_script(
            f"localStorage.getItem('studio.draft') ?? localStorage.setItem('studio.draft', {begun})"
        )
        page = context.new_page()
        watch.attach(page)
        page.goto(f"{url}/{path}")
        page.locator("html.live").wait_for(state="attached")
        return page

    yield open_
    for context in contexts:
        context.close()
