"""sana/sampling: SCM, the sampler of SANA-Sprint, and the flow-matching samplers of the other models."""

from __future__ import annotations

import torch

from .. import host
from ..networks import perturbed
from ..networks.accelerated import MODES
from ..samplers import FLOW_SOLVERS, SAMPLERS, flow_match, flow_sigmas, flow_solver, noise, trigflow
from . import checks
from .inputs import denoise_input, samples_of, schedule_inputs, seed_input, validate_schedule
from .models import require_blocks, require_flow, require_sana, require_sprint


def _add_noise_input():
    tip = "disable if the latent already contains noise."
    return (["enable", "disable"], {"default": "enable", "tooltip": tip, "advanced": True})


def _starting_noise(generator: torch.Generator, samples: torch.Tensor, add_noise: str) -> torch.Tensor:
    """The initial noise; it is generated and replaced by zeros if add_noise is disabled."""
    start = noise.draw(generator, samples.shape)
    return torch.zeros_like(start) if add_noise == "disable" else start


class _Samples:
    """A node that samples: ``request`` takes its inputs and gives a Sampling, or the LATENT where there is no step.

    Several rows of a batch are sampled together by their requests (host.embedded.together).
    """

    FUNCTION, REQUEST = "sample", "request"
    RETURN_TYPES = ("LATENT",)

    def sample(self, *given, **inputs):
        request = self.request(*given, **inputs)  # type: ignore[attr-defined]
        return (request.result(host.current()) if isinstance(request, host.Sampling) else request,)


class SanaSCMSample(_Samples):
    DISPLAY_NAME = "Sana SCM Sample"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "Samples SANA-Sprint in 1 to 4 steps. The same seed gives the same image as diffusers."
    SEARCH_ALIASES = ["sana", "nvidia", "sana sprint", "ksampler", "scm", "sampler", "image to image", "inpaint"]
    OUTPUT_TOOLTIPS = ("The denoised latent; decode it with SANA's VAE.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A SANA-Sprint transformer."}),
                "positive": ("CONDITIONING", {"tooltip": "The prompt, from Sana Encode Prompt."}),
                "latent_image": ("LATENT", {"tooltip": "An empty latent, or the latent of an image to start from."}),
                "seed": seed_input(),
                **schedule_inputs(),
                "denoise": denoise_input(),
                "add_noise": _add_noise_input(),
            },
            "optional": {"sigmas": ("SIGMAS", {"tooltip": "Angles that replace steps, both timesteps and denoise."})},
        }

    VALIDATE_INPUTS = checks.Validation(validate_schedule)

    def request(
        self,
        model,
        positive,
        latent_image,
        seed,
        steps,
        max_timesteps,
        intermediate_timesteps,
        denoise,
        add_noise,
        sigmas=None,
    ):
        samples = samples_of(latent_image, require_sprint(model))
        if sigmas is None:
            sigmas = trigflow.scm_sigmas(steps, max_timesteps, intermediate_timesteps, denoise)
        if len(trigflow.check_sigmas(sigmas)) < 2:
            return latent_image
        generator = noise.seeded_generator(seed)
        start = _starting_noise(generator, samples, add_noise)
        following = noise.continued_noise(generator, samples.shape)
        function, options = SAMPLERS["scm"].function, {"noise_sampler": following}
        return host.Sampling(model, positive, latent_image, start, sigmas, function, seed, options=options)


class SanaSCMSigmas:
    DISPLAY_NAME = "Sana SCM Sigmas"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "The angles for SANA-Sprint, for Sana SCM Sample or SamplerCustomAdvanced."
    SEARCH_ALIASES = ["sana", "scheduler", "sigmas", "timesteps", "scm"]
    FUNCTION = "make"
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Decreasing angles in radians, ending with 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        timesteps = {
            "default": "",
            "tooltip": "Decreasing angles such as 1.5708, 1.1, 0.6; they replace steps and both timesteps.",
        }
        required = {**schedule_inputs(), "denoise": denoise_input()}
        return {"required": required, "optional": {"timesteps": ("STRING", timesteps)}}

    VALIDATE_INPUTS = checks.Validation(validate_schedule)

    def make(self, steps, max_timesteps, intermediate_timesteps, denoise, timesteps=""):
        chosen = trigflow.parse_timesteps(timesteps)
        return (trigflow.scm_sigmas(steps, max_timesteps, intermediate_timesteps, denoise, chosen),)


