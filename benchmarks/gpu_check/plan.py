"""What a run is made of, in its order, and what of it this run does in its time.

Duty: which sections are wanted, whether there is time left for one, and an end that comes whatever
hangs, so that what was found is told.
Must not know: how anything is measured.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from benchmarks.gpu_check.report import Report

# Section → seconds that it may take on a machine with an H200 and slow cores, the model made. What
# must be shown comes first, of that what must be quiet; what compiles for minutes, and what is only
# good to know, is done where time is left.
SECTIONS = {
    "start": 60, "http": 150, "ours": 60, "diffusers": 110, "tests": 90, "fp8_quality": 60,
    "compiled": 270, "fp8": 270, "features": 140, "fetch": 50,
}  # fmt: skip
# By default: a little less than ten minutes, after which whoever lends a machine may end a command.
SECONDS = 540.0
# Between asking a run to end and ending it: a GPU that hangs hears nothing.
_GRACE_S = 15.0


class Stopped(BaseException):
    """The run is to end now, and says what it has."""


def sections(text: str) -> set[str]:
    """The value of `--only`."""
    found = set(text.split(","))
    if unknown := found - set(SECTIONS):
        names = ", ".join(SECTIONS)
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: one of {names}")
    return found


class Plan:
    """Which sections a run does.

    Args:
        report: where those are named that it does not.
        only: the sections that were asked for; None: all.
        seconds: that the run may take; 0: as long as it needs.
    """

    def __init__(
        self, report: Report, *, device: str, small: bool, only: set[str] | None, seconds: float
    ) -> None:
        self._report, self._seconds = report, seconds
        # What was asked for by name is begun with, however long it may take; so is what is small.
        self._begins_all = small or only is not None or not seconds
        left_out: dict[str, str] = {}
        if device != "cuda":
            left_out["tests"] = "of a GPU alone"
        if small:
            left_out["start"] = left_out["compared.start_of_diffusers"] = (
                "of the full-size model alone"
            )
            left_out["compared.hotswap_cycle_times_ours"] = "compiles only the full-size model"
        for name in SECTIONS:
            if only is not None and name not in only:
                left_out.setdefault(name, "not among --only")
        self.wanted = set(SECTIONS) - left_out.keys()
        report.leave_out(left_out)

    @property
    def needs_model(self) -> bool:
        """Whether a section draws with the large model."""
        return bool(self.wanted - {"tests", "fp8_quality", "fetch"})

    def begins(self, name: str) -> bool:
        """Whether a section is wanted, and there is time for it; where not, that is told."""
        if name not in self.wanted:
            return False
        if self.has_time(SECTIONS[name], name, name):
            return True
        self.wanted.discard(name)
        return False

    def has_time(self, seconds: float, row: str, section: str) -> bool:
        """Whether there is time for a row that may take so many seconds; where not, that is told,
        with the section by which it does alone."""
        left = self._seconds - self._report.seconds
        if self._begins_all or left >= seconds:
            return True
        why = f"may take {seconds:.0f} s, and {max(left, 0):.0f} of {self._seconds:.0f} are left"
        self._report.leave_out({row: f"{why}: --only {section}, or --seconds 0"})
        return False


@contextmanager
def ended_in_time(
    seconds: float, last_words: Callable[[str], None], folder: Path
) -> Iterator[None]:
    """The block raises `Stopped` after so many seconds, or when the process is asked to end; where
    nobody hears that, the process ends, its children and `folder` with it, after `last_words`.

    Args:
        seconds: 0: without an end of its own.
        last_words: told why.
    """
    over = threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        why = "it was asked to end" if number == signal.SIGTERM else f"{seconds:.0f} s are over"
        threading.Thread(target=end, args=(why,), daemon=True).start()
        raise Stopped(why)

    def end(why: str) -> None:
        if not over.wait(_GRACE_S):
            for child in _children():
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
            try:
                # The very last: whoever was waiting for a child may go on, and talk.
                last_words(f"{why}, and nothing answered any more")
                sys.stdout.flush()
            finally:
                os._exit(1)

    handlers = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        over.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in handlers.items():
            signal.signal(one, handler)


def _children() -> list[int]:
    """Processes that this one has started."""
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found
