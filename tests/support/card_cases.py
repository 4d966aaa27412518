"""What is run on a pretended card: on each host, in every way that a model is loaded, and on the CPU to compare.

A Sampling gives a run over loaded parts that takes a number of steps, so that what a step asks of the card can be
counted as a difference.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import controlling
import drawing
import filming
import pretend_card
import tiny
import torch
from safetensors.torch import load_file, save_file
from sana_nodes.host.embedded import devices
from sana_nodes.model_loaders.files.open import open_checkpoint
from sana_nodes.model_loaders.quantised.packing import PACKINGS
from sana_nodes.model_loaders.quantised.writer import write_quantised
from sana_nodes.networks.previews import fit_preview
from sana_nodes.networks.prompt_cache import PromptCache


@contextlib.contextmanager
def a_card(**kind):
    """A machine with a card, on which nothing is left behind."""
    with pretend_card.cards(**kind) as machine:
        try:
            yield machine
        finally:
            devices.put_all_away()


PROMPT = "a red ring on the left of a blue background"
LORA, WIDE_LORA = "card.safetensors", "card-wide.safetensors"

Run = Callable[[int], torch.Tensor]


WIDE, WIDTH = "wide", 1024
"""A Gemma with layers that are not sent along with each call of a model (modules.SENT_ALONG). Quantised transformers
are wide for the same reason: what is sent along is dequantised and quantised once more, to other values."""


def prepare(home) -> None:
    """What the cases load beside the fixtures' pipelines."""
    tiny.write_lora(home / "models" / "loras" / LORA)
    tiny.write_lora(home / "models" / "loras" / WIDE_LORA, width=192)
    encoder = home / "models" / "text_encoders" / WIDE
    tiny.text_encoder(intermediate_size=WIDTH).save_pretrained(encoder)
    shutil.copytree(tiny.DEMO / "tokenizer", encoder, dirs_exist_ok=True)
    folder = home / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)
    network = tiny.transformer(num_attention_heads=6, num_cross_attention_heads=6, cross_attention_dim=192)
    save_file(dict(network.state_dict()), folder / "floating.safetensors")
    for name in PACKINGS:
        write_quantised(open_checkpoint(folder / "floating.safetensors"), folder / packed_file(name), name)
        (folder / packed_file(name)).with_suffix(".json").write_text(json.dumps(dict(network.config)))


def packed_file(name: str) -> str:
    """Of a quantised SANA-Sprint, by the format's name."""
    return f"card-{name}.safetensors"


@dataclass(frozen=True)
class Sampling:
    """``make(parts, host)``: a run to a latent, by its number of steps."""

    pipeline: str
    make: Callable
    weight_dtype: str = "default"

    def loaded(self, host) -> Run:
        parts = drawing.call("SanaLoadPipeline", pipeline=self.pipeline, weight_dtype=self.weight_dtype)
        return self.make(parts, host)


def _sprint(parts, host, latent=None, **given) -> Run:
    model, clip, _ = parts
    positive = drawing.call("SanaEncodePrompt", clip=clip, text=PROMPT)[0]
    latent = latent or drawing.call("SanaEmptyLatent", width=96, height=64)[0]
    given = {"model": model, "positive": positive, "latent_image": latent, **given}
    return lambda steps: drawing.call("SanaSCMSample", **given, steps=steps)[0]["samples"]


def _noised(parts, host) -> Run:
    """Image to image: what Sana Image To Image Latent noised."""
    latent = {"samples": parts[2].encode(controlling.image())}

    def run(steps: int):
        noised, sigmas = drawing.call("SanaImg2ImgLatent", samples=latent, steps=steps)
        return _sprint(parts, host, noised, sigmas=sigmas, add_noise="disable")(steps)

    return run


def _inpainted(parts, host) -> Run:
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    return _sprint(parts, host, {"samples": parts[2].encode(controlling.image()), "noise_mask": mask})


def _with_lora(parts, host, lora: str = LORA) -> Run:
    return _sprint((drawing.call("SanaLoadLora", model=parts[0], lora_name=lora)[0], *parts[1:]), host)


OTHER_LAYERS = (
    *("scale_shift_table", "transformer_blocks.1.scale_shift_table", "caption_norm.weight"),
    *("transformer_blocks.0.attn1.norm_k.weight", "transformer_blocks.2.attn2.norm_q.weight"),
)
"""Weights of the random transformers that are in no layer of comfy's."""