class SanaSCMSampler:
    DISPLAY_NAME = "Sana SCM Sampler"
    CATEGORY = "sana/sampling"
    DESCRIPTION = (
        "SANA-Sprint's sampler for SamplerCustomAdvanced. The noise of its steps follows from the seed as in diffusers."
    )
    SEARCH_ALIASES = ["sana", "sampler", "scm", "lcm"]
    FUNCTION = "get"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("A sampler for SamplerCustomAdvanced.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def get(self):
        return (host.current().sampler(SAMPLERS["scm"].function),)


def _flow_inputs() -> dict:
    steps = {
        "default": 50,
        "min": 1,
        "max": 1000,
        "tooltip": "Number of sampling steps; 50 is diffusers' default for SANA-Video, 20 for SANA.",
    }
    return {"steps": ("INT", steps), "shift": _shift_input(), "solver": _solver_input(), "denoise": denoise_input()}


def _shift_input():
    tip = "Moves the noise levels towards the start. 0 uses the model's own, such as 8 for SANA-Video."
    return ("FLOAT", {"default": 0.0, "min": 0.0, "max": 100.0, "step": 0.1, "tooltip": tip, "advanced": True})


def _solver_input():
    tip = "dpm_solver++ needs fewer steps; both give diffusers' results."
    return (list(FLOW_SOLVERS), {"default": FLOW_SOLVERS[0], "tooltip": tip})


def _validate_flow_schedule(steps=None, shift=None, solver=None, denoise=None, cfg=None, **_):
    """True, or an error message for a flow schedule; an input that is connected to another node is None."""
    try:
        flow_solver(FLOW_SOLVERS[0] if solver is None else solver)
        flow_match.check_schedule(1 if steps is None else steps, shift or 1.0, 1.0 if denoise is None else denoise)
    except ValueError as error:
        return str(error)
    if cfg is not None and not 1.0 <= cfg <= 100.0:
        return f"cfg is {cfg}; give a number from 1 (no guidance) to 100"
    return True


class SanaFlowSample(_Samples):
    DISPLAY_NAME = "Sana Flow Sample"
    CATEGORY = "sana/sampling"
    DESCRIPTION = (
        "Samples SANA-Video, and SANA's image models that are not Sprint, with flow matching and classifier-free "
        "guidance. The same seed gives the same result as diffusers."
    )
    SEARCH_ALIASES = [
        *("sana", "nvidia", "sana video", "ksampler", "flow match", "dpm solver", "euler", "sampler"),
        *("text to video", "image to video", "inpaint"),
    ]
    OUTPUT_TOOLTIPS = ("The denoised latent; decode it with the model's VAE.",)

    @classmethod
    def INPUT_TYPES(cls):
        flow = _flow_inputs()
        cfg = {
            "default": 6.0,
            "min": 1.0,
            "max": 100.0,
            "step": 0.1,
            "tooltip": "Guidance scale: how closely to follow the prompt and avoid the negative one; 1 is no guidance.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "SANA-Video, or a SANA model that is not Sprint."}),
                "positive": (
                    "CONDITIONING",
                    {"tooltip": "The prompt, from Sana Encode Video Prompt or Sana Encode Prompt."},
                ),
                "negative": ("CONDITIONING", {"tooltip": "The negative prompt; not used when cfg is 1."}),
                "latent_image": (
                    "LATENT",
                    {"tooltip": "An empty latent, or one with a first frame from Sana Image To Video Latent."},
                ),
                "seed": seed_input(),
                "steps": flow["steps"],
                "cfg": ("FLOAT", cfg),
                "shift": flow["shift"],
                "solver": flow["solver"],
                "denoise": flow["denoise"],
                "add_noise": _add_noise_input(),
            },
            "optional": {"sigmas": ("SIGMAS", {"tooltip": "Noise levels that replace steps, shift and denoise."})},
        }

    VALIDATE_INPUTS = checks.Validation(_validate_flow_schedule)

    def request(
        self,
        model,
        positive,
        negative,
        latent_image,
        seed,
        steps,
        cfg,
        shift,
        solver,
        denoise,
        add_noise,
        sigmas=None,
    ):
        samples = samples_of(latent_image, require_flow(model))
        if sigmas is None:
            sigmas = flow_sigmas(steps, shift or host.current().flow_shift(model), solver, denoise)
        if len(flow_match.check_sigmas(sigmas)) < 2:
            return latent_image
        start = _starting_noise(noise.seeded_generator(seed), samples, add_noise)
        function = flow_solver(solver).function
        return host.Sampling(model, positive, latent_image, start, sigmas, function, seed, negative, cfg)


