"""Requests in random order over everything: each picture equal to its own first one.

Must not know: GPUs.
"""

from __future__ import annotations

import base64
import hashlib
import io
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from benchmarks.gpu_check.inputs import PROMPT
from benchmarks.gpu_check.processes import Service

Lora = Mapping[str, str]
# Requests at a time: while one is drawn, another's text and picture are worked on.
_CLIENTS = 2
# After so many, one is cancelled by itself.
_UNTIL_A_CANCEL = 7


@dataclass
class Exactness:
    """What was found.

    Attributes:
        expected: requests that were to be made.
        cancelled: requests that were ended in the midst of their work, and that said so.
        came_too_late: those that were done before they could be ended.
        differing: cases whose picture was not its own first one.
        unclean: answers that did not say that the model was found clean.
        speeds: answers by what drew them.
    """

    expected: int = 0
    requests: int = 0
    cases: int = 0
    cancelled: int = 0
    came_too_late: int = 0
    differing: list[str] = field(default_factory=list)
    unclean: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    speeds: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Whether every picture was right, every time, and all were drawn."""
        wrong = self.differing or self.unclean or self.errors
        return self.requests == self.expected > 0 and not wrong

    def take(self, name: str, answer: Mapping[str, Any]) -> None:
        """One answer to the case `name`."""
        self.requests += 1
        if answer["http"] != 200:
            self.errors[f"{name}: {answer.get('error_code')}"] += 1
            return
        self.unclean += not answer.get("model_clean")
        drawing = answer.get("drawing") or {}
        self.speeds[str(drawing.get("speed"))] += 1
        for how in ("steps_replayed", "steps_captured", "steps_eager"):
            self.steps[how] += drawing.get(how, 0)

    def take_cancelled(self, answer: Mapping[str, Any]) -> None:
        """The answer to one that was to be ended."""
        if answer.get("error_code") == "CANCELLED":
            self.cancelled += 1
        elif answer["http"] == 200:
            self.came_too_late += 1
        else:
            self.errors[f"cancelled: {answer.get('error_code')}"] += 1

    def row(self) -> dict[str, Any]:
        """All of it, for JSON."""
        found = {name: dict(v) if isinstance(v, dict) else v for name, v in vars(self).items()}
        return {"ok": self.ok} | found


def cases(loras: Sequence[Lora], sides: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Name → request: base, each LoRA, sets, sizes, counts, guidance, samplers."""
    one = {"prompt": PROMPT, "width": sides[0], "height": sides[0], "steps": 3, "seed": 7}
    found: dict[str, dict[str, Any]] = {"base": dict(one)}
    for number, lora in enumerate(loras):
        found[f"lora {number}"] = one | {"loras": [dict(lora) | {"scale": 0.8}]}
    found["other scale"] = one | {"loras": [dict(loras[0]) | {"scale": 0.3}]}
    for name, chosen in (("0+1", (0, 1)), ("1+3", (1, 3)), ("2+5", (2, 5))):
        found[f"set {name}"] = one | {"loras": [dict(loras[n]) | {"scale": 0.6} for n in chosen]}
    native = one | {"width": sides[-1], "height": sides[-1]}
    # What is recorded from the start, and compiled where that is asked for.
    for number in (0, 1, 3):
        found[f"native lora {number}"] = native | {"loras": [dict(loras[number])]}
    found["native base"] = native
    for side in sides[1:]:
        found[f"side {side}"] = one | {"width": side}
        found[f"side {side} lora"] = one | {"height": side, "loras": [dict(loras[1])]}
    found["two pictures"] = one | {"num_images": 2}
    found["no guidance"] = one | {"cfg": 1.0, "loras": [dict(loras[0])]}
    found["heun"] = one | {"scheduler": "heun"}
    found["long text"] = one | {"prompt": f"{PROMPT}, " * 12}
    return found


def check(
    service: Service, asked: Mapping[str, dict[str, Any]], count: int, found: Exactness
) -> None:
    """`count` requests of `asked` in random order, two at a time, others cancelled at a random step
    between them; `found` is filled as they are answered."""
    chosen = random.Random(0)  # an order, no secret
    first = dict[str, str]()
    names = list(asked)
    order = names + chosen.choices(names, k=max(0, count - len(names)))
    chosen.shuffle(order)
    found.expected = len(order)

    def ask(name: str) -> tuple[dict[str, Any], str]:
        answer = service.call(asked[name])
        return answer, digest_of(answer) if answer["http"] == 200 else ""

    with ThreadPoolExecutor(_CLIENTS) as pool:
        for place in range(0, len(order), _UNTIL_A_CANCEL):
            together = order[place : place + _UNTIL_A_CANCEL]
            for name, (answer, digest) in zip(together, pool.map(ask, together), strict=True):
                found.take(name, answer)
                if digest and first.setdefault(name, digest) != digest:
                    found.differing.append(name)
                found.cases = len(first)
            body, name = asked[chosen.choice(together)], f"cancel-{place}"
            found.take_cancelled(_cancel_one(service, body, chosen.uniform(0, 0.3), name))
    if len(set(first.values())) < len(first):
        # Every case asks for another picture: equal ones would mean that nothing was applied.
        found.errors["two cases gave one picture"] += 1


def pixels_of(answer: Mapping[str, Any]) -> list[bytes]:
    """Of all pictures of one answer; not the files, in which the LoRAs' names would differ."""
    return [
        Image.open(io.BytesIO(base64.b64decode(one["image_base64"]))).convert("RGB").tobytes()
        for one in answer.get("images") or [answer]
    ]


def digest_of(answer: Mapping[str, Any]) -> str:
    """Of the pixels of all pictures of one answer."""
    return hashlib.sha256(b"".join(pixels_of(answer))).hexdigest()


def _cancel_one(
    service: Service, body: dict[str, Any], after_s: float, name: str
) -> dict[str, Any]:
    """The answer to a request that is cancelled while it is worked on."""
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(service.call, body | {"request_id": name, "seed": 1, "steps": 20})
        time.sleep(after_s)
        service.call({}, f"/requests/{name}/cancel")
        return ended.result()