def _patched(parts, host) -> Run:
    """What a merge or a LoRA of every kind of weight does; without ComfyUI to the weights themselves."""
    model, generator = parts[0], torch.Generator().manual_seed(0)
    shapes = host.weight_shapes(model)
    changes = {name: torch.randn(shapes[name], generator=generator) * 0.3 for name in OTHER_LAYERS}
    if host.name == "embedded":
        for name, change in changes.items():
            model.module.get_parameter(name).data += change
    else:
        model = model.clone()
        model.add_patches({f"diffusion_model.{name}": (change,) for name, change in changes.items()}, 1.0)
    return _sprint((model, *parts[1:]), host)


def _guided(parts, host, led=None, **given) -> Run:
    model, clip, _ = parts
    positive, negative = drawing.flow_conditions(clip, PROMPT, "a green square")
    if led:
        positive, negative = led(positive, negative)
    latent = drawing.call("SanaEmptyLatent", width=96, height=64)[0]
    given = {"model": model, "positive": positive, "negative": negative, "latent_image": latent, **given}
    return lambda steps: drawing.call("SanaFlowSample", **given, steps=steps, cfg=4.5)[0]["samples"]


def _controlled(parts, host) -> Run:
    return _guided(parts, host, controlling.controlled(host, controlling.image(96, 64), parts[2]))


def _filmed(image: bool) -> Callable:
    def make(parts, host) -> Run:
        start = filming.latent(parts[2], controlling.image() if image else None)
        return lambda steps: filming.sampled(parts, start, steps=steps)["samples"]

    return make


def _packed(name: str, lora: bool = False) -> Callable:
    """With weights that stay quantised, dequantised at each use: native products are a card's."""

    def make(parts, host) -> Run:
        given = {"model_name": packed_file(name), "products": "full precision"}
        model = drawing.call("SanaLoadTransformer", **given)[0]
        parts = model, *parts[1:]
        return _with_lora(parts, host, WIDE_LORA) if lora else _sprint(parts, host)

    return make


SAMPLINGS = {
    "SCM": Sampling("tiny", _sprint),
    "image to image": Sampling("tiny", _noised),
    "inpainting": Sampling("tiny", _inpainted),
    "LoRA": Sampling("tiny", _with_lora),
    "fp8": Sampling("tiny", _sprint, "fp8_e4m3fn"),
    "int8": Sampling("tiny", _sprint, "int8_bnb"),
    "int8 with a LoRA": Sampling("tiny", _with_lora, "int8_bnb"),
    "other layers patched": Sampling("tiny", _patched),
    "guidance": Sampling("tiny-sana", _guided),
    "guidance by Euler": Sampling("tiny-sana", lambda parts, host: _guided(parts, host, solver="euler")),
    "ControlNet": Sampling("tiny-sana", _controlled),
    "text to video": Sampling("tiny-video", _filmed(False)),
    "image to video": Sampling("tiny-video", _filmed(True)),
    "image to 720p video": Sampling("tiny-video-ltx2", _filmed(True)),
    **{f"packed {name}": Sampling("tiny", _packed(name)) for name in PACKINGS},
    **{f"packed {name} with a LoRA": Sampling("tiny", _packed(name, lora=True)) for name in ("int8", "nvfp4")},
}


LAUNCHES = {
    **dict.fromkeys((name for name in SAMPLINGS if name.startswith("packed")), 250),
    **dict.fromkeys(("SCM", "image to image", "inpainting", "LoRA", "other layers patched"), 200),
    **{"fp8": 240, "int8": 375, "int8 with a LoRA": 310, "ControlNet": 520, "text to video": 350},
    **dict.fromkeys(("guidance", "guidance by Euler"), 280),
    **dict.fromkeys(("image to video", "image to 720p video"), 380),
}
"""Operators of a step at most: there are three blocks, and fp8 and int8 are cast."""

NOISE = "samplers/noise.py"
"""Where SCM's noise, which the CPU makes, is moved to the card: the one transfer of a step."""


def small_encoder(host):
    return drawing.call("SanaLoadPipeline", pipeline="tiny")[1]


