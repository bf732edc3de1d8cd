"""Arguments of a call, taken apart into tensors and the rest, and put together again.

Must not know: what the call is, or where it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor


class NotStatic(TypeError):
    """An argument is neither a tensor nor a value that could be part of a key."""


def tensors_of(tree: Any) -> list[Tensor]:
    """Every tensor in nested dicts, lists and tuples, in a fixed order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [tensor for value in tree for tensor in tensors_of(value)]


def mapped(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree in new containers, with each tensor changed.

    New ones each time: some callees take out of a list what they have used.
    """
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: mapped(value, change) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(mapped(value, change) for value in tree)
    return tree


def shape_key(tree: Any) -> Hashable:
    """Equal for trees that one recording serves: all but the tensors' values.

    Raises:
        NotStatic: something in it cannot be compared.
    """
    if isinstance(tree, Tensor):
        return (tree.dtype, tuple(tree.shape), tree.stride(), tree.device)
    if isinstance(tree, dict):
        return ("dict", *((key, shape_key(value)) for key, value in sorted(tree.items())))
    if isinstance(tree, (list, tuple)):
        return (type(tree).__name__, *(shape_key(value) for value in tree))
    if tree is None or isinstance(tree, (bool, int, float, str, torch.dtype)):
        return tree
    raise NotStatic(f"{type(tree).__name__} is no static argument")
