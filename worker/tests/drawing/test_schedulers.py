"""Every sampler that is offered draws what the words say, at any number of steps, repeatably."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdxl_contract.errors import ContractError
from sdxl_contract.limits import ModelLimits
from sdxl_contract.request import (
    RETIRED_SCHEDULERS,
    GenerateRequest,
    Scheduler,
    parse_request,
    scheduler_named,
)
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.drawing.schedulers import build_scheduler
from sdxl_worker.run import Run
from testkit.worker import RunningWorker

DEMO_MODEL = Path(__file__).resolve().parents[3] / "demo_model"
Pixels = NDArray[np.uint8]
OFFERED = [name for name in Scheduler if name not in RETIRED_SCHEDULERS]
# Names that are one sampler, for a model whose own spacing is trailing.
SAME = [
    {Scheduler.DEFAULT, Scheduler.EULER, Scheduler.EULER_TRAILING},
    {Scheduler.EULER_A, Scheduler.EULER_A_TRAILING},
    {Scheduler.DPMPP_2M, Scheduler.DPMPP_2M_TRAILING},
    {Scheduler.DDIM, Scheduler.DDIM_TRAILING},
    {Scheduler.DPMPP_SDE, Scheduler.DPMPP_2M_SDE},
    {Scheduler.DPMPP_SDE_KARRAS, Scheduler.DPMPP_2M_SDE_KARRAS},
]


@pytest.fixture(scope="module")
def drawer(worker: RunningWorker) -> Drawer:
    assert worker.engine._ready is not None
    return worker.engine._ready.drawer


@pytest.fixture(scope="module")
def references() -> Any:
    from demo_model import references as module

    return module


def draw(drawer: Drawer, name: Scheduler, steps: int, side: int, **fields: Any) -> Pixels:
    request = GenerateRequest(
        prompt="a slice of pizza, white background",
        scheduler=name,
        steps=steps,
        seed=3,
        width=side,
        height=side,
        **fields,
    )
    drawn = drawer.draw(Run(request))
    return np.asarray(drawn[0].image)


@pytest.mark.long
def test_every_sampler_draws_what_the_words_say_and_each_its_own_way(
    drawer: Drawer, references: Any
) -> None:
    known = references.load()
    candidates = known.flat("white")
    pictures, missed = {}, {}
    for name in OFFERED:
        picture = draw(drawer, name, 10, 128)
        found = known.names[references.nearest(picture, candidates)[0]]
        if found != "pizza":
            missed[name.value] = found
        pictures[name] = picture.tobytes()

    assert not missed
    for group in SAME:
        assert len({pictures[name] for name in group}) == 1, group
    assert len(set(pictures.values())) == len(pictures) - sum(len(group) - 1 for group in SAME)


@pytest.mark.parametrize("name", OFFERED)
def test_a_sampler_takes_one_step_or_a_few_and_repeats_itself(
    drawer: Drawer, name: Scheduler
) -> None:
    # Without guidance a step costs half; no sampler knows of it.
    pictures = [draw(drawer, name, steps, 64, cfg=1.0) for steps in (1, 2, 2)]

    assert np.array_equal(pictures[1], pictures[2])
    assert not np.array_equal(pictures[0], pictures[1])


@pytest.mark.parametrize("name", OFFERED)
def test_a_sampler_takes_as_many_steps_as_a_request_may_ask_for(
    drawer: Drawer, name: Scheduler
) -> None:
    scheduler = build_scheduler(name, drawer.own_scheduler, 100)
    scheduler.set_timesteps(100)
    # The two-stage ones look twice at each step but the last.
    assert len(scheduler.timesteps) in (100, 199)
    assert all(0 <= float(step) <= 1000 for step in scheduler.timesteps)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", OFFERED)
def test_samplers_keep_what_the_model_s_folder_states(
    drawer: Drawer, name: Scheduler, prediction: str
) -> None:
    own = type(drawer.own_scheduler).from_config(
        drawer.own_scheduler.config, prediction_type=prediction, beta_end=0.011
    )
    built = build_scheduler(name, own, 4)

    assert (built.config.prediction_type, built.config.beta_end) == (prediction, 0.011)


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("Euler a", Scheduler.EULER_A),
        ("DPM++ 2M Karras", Scheduler.DPMPP_2M_KARRAS),
        ("DPM++ 2M SDE", Scheduler.DPMPP_2M_SDE),
        ("DPM++ SDE Karras", Scheduler.DPMPP_SDE_KARRAS),
        ("DPM2 a", Scheduler.DPM2_A),
        ("LMS Karras", Scheduler.LMS_KARRAS),
        ("UniPC", Scheduler.UNIPC),
        ("euler_ancestral", Scheduler.EULER_A),
        ("dpm_2_ancestral", Scheduler.DPM2_A),
        ("uni_pc", Scheduler.UNIPC),
        ("euler (sgm_uniform)", Scheduler.EULER_TRAILING),
        ("EulerDiscreteScheduler", Scheduler.EULER),
        ("DPMSolverMultistepScheduler", Scheduler.DPMPP_2M),
        ("KDPM2AncestralDiscreteScheduler", Scheduler.DPM2_A),
        ("TCDScheduler", Scheduler.TCD),
        ("DDIM", Scheduler.DDIM),
    ],
)
def test_other_tools_spellings_are_understood(spelled: str, name: Scheduler) -> None:
    assert scheduler_named(spelled) is name
    body = GenerateRequest(prompt="a").model_dump_json(exclude_none=True)
    assert parse_request(body.replace('"default"', f'"{spelled}"')).scheduler is name


@pytest.mark.parametrize("spelled", ["", "DPM fast", "DPM++ 2S a", "PNDMScheduler", "x" * 100_000])
def test_what_is_not_offered_is_refused_with_what_is(spelled: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_request(f'{{"prompt": "a", "scheduler": "{spelled}"}}')
    assert "'dpmpp_2m_karras'" in caught.value.message
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize("retired", list(RETIRED_SCHEDULERS))
def test_a_retired_sampler_is_refused_by_name_with_what_to_use(retired: Scheduler) -> None:
    request = GenerateRequest(prompt="a", scheduler=retired)
    with pytest.raises(ContractError) as caught:
        request.check_limits(ModelLimits())

    instead = RETIRED_SCHEDULERS[retired]
    assert caught.value.message == f"scheduler '{retired}' is no longer available: use '{instead}'"
    assert caught.value.details == {"field": "scheduler", "instead": instead.value}
    GenerateRequest(prompt="a", scheduler=instead).check_limits(ModelLimits())
    assert instead in OFFERED
