"""A real ComfyUI on a pretended card, in a process of its own: what each case gave, beside the CPU's values.

    python card_comfyui.py HOME MODE CASE…      one line of JSON

``MODE``: ``full``; ``partial:BYTES``, which of each model are loaded; ``dynamic:ROOM``, 0.33's dynamic memory with what
pretend_aimdo says of ROOM. COMFYUI_PATH names the ComfyUI. torchvision and torchaudio that are of another torch and do
not load are left out: what is run here does not use them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import traceback
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")

import card_cases
import drawing
import pretend_aimdo
import pretend_card
import tiny
import torch

STEPS = 2


class _Anything(types.ModuleType):
    """A module of a library that is left out: its names are classes that do nothing."""

    __path__: list[str] = []
    __version__ = "0.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_, **__: None, "__call__": lambda self, x: x})


class _LeftOut(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: set[str]):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return _Anything(spec.name)

    def exec_module(self, module): ...


def left_out(*names: str) -> set[str]:
    """Those libraries that do not load; to the ones that are imported next they are not there."""
    found = set()
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            for part in [part for part in sys.modules if part.split(".")[0] == name]:
                del sys.modules[part]
            sys.modules[name] = None
            found.add(name)
    return found


def import_before_the_card() -> None:
    """What is loaded on a machine without a card too, and would look for a real one."""
    left = left_out("torchvision", "torchaudio")
    import diffusers
    import transformers.models.gemma2.modeling_gemma2  # noqa: F401

    for name in ("AutoencoderDC", "AutoencoderKLWan", "AutoencoderKLLTX2Video", "SanaTransformer2DModel"):
        getattr(diffusers, name)
    for name in ("SanaVideoTransformer3DModel", "SanaControlNetModel"):
        getattr(diffusers, name)
    with contextlib.suppress(ImportError):  # what multiplies quantised weights has kernels for a real card
        import comfy_kitchen

        for backend in ("cuda", "triton"):
            comfy_kitchen.disable_backend(backend)
    for name in left:  # ComfyUI imports them whatever it runs
        del sys.modules[name]
    sys.meta_path.insert(0, _LeftOut(left))


def start(home: Path, mode: str):
    """ComfyUI with ``home`` as its base directory, its card loaded as ``mode`` says; the host."""
    sys.path.insert(0, str(tiny.COMFYUI))
    arguments, sys.argv = sys.argv, ["main.py", "--base-directory", str(home)]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import comfy.model_management
        import folder_paths  # noqa: F401
    finally:
        sys.argv = arguments
    kind, _, detail = mode.partition(":")
    if kind == "dynamic":
        _load_dynamically(detail)
    elif kind == "partial":
        _load_in_part(int(detail))
    from sana_nodes import host as hosts

    return hosts.use("comfyui")


def _load_dynamically(room: str) -> None:
    import comfy.memory_management
    import comfy.model_patcher

    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True
    pretend_aimdo.ROOM = room


def _load_in_part(size: int) -> None:
    from comfy.model_management import LoadedModel

    whole = LoadedModel.model_load

    def load(self, lowvram_model_memory=0, *arguments, **named):
        return whole(self, size, *arguments, **named)

    LoadedModel.model_load = load


def _in_threads_too(machine) -> None:
    """ComfyUI computes on each of several cards in a thread."""
    from comfy.multigpu import MultiGPUThreadPool

    work = MultiGPUThreadPool._worker_loop

    def loop(self, *arguments):
        with machine.in_this_thread():
            work(self, *arguments)

    MultiGPUThreadPool._worker_loop = loop


def run(host, name: str) -> torch.Tensor:
    """A case by its name, on the host at hand."""
    if name in card_cases.SAMPLINGS:
        return card_cases.SAMPLINGS[name].loaded(host)(STEPS)
    if name in card_cases.CODINGS:
        return card_cases.coded(host, *card_cases.CODINGS[name])
    return {**card_cases.OTHERS, **card_cases.SAVED, **card_cases.TWO_CARDS}[name](host)


def uploaded_again(machine, clip) -> int:
    """Bytes that a second prompt moves to the card."""
    for text in ("a red ring", "a green square"):
        machine.begin()
        drawing.call("SanaEncodePrompt", clip=clip, text=text)
    return machine.count.moved["to the card"]


def counted(machine, host, name: str) -> dict:
    """A case on the card: its values, and what each step more asked for of a model that is loaded already."""
    if name not in card_cases.SAMPLINGS:
        value = run(host, name).cpu()
        encoder = card_cases.ENCODERS.get(name)
        return {"value": value, **({"again": uploaded_again(machine, encoder(host))} if encoder else {})}
    sampling, counts = card_cases.SAMPLINGS[name].loaded(host), []
    value = sampling(STEPS).cpu()
    for steps in (STEPS, 2 * STEPS):
        machine.begin()
        sampling(steps)
        counts.append(machine.taken())
    return {"value": value, **card_cases.per_step(*counts, STEPS)}


def compared(machine, host, name: str, expected: torch.Tensor) -> dict:
    """The counts of a case, and how far its values are from the CPU's, relative where those are large; or an error."""
    try:
        found = counted(machine, host, name)
    except Exception:
        return {"error": traceback.format_exc()[-2000:]}
    value = found.pop("value")
    return {**found, "difference": drawing.difference(value, expected) / max(1.0, expected.abs().max().item())}


def main() -> None:
    home, mode, *names = Path(sys.argv[1]), *sys.argv[2:]
    import_before_the_card()
    from sana_nodes import host as hosts

    embedded = hosts.use("embedded")
    embedded.folders.models = [home / "models"]
    with torch.inference_mode():
        expected = {name: run(embedded, name) for name in names}
    both = any(name in card_cases.TWO_CARDS for name in names)
    with pretend_card.cards(capability=(7, 5), count=2 if both else 1) as machine:
        pretend_aimdo.install() if mode.startswith("dynamic") else None
        host, results = start(home, mode), {}
        _in_threads_too(machine) if both else None
        with torch.inference_mode():
            for name in names:
                results[name] = compared(machine, host, name, expected[name])
    sys.stdout.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
