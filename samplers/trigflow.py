"""TrigFlow and the SCM sampler of SANA-Sprint (arXiv 2503.09641; TrigFlow: arXiv 2410.11081).

x_t = cos t * x0 + sin t * z with the angle t in [0, pi/2]; the angles are the sigmas of ComfyUI's
SIGMAS. Ported from diffusers' SanaSprintPipeline and SCMScheduler, with two differences: the loop
runs in unit variance, where their sigma_data of 0.5 cancels out, and the noise of the last step,
which they generate but do not use, is not generated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .noise import expand_like, noise_after_start, noise_where_empty

MAX_ANGLE = 1.5708
"""diffusers' first timestep: pi/2, rounded up."""

LEAST_ANGLE = 1e-6
"""Smaller ones are zero to a schedule that is scaled by them."""


def network_time(t: torch.Tensor) -> torch.Tensor:
    """The transformer's timestep s = sin t / (cos t + sin t), in [0, 1], for angles t."""
    return torch.sin(t) / (torch.cos(t) + torch.sin(t))


def flow_time(t: torch.Tensor) -> torch.Tensor:
    """The flow-matching timestep, 0 to 1000, that corresponds to angles t.

    x_t / (cos t + sin t), SANA-Sprint's input, is (1 - s) * x0 + s * z: the x of flow matching at s.
    """
    return 1000 * network_time(t)


