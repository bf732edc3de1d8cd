"""LoRAs: from an untrusted file to a changed model, and exactly back.

`keys` what can be changed · `contents` a file's bytes · `parse` file → factors · `layers` factors →
ΔW · `merge` W0 + ΔW, written in place, `threads` by all cores, `grouped` in bulk on a GPU · `arena`
all weights in one block · `plan` which layers go where · `patcher` apply, restore, prove · `cache`
by content hash.
The naming rules and the header checks are in `sdxl_contract.lora_*`, shared with the backend.
"""

from sdxl_worker.lora.cache import CacheStats, DiskTier, LoraCache
from sdxl_worker.lora.keys import ModelTargets, lora_targets
from sdxl_worker.lora.parse import ParsedLora, lay_out_file, parse_lora
from sdxl_worker.lora.patcher import LoraPatcher
from sdxl_worker.lora.plan import ContentKey, content_key
from sdxl_worker.lora.reports import ModelCorrupted, RestoreReport, SwapKind, SwapReport

__all__ = [
    "CacheStats",
    "ContentKey",
    "DiskTier",
    "LoraCache",
    "LoraPatcher",
    "ModelCorrupted",
    "ModelTargets",
    "ParsedLora",
    "RestoreReport",
    "SwapKind",
    "SwapReport",
    "content_key",
    "lay_out_file",
    "lora_targets",
    "parse_lora",
]