def encoded_prompt(host) -> torch.Tensor:
    clip = small_encoder(host)
    drawing.call("SanaEncodePrompt", clip=clip, text="another prompt")  # the instruction is kept now
    return _states(clip)


def _states(clip, text: str = PROMPT) -> torch.Tensor:
    return drawing.call("SanaEncodePrompt", clip=clip, text=text)[0][0][0]


VAES = {"DC-AE": "tiny", "Wan": "tiny-video", "LTX-2": "tiny-video-ltx2"}
"""By pipeline."""

LATENTS = {"DC-AE": (1, 32, 3, 4), "Wan": (1, 16, 3, 4, 6), "LTX-2": (1, 128, 2, 3, 4)}
TILE = {"DC-AE": 64, "Wan": 32, "LTX-2": 64}
"""Pixels on a side."""


def pixels(name: str) -> torch.Tensor:
    shape = LATENTS[name]
    cell, frames = {"DC-AE": (32, 1), "Wan": (8, 9), "LTX-2": (32, 9)}[name]
    return controlling.image(shape[-1] * cell, shape[-2] * cell, batch=frames)


def coded(host, name: str, half: str, tiled: bool) -> torch.Tensor:
    """``encode`` or ``decode`` by one of the autoencoders, whole or in tiles."""
    vae = drawing.call("SanaLoadPipeline", pipeline=VAES[name])[2]
    given = pixels(name)
    if half == "decode":
        given = torch.randn(LATENTS[name], generator=torch.Generator().manual_seed(0))
    if not tiled:
        return getattr(vae, half)(given)
    if host.name == "embedded":
        with vae._run(half) as run:
            return getattr(vae.autoencoder, half)(given, run, TILE[name])
    side = TILE[name] // (vae.sana_spec.spatial_ratio if half == "decode" else 1)
    return getattr(vae, f"{half}_tiled")(given, tile_x=side, tile_y=side)


CODINGS = {
    f"{name} {half}s{' in tiles' if tiled else ''}": (name, half, tiled)
    for name in VAES
    for half in ("encode", "decode")
    for tiled in (False, True)
}


def previewed(host) -> torch.Tensor:
    """A preview [H, W, 3] in [0, 1]: ComfyUI's own with the factors that were fitted, or what they say."""
    model, _, vae = drawing.call("SanaLoadPipeline", pipeline="tiny")
    latent = torch.randn(1, 32, 4, 5, generator=torch.Generator().manual_seed(0))
    if host.name == "embedded":
        found = fit_preview(vae.encode, 32)
        colours = latent[0].movedim(0, -1) @ torch.tensor(found.factors) + torch.tensor(found.bias)
        return (colours / 2 + 0.5).clamp(0, 1)
    import latent_preview
    import numpy as np

    latent_preview.args.preview_method = latent_preview.LatentPreviewMethod.Latent2RGB
    try:
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        image = previewer.decode_latent_to_preview(latent.to(model.load_device))
    finally:
        latent_preview.args.preview_method = latent_preview.LatentPreviewMethod.NoPreviews
    return torch.from_numpy(np.asarray(image)).float() / 255


def saved_packed(host) -> torch.Tensor:
    """The bytes of quantised weights, of the file or of what ComfyUI saves of a MODEL that is on the card."""
    path = host.folders.models[0] / "diffusion_models" if host.name == "embedded" else None
    if path is not None:
        return _bytes_of(path / packed_file("nvfp4"))
    import comfy.model_management
    import comfy.sd
    import folder_paths

    model = drawing.call("SanaLoadTransformer", model_name=packed_file("nvfp4"))[0]
    comfy.model_management.load_models_gpu([model])
    saved = Path(folder_paths.get_output_directory()) / "card-saved.safetensors"
    comfy.sd.save_checkpoint(str(saved), model)
    return _bytes_of(saved)


def _bytes_of(path: Path) -> torch.Tensor:
    tensors = {key.removeprefix("model.diffusion_model."): value for key, value in load_file(path).items()}
    narrow = (tensors[key] for key in sorted(tensors) if tensors[key].itemsize == 1 and "comfy_quant" not in key)
    return torch.cat([value.view(torch.uint8).flatten().float() for value in narrow])


def eight_bits(host):
    """A CLIP of eight bits."""
    return drawing.call("SanaLoadTextEncoder", encoder_name=WIDE, weight_dtype="int8_bnb")[0]


