"""A request's passes over the denoising loop: one, or a second one on the first's drawing enlarged.

Duty: what differs from pass to pass, and how far a request is through all of them.
Must not know: tensors but the conditioning, how a pass is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdxl_contract.drawing.hires import Hires
from sdxl_contract.request import GenerateRequest, Scheduler
from sdxl_worker.drawing.prompts import Conditioning
from sdxl_worker.run import Run


@dataclass(frozen=True)
class Pass:
    """One pass.

    Attributes:
        steps: of the schedule.
        drawn: how many of these are drawn, the last ones.
        size: width and height in px.
        conditionings: of each drawn step.
        step_cost: what a step costs, in steps of the first pass.
    """

    steps: int
    drawn: int
    size: tuple[int, int]
    scheduler: Scheduler
    cfg: float
    conditionings: Sequence[Conditioning]
    step_cost: float = 1.0


def first_pass(
    request: GenerateRequest, size: tuple[int, int], told: Sequence[Conditioning]
) -> Pass:
    """The only one of most requests."""
    return Pass(
        request.steps, request.steps_to_draw(), size, request.scheduler, request.cfg, told
    )  # fmt: skip


def second_pass(
    request: GenerateRequest,
    hires: Hires,
    first: Pass,
    multiple_of: int,
    told: Sequence[Conditioning],
) -> Pass:
    """Exactly as many steps as are asked for, the last of a longer schedule."""
    drawn = hires.drawn_steps(request.steps)
    return Pass(
        steps=hires.schedule(request.steps),
        drawn=drawn,
        size=hires.size(first.size, multiple_of),
        scheduler=hires.scheduler or request.scheduler,
        cfg=request.cfg if hires.cfg is None else hires.cfg,
        conditionings=told,
        step_cost=hires.cost(request.steps) / drawn,
    )


class Progress:
    """How many of a run's steps are done, over all pictures and passes."""

    def __init__(self, run: Run) -> None:
        request = run.request
        self._run = run
        self._total = request.all_steps() * request.num_images
        self._total_cost = request.cost() * request.num_images
        self._steps = 0
        self._cost = 0.0

    def step(self, one: Pass, step: int, count: int, preview: Callable[[], str] | None) -> None:
        """`count` pictures have gone through `step` steps of pass `one`; stops if the run must."""
        steps = count * step
        self._run.step(
            self._steps + steps,
            self._total,
            preview,
            share=(self._cost + steps * one.step_cost) / self._total_cost,
        )

    def passed(self, one: Pass, count: int) -> None:
        """`count` pictures have gone through pass `one`."""
        self._steps += count * one.drawn
        self._cost += count * one.drawn * one.step_cost
