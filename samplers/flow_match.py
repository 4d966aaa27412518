"""Flow matching and its two solvers, for SANA's models that are not Sprint and for SANA-Video.

x_t = (1 - sigma) * x0 + sigma * z with sigma in [0, 1]; the network gives the velocity z - x0. Ported
from diffusers' FlowMatchEulerDiscreteScheduler and DPMSolverMultistepScheduler (use_flow_sigmas,
order 2, midpoint, final sigma zero); DPM-Solver++: arXiv 2211.01095.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .noise import expand_like, noise_where_empty

STEPS_IN_TRAINING = 1000
DEFAULT_SHIFT = 3.0


def shifted(sigma, shift: float):
    """Noise levels [0, 1] moved towards the start: shift * s / (1 + (shift - 1) * s)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


class FlowMatch(torch.nn.Module):
    """The parameterisation, in the interface of ComfyUI's model_sampling objects.

    ``sigma``: a scalar, [B], or already broadcastable to the latent, in [0, 1].
    """

    def __init__(self, shift: float = DEFAULT_SHIFT):
        super().__init__()
        if not isinstance(shift, (int, float)):  # some core nodes create the model_sampling class with other arguments
            raise ValueError(f"shift is of type {type(shift).__name__}; SANA's flow matching needs a number")
        self.shift = shift
        steps = torch.arange(1, STEPS_IN_TRAINING + 1) / STEPS_IN_TRAINING
        self.register_buffer("sigmas", shifted(steps, shift), persistent=False)

    @property
    def sigma_min(self) -> torch.Tensor:
        return self.sigmas[0]

    @property
    def sigma_max(self) -> torch.Tensor:
        return self.sigmas[-1]

    def timestep(self, sigma: torch.Tensor) -> torch.Tensor:
        """The timestep for the network, 0 to 1000."""
        return sigma * STEPS_IN_TRAINING

    def sigma(self, timestep: torch.Tensor) -> torch.Tensor:
        return shifted(timestep / STEPS_IN_TRAINING, self.shift)

    def percent_to_sigma(self, percent: float) -> float:
        """The noise level after ``percent`` (0 to 1) of the steps."""
        if percent <= 0.0:
            return 1.0
        return shifted(1.0 - min(percent, 1.0), self.shift)

    def calculate_input(self, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return noise

    def calculate_denoised(
        self, sigma: torch.Tensor, model_output: torch.Tensor, model_input: torch.Tensor
    ) -> torch.Tensor:
        """x0 = x_t - sigma * velocity."""
        return model_input - expand_like(sigma, model_output) * model_output

    def mix(self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor) -> torch.Tensor:
        """x_t = (1 - sigma) * x0 + sigma * z."""
        sigma = expand_like(torch.as_tensor(sigma), noise)
        return (1 - sigma) * latent_image + sigma * noise

    def noise_scaling(
        self, sigma: torch.Tensor, noise: torch.Tensor, latent_image: torch.Tensor, max_denoise: bool = False
    ) -> torch.Tensor:
        """The start of sampling: x_t of an image or video, and pure noise for every empty frame."""
        return noise_where_empty(latent_image, noise, self.mix(sigma, noise, latent_image))

    def inverse_noise_scaling(self, sigma: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
        """The latent that :meth:`noise_scaling` with zero noise maps back to x_t, for split runs."""
        return latent / (1 - expand_like(torch.as_tensor(sigma), latent))


Levels = Callable[[int, float, float], torch.Tensor]
"""The last ``steps`` of ``total`` noise levels at a ``shift``, without the 0 at the end: float32 [steps]."""


def sigmas_of_levels(
    levels: Levels, steps: int = 50, shift: float = DEFAULT_SHIFT, denoise: float = 1.0
) -> torch.Tensor:
    """The noise levels as the solver's diffusers scheduler computes them: float32 [steps + 1], decreasing to 0.

    ``denoise`` below 1 gives the last ``steps`` steps of a schedule with steps / denoise steps, as ComfyUI's
    BasicScheduler does, except that this number is not rounded: with few steps, sampling starts exactly at
    ``denoise`` and not at the next step of a rounded schedule. 0 gives an empty tensor.
    """
    check_schedule(steps, shift, denoise)
    if denoise == 0.0:
        return torch.zeros(0)
    steps, total = int(steps), max(steps, steps / denoise)
    total = round(total) if abs(total - round(total)) < 1e-9 else total
    return torch.cat([levels(steps, total, shift), torch.zeros(1)])


def check_schedule(steps: int, shift: float, denoise: float) -> None:
    """ValueError, with the valid range, for settings that are not a schedule."""
    if steps != int(steps) or not 1 <= steps <= 1000:
        raise ValueError(f"steps is {steps}; give a whole number from 1 to 1000, such as 50")
    if not math.isfinite(shift) or not 0.0 < shift <= 100.0:
        raise ValueError(f"shift is {shift}; give a number above 0 and at most 100, or 0 for the model's own")
    if not math.isfinite(denoise) or not 0.0 <= denoise <= 1.0:
        raise ValueError(f"denoise is {denoise}; give a number from 0 to 1")


def euler_levels(steps: int, total: float, shift: float) -> torch.Tensor:
    """The last ``steps`` of ``total`` levels of FlowMatchEulerDiscreteScheduler.set_timesteps.

    diffusers computes the ends with the shift and then shifts all levels again.
    """
    least = shifted(1 / STEPS_IN_TRAINING, shift)
    if total == int(total):
        levels = torch.linspace(1.0, least, int(total), dtype=torch.float64)[-steps:]
    else:
        levels = 1.0 + (total - steps + torch.arange(steps, dtype=torch.float64)) * (least - 1.0) / (total - 1.0)
    return shifted(levels, shift).float()


def dpm_levels(steps: int, total: float, shift: float) -> torch.Tensor:
    """The last ``steps`` of ``total`` levels of DPMSolverMultistepScheduler.set_timesteps with use_flow_sigmas.

    The network gets whole timesteps, int(1000 * sigma). If rounding to float32 would change that number, the
    level is moved to the other side of it.
    """
    last = 1 / STEPS_IN_TRAINING
    alphas = 1.0 + torch.arange(steps + 1, dtype=torch.float64) * ((last - 1.0) / total)
    if steps == total:
        alphas[-1] = last  # as numpy's linspace: its rounding determines the whole timesteps
    levels = 1 - alphas
    exact = shifted(levels, shift).flip(0)[:-1]
    rounded = exact.float()
    whole = (exact * STEPS_IN_TRAINING).floor()
    above = rounded.double() * STEPS_IN_TRAINING >= whole + 1
    below = rounded.double() * STEPS_IN_TRAINING < whole
    rounded = torch.where(above, torch.nextafter(rounded, torch.zeros_like(rounded)), rounded)
    return torch.where(below, torch.nextafter(rounded, torch.ones_like(rounded)), rounded)


def check_range(sigmas: torch.Tensor) -> list[float]:
    """The values of SIGMAS; ValueError if they are not flow-matching noise levels. Their order is not checked."""
    values = sigmas.flatten().tolist()
    if any(not math.isfinite(v) for v in values):
        raise ValueError(f"sigmas holds a value that is not a number: {values}")
    if any(not 0.0 <= v <= 1.0 + 1e-6 for v in values):
        raise ValueError(
            f"sigmas is between {max(values):g} and {min(values):g}; the noise levels of SANA and SANA-Video go from 1 "
            "down to 0: use Sana Flow Sigmas or BasicScheduler"
        )
    return values


def check_sigmas(sigmas: torch.Tensor) -> torch.Tensor:
    """SIGMAS from another node; ValueError if they are not decreasing noise levels in [0, 1]. Returns them."""
    values = check_range(sigmas)
    if any(after >= before for before, after in zip(values, values[1:])):
        raise ValueError(f"sigmas must decrease from step to step, but they are {[round(v, 4) for v in values]}")
    return sigmas


@torch.no_grad()
def sample_flow_euler(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    """Euler steps along the velocity (FlowMatchEulerDiscreteScheduler.step). k-diffusion's signature."""
    extra_args = {} if extra_args is None else extra_args
    ones, levels = x.new_ones([x.shape[0]]), sigmas.tolist()
    for i in range(len(sigmas) - 1):
        denoised = model(x, sigmas[i] * ones, **extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        x = denoised if levels[i + 1] == 0 else x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


@torch.no_grad()
def sample_flow_dpm(model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None):
    """DPM-Solver++(2M) on flow matching (DPMSolverMultistepScheduler.step). k-diffusion's signature.

    ``extra_args["denoise_mask"]``, if present, is 0 where the latent is kept.
    """
    extra_args = {} if extra_args is None else extra_args
    mask = extra_args.get("denoise_mask")
    ones, levels = x.new_ones([x.shape[0]]), sigmas.tolist()
    whole = [math.floor(level * STEPS_IN_TRAINING) / STEPS_IN_TRAINING for level in levels]
    rounded = torch.tensor(whole, dtype=x.dtype, device=x.device)
    previous = None
    for i in range(len(sigmas) - 1):
        known = rounded[i] if whole[i] else None
        denoised = _denoised_at_whole_timestep(model, x, sigmas[i], known, ones, mask, extra_args)
        if callback is not None:
            callback({"x": x, "i": i, "sigma": sigmas[i], "sigma_hat": sigmas[i], "denoised": denoised})
        first_order = previous is None or levels[i + 1] == 0
        slope = None if first_order else denoised - previous
        x = _dpm_step(x, denoised, slope, sigmas, i)
        previous = denoised
    return x


def _denoised_at_whole_timestep(model, x, sigma, rounded, ones, mask, extra_args):
    """x0 from the network's velocity at the whole timestep below 1000 * sigma, which diffusers gives the network.

    ``rounded``: that timestep over 1000; None where it is 0.
    """
    if rounded is None:
        return model(x, sigma * ones, **extra_args)
    denoised = model(x, rounded * ones, **extra_args)
    change = (x - denoised) * (1 - sigma / rounded)
    return denoised + (change if mask is None else change * mask)


def _log_snr(sigma):
    return torch.log(1 - sigma) - torch.log(sigma)


def _dpm_step(x, denoised, slope, sigmas, i):
    """One step of order 1 (``slope`` is None) or 2; ``slope``: this x0 minus the previous one."""
    now, following = sigmas[i], sigmas[i + 1]
    h = _log_snr(following) - _log_snr(now)
    gain = (1 - following) * (torch.exp(-h) - 1.0)
    stepped = (following / now) * x - gain * denoised
    if slope is None:
        return stepped
    r = (_log_snr(now) - _log_snr(sigmas[i - 1])) / h
    return stepped - 0.5 * gain * (slope / r)
