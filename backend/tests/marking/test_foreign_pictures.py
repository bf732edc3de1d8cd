"""A stranger's picture is read elsewhere, for so long only, where nothing of another's is."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from app.services.foreign.processes import ForeignProcesses, NoAnswer
from app.services.marking.verifying import verify
from sdxl_contract.errors import InvalidRequest

SLOW = (sys.executable, "-c", "import time; time.sleep(60)")
# Answers with how often it was asked and who it is; kind 1 dies as a broken decoder does, kind 2
# never ends, kind 3 wants more memory than it may have, kind 4 prints, kind 5 forges an answer.
COUNTS = r"""
import os, signal, time
from app.services.foreign.serving import serve
asked = []
def answer(kind, first, second):
    asked.append(kind)
    if kind == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 2:
        time.sleep(600)
    if kind == 3:
        bytearray(2 * 2**30)
    if kind == 4:
        os.write(1, b"libpng warning: iCCP\n")
    if kind == 5:
        for sink in range(3, 20):
            try:
                os.write(sink, b"0" * 32 + b" forged\n")
            except OSError:
                pass
    return f"{len(asked)} {os.getppid()} {len(first)} {len(second)}".encode()
serve(answer, 2**30, in_forks=True)
"""


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def counting() -> ForeignProcesses:
    return ForeignProcesses((sys.executable, "-c", COUNTS), deadline_s=20)


@pytest.mark.parametrize(
    "data", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP", picture()[:40]]
)
async def test_what_is_no_picture_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="file: "):
        await verify(data, "")


async def test_a_picture_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(InvalidRequest, match=r"takes more than 0\.2 s"):
        await verify(picture(), "", ForeignProcesses(SLOW, deadline_s=0.2))


def test_each_question_is_answered_where_no_other_was_by_a_process_that_stays(
    counting: ForeignProcesses,
) -> None:
    large = bytes(3 * 2**20)
    answers = [counting.ask(b"ab", large).split() for _ in range(3)]

    assert {count for count, *_ in answers} == {b"1"}
    assert len({mother for _, mother, *_ in answers}) == 1
    assert {tuple(sizes) for _, _, *sizes in answers} == {(b"2", str(len(large)).encode())}
    counting.close()


@pytest.mark.parametrize("kind", [1, 3], ids=["dies", "memory"])
def test_a_file_that_ends_its_reader_is_refused_and_the_next_one_read(
    counting: ForeignProcesses, kind: int
) -> None:
    with pytest.raises(NoAnswer) as caught:
        counting.ask(b"", b"x" * 200_000, kind)

    assert not caught.value.is_late
    assert counting.ask(b"", b"").startswith(b"1 ")
    counting.close()


def test_what_a_library_prints_is_no_answer(counting: ForeignProcesses) -> None:
    assert counting.ask(b"", b"", 4).startswith(b"1 ")
    assert counting.ask(b"ab", b"").split()[2] == b"2"
    counting.close()


def test_an_answer_that_was_not_asked_for_is_nobody_s(counting: ForeignProcesses) -> None:
    with pytest.raises(NoAnswer):
        counting.ask(b"", b"", 5)

    assert counting.ask(b"ab", b"").split()[2] == b"2"
    counting.close()


def test_a_reader_that_never_ends_is_ended_with_its_fork(tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")  # to know its processes by
    readers = ForeignProcesses((sys.executable, "-c", COUNTS, mark), deadline_s=2)
    with pytest.raises(NoAnswer) as caught:
        readers.ask(b"", b"", 2)

    assert caught.value.is_late
    deadline = time.monotonic() + 10
    while (left := _processes_of(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert readers.waiting == 0


def _processes_of(mark: str) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if mark in (process.info["cmdline"] or ()) and process.info["status"] != "zombie"
    ]
