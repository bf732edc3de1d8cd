"""`make chaos`: 300 jobs on two backends while everything around them fails, for a moment or for
half a minute; then the balance.

Nothing is doubled but the worker: two real backends, a real PostgreSQL, an S3 server that checks
signatures and expiry. The last line is JSON; the exit code is 0 only where the balance holds and
the control (the same with the fence taken out) is found out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable

from chaos.balance import (
    CHANGED_LATE,
    RUNNING,
    UNFINISHED,
    Balance,
    count,
    draw_up,
    install_audit,
)
from chaos.load import Load, Trouble
from chaos.scene import JOB_CONCURRENCY, LEASE_SECONDS, Scene, scene

WEIGHTS = {
    "ok": 60, "late": 6, "slow": 6, "busy": 6, "crash": 5, "no_memory": 3, "garbage": 3,
    "damaged": 3, "redirect": 5, "cut": 3,
}  # fmt: skip
_END_SECONDS = 300
_OUTAGE_SECONDS = 30.0  # more than any call, try or connection is waited for
_CONTROL_SECONDS = 60.0  # longest wait for each step of the control
_PAUSE_SECONDS = 6.0  # of each of eight clients: so that the asking outlasts several rounds


def run(
    jobs: int, seed: int, outage_seconds: float, report: list[str]
) -> tuple[Balance, Load, Trouble]:
    """The chaos, and its balance."""
    with scene(WEIGHTS, worker_seconds=0.3, seed=seed) as running:
        install_audit(running.environment["DATABASE_URL"])
        load, trouble = Load(running, seed), Trouble(running, seed, outage_seconds)
        lora_id = asyncio.run(load.upload_lora())
        accepting = threading.Thread(
            target=lambda: asyncio.run(load.ask(jobs, lora_id, pause=_PAUSE_SECONDS)), daemon=True
        )
        accepting.start()
        trouble.go_on(lambda: not accepting.is_alive(), pause=1.5)
        accepting.join()
        report.append(f"{len(load.accepted)} jobs accepted; trouble: {dict(trouble.made)}")
        if not load.wait_until_all_ended(_END_SECONDS):
            report.append(f"some had not ended after {_END_SECONDS} s of peace")
        return settle(running, load), load, trouble


def settle(running: Scene, load: Load) -> Balance:
    """Let zombies that woke last have their say, stop the backends, and compare."""
    time.sleep(LEASE_SECONDS)
    for backend in running.backends:
        backend.stop()
    return draw_up(running.settings(), load.accepted)


def wake_without_the_fence(running: Scene, load: Load) -> Balance:
    """The fence is out, one backend sleeps past its lease and wakes: the balance must tell.

    The worker stands still until each backend is known to hold contents: as many run as both
    together may hold.
    """
    conninfo = running.environment["DATABASE_URL"]
    places = len(running.backends) * JOB_CONCURRENCY
    running.take_the_fence_out()
    lora_id = asyncio.run(load.upload_lora())
    running.freeze(running.worker)
    asyncio.run(load.ask(places, lora_id))
    assert _comes(lambda: count(conninfo, RUNNING) == places), "the backends hold too little"
    running.freeze(running.backends[0])
    running.thaw(running.worker)
    # The other one draws its own, and then those that it takes over.
    assert _comes(lambda: count(conninfo, UNFINISHED) == 0), "the other backend did not go on"
    running.thaw(running.backends[0])
    _comes(lambda: count(conninfo, CHANGED_LATE) > 0)
    return settle(running, load)


def _comes(is_so: Callable[[], bool]) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + _CONTROL_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def control(seed: int) -> Balance:
    """The control, on a scene of its own."""
    with scene({"ok": 1}, worker_seconds=0.3, seed=seed) as running:
        install_audit(running.environment["DATABASE_URL"])
        return wake_without_the_fence(running, Load(running, seed))


def main() -> int:
    """0 where the balance holds and the control does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--outage-seconds",
        type=float,
        default=_OUTAGE_SECONDS,
        help="how long worker, store and database are away where it is for long (0: never)",
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    report: list[str] = []
    balance, load, trouble = run(arguments.jobs, arguments.seed, arguments.outage_seconds, report)
    balance.wrong += [f"the key {key} gave two contents" for key in load.twice]
    print("\n".join(report))
    for wrong in balance.wrong[:50]:
        print(f"WRONG: {wrong}")
    print("the control: the same without the fence ...", flush=True)
    unfenced = control(arguments.seed)
    for wrong in unfenced.wrong[:5]:
        print(f"found, as it must be: {wrong}")
    holds = not balance.wrong and len(load.accepted) == arguments.jobs
    print(
        json.dumps(
            {
                "holds": holds,
                "control_found_out": bool(unfenced.wrong),
                **balance.shown(),
                "trouble": dict(trouble.made),
                "answers_that_were_no_acceptance": dict(load.refusals),
                "seconds": round(time.monotonic() - started, 1),
                "seed": arguments.seed,
                "outage_seconds": arguments.outage_seconds,
            }
        )
    )
    return 0 if holds and unfenced.wrong else 1


if __name__ == "__main__":
    sys.exit(main())