def _changed(clip, host):
    """With what a LoRA adds to a weight of 8 bits, which is a floating one then."""
    change = torch.randn(WIDTH, 48, generator=torch.Generator().manual_seed(0)) * 0.05
    name = "layers.1.mlp.up_proj"
    if host.name == "embedded":
        made = dataclasses.replace(clip, module=copy.deepcopy(clip.module), cache=PromptCache(clip.spec.new_cache))
        layer = made.module.get_submodule(name)
        layer.set_weight(layer.convert_weight(layer.weight) + change)
        return made
    made = clip.clone()
    made.add_patches({f"gemma.{name}.weight": (change,)}, 1.0)
    return made


def prompt_of_eight_bits(host) -> torch.Tensor:
    return _states(eight_bits(host))


def prompt_of_eight_bits_changed(host) -> torch.Tensor:
    """With a patch, and without it again: the weight that is on the card is that of 8 bits."""
    clip = eight_bits(host)
    given = (clip, PROMPT), (_changed(clip, host), PROMPT), (clip, "a green square")
    return torch.cat([_states(one, text) for one, text in given], 1)


OTHERS = {
    "prompt": encoded_prompt,
    "prompt of 8 bits": prompt_of_eight_bits,
    "prompt of 8 bits, patched and not": prompt_of_eight_bits_changed,
    "preview": previewed,
}
"""What is no sampling and no coding."""

ENCODERS = {"prompt": small_encoder, "prompt of 8 bits": eight_bits}
"""The CLIPs of cases whose second prompt is to upload little."""

SAVED = {"packed weights are saved": saved_packed}
"""On ComfyUI 0.8 and later, which know quantised weights."""

COARSE = {
    "preview": 2 / 255,
    **dict.fromkeys(("other layers patched", "LoRA", "int8 with a LoRA", "prompt of 8 bits, patched and not"), 2e-3),
    **{"packed int8 with a LoRA": 0.01, "packed nvfp4 with a LoRA": 0.15},
}
"""Bounds of what is in steps of 8 bits, of patches, which ComfyUI computes in float16 on a card, and of sums of a LoRA
(it changes 0.37) and quantised weights, which are quantised again."""


def on_the_second_card(host) -> torch.Tensor:
    """Everything on another card than the first: ComfyUI loads each model once more for it."""
    parts = drawing.call("SanaLoadPipeline", pipeline="tiny")
    if host.name == "comfyui":
        from comfy_extras.nodes_multigpu import SelectCLIPDeviceNode, SelectModelDeviceNode, SelectVAEDeviceNode

        nodes = SelectModelDeviceNode, SelectCLIPDeviceNode, SelectVAEDeviceNode
        parts = [node.execute(part, "gpu:1").args[0] for node, part in zip(nodes, parts)]
        devices = {getattr(part, "patcher", part).load_device for part in parts}
        assert devices == {torch.device("cuda:1")}, devices
    return parts[2].decode(_sprint(parts, host)(2)).cpu()


def on_both_cards(host) -> torch.Tensor:
    """Guidance whose two prompts ComfyUI computes on a card each."""
    parts = drawing.call("SanaLoadPipeline", pipeline="tiny-sana")
    if host.name == "comfyui":
        from comfy_extras.nodes_multigpu import MultiGPUCFGSplitNode

        parts = (MultiGPUCFGSplitNode.execute(parts[0], 2).args[0], *parts[1:])
    result = _guided(parts, host)(2)
    if host.name == "comfyui":
        (other,) = parts[0].get_additional_models_with_key("multigpu")
        calls = other.model.diffusion_model.proj_out.weight.device, other.load_device
        assert calls == (torch.device("cuda:1"),) * 2, calls
    return result


TWO_CARDS = {"on the second card": on_the_second_card, "guidance on both cards": on_both_cards}
"""On ComfyUI 0.33, which knows several cards."""


def per_step(few, many, steps: int) -> dict:
    """What each of ``steps`` more steps asks of the card, from the counts of a shorter and of a longer run."""

    def each(name: str) -> dict:
        return {site: count / steps for site, count in (getattr(many, name) - getattr(few, name)).items()}

    launches = (many.launches.total() - few.launches.total()) / steps
    return {"launches": launches, "waits": each("waits"), "moves": each("moves")}