class TrigFlow(torch.nn.Module):
    """The parameterisation, in the interface of ComfyUI's model_sampling objects.

    ``sigma`` is an angle in radians: a scalar, [B], or already broadcastable to the latent.
    """

    def __init__(self, count: int = 1000):
        super().__init__()
        if not isinstance(count, int):  # some core nodes create the model_sampling class with other arguments
            raise ValueError(f"count is of type {type(count).__name__}; SANA-Sprint's angles need a number")
        self.register_buffer("sigmas", torch.linspace(0, MAX_ANGLE, count + 1)[1:], persistent=False)

    @property
    def sigma_min(self) -> torch.Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        return network_time(sigma)

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        """The angle whose timestep is ``timestep``: the inverse of :meth:`timestep`."""
        return torch.atan2(timestep, 1 - timestep)

    def percent_to_sigma(self, percent: float) -> float:
        """The angle after ``percent`` (0 to 1) of the steps; at the start it is larger than any angle."""
        if percent <= 0.0:
            return 999999999.9
        return (1.0 - min(percent, 1.0)) * MAX_ANGLE

    def calculate_input(self, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The transformer's input: x_t * sqrt(s^2 + (1 - s)^2)."""
        s = network_time(expand_like(sigma, noise))
        return noise * torch.sqrt(s**2 + (1 - s) ** 2)

    def calculate_denoised(
        self, sigma: torch.Tensor, model_output: torch.Tensor, model_input: torch.Tensor
    ) -> torch.Tensor:
        """x0 = cos t * x_t - sin t * F, from the transformer's output and x_t (not its scaled input)."""
        t = expand_like(sigma, model_output)
        s = network_time(t)
        scale = torch.sqrt(s**2 + (1 - s) ** 2)
        field = ((1 - 2 * s) * (model_input * scale) + (1 - 2 * s + 2 * s**2) * model_output) / scale
        return torch.cos(t) * model_input - torch.sin(t) * field

    def mix(self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor) -> torch.Tensor:
        """x_t = cos t * x0 + sin t * z."""
        t = expand_like(sigma, noise)
        return torch.cos(t) * latent_image + torch.sin(t) * noise

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        """The start of sampling: x_t of an image, and pure noise for every empty image of the batch."""
        return noise_where_empty(latent_image, noise, self.mix(sigma, noise, latent_image))

    def inverse_noise_scaling(self, sigma: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The latent that :meth:`noise_scaling` with zero noise maps back to x_t, for split runs."""
        t = expand_like(torch.as_tensor(sigma), latent)
        return latent / torch.cos(t)


def scm_sigmas(
    steps: int = 2,
    max_timesteps: float = MAX_ANGLE,
    intermediate_timesteps: float = 1.3,
    denoise: float = 1.0,
    timesteps: Sequence[float] | None = None,
) -> torch.Tensor:
    """The angles of a schedule: float32 [n + 1], decreasing to 0 (diffusers' SCMScheduler.set_timesteps).

    ``intermediate_timesteps`` is the second angle of a two-step schedule and ignored otherwise. ``timesteps``
    replaces all three; a final 0 is added if it is missing. ``denoise`` below 1 skips the first 1 - denoise
    of the schedule's steps, also a fraction of a step, and spreads ceil(steps * denoise) steps over the
    rest; 0 gives an empty tensor.
    """
    if timesteps is not None:
        angles = _checked_angles(timesteps)
    else:
        angles = _default_angles(steps, max_timesteps, intermediate_timesteps)
    if not math.isfinite(denoise) or not 0.0 <= denoise <= 1.0:
        raise ValueError(f"denoise is {denoise}; give a number from 0 to 1")
    if denoise == 0.0:
        return torch.zeros(0)
    if denoise < 1.0:
        angles = _start_later(angles, denoise)
    return torch.tensor(angles, dtype=torch.float32)


STARTS = ("continuous", "schedule")


def img2img_sigmas(
    strength: float = 0.6,
    steps: int = 2,
    max_timesteps: float = MAX_ANGLE,
    intermediate_timesteps: float = 1.3,
    start: str = STARTS[0],
) -> torch.Tensor:
    """The remaining angles for image to image: float32 [n + 1]; the first is the noise level of the image.

    "schedule" skips int(steps * (1 - strength)) whole steps, as SanaSprintImg2ImgPipeline's get_timesteps
    does; "continuous" also starts between steps, as ``denoise`` of :func:`scm_sigmas`. A strength of 0 gives
    an empty tensor.
    """
    if not math.isfinite(strength) or not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength is {strength}; give a number from 0, which keeps the image, to 1")
    if start == "continuous":
        return scm_sigmas(steps, max_timesteps, intermediate_timesteps, strength)
    if start != "schedule":
        raise ValueError(f"start is {start!r}; choose one of {', '.join(STARTS)}")
    angles = _default_angles(steps, max_timesteps, intermediate_timesteps)
    skipped = int(max(steps - min(steps * strength, steps), 0))
    return torch.tensor(angles[skipped:] if skipped < steps else [], dtype=torch.float32)


def _default_angles(steps: int, first: float, middle: float) -> list[float]:
    if steps != int(steps) or not 1 <= steps <= 1000:
        raise ValueError(f"steps is {steps}; give a whole number from 1 to 1000 (SANA-Sprint is made for 1 to 4)")
    _check_angle("max_timesteps", first)
    if steps != 2:
        return torch.linspace(first, 0, int(steps) + 1).tolist()
    _check_angle("intermediate_timesteps", middle)
    if middle >= first:
        raise ValueError(
            f"intermediate_timesteps is {middle} and max_timesteps is {first}, but the angles must decrease: "
            "give intermediate_timesteps a smaller value than max_timesteps"
        )
    return [first, middle, 0.0]


def _check_angle(name: str, value: float) -> None:
    if not math.isfinite(value) or not LEAST_ANGLE <= value <= MAX_ANGLE + 1e-4:
        raise ValueError(f"{name} is {value}; give an angle above 0 and at most {MAX_ANGLE} (pi/2)")


def _checked_angles(timesteps: Sequence[float]) -> list[float]:
    angles = [float(t) for t in timesteps]
    if angles and angles[-1] != 0.0:
        angles.append(0.0)
    if len(angles) < 2:
        raise ValueError("timesteps has no angle above 0; give decreasing numbers such as 1.5708, 1.3, 0")
    for angle in angles[:-1]:
        _check_angle("a number in timesteps", angle)
    for before, after in zip(angles, angles[1:]):
        if after >= before:
            raise ValueError(f"timesteps must decrease, but {after:g} follows {before:g}")
    return angles


def _start_later(angles: list[float], denoise: float) -> list[float]:
    steps = len(angles) - 1
    position = steps * (1.0 - denoise)
    before = min(int(position), steps - 1)
    start = angles[before] + (angles[before + 1] - angles[before]) * (position - before)
    count = max(1, math.ceil(steps * denoise - 1e-9))
    kept = _resampled(angles, count)
    return [angle * start / kept[0] for angle in kept]


def _resampled(angles: list[float], count: int) -> list[float]:
    """The schedule's shape in ``count`` steps, by linear interpolation between its angles."""
    steps = len(angles) - 1
    if count == steps:
        return angles
    positions = [i * steps / count for i in range(count + 1)]
    low = [min(int(p), steps - 1) for p in positions]
    return [angles[i] + (angles[i + 1] - angles[i]) * (p - i) for i, p in zip(low, positions)]


def parse_timesteps(text: str) -> list[float] | None:
    """Angles from a text such as ``"1.5708, 1.3, 0"``; None for an empty text."""
    numbers = [number.strip() for number in text.replace(";", ",").split(",") if number.strip()]
    if not numbers:
        return None
    try:
        return [float(number) for number in numbers]
    except ValueError:
        raise ValueError(f"timesteps is {text!r}; give numbers separated by commas, such as 1.5708, 1.3, 0") from None


def check_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """SIGMAS from another node; ValueError if they are not decreasing angles in [0, pi/2]. Returns them."""
    values = sigmas.flatten().tolist()
    if any(not math.isfinite(v) for v in values):
        raise ValueError(f"sigmas holds a value that is not a number: {values}")
    if any(not 0.0 <= v <= MAX_ANGLE + 1e-4 for v in values):
        raise ValueError(
            f"sigmas is between {max(values):g} and {min(values):g}; SANA-Sprint's are angles from {MAX_ANGLE} "
            "down to 0: use Sana SCM Sigmas"
        )
    if any(after >= before for before, after in zip(values, values[1:])):
        raise ValueError(
            f"sigmas must decrease from step to step, as SANA-Sprint's angles do, but they are "
            f"{[round(v, 4) for v in values]}"
        )
    return sigmas


@torch.no_grad()
def sample_scm(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    """SCM multistep sampling: x_next = cos t' * x0 + sin t' * new noise (SCMScheduler.step).

    k-diffusion's signature. ``model(x, sigma, **extra_args)`` returns x0; ``sigmas`` are decreasing angles.
    Without a ``noise_sampler`` the noise comes from the generator of ``extra_args["seed"]``, after the
    initial noise, as in diffusers.
    """
    extra_args = {} if extra_args is None else extra_args
    seed = extra_args.get("seed")
    noise_sampler = noise_sampler or noise_after_start(0 if seed is None else seed, x.shape)
    ones, angles = x.new_ones([x.shape[0]]), sigmas.tolist()
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = denoised
        if angles[i + 1] > 0:
            noise = noise_sampler(sigmas[i], sigmas[i + 1])
            x = torch.cos(sigmas[i + 1]) * denoised + torch.sin(sigmas[i + 1]) * noise
    return x
