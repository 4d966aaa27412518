"""Peak memory while a transformer is loaded, relative to the memory of the loaded weights.

    python benchmarks/loading.py [--host embedded|comfyui] [--folder DIR] [LAYOUT …]
    python benchmarks/loading.py --against-diffusers [--folder DIR]

SANA-Sprint 0.6B with constant weights is saved in each layout and loaded in a separate process, which then reads every
loaded weight once. The peak of resident memory, without that of the imports, is divided by the bytes of the loaded
weights: 1.0 is the weights only. Scaled fp8 weights are loaded in the compute dtype, so the ratio is to that and not to
the file. The device counts as one that computes in bfloat16. With --widening it counts as one that does not: the
embedded host then casts weights of bfloat16 to float32 once, and the file's pages are in memory beside them.

With --against-diffusers, SANA 1.6B in bfloat16 is loaded from one folder by the pack and by from_pretrained in turns,
each time in a process that has imported both: seconds and peak from the warm file until the model is there, and until
every weight was read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import layouts

LIMIT = 1.25
SPRINT_06B = {
    "num_attention_heads": 36,
    "num_layers": 28,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "guidance_embeds": True,
    "qk_norm": "rms_norm_across_heads",
}
LAYOUTS = {
    "diffusers": (".safetensors", torch.bfloat16, dict),
    "diffusers-fp16": (".safetensors", torch.float16, dict),
    "diffusers-fp32": (".safetensors", torch.float32, dict),
    "diffusers-prefixed": (".safetensors", torch.bfloat16, layouts.prefixed),
    "nvlabs": (".safetensors", torch.bfloat16, layouts.nvlabs),
    "nvlabs-pth": (".pth", torch.bfloat16, layouts.nvlabs),
    "fp8": (".safetensors", torch.float8_e4m3fn, dict),
    "scaled-fp8": (".safetensors", torch.bfloat16, layouts.scaled_fp8),
    "scaled-fp8-nvlabs": (".safetensors", torch.bfloat16, lambda weights: layouts.scaled_fp8(layouts.nvlabs(weights))),
}
"""The suffix of each layout, the dtype of its weights, and the function for their names."""


def write(layout: str, folder: Path, layers: int = SPRINT_06B["num_layers"]) -> Path:
    """A file of constant weights; fewer ``layers`` make a smaller model of the same parts."""
    from diffusers import SanaTransformer2DModel
    from safetensors.torch import save_file

    suffix, dtype, named = LAYOUTS[layout]
    with torch.device("meta"):
        network = SanaTransformer2DModel(**{**SPRINT_06B, "num_layers": layers})
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    weights = named({name: torch.full(shape, 0.01).to(dtype) for name, shape in shapes.items()})
    path = folder / f"{layout}{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    return path


MEASURE = """
import sys
import diffusers, transformers, torch
from diffusers import SanaTransformer2DModel
from sana_nodes import host
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.networks import precision
name, path, comfyui, widening = sys.argv[1:5]
precision.native_bf16 = lambda device: not widening
if name == "comfyui":
    sys.path.insert(0, comfyui)
    sys.argv = ["main.py", "--cpu"]
    import comfy.options
    comfy.options.enable_args_parsing()
here = host.use(name)
peak = lambda: next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
before = peak()
model = here.model(load_transformer(path), "default")
module = model.model.diffusion_model if name == "comfyui" else model.module
pages = (page for p in module.parameters() for page in p.view(torch.uint8).flatten().split(1 << 16))
total = sum(page.sum().item() for page in pages)  # sum() widens what it adds up to eight bytes
assert total > 0
print(peak() - before, sum(p.numel() * p.itemsize for p in module.parameters()))
"""


COMPARED = """
import sys, time
import diffusers, transformers, torch
from pathlib import Path
from diffusers import SanaTransformer2DModel
from sana_nodes import host
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.networks import precision
precision.native_bf16 = lambda device: True
here = host.use("embedded")
peak = lambda: next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmHWM"))
before, start = peak(), time.perf_counter()
if sys.argv[1] == "ours":
    module = here.model(load_transformer(Path(sys.argv[2])), "default").module
else:
    module = SanaTransformer2DModel.from_pretrained(sys.argv[2], torch_dtype=torch.bfloat16, local_files_only=True)
loaded = time.perf_counter() - start, peak() - before
assert sum(p.view(torch.int16).amax().item() for p in module.parameters())
print(*loaded, time.perf_counter() - start, peak() - before)
"""
SANA_16B = {"guidance_embeds": False}


def against_diffusers(folder: Path, repeats: int = 5) -> list[float]:
    """Medians of the pack's figures over diffusers': seconds and peak until it is loaded, and until it was read."""
    import diffusers
    from safetensors.torch import save_file

    with torch.device("meta"):
        network = diffusers.SanaTransformer2DModel(**SANA_16B)
    save_file(
        {name: torch.full(value.shape, 0.01).bfloat16() for name, value in network.state_dict().items()},
        folder / "diffusion_pytorch_model.safetensors",
    )
    network.save_config(folder)
    found: dict[str, list] = {"ours": [], "theirs": []}
    for _ in range(repeats + 1):
        for side, figures in found.items():
            command = [sys.executable, "-c", COMPARED, side, str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            if done.returncode:
                raise RuntimeError(done.stderr[-3000:])
            figures.append([float(value) for value in done.stdout.split()[-4:]])
    ours, theirs = ([statistics.median(v) for v in zip(*figures[1:])] for figures in found.values())
    return [a / b for a, b in zip(ours, theirs)]


def cost(path: Path, host: str, comfyui: str = "", widening: bool = False) -> tuple[int, int]:
    """Peak bytes above the baseline after every weight was read once, and bytes of the loaded weights.

    ``widening``: as on a device that does not compute in bfloat16.
    """
    command = [sys.executable, "-c", MEASURE, host, str(path), comfyui, "1" * widening]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    peak, loaded = done.stdout.split()[-2:]
    return int(peak), int(loaded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("layouts", nargs="*", metavar="LAYOUT", help=", ".join(LAYOUTS))
    parser.add_argument("--host", default="embedded", choices=("embedded", "comfyui"))
    parser.add_argument("--widening", action="store_true", help="as on a device that computes in float32 alone")
    parser.add_argument("--folder", type=Path, help="where the files are written (2.4 GB for the largest)")
    parser.add_argument("--against-diffusers", action="store_true", help="seconds and peak against from_pretrained")
    arguments = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("the peak of memory is read from /proc, which only Linux has")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        if arguments.against_diffusers:
            figures = against_diffusers(Path(folder))
            print("SANA 1.6B, pack over diffusers: until loaded, time {:.2f} and peak {:.2f}".format(*figures))
            print("until every weight was read, time {:.2f} and peak {:.2f}".format(*figures[2:]))
            return
        for layout in arguments.layouts or LAYOUTS:
            path = write(layout, Path(folder))
            size = path.stat().st_size
            peak, loaded = cost(path, arguments.host, os.environ.get("COMFYUI_PATH", ""), arguments.widening)
            path.unlink()
            remark = "" if peak <= LIMIT * loaded else f": above {LIMIT}"
            print(f"{layout}: file {size:,}, loaded {loaded:,}, peak {peak:,}, {peak / loaded:.3f}{remark}", flush=True)


if __name__ == "__main__":
    main()
