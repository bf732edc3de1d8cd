"""Replicate's public predictions API, as a real HTTP server with a fast clock.

`POST /v1/predictions` makes a prediction, `GET /v1/predictions/{id}` shows it, `POST …/cancel`
stops it; its output is the URL of a picture, which is served without the API's token.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from sdxl_contract.request import GenerateRequest
from testkit.doubles.http_server import Call, HttpServer, Reply, as_json
from testkit.doubles.inference_double import draw_picture


@dataclass
class Prediction:
    """One run. `status` is Replicate's word for where it is."""

    id: str
    input: dict[str, Any]
    status: str = "starting"
    output: Any = None
    looks: int = 0


@dataclass
class Plan:
    """What becomes of the next prediction.

    Args:
        create: the answer to its creation instead of a prediction.
        looks: the answers to the first looks at it instead of its state.
        takes_looks: looks until it ends; -1: never.
        ends_as: its last status.
        output: instead of the picture's URL, with `{base}` for this server.
        picture: instead of the right picture's bytes.
    """

    create: Reply | None = None
    looks: list[Reply] = field(default_factory=list)
    takes_looks: int = 2
    ends_as: str = "succeeded"
    output: Any = "{base}/out/{id}/0.png"
    picture: Reply | None = None


class ReplicateDouble(HttpServer):
    """Replicate with one model version. `plan` is used for every prediction from now on."""

    def __init__(self, token: str, version: str) -> None:
        super().__init__()
        self.plan = Plan()
        self.predictions: dict[str, Prediction] = {}
        self._token = token
        self._version = version

    @property
    def created(self) -> list[Call]:
        """The POSTs that asked for a prediction."""
        return [call for call in self.calls if call.path == "/v1/predictions"]

    async def answer(self, call: Call, gone: Callable[[], Awaitable[None]]) -> Reply:
        """One call, as Replicate answers it."""
        if call.path.startswith("/out/"):
            return self._give_picture(call)
        if call.headers.get("authorization") != f"Bearer {self._token}":
            return as_json({"title": "Unauthenticated", "status": 401}, 401)
        if (call.method, call.path) == ("POST", "/v1/predictions"):
            return self._create(call)
        name, _, action = call.path.removeprefix("/v1/predictions/").partition("/")
        prediction = self.predictions.get(name)
        if prediction is None:
            return as_json({"detail": "not found", "status": 404}, 404)
        if (call.method, action) == ("POST", "cancel"):
            prediction.status = "canceled"
        elif (call.method, action) == ("GET", ""):
            if self.plan.looks:
                return self.plan.looks.pop(0)
            self._advance(prediction)
        return self._show(prediction)

    def _create(self, call: Call) -> Reply:
        body = call.json()
        if body.get("version") != self._version:
            return as_json({"detail": "invalid version", "status": 422}, 422)
        if self.plan.create is not None:
            return self.plan.create
        prediction = Prediction(f"p{len(self.predictions)}", body["input"])
        self.predictions[prediction.id] = prediction
        return self._show(prediction, 201)

    def _advance(self, prediction: Prediction) -> None:
        if prediction.status not in ("starting", "processing"):
            return
        prediction.looks += 1
        prediction.status = "processing"
        if prediction.looks == self.plan.takes_looks:
            prediction.status = self.plan.ends_as
            if prediction.status == "succeeded":
                prediction.output = _filled(self.plan.output, base=self.url, id=prediction.id)

    def _show(self, prediction: Prediction, status: int = 200) -> Reply:
        error = "secret detail" if prediction.status == "failed" else None
        return as_json(
            {
                "id": prediction.id,
                "status": prediction.status,
                "input": prediction.input,
                "output": prediction.output,
                "error": error,
            },
            status,
        )

    def _give_picture(self, call: Call) -> Reply:
        if self.plan.picture is not None:
            return self.plan.picture
        asked = self.predictions[call.path.split("/")[2]].input
        request = GenerateRequest(
            prompt=asked["prompt"], width=asked["width"], height=asked["height"]
        )
        return Reply(200, draw_picture(request, asked["seed"]), {"Content-Type": "image/png"})


def _filled(output: Any, **values: str) -> Any:
    if isinstance(output, list):
        return [_filled(item, **values) for item in output]
    return output.format(**values) if isinstance(output, str) else output
