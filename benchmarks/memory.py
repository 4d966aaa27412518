"""The memory of a pass without the weights, compared with the pack's estimate for ComfyUI (networks/memory.py).

    python benchmarks/memory.py [--device meta|cuda] [--check]

The published configurations, without their weights: encode, decode, and a sampling step including what ComfyUI's
BaseModel does around the network. On ``meta`` allocations are traced (tracing.py); on ``cuda`` they are measured with
torch.cuda.max_memory_allocated. ``--check`` compares the tracer with PyTorch's CPU allocator on small models.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from unittest import mock

import torch
from sana_nodes.model_loaders.transformer import spec_of
from sana_nodes.networks import card_layers, memory, streaming
from sana_nodes.networks.autoencoder import IMAGE_TILE, use_fast_autoencoder
from sana_nodes.networks.families import SPRINT as SPRINT_FAMILY
from sana_nodes.networks.families import VIDEO as VIDEO_FAMILY
from sana_nodes.networks.families import TransformerSpec
from sana_nodes.networks.fast_transformer import use_fast_transformer
from sana_nodes.networks.latent_spaces import DC_AE as DC_AE_SPACE
from sana_nodes.networks.latent_spaces import LTX2, WAN, VaeSpec
from sana_nodes.networks.tiling import Tiling
from sana_nodes.networks.transformer import network_inputs, token_times
from tracing import allocated_peak, cuda_peak, traced_peak

DC_AE = {
    "latent_channels": 32,
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
    "scaling_factor": 0.41407,
}
LITE = {
    **DC_AE,
    "decoder_block_types": "ResBlock",
    "decoder_block_out_channels": (128, 256, 512, 512, 1024, 1024),
    "decoder_layers_per_block": (0, 3, 5, 4, 4, 4),
    "decoder_qkv_multiscales": ((),) * 6,
    "upsample_block_type": "pixel_shuffle",
    "decoder_conv_act_fn": "silu",
}
SPRINT = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
HALF = {
    "num_layers": 28,
    "num_attention_heads": 36,
    "num_cross_attention_heads": 16,
    "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}
VIDEO = {"mlp_ratio": 3.0, "qk_norm": "rms_norm_across_heads"}
CONFIGS = {
    "DC-AE": ("AutoencoderDC", DC_AE),
    "DC-AE-Lite": ("AutoencoderDC", LITE),
    "Wan 2.1 VAE": ("AutoencoderKLWan", {}),
    "LTX-2 video VAE": ("AutoencoderKLLTX2Video", {}),
    "Sprint 0.6B": ("SanaTransformer2DModel", {**HALF, **SPRINT}),
    "Sana 1.6B": ("SanaTransformer2DModel", {}),
    "Sprint 1.6B": ("SanaTransformer2DModel", SPRINT),
    "SANA-Video 480p": (
        "SanaVideoTransformer3DModel",
        {**VIDEO, "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2), "sample_size": 30},
    ),
    "SANA-Video 720p": (
        "SanaVideoTransformer3DModel",
        {**VIDEO, "in_channels": 128, "out_channels": 128, "patch_size": (1, 1, 1), "sample_size": 22},
    ),
}
VAES = {
    "DC-AE": VaeSpec(DC_AE_SPACE, 32, 32),
    "DC-AE-Lite": VaeSpec(DC_AE_SPACE, 32, 32),
    "Wan 2.1 VAE": VaeSpec(WAN, 16, 8, 4),
    "LTX-2 video VAE": VaeSpec(LTX2, 128, 32, 8),
}
IMAGES = ((512, 512), (1024, 1024), (2048, 1024), (2048, 2048), (4096, 4096))
VIDEOS = ((256, 256, 1), (480, 832, 9), (480, 832, 81), (704, 1280, 25), (704, 1280, 121))
"""Rows, columns and frames."""
STEPS = (1, 300), (2, 300), (1, 77)
"""Batch size in the network (cfg doubles it), and tokens of the prompt."""


@dataclass(frozen=True)
class Case:
    """One measurement: what to run on a device in a dtype, and the pack's estimate."""

    model: str
    what: str
    size: str
    run: Callable[[], object]
    estimate: int


def use_fast(module: torch.nn.Module) -> torch.nn.Module:
    """As both hosts run it."""
    return use_fast_transformer(use_fast_autoencoder(module))


@cache
def module(name: str, device: str, dtype: torch.dtype):
    import diffusers

    kind, config = CONFIGS[name]
    with torch.device("meta"):
        network = use_fast(getattr(diffusers, kind)(**config).eval().to(dtype))
    return network if device == "meta" else network.to_empty(device=device)


