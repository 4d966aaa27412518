"""Draw with our nodes, called as an executor calls them, and with diffusers."""

from __future__ import annotations

import torch
from sana_nodes import NODE_CLASS_MAPPINGS

ROUNDING = 1e-5
"""Two passes over the same weights in float32 differ by less, in images in [0, 1].

Kernels are chosen by alignment, threads, gradients and instruction set, and each adds up in an order of its own. The
tiny pipelines (1 to 20 steps) were compared between 1, 2 and 4 threads, ATEN_CPU_CAPABILITY default and avx2,
ONEDNN_MAX_CPU_ISA=AVX2 and all of them together: they differed by up to 3.3e-6.
"""


def call(name: str, **given):
    """Run one node with the defaults of its widgets for what is not given; returns its outputs."""
    cls = NODE_CLASS_MAPPINGS[name]
    arguments = {}
    for key, spec in cls.INPUT_TYPES()["required"].items():
        if len(spec) > 1 and "default" in spec[1]:
            arguments[key] = spec[1]["default"]
    return getattr(cls(), cls.FUNCTION)(**{**arguments, **given})


def decode(vae, latent: dict) -> torch.Tensor:
    """What core VAEDecode does: [B, H, W, 3]."""
    return vae.decode(latent["samples"])


def ours(parts, prompt: str, width=64, height=64, batch=1, seed=0, guidance=4.5, encoding=None, **sampling):
    """The picture [B, H, W, 3] of our nodes over ``parts`` (MODEL, CLIP, VAE)."""
    model, clip, vae = parts
    positive = call("SanaEncodePrompt", clip=clip, text=prompt, guidance_scale=guidance, **(encoding or {}))[0]
    latent = call("SanaEmptyLatent", width=width, height=height, batch_size=batch)[0]
    drawn = call("SanaSCMSample", model=model, positive=positive, latent_image=latent, seed=seed, **sampling)[0]
    return decode(vae, drawn)


def theirs(pipeline, prompt: str, width=64, height=64, batch=1, seed=0, guidance=4.5, steps=2, **options):
    """The picture [B, H, W, 3] of diffusers' pipeline."""
    options.setdefault("intermediate_timesteps", 1.3 if steps == 2 else None)
    pictures = pipeline(
        prompt,
        width=width,
        height=height,
        num_images_per_prompt=batch,
        guidance_scale=guidance,
        num_inference_steps=steps,
        generator=torch.Generator("cpu").manual_seed(seed),
        use_resolution_binning=False,
        output_type="pt",
        **options,
    ).images
    return pictures.movedim(1, -1)


def flow_conditions(clip, prompt: str, negative: str):
    """A prompt and a negative prompt as SanaPipeline encodes them."""
    towards = call("SanaEncodePrompt", clip=clip, text=prompt)[0]
    return towards, call("SanaEncodePrompt", clip=clip, text=negative, instruction="none")[0]


def flow(parts, prompt: str, negative="", width=64, height=64, batch=1, seed=0, steps=4, cfg=4.5, led=None, **given):
    """The picture [B, H, W, 3] of a SANA that is not Sprint; ``led`` changes its two conditionings."""
    model, clip, vae = parts
    positive, negative = flow_conditions(clip, prompt, negative)
    if led is not None:
        positive, negative = led(positive, negative)
    given.setdefault("latent_image", call("SanaEmptyLatent", width=width, height=height, batch_size=batch)[0])
    asked = {"model": model, "positive": positive, "negative": negative, "seed": seed, "steps": steps, "cfg": cfg}
    return decode(vae, call("SanaFlowSample", **asked, **given)[0])


def network_of(model):
    """The transformer's module of a MODEL of either host."""
    return model.model.diffusion_model if hasattr(model, "model") else model.module


def core(name: str, host, **given):
    """Run one of ComfyUI's own nodes, as the host at hand has it."""
    if host.name == "comfyui":
        import nodes

        cls = nodes.NODE_CLASS_MAPPINGS[name]
    else:
        from sana_nodes.host.embedded.core_nodes import CORE_NODES

        cls = CORE_NODES[name]
    return getattr(cls(), cls.FUNCTION)(**given)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    assert torch.isfinite(a).all(), "a picture holds values that are no numbers"
    assert a.std() > 1e-3, "a picture of one colour proves nothing"
    return (a.cpu() - b.cpu()).abs().max().item()


def same_pixels(a, b) -> bool:
    """Whether two runs gave one image of 8 bits up to the rounding of a float: uint8 arrays, or tensors in [0, 1].

    ROUNDING is 0.3 % of one of the 255 steps: it moves few values across the border between two of them.
    """
    assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
    a, b = (x.mul(255).round() if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=torch.float32) for x in (a, b))
    apart = (a - b).abs()
    return apart.max().item() <= 1 and (apart > 0).float().mean().item() < 0.01
