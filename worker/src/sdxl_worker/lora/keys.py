"""The live model's modules that a LoRA may change, and how files spell their names.

Duty: UNet and text encoders → `ModelTargets`: modules by full name, the shapes that a file must
fit, the spelling table built from those very names.
Must not know: files, how a change is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from sdxl_contract.lora.modules import TEXT_ENCODER, TEXT_ENCODER_2, UNET, KeyMap

# torch.compile wraps a module and puts this level into its parameters' names.
_COMPILED = "_orig_mod"


@dataclass(frozen=True)
class Target:
    """One module that a LoRA may change. `weight` is what the file's shapes must fit."""

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None


class ModelTargets:
    """All modules of a pipeline that a LoRA may change; see `lora_targets`.

    Attributes:
        roots: `unet`, `text_encoder`, `text_encoder_2` → module; those that exist.
        modules: full name, such as `unet.conv_in` → target.
        shapes: full name → weight shape.
        key_map: every spelling of those names.
    """

    def __init__(self, roots: dict[str, nn.Module]) -> None:
        self.roots = {name: _unwrapped(module) for name, module in roots.items()}
        self.modules = {
            target.name: target
            for root, module in self.roots.items()
            for target in _targets(root, module)
        }
        self.shapes = {name: tuple(target.weight.shape) for name, target in self.modules.items()}
        self.key_map = KeyMap(self.modules)

    def signature_modules(self) -> dict[str, tuple[int, ...]]:
        """Full module name → weight shape, for `BaseModelSignature.modules`."""
        return dict(self.shapes)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every parameter and buffer of all roots by full name, each storage name once."""
        for root, module in self.roots.items():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                yield f"{root}.{_plain(name)}", tensor

    def patchable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`<module>.weight` and `<module>.bias` of every target."""
        for name, target in self.modules.items():
            yield f"{name}.weight", target.weight
            if target.bias is not None:
                yield f"{name}.bias", target.bias


def lora_targets(
    unet: nn.Module,
    text_encoder: nn.Module | None = None,
    text_encoder_2: nn.Module | None = None,
) -> ModelTargets:
    """The targets of a pipeline's modules; compiled modules are looked through."""
    roots = {UNET: unet, TEXT_ENCODER: text_encoder, TEXT_ENCODER_2: text_encoder_2}
    return ModelTargets({name: module for name, module in roots.items() if module is not None})


def _unwrapped(module: nn.Module) -> nn.Module:
    inner = getattr(module, _COMPILED, module)
    return inner if isinstance(inner, nn.Module) else module


def _plain(name: str) -> str:
    return name.replace(f"{_COMPILED}.", "")


def _targets(root: str, module: nn.Module) -> Iterator[Target]:
    for name, child in module.named_modules():
        weight = child._parameters.get("weight")
        if weight is None:
            continue
        bias = child._parameters.get("bias")
        yield Target(_canonical(root, _plain(name)), _parameter(weight), _optional(bias))


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    assert isinstance(tensor, nn.Parameter)
    return tensor


def _optional(tensor: torch.Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else _parameter(tensor)


def _canonical(root: str, name: str) -> str:
    """Full name as diffusers' checkpoints have it.

    Newer transformers leave out the `text_model.` level of CLIPTextModel; a signature must not
    depend on the installed version.
    """
    if root != UNET and not name.startswith(("text_model.", "text_projection")):
        name = f"text_model.{name}"
    return f"{root}.{name}"
