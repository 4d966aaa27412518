"""House rules: who may know whom, the public interface, and that everything a person sees is explained."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest
import tiny
from sana_nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from sana_nodes.tools import locales

ROOT = tiny.REPOSITORY
COMFY = {
    "comfy",
    "folder_paths",
    "latent_preview",
    "nodes",
    "execution",
    "server",
    "main",
    "comfy_extras",
    "comfy_execution",
}


def test_nothing_is_assigned_into_a_host_module():
    """No monkeypatch of comfy: no assignment to an attribute of an imported comfy module."""
    for file in (ROOT / "host" / "comfyui").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in targets if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) else []:
                owner = target
                while isinstance(owner, (ast.Attribute, ast.Subscript)):
                    owner = owner.value
                if isinstance(owner, ast.Name) and owner is not target:
                    assert owner.id not in COMFY, f"{file.name}:{node.lineno} assigns into {owner.id}"


def test_importing_the_pack_imports_nothing_heavy():
    code = "import sys, sana_nodes; [c.INPUT_TYPES() for c in sana_nodes.NODE_CLASS_MAPPINGS.values()]\n"
    code += "print([m for m in ('diffusers', 'transformers', 'comfy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.parent)
    assert done.stdout.strip() == "[]"


ANGLES = {"max_timesteps": 1.5708, "intermediate_timesteps": 1.3}
TRANSFORMER = ["default", "bf16", "fp16", "fp32", "fp8_e4m3fn", "fp8_e5m2", "int8_bnb"]
VIDEO = {"width": 832, "height": 480, "frames": 81, "batch_size": 1}
FILE = {"fps": 16.0, "format": "mp4-h264", "quality": 80, "filename_prefix": "video/Sana"}
TIMES = {"timesteps": "1000, 960, 889, 727"}
BLOCKS = {"block_frames": 10, "cached_blocks": 0, "recache": True}
NEGATIVE = (
    "A chaotic sequence with misshapen, deformed limbs in heavy motion blur, sudden disappearance, jump cuts, "
    "jerky movements, rapid shot changes, frames out of sync, inconsistent character shapes, temporal artifacts, "
    "jitter, and ghosting effects, creating a disorienting visual experience."
)
INTERFACE = {
    "SanaLoadPipeline": ("loaders", {"pipeline": None, "weight_dtype": "default"}, {}, ("MODEL", "CLIP", "VAE")),
    "SanaLoadTransformer": (
        "loaders",
        {"model_name": None, "weight_dtype": "default"},
        {"products": "native", "variant": "auto"},
        ("MODEL",),
    ),
    "SanaLoadTextEncoder": (
        "loaders",
        {"encoder_name": None, "weight_dtype": "default", "device": "default"},
        {"products": "native"},
        ("CLIP",),
    ),
    "SanaLoadVAE": ("loaders", {"vae_name": None, "weight_dtype": "default"}, {}, ("VAE",)),
    "SanaEncodePrompt": (
        "conditioning",
        {
            "clip": None,
            "text": None,
            "instruction": "image",
            "guidance_scale": 4.5,
            "max_sequence_length": 300,
            "clean_caption": False,
        },
        {"custom_instruction": ""},
        ("CONDITIONING",),
    ),
    "SanaResolution": ("latent", {"width": 1024, "height": 1024, "bins": "1024px"}, {}, ("INT", "INT")),
    "SanaEmptyLatent": ("latent", {"width": 1024, "height": 1024, "batch_size": 1}, {}, ("LATENT",)),
    "SanaCropToSize": ("latent", {"images": None, "width": 1024, "height": 1024}, {}, ("IMAGE",)),
    "SanaSCMSample": (
        "sampling",
        {"model": None, "positive": None, "latent_image": None, "seed": 0, "steps": 2, **ANGLES}
        | {"denoise": 1.0, "add_noise": "enable"},
        {"sigmas": None},
        ("LATENT",),
    ),
    "SanaSCMSigmas": ("sampling", {"steps": 2, **ANGLES, "denoise": 1.0}, {"timesteps": ""}, ("SIGMAS",)),
    "SanaSCMSampler": ("sampling", {}, {}, ("SAMPLER",)),
    "SanaEncodeVideoPrompt": (
        "conditioning",
        {"clip": None, "prompt": None, "negative_prompt": NEGATIVE, "motion_score": 30}
        | {"max_sequence_length": 300, "clean_caption": False},
        {"instruction": "video"},
        ("CONDITIONING", "CONDITIONING"),
    ),
    "SanaPromptSchedule": (
        "conditioning",
        {"conditioning": None, "start": 0.0, "fps": 16.0},
        {"previous": None},
        ("CONDITIONING",),
    ),
    "SanaLongVideoSample": (
        "sampling",
        {"model": None, "positive": None, "latent_image": None, "seed": 0, **TIMES, **BLOCKS},
        {"state": None},
        ("LATENT", "SANA_STATE"),
    ),
    "SanaLongVideoSigmas": ("sampling", TIMES, {}, ("SIGMAS",)),
    "SanaLongVideoSampler": ("sampling", BLOCKS, {}, ("SAMPLER",)),
    "SanaLongVideoSave": (
        "video",
        {"model": None, "positive": None, "vae": None, "width": 832, "height": 480, "frames": 961, "seed": 0}
        | {**TIMES, **BLOCKS, **FILE},
        {"state": None},
        ("STRING", "SANA_STATE"),
    ),
    "SanaSaveVideoState": (
        "video",
        {"state": None, "filename_prefix": "states/Sana"},
        {},
        ("SANA_STATE", "STRING"),
    ),
    "SanaLoadVideoState": ("video", {"state_name": None}, {}, ("SANA_STATE",)),
    "SanaEmptyVideoLatent": ("latent", {"vae": None, **VIDEO}, {}, ("LATENT",)),
    "SanaImageToVideoLatent": ("latent", {"vae": None, "image": None, **VIDEO}, {}, ("LATENT",)),
    "SanaFlowSample": (
        "sampling",
        {"model": None, "positive": None, "negative": None, "latent_image": None, "seed": 0, "steps": 50}
        | {"cfg": 6.0, "shift": 0.0, "solver": "dpm_solver++", "denoise": 1.0, "add_noise": "enable"},
        {"sigmas": None},
        ("LATENT",),
    ),
    "SanaFlowSigmas": (
        "sampling",
        {"steps": 50, "shift": 0.0, "solver": "dpm_solver++", "denoise": 1.0},
        {"model": None},
        ("SIGMAS",),
    ),
    "SanaFlowSampler": ("sampling", {"solver": "dpm_solver++"}, {}, ("SAMPLER",)),
    "SanaPAG": ("sampling", {"model": None, "scale": 3.0, "layers": "8"}, {}, ("MODEL",)),
    "SanaCompile": ("sampling", {"model": None, "mode": "blocks"}, {"vae": None}, ("MODEL", "VAE")),
    "SanaLoadLora": ("loaders", {"model": None, "lora_name": None, "strength": 1.0}, {}, ("MODEL",)),
    "SanaLoadControlNet": (
        "loaders",
        {"control_net_name": None, "weight_dtype": "default"},
        {},
        ("CONTROL_NET",),
    ),
    "SanaImg2ImgLatent": (
        "latent",
        {"samples": None, "seed": 0, "strength": 0.6, "steps": 2, **ANGLES, "start": "continuous"},
        {},
        ("LATENT", "SIGMAS"),
    ),
    "SanaSaveVideo": ("video", {"images": None, **FILE}, {"audio": None}, ("IMAGE", "STRING", "VIDEO")),
    "SanaDecodeSaveVideo": ("video", {"samples": None, "vae": None, **FILE}, {}, ("STRING",)),
    "SanaSaveFrames": (
        "video",
        {"images": None, "format": "png", "filename_prefix": "frames/Sana"},
        {},
        ("IMAGE", "STRING"),
    ),
    "SanaSketch": ("image", {"sketch": "", "width": 1024, "height": 1024}, {"image": None}, ("IMAGE", "MASK")),
    "SanaSelectFrames": ("video", {"images": None, "start": 0, "count": 0, "stride": 1}, {}, ("IMAGE",)),
}
"""The public interface, as NODES.md states it: place in the menu, inputs with defaults in order, outputs."""


def defaults(inputs: dict) -> dict:
    return {key: (spec[1] if len(spec) > 1 else {}).get("default") for key, spec in inputs.items()}


def test_node_names_inputs_and_defaults():
    assert set(NODE_CLASS_MAPPINGS) == set(INTERFACE)
    for name, (place, required, optional, outputs) in INTERFACE.items():
        cls = NODE_CLASS_MAPPINGS[name]
        declared = cls.INPUT_TYPES()
        assert f"sana/{place}" == cls.CATEGORY
        assert defaults(declared["required"]) == required and list(declared["required"]) == list(required), name
        assert defaults(declared.get("optional", {})) == optional, name
        assert outputs == cls.RETURN_TYPES
    inputs = {name: cls.INPUT_TYPES()["required"] for name, cls in NODE_CLASS_MAPPINGS.items()}
    assert inputs["SanaLoadTransformer"]["weight_dtype"][0] == TRANSFORMER
    variants = NODE_CLASS_MAPPINGS["SanaLoadTransformer"].INPUT_TYPES()["optional"]["variant"][0]
    assert variants == ["auto", "standard", "long"]
    assert inputs["SanaLoadPipeline"]["weight_dtype"][0] == TRANSFORMER
    assert inputs["SanaLoadControlNet"]["weight_dtype"][0] == TRANSFORMER
    assert inputs["SanaImg2ImgLatent"]["start"][0] == ["continuous", "schedule"]
    assert inputs["SanaLoadTextEncoder"]["weight_dtype"][0] == ["default", "bf16", "fp32", "int8_bnb"]
    assert inputs["SanaLoadVAE"]["weight_dtype"][0] == ["default", "bf16", "fp32"]
    assert inputs["SanaLoadTextEncoder"]["device"][0] == ["default", "cpu"]
    for name in ("SanaLoadTransformer", "SanaLoadTextEncoder"):
        products = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()["optional"]["products"]
        assert products[0] == ["native", "full precision"]
    assert inputs["SanaEncodePrompt"]["instruction"][0] == ["image", "video", "none", "custom", "long"]
    assert inputs["SanaSCMSample"]["add_noise"][0] == ["enable", "disable"]
    bins = ["1024px", "512px", "2048px", "4096px", "video 480p", "video 720p"]
    assert inputs["SanaResolution"]["bins"][0] == bins
    assert inputs["SanaSCMSample"]["seed"][1]["control_after_generate"] is True
    for name in ("SanaFlowSample", "SanaFlowSigmas", "SanaFlowSampler"):
        assert inputs[name]["solver"][0] == ["dpm_solver++", "euler"]
    assert inputs["SanaFlowSample"]["seed"][1]["control_after_generate"] is True
    for name in ("SanaSaveVideo", "SanaDecodeSaveVideo"):
        assert inputs[name]["format"][0] == ["mp4-h264", "webm-vp9", "mkv-ffv1", "gif", "webp"]
    assert inputs["SanaSaveFrames"]["format"][0] == ["png", "jpg", "webp"]
    names = {name: getattr(cls, "RETURN_NAMES", None) for name, cls in NODE_CLASS_MAPPINGS.items()}
    assert names["SanaEncodeVideoPrompt"] == ("positive", "negative")
    assert names["SanaSaveVideo"] == ("images", "path", "video") and names["SanaSaveFrames"] == ("images", "folder")
    assert names["SanaDecodeSaveVideo"] == ("path",) and names["SanaLongVideoSave"] == ("path", "state")
    assert NODE_CLASS_MAPPINGS["SanaResolution"].RETURN_NAMES == ("width", "height")


@pytest.mark.parametrize("name", sorted(NODE_CLASS_MAPPINGS))
def test_every_node_is_explained(name):
    cls = NODE_CLASS_MAPPINGS[name]
    assert NODE_DISPLAY_NAME_MAPPINGS[name].startswith("Sana ")
    assert len(cls.DESCRIPTION) > 20 and cls.SEARCH_ALIASES
    assert len(cls.OUTPUT_TOOLTIPS) == len(cls.RETURN_TYPES)
    declared = cls.INPUT_TYPES()
    inputs = {**declared["required"], **declared.get("optional", {})}
    for key, spec in inputs.items():
        assert len(spec[1]["tooltip"]) > 8, f"{name}.{key} has no tooltip"
    page = (ROOT / "web" / "docs" / name / "en.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {cls.DISPLAY_NAME}")
    for key in inputs:
        assert f"`{key}`" in page, f"the help page of {name} says nothing of {key}"


def test_locales_say_what_the_nodes_say():
    written = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    assert written == locales.definitions(), "run: python -m sana_nodes.tools.locales"


def test_ruff_finds_nothing():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    if "No module named ruff" in done.stderr:
        pytest.skip("ruff is not installed: pip install sana-nodes[test]")
    assert done.returncode == 0, done.stdout[-3000:]
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:]
