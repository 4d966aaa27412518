"""ComfyUI's own nodes called in this process, and SANA models to try them on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace

import drawing
import torch


def load_nodes() -> dict:
    """ComfyUI's classes by name, with those of comfy_extras."""
    import nodes

    if "SamplerCustomAdvanced" not in nodes.NODE_CLASS_MAPPINGS:
        asyncio.run(nodes.init_builtin_extra_nodes())
    return nodes.NODE_CLASS_MAPPINGS


def call(name: str, **given) -> tuple:
    """Run one core node with its widgets' defaults for what is not given; its outputs."""
    cls = load_nodes()[name]
    inputs = cls.INPUT_TYPES()
    arguments = {}
    for key, spec in inputs.get("required", {}).items():
        options = spec[1] if len(spec) > 1 else {}
        if "default" in options:
            arguments[key] = options["default"]
        elif isinstance(spec[0], list) or options.get("options"):
            arguments[key] = (spec[0] if isinstance(spec[0], list) else options["options"])[0]
    out = getattr(cls(), cls.FUNCTION)(**{**arguments, **given})
    out = getattr(out, "result", out)  # nodes of ComfyUI's newer schema wrap their outputs
    return out if isinstance(out, tuple) else (out,)


def one(name: str, **given):
    return call(name, **given)[0]


@dataclass
class Rig:
    """A SANA model of one family and what it takes to sample it."""

    family: str
    model: object
    twin: object
    clip: object
    vae: object
    stranger: object
    shape: tuple[int, ...]
    cell: int
    calls: list = field(default_factory=list)

    def encode(self, text: str, **options):
        return drawing.call("SanaEncodePrompt", clip=self.clip, text=text, instruction="none", **options)[0]

    @cached_property
    def red(self):
        return self.encode("a red ring")

    @cached_property
    def blue(self):
        return self.encode("a blue ring")

    @cached_property
    def base(self) -> torch.Tensor:
        return self.draw()

    @property
    def pixels(self) -> int:
        return self.shape[-1] * self.cell

    def empty(self, batch: int = 1) -> dict:
        return {"samples": torch.zeros(batch, *self.shape[1:])}

    def noise(self, seed: int = 5, batch: int = 1) -> torch.Tensor:
        return torch.randn(batch, *self.shape[1:], generator=torch.Generator().manual_seed(seed))

    def picture(self, seed: int = 5, batch: int = 1) -> dict:
        return {"samples": self.noise(seed, batch)}

    @property
    def first(self) -> float:
        return 1.5708 if self.family == "sprint" else 1.0

    def sigmas(self, *values: float) -> torch.Tensor:
        """The family's own: from the start to 0, with ``values`` between."""
        return torch.tensor([self.first, *values, 0.0])

    @property
    def sampler_name(self) -> str:
        return "lcm" if self.family == "sprint" else "euler"

    def guider(self, model=None, positive=None, negative=None, cfg=1.0):
        model, positive = model or self.model, positive or self.red
        if negative is None:
            return one("BasicGuider", model=model, conditioning=positive)
        return one("CFGGuider", model=model, positive=positive, negative=negative, cfg=cfg)

    def draw(self, model=None, latent=None, sigmas=None, sampler=None, noise=None, guider=None, **led) -> torch.Tensor:
        """Samples of SamplerCustomAdvanced."""
        drawn = one(
            "SamplerCustomAdvanced",
            noise=noise or one("RandomNoise", noise_seed=1),
            guider=guider or self.guider(model, **led),
            sampler=sampler or one("KSamplerSelect", sampler_name=self.sampler_name),
            sigmas=self.sigmas(0.9, 0.5) if sigmas is None else sigmas,
            latent_image=latent or self.empty(),
        )["samples"]
        assert torch.isfinite(drawn).all() and drawn.std() > 1e-3
        return drawn

    def once(self, model=None, **given) -> torch.Tensor:
        """One step from pure noise: the prediction of the whole picture."""
        return self.draw(model, sigmas=self.sigmas(), **given)

    def guided(self, model=None, cfg=3.0, **given) -> torch.Tensor:
        return self.draw(model, positive=self.red, negative=self.blue, cfg=cfg, **given)

    def guided_once(self, model=None, cfg=3.0, **given) -> torch.Tensor:
        return self.guided(model, cfg, sigmas=self.sigmas(), **given)

    def prompts_by_step(self, positive) -> list[tuple[float, torch.Tensor]]:
        """Which prompt the transformer saw at which sigma, of a run at the start, at 0.9 and at 0.2."""
        seen = []

        def note(apply, given):
            seen.append((float(given["timestep"][0]), given["c"]["c_crossattn"]))
            return apply(given["input"], given["timestep"], **given["c"])

        model = self.model.clone()
        model.set_model_unet_function_wrapper(note)
        self.draw(model, positive=positive, sigmas=self.sigmas(0.9, 0.2))
        return seen

    def count_calls(self, model) -> SimpleNamespace:
        """A MODEL that counts how often the transformer is really run."""
        counted = SimpleNamespace(model=model, count=0)
        module = model.model.diffusion_model

        def seen(*_):
            counted.count += 1

        counted.hook = module.proj_out.register_forward_hook(seen)
        return counted


def same(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-4) -> bool:
    return a.shape == b.shape and (a - b).abs().max().item() < tolerance


def where_different(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> torch.Tensor:
    """[H, W]: cells in which two latents differ."""
    return ((a - b).abs() > tolerance).flatten(0, -3).any(0)
