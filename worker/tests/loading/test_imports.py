"""Lean imports leave nothing missing: the same pictures, and everything there when asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from testkit.worker import MODEL

# What a process does after its imports; each in a fresh one, as imports cannot be undone.
_DRAW = """
import hashlib, json, sys, time
from pathlib import Path
from sdxl_worker.loading.imports import import_libraries
begun = time.process_time()
lean = import_libraries(lean=sys.argv[1] == "lean")
seconds = time.process_time() - begun
loaded = len(sys.modules)
import torch, transformers.models
from sdxl_worker.loading.pipeline import load_model
from sdxl_worker.settings import Settings
pipe = load_model(Settings(base_model=sys.argv[2], device="cpu")).pipe
latents = pipe("a red apple", width=64, height=64, num_inference_steps=2,
               generator=torch.Generator().manual_seed(1), output_type="latent").images
digest = hashlib.sha256(latents.numpy().tobytes()).hexdigest()
names = sorted({*transformers.__all__, *transformers.models.__all__})
print(json.dumps({"lean": lean, "seconds": seconds, "modules": loaded, "digest": digest,
                  "names": hashlib.sha256(repr(names).encode()).hexdigest()}))
"""
_LATER = """
import importlib.metadata, importlib.util, gc, json, sys
from sdxl_worker.loading.imports import import_libraries
assert import_libraries()
import torch, diffusers, transformers
found = {"gc": gc.isenabled(),
         "distributed": torch.distributed.is_available(),
         "peft": importlib.util.find_spec("peft") is not None,
         "distributions": "torch" in importlib.metadata.packages_distributions(),
         "hidden": [name for name, module in sys.modules.items() if module is None]}
import accelerate, peft
found["peft_works"] = peft.LoraConfig(r=4).r
# Behind packages whose `__init__` had not run, and behind one that only a name of it runs.
found["unet"] = diffusers.models.unets.UNet3DConditionModel.__name__
found["submodule"] = diffusers.models.transformers.transformer_flux.__name__
found["vae"] = diffusers.AutoencoderTiny.__name__
found["other_model"] = transformers.BertModel.__name__
found["schedulers"] = [name for name in dir(diffusers) if name.endswith("Scheduler")
                       and getattr(diffusers, name) is not None][:3]
found["export"] = torch.export.Dim.__name__
import torch.export.dynamic_shapes
found["export"] += torch.export.dynamic_shapes.Dim.__name__
# The compiler's front end, which was entered by the back door.
compiled = torch.compile(lambda x: torch.sin(x) * 2, backend="eager", fullgraph=True)
found["compiled"] = float((compiled(torch.ones(3)) - torch.sin(torch.ones(3)) * 2).abs().max())
found["marks"] = torch._dynamo.disable.__module__
print(json.dumps(found))
"""
_BROKEN = """
import json, logging, sys
import sdxl_worker.loading.imports as imports
imports._COLLECTIONS = ("diffusers.models.no_such_package",)
lean = imports.import_libraries()
import torch, diffusers, transformers
print(json.dumps({"lean": lean, "name": diffusers.StableDiffusionXLPipeline.__name__,
                  "hidden": [n for n, m in sys.modules.items() if m is None],
                  "distributed": torch.distributed.is_available()}))
"""
_KEPT = """
import json, sys
from pathlib import Path
import sdxl_worker.loading.imports as imports
path = Path(sys.argv[1])
imports._list_of_models = lambda _: path
lean = imports.import_libraries()
import transformers
print(json.dumps({"lean": lean, "name": transformers.T5EncoderModel.__name__,
                  "kept": path.read_text()[:2], "same": "T5EncoderModel" in path.read_text()}))
"""


def run(code: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_lean_imports_give_the_same_picture_with_far_fewer_modules() -> None:
    lean, full = run(_DRAW, "lean", str(MODEL)), run(_DRAW, "full", str(MODEL))

    assert (lean["lean"], full["lean"]) == (True, False)
    assert lean["digest"] == full["digest"]
    # Both of transformers' lists, which a lean import takes from the kept one.
    assert lean["names"] == full["names"]
    # The control that something was left out at all.
    assert lean["modules"] < 0.7 * full["modules"]


def test_what_was_left_out_is_there_when_it_is_asked_for() -> None:
    found = run(_LATER)

    assert found["hidden"] == []
    assert (found["gc"], found["distributed"], found["peft"], found["distributions"]) == (True,) * 4
    assert found["peft_works"] == 4
    assert found["unet"] == "UNet3DConditionModel"
    assert found["submodule"] == "diffusers.models.transformers.transformer_flux"
    assert found["vae"] == "AutoencoderTiny"
    assert found["other_model"] == "BertModel"
    assert len(found["schedulers"]) == 3
    assert found["export"] == "DimDim"
    assert found["compiled"] == 0.0
    assert found["marks"].startswith("torch._dynamo")


def test_libraries_that_cannot_be_imported_leanly_are_imported_in_full() -> None:
    found = run(_BROKEN)

    assert found == {
        "lean": False,
        "name": "StableDiffusionXLPipeline",
        "hidden": [],
        "distributed": True,
    }


def test_the_list_of_models_is_kept_and_a_spoilt_one_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "not there yet" / "models.json"
    first = run(_KEPT, str(path))
    written = path.read_bytes()
    second = run(_KEPT, str(path))

    assert first == second == {
        "lean": True, "name": "T5EncoderModel", "kept": "[[", "same": True
    }  # fmt: skip
    assert path.read_bytes() == written

    path.write_bytes(written[: len(written) // 2])
    assert run(_KEPT, str(path)) == first
    assert path.read_bytes() == written

    path.write_text("[]")
    assert run(_KEPT, str(path)) == first
    assert path.read_bytes() == written

    # Well-formed, and of another library.
    path.write_text('[[[], {"models.other": ["Other"]}]]')
    assert run(_KEPT, str(path)) == first | {"lean": False, "same": False}
