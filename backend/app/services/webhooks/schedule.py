"""When a message is tried again, and when a receiver is given up. Pure functions."""

from __future__ import annotations

from datetime import datetime, timedelta

# After the first attempt, the second, and so on. The first is made at once.
PAUSES = (
    timedelta(seconds=5),
    timedelta(minutes=5),
    timedelta(minutes=30),
    timedelta(hours=2),
    timedelta(hours=5),
    timedelta(hours=10),
    timedelta(hours=14),
    timedelta(hours=20),
    timedelta(hours=24),
)
GIVE_UP_AFTER = timedelta(days=5)
_JITTER = 0.1
_LONGEST = timedelta(hours=24)


def next_attempt(
    attempts: int, now: datetime, chance: float, retry_after: float | None = None
) -> datetime | None:
    """When to try again after `attempts` failed ones; None where there was the last.

    Args:
        chance: 0 to 1; spreads those that failed together.
        retry_after: seconds that the receiver asks for; a day at most is given.
    """
    if attempts > len(PAUSES):
        return None
    pause = PAUSES[attempts - 1] * (1 + _JITTER * chance)
    if retry_after is not None:
        pause = max(pause, min(timedelta(seconds=max(0.0, retry_after)), _LONGEST))
    return now + pause


def is_given_up(failing_since: datetime | None, now: datetime) -> bool:
    """Whether a receiver has failed for so long that it is told nothing more."""
    return failing_since is not None and now - failing_since >= GIVE_UP_AFTER