class SanaFlowSigmas:
    DISPLAY_NAME = "Sana Flow Sigmas"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "The noise levels for flow matching, for Sana Flow Sample or SamplerCustomAdvanced."
    SEARCH_ALIASES = ["sana", "sana video", "scheduler", "sigmas", "flow shift"]
    FUNCTION = "make"
    RETURN_TYPES = ("SIGMAS",)
    OUTPUT_TOOLTIPS = ("Decreasing noise levels, ending with 0.",)

    @classmethod
    def INPUT_TYPES(cls):
        model = ("MODEL", {"tooltip": "The model whose shift is used when shift is 0; without a model it is 3."})
        return {"required": _flow_inputs(), "optional": {"model": model}}

    VALIDATE_INPUTS = checks.Validation(_validate_flow_schedule)

    def make(self, steps, shift, solver, denoise, model=None):
        if not shift and model is not None:
            require_flow(model)
            shift = host.current().flow_shift(model)
        return (flow_sigmas(steps, shift or flow_match.DEFAULT_SHIFT, solver, denoise),)


class SanaFlowSampler:
    DISPLAY_NAME = "Sana Flow Sampler"
    CATEGORY = "sana/sampling"
    DESCRIPTION = "The flow-matching solver of SANA-Video and SANA, for SamplerCustomAdvanced."
    SEARCH_ALIASES = ["sana", "sana video", "sampler", "dpm solver", "euler", "flow match"]
    FUNCTION = "get"
    RETURN_TYPES = ("SAMPLER",)
    OUTPUT_TOOLTIPS = ("A sampler for SamplerCustomAdvanced.",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"solver": _solver_input()}}

    def get(self, solver):
        return (host.current().sampler(flow_solver(solver).function),)


class SanaPAG:
    DISPLAY_NAME = "Sana PAG"
    CATEGORY = "sana/sampling"
    DESCRIPTION = (
        "Perturbed-attention guidance for SANA's image models that are not Sprint, with the results of diffusers' "
        "SanaPAGPipeline. Each step takes one more call of the transformer."
    )
    SEARCH_ALIASES = ["sana", "pag", "perturbed attention guidance", "guidance"]
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    OUTPUT_TOOLTIPS = ("The model with perturbed-attention guidance, for any sampler.",)

    @classmethod
    def INPUT_TYPES(cls):
        scale = {
            "default": 3.0,
            "min": 0.0,
            "max": 100.0,
            "step": 0.1,
            "tooltip": "How far to lead away from the perturbed prediction; 0 turns it off.",
        }
        layers = {
            "default": "8",
            "tooltip": "The blocks, from 0, whose self-attention is perturbed; several separated by commas.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A SANA image model that is not Sprint."}),
                "scale": ("FLOAT", scale),
                "layers": ("STRING", layers),
            }
        }

    @classmethod
    def VALIDATE_INPUTS(cls, layers=None):
        try:
            perturbed.parse_layers("0" if layers is None else layers)
        except ValueError as error:
            return str(error)
        return True

    def apply(self, model, scale, layers):
        blocks = require_blocks(model)
        chosen = perturbed.Perturbation(scale, perturbed.parse_layers(layers, blocks))
        return (host.current().apply_perturbation(model, chosen if scale else None),)


class SanaCompile:
    DISPLAY_NAME = "Sana Compile"
    CATEGORY = "sana/sampling"
    DESCRIPTION = (
        "Runs a SANA model with less waiting between its kernels: torch.compile of whole blocks, or CUDA graphs."
    )
    SEARCH_ALIASES = ["sana", "torch.compile", "cuda graphs", "speed", "inductor"]
    FUNCTION = "compile"
    RETURN_TYPES = ("MODEL", "VAE")
    OUTPUT_TOOLTIPS = ("The model in this mode.", "The VAE in this mode, if one is connected.")

    @classmethod
    def INPUT_TYPES(cls):
        mode = {
            "default": MODES[0],
            "tooltip": "blocks: torch.compile of each block, at the first run of a size. graphs: CUDA graphs, for "
            "short steps on an NVIDIA card; elsewhere the model runs without. off: neither.",
        }
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "A SANA, SANA-Sprint or SANA-Video model."}),
                "mode": (list(MODES), mode),
            },
            "optional": {
                "vae": (
                    "VAE",
                    {"tooltip": "SANA's VAE: the mode blocks compiles the decoder of DC-AE or Wan too."},
                )
            },
        }

    def compile(self, model, mode, vae=None):
        require_sana(model)
        return host.current().compile(model, mode, vae)
