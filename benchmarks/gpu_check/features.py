"""What each way to draw costs: seconds of a picture and memory beside what is held, a row each.

Networks are random and as large as the published ones for SDXL (small beside the small model), and
made where they are used: what they draw is nothing, what they cost is theirs.
Must not know: HTTP.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import nn

from benchmarks.full_size import REPOSITORY
from benchmarks.gpu_check.inputs import PROMPT
from benchmarks.gpu_check.speeds import CFG, SEED, Ours, Rows
from sdxl_contract.limits import ControlInfo, ControlKind
from sdxl_contract.request import GenerateRequest
from sdxl_worker.auxiliary.adapters import ADAPTER, ENCODER, build_adapter
from sdxl_worker.auxiliary.provided import CONTROL, UPSCALER
from sdxl_worker.auxiliary.shelf import Item, Shelf, onto, stamp_of
from sdxl_worker.auxiliary.upscaler_networks import build_upscaler
from sdxl_worker.drawing.drawer import Drawer
from sdxl_worker.embeddings import Embedding
from sdxl_worker.pictures.canvas import make_canvas
from sdxl_worker.run import Run
from testkit.auxiliary.adapters import flat, image_encoder, ip_adapter
from testkit.auxiliary.controls import adapter_for
from testkit.auxiliary.upscalers import esrgan

_SHARED = (
    "in_channels", "down_block_types", "block_out_channels", "layers_per_block",
    "transformer_layers_per_block", "attention_head_dim", "use_linear_projection",
    "cross_attention_dim", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim", "norm_num_groups",
)  # fmt: skip
# CLIP's ViT-H, which the published adapters look through.
_VIT_H = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 1024,
}  # fmt: skip
_BUDGET = 32 << 30
_URL = {"url": "https://pictures.example.com/one.png"}


def networks(ours: Ours, *, small: bool) -> Shelf:
    """Two control networks, an adapter with its encoder, and an upscaler, made when asked for."""
    import diffusers

    unet, device = ours.ready.model.pipe.unet, ours.ready.model.device
    shape = {name: unet.config[name] for name in _SHARED}
    first = unet.config["block_out_channels"][0]
    union = {"num_trans_channel": first, "num_proj_channel": first}

    def made(cls: str, **more: Any) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            with torch.device(device):
                network: Any = getattr(diffusers, cls)(**shape, **more)
            for tensor in network.parameters():
                # Where it begins as zeros nothing would be attached.
                tensor.data.normal_(0, 0.02)
            return network.to(unet.dtype)  # type: ignore[no-any-return]

        return make

    def sketch() -> nn.Module:
        with torch.device(device):
            return adapter_for(unet, 1).to(unet.dtype)  # type: ignore[no-any-return]

    def encoder() -> nn.Module:
        with torch.device(device):
            return image_encoder(**({} if small else _VIT_H)).to(unet.dtype)  # type: ignore[no-any-return]

    def adapter() -> nn.Module:
        sees = {} if small else {"sums": _VIT_H["projection_dim"]}
        parts = flat(ip_adapter(unet, 1, plus=False, **sees))
        return build_adapter({n: t.to(device) for n, t in parts.items()}, unet).to(unet.dtype)

    def upscaler() -> nn.Module:
        size = {} if small else {"width": 64, "grow": 32, "blocks": 23}
        return build_upscaler(esrgan(old=True, **size))[1]

    file = REPOSITORY / "README.md"  # which does not change while this runs

    def item(kind: str, name: str, load: Callable[[], nn.Module], about: Any = None) -> Item:
        return Item(kind, name, file, "", stamp_of(file), load, about)

    def control(name: str, kind: ControlKind, types: tuple[str, ...] = ()) -> ControlInfo:
        return ControlInfo(name=name, sha256="", kind=kind, types=types, bytes=0)

    types = ("openpose", "depth", "scribble", "canny", "normal", "segment")
    items = [
        item(CONTROL, "one", made("ControlNetModel"), control("one", ControlKind.CONTROLNET)),
        item(
            CONTROL, "union", made("ControlNetUnionModel", num_control_type=len(types), **union),
            control("union", ControlKind.CONTROLNET_UNION, types),
        ),
        item(CONTROL, "sketch", sketch, control("sketch", ControlKind.T2I_ADAPTER)),
        item(ENCODER, ENCODER, encoder),
        item(ADAPTER, "base", adapter),
        item(UPSCALER, "esrgan", upscaler),
    ]  # fmt: skip
    return Shelf(items, _BUDGET, onto(device), ours.static.forget)


def cases(side: int) -> dict[str, dict[str, Any]]:
    """Feature → the fields of its request."""
    source = {"image": _URL, "width": side, "height": side}
    plain = {"width": side, "height": side}
    hires = {"scale": 1.5, "strength": 0.5}
    return {
        "words": plain,
        "break": plain | {"prompt": f"{PROMPT} BREAK a blue sky", "prompt_syntax": "a1111"},
        "schedule": plain | {"prompt": f"{PROMPT} [a pear:a plum:0.5]", "prompt_syntax": "a1111"},
        "textual_inversion": plain | {
            "prompt": f"{PROMPT} mystyle", "embeddings": [_URL | {"token": "mystyle"}],
        },
        "img2img": source | {"strength": 0.6},
        "inpaint": source | {"strength": 1.0, "mask": _URL},
        "outpaint": {"image": _URL, "outpaint": {"left": side // 4}},
        "hires_latent": plain | {"hires": hires},
        "hires_esrgan": plain | {"hires": hires | {"upscaler": "esrgan"}},
        "upscale_esrgan": {
            "image": _URL, "prompt": "", "upscale": {"upscaler": "esrgan", "scale": 2.0},
        },
        "controlnet": plain | {"controls": [{"model": "one", "image": _URL}]},
        "controlnet_union": plain | {
            "controls": [{"model": "union", "type": "canny", "image": _URL}],
        },
        "t2i_adapter": plain | {"controls": [{"model": "sketch", "image": _URL}]},
        "ip_adapter": plain | {"references": [{"adapter": "base", "image": _URL}]},
    }  # fmt: skip


def rows(ours: Ours, *, small: bool) -> Rows:
    """Feature → seconds of a picture, those of the first one (what it needs is loaded, recorded),
    and its phases; on a GPU the bytes at most beside what is held, and what its networks hold."""
    shelf = networks(ours, small=small)
    drawer = Drawer(ours.ready.model, 1, ours.ready.drawer._calls, shelf)
    found: Rows = {}
    for name, fields in cases(ours.side).items():
        try:
            found[name] = _row(ours, drawer, shelf, fields)
        except Exception as error:
            # The others are still wanted.
            found[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
            found.setdefault("failed", []).append(name)
        shelf.clear()
    ours.ready.structure.verify()
    return found


def _row(ours: Ours, drawer: Drawer, shelf: Shelf, fields: Mapping[str, Any]) -> Rows:
    on_gpu = ours.device == "cuda"
    seconds, held = [], 0
    for steps in (min(2, ours.steps), ours.steps):
        run = _run(ours, fields, steps)
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        started = time.perf_counter()
        drawn = drawer.draw(run)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(round(time.perf_counter() - started, 4))
    row: Rows = {
        "s": seconds[1], "first_s": seconds[0], "size": list(drawn[0].image.size),
        "network_bytes": shelf.nbytes,
        "phases": {name: round(s, 4) for name, s in run.timings().model_dump().items() if s},
        "drawing": run.drawing.model_dump() if run.drawing else None,
    }  # fmt: skip
    if on_gpu:
        row["bytes"] = torch.cuda.max_memory_allocated() - held
    return row


def _run(ours: Ours, fields: Mapping[str, Any], steps: int) -> Run:
    values: dict[str, Any] = {"prompt": PROMPT, "steps": steps, "cfg": CFG, "seed": SEED, **fields}
    if "upscale" in fields:
        del values["steps"], values["cfg"]
    request = GenerateRequest(**values)
    limits, pipe = ours.ready.model.limits, ours.ready.model.pipe
    run = Run(request, device=ours.ready.model.device, timeout_s=600)
    side = ours.side
    picture = Image.radial_gradient("L").resize((side, side)).convert("RGB")
    if request.image is not None:
        mask = None
        if request.mask is not None:
            mask = Image.new("L", picture.size, 0)
            mask.paste(255, (side // 4, 0, side, side))
        run.canvas = make_canvas(request, limits, picture, mask)
    run.control_pictures = [picture] * len(request.controls)
    run.reference_pictures = [picture] * len(request.references)
    if request.embeddings:
        vectors = [
            encoder.get_input_embeddings().weight.detach()[5:9].cpu().float()
            for encoder in (pipe.text_encoder, pipe.text_encoder_2)
        ]
        run.embeddings = [Embedding("mystyle", (vectors[0], vectors[1]), "")]
    return run