def image_cases(name: str, device: str, dtype: torch.dtype) -> Iterator[Case]:
    vae = module(name, device, dtype)
    estimates = memory.vae_memory(vae, VAES[name])
    for height, width in IMAGES:
        pixels = torch.empty(1, 3, height, width, device=device, dtype=dtype)
        latents = torch.empty(1, 32, height // 32, width // 32, device=device, dtype=dtype)
        size = f"{width} x {height}"
        encode = estimates.encode(pixels.shape, dtype.itemsize)
        decode = estimates.decode(latents.shape, dtype.itemsize)
        yield Case(name, "encode", size, partial(vae.encode, pixels, return_dict=False), encode)
        yield Case(name, "decode", size, partial(vae.decode, latents, return_dict=False), decode)
    for height, width in IMAGES[2:]:
        yield from _tiled_cases(name, vae, estimates, device, dtype, height, width)


def _tiled_cases(name, vae, estimates, device, dtype, height, width) -> Iterator[Case]:
    """Here the result is on the same device, so its size is added to the estimate."""
    tiling = Tiling(IMAGE_TILE, torch.device(device), dtype, output=device)
    pixels = torch.empty(1, 3, height, width, device=device, dtype=dtype)
    latents = torch.empty(1, 32, height // 32, width // 32, device=device, dtype=dtype)
    size, sides = f"{width} x {height}", (height, width, IMAGE_TILE, dtype.itemsize)
    encode = estimates.encode_in_tiles(*sides) + latents.numel() * 4
    decode = estimates.decode_in_tiles(*sides) + pixels.numel() * 4
    yield Case(name, "encode in tiles", size, lambda: tiling.encode(vae, pixels), encode)
    yield Case(name, "decode in tiles", size, lambda: tiling.decode(vae, latents), decode)


def video_cases(name: str, device: str, dtype: torch.dtype) -> Iterator[Case]:
    spec, vae = VAES[name], module(name, device, dtype)
    estimates = memory.vae_memory(vae, spec)

    def decode(latents):
        for _ in streaming.decode_pieces(vae, spec, latents, device, dtype):
            pass

    for height, width, frames in VIDEOS:
        pixels = torch.empty(1, frames, height, width, 3, device=device, dtype=dtype)
        cells = (frames - 1) // spec.temporal_ratio + 1, height // spec.spatial_ratio, width // spec.spatial_ratio
        latents = torch.empty(1, spec.latent_channels, *cells, device=device, dtype=dtype)
        size = f"{width} x {height} x {frames}"
        estimate = estimates.encode((1, 3, frames, height, width), dtype.itemsize)
        yield Case(
            name, "encode", size, lambda p=pixels: streaming.encode_pieces(vae, spec, p, device, dtype), estimate
        )
        yield Case(name, "decode", size, partial(decode, latents), estimates.decode(latents.shape, dtype.itemsize))


def step_cases(name: str, device: str, dtype: torch.dtype) -> Iterator[Case]:
    network = module(name, device, dtype)
    config = network.config
    is_video = isinstance(config.patch_size, (tuple, list))
    spec = spec_of(config, VIDEO_FAMILY if is_video else SPRINT_FAMILY)
    patch, estimates = spec.patch, memory.transformer_memory(network, spec.patch)
    ratio, temporal_ratio = (8, 4) if patch[1] == 2 else (32, 8)
    for batch, captions in STEPS:
        for height, width, *frames in VIDEOS if is_video else IMAGES:
            cells = [(f - 1) // temporal_ratio + 1 for f in frames] + [
                height // ratio // patch[1] * patch[1],
                width // ratio,
            ]
            x = torch.empty(batch, config.in_channels, *cells, device=device)
            context = torch.empty(batch, captions, config.caption_channels, device=device)
            size = " x ".join(map(str, (width, height, *frames))) + f", batch {batch}, prompt {captions}"
            for timed in (False, True) if is_video else (False,):
                what = "step, image to video" if timed else "step"
                run = step(network, spec, x, context, dtype, timed)
                yield Case(name, what, size, run, estimates.step(x.shape, dtype.itemsize, captions, timed))


def step(network, spec: TransformerSpec, x, context, dtype: torch.dtype, timed: bool) -> Callable[[], object]:
    """A run's first computation of comfy's BaseModel._apply_model, with the network called as in ComfyForward."""
    sampling = spec.sampling()
    sigma = torch.ones(x.shape[0], device=x.device)
    guidance = torch.ones(1, device=x.device, dtype=dtype)

    def run():
        scaled = sampling.calculate_input(sigma, x).to(dtype)
        inputs = network_inputs(spec, scaled, sampling.timestep(sigma).float(), context.to(dtype), guidance, kept={})
        if timed:
            inputs["timestep"] = token_times(spec, inputs["timestep"], torch.ones_like(scaled[:, :1]))
        return sampling.calculate_denoised(sigma, network(**inputs)[0].float(), x)

    return run


def cases(name: str, device: str, dtype: torch.dtype) -> Iterator[Case]:
    if name in VAES and not VAES[name].is_video:
        return image_cases(name, device, dtype)
    return video_cases(name, device, dtype) if name in VAES else step_cases(name, device, dtype)


def small_cases(device: str, dtype: torch.dtype) -> Iterator[Case]:
    """Passes that run quickly on two CPU cores; ``estimate`` is not used here.

    Wan's decoder only in bfloat16: PyTorch's float32 3-D convolution allocates its input as columns on the CPU.
    """
    import diffusers

    widths = (16, 32, 64, 64, 64, 64)
    dc_ae = {**DC_AE, "encoder_block_out_channels": widths, "decoder_block_out_channels": widths}
    heads = {"num_layers": 2, "num_attention_heads": 8, "num_cross_attention_heads": 2, "cross_attention_dim": 256}
    with torch.device("meta"):
        models = {
            "DC-AE": diffusers.AutoencoderDC(**dc_ae),
            "Wan 2.1 VAE": diffusers.AutoencoderKLWan(base_dim=16, num_res_blocks=1),
            "Sprint": diffusers.SanaTransformer2DModel(**heads, **SPRINT, cross_attention_head_dim=128),
        }
    models = {name: use_fast(m.eval().to(dtype).to_empty(device=device)) for name, m in models.items()}
    for m in models.values():
        for parameter in m.parameters():
            torch.nn.init.constant_(parameter, 0.01)
    pixels = torch.zeros(1, 3, 256, 256, device=device, dtype=dtype)
    latents = torch.zeros(1, 32, 8, 8, device=device, dtype=dtype)
    yield Case("DC-AE", "encode", "256 x 256", lambda: models["DC-AE"].encode(pixels, return_dict=False), 0)
    yield Case("DC-AE", "decode", "256 x 256", lambda: models["DC-AE"].decode(latents, return_dict=False), 0)
    video = torch.zeros(1, 16, 3, 16, 16, device=device, dtype=dtype)

    def decode():
        for _ in streaming.decode_pieces(models["Wan 2.1 VAE"], VAES["Wan 2.1 VAE"], video, device, dtype):
            pass

    if dtype == torch.bfloat16:
        yield Case("Wan 2.1 VAE", "decode", "128 x 128 x 9", decode, 0)
    spec = spec_of(models["Sprint"].config, SPRINT_FAMILY)
    x, context = torch.zeros(1, 32, 48, 48, device=device), torch.zeros(1, 77, 2304, device=device)
    yield Case("Sprint", "step", "1536 x 1536", step(models["Sprint"], spec, x, context, dtype, False), 0)


def check(dtype: torch.dtype) -> Iterator[tuple[Case, int, int]]:
    """Each small case with the peak by the tracer and the peak of the CPU allocator."""
    for real, meta in zip(small_cases("cpu", dtype), small_cases("meta", dtype)):
        with mock.patch.object(card_layers, "SHARED_TOKENS", 0):  # blocks share no memory on a processor
            traced = traced_peak(meta.run)
        yield real, traced, allocated_peak(real.run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("meta", "cuda"), default="cuda" if torch.cuda.is_available() else "meta")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for dtype in (torch.bfloat16, torch.float32):
        if arguments.check:
            for case, traced, allocated in check(dtype):
                names = f"{case.model:<16} {case.what:<8} {case.size:<14} {str(dtype)[6:]:<9}"
                print(f"{names} traced {traced:>11,} allocated {allocated:>11,} {traced / allocated:5.2f}", flush=True)
            continue
        for name in CONFIGS:
            for case in cases(name, arguments.device, dtype):
                peak = (traced_peak if arguments.device == "meta" else cuda_peak)(case.run)
                names = f"{case.model:<16} {case.what:<21} {case.size:<42} {str(dtype)[6:]:<9}"
                estimate = f"estimate {case.estimate / 2**30:8.3f} {case.estimate / peak:5.2f}"
                print(f"{names} {peak / 2**30:8.3f} GiB, {estimate}")


if __name__ == "__main__":
    main()
