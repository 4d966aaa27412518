"""Train the demo's ControlNet and LoRA for the SANA-Sprint of the demo.

    python demo/train_additions.py controlnet --steps 700 --examples 900 --rate 6e-4 --output FOLDER
    python demo/train_additions.py lora --output FILE.safetensors

The ControlNet takes a white outline on black: the shape appears where the outline is and as large, and not at the place
that the prompt names. It begins as a copy of the transformer's first blocks with closed gates (SanaControlNetModel, as
SANA-ControlNet) and learns with the transformer frozen. The LoRA (rank 8, attention and the feed-forward's last
convolution) makes every shape 1.7 times as large. Losses and timesteps are train_sprint.py's.
"""

from __future__ import annotations

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from language import COLOURS, PLACES, RADIUS, SHAPES, SIZE, Scene, render, signed_distance
from train_autoencoder import learning_rate
from train_sprint import PromptEncoder, build_optimisers, instruction_text, saliency, sample_timesteps

BASE = Path(__file__).parent / "models" / "diffusers" / "sana-sprint-demo"
LAYERS = 2
THICKNESS = 0.012
"""Half the width of a sketch's line, as a fraction of the image."""

LARGER = 1.7


@dataclass(frozen=True)
class Sketched:
    """A scene whose shape is anywhere: its centre and radius as fractions of the image."""

    scene: Scene
    centre: tuple[float, float]
    radius: float


def random_scene(rng: random.Random) -> Scene:
    colour, ground = rng.sample(list(COLOURS), 2)
    return Scene(colour, rng.choice(SHAPES), rng.choice(list(PLACES)), ground)


def random_sketched(rng: random.Random) -> Sketched:
    radius = rng.uniform(0.13, 0.26)
    centre = [rng.uniform(radius + 0.04, 0.96 - radius) for _ in range(2)]
    return Sketched(random_scene(rng), (centre[0], centre[1]), radius)


def sketch(shape: str, centre: tuple[float, float], radius: float, size: int = SIZE) -> torch.Tensor:
    """The outline of a shape, white on black: [3, size, size] in [0, 1]."""
    axis = (torch.arange(size) + 0.5) / size
    y, x = torch.meshgrid(axis - centre[1], axis - centre[0], indexing="ij")
    distance = signed_distance(shape, x, y, torch.tensor(radius)).abs() - THICKNESS
    return (0.5 - distance * size).clamp(0, 1).expand(3, -1, -1)


def latents_of(autoencoder, images: list[torch.Tensor]) -> torch.Tensor:
    """Latents of unit variance: [len(images), 32, 8, 8]."""
    found = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(images), 16):
            found.append(autoencoder.encode(torch.stack(images[start : start + 16]) * 2 - 1).latent.float())
    return torch.cat(found) * autoencoder.config.scaling_factor


def build_controlnet(transformer):
    """A ControlNet over the transformer's first blocks, with closed gates."""
    from diffusers import SanaControlNetModel

    kept = ("num_attention_heads", "attention_head_dim", "num_cross_attention_heads", "cross_attention_head_dim")
    kept += ("cross_attention_dim", "caption_channels", "sample_size", "interpolation_scale", "mlp_ratio", "qk_norm")
    settings = {key: transformer.config[key] for key in kept if key != "qk_norm"}
    net = SanaControlNetModel(num_layers=LAYERS, **settings)
    own = net.state_dict()
    given = {name: value for name, value in transformer.state_dict().items() if name in own}
    net.load_state_dict({name: v for name, v in given.items() if v.shape == own[name].shape}, strict=False)
    return net


def add_lora(transformer, rank: int = 8) -> list[torch.nn.Parameter]:
    from peft import LoraConfig

    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv_point"]
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    return [weight for name, weight in transformer.named_parameters() if "lora_" in name]


def optimisers_of(net, weights: list, rate: float) -> list[torch.optim.Optimizer]:
    """Muon and AdamW for a ControlNet, as for the transformer that it begins as; AdamW for a LoRA."""
    if net is not None:
        return build_optimisers([net], rate)
    found = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    found.param_groups[0]["peak"] = rate
    return [found]


def denoised(transformer, x, t, states, mask, guidance, residuals=None):
    """x0 and F of TrigFlow (train_sprint.denoise); ``residuals``: a ControlNet, a function of the input and 1000 s."""
    s = torch.sin(t) / (torch.cos(t) + torch.sin(t))
    wide = s.view(-1, 1, 1, 1)
    scale = torch.sqrt(wide**2 + (1 - wide) ** 2)
    added = residuals(x * scale, s * 1000) if residuals else None
    out = transformer(
        x * scale,
        states,
        timestep=s,
        guidance=guidance,
        encoder_attention_mask=mask,
        controlnet_block_samples=added,
        return_dict=False,
    )[0]
    field = ((1 - 2 * wide) * x * scale + (1 - 2 * wide + 2 * wide**2) * out) / scale
    t = t.view(-1, 1, 1, 1)
    return torch.cos(t) * x - torch.sin(t) * field, field


def examples_of(what: str, autoencoder, rng: random.Random, count: int):
    """Prompts, latents of their images, and for a ControlNet those of the sketches."""
    if what == "lora":
        scenes = [random_scene(rng) for _ in range(count)]
        return (
            [s.prompt for s in scenes],
            latents_of(autoencoder, [render(s, SIZE, RADIUS * LARGER) for s in scenes]),
            None,
        )
    outlined = [random_sketched(rng) for _ in range(count)]
    images = [render(one.scene, SIZE, one.radius, one.centre) for one in outlined]
    sketches = [sketch(one.scene.shape, one.centre, one.radius) for one in outlined]
    return [one.scene.prompt for one in outlined], latents_of(autoencoder, images), latents_of(autoencoder, sketches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("controlnet", "lora"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--examples", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()

    from diffusers import AutoencoderDC, SanaSprintPipeline, SanaTransformer2DModel
    from transformers import AutoTokenizer, Gemma2Model

    torch.manual_seed(arguments.seed)
    rng, generator = random.Random(arguments.seed), torch.Generator().manual_seed(arguments.seed)
    gemma = Gemma2Model.from_pretrained(BASE / "text_encoder", torch_dtype=torch.float32)
    encoder = PromptEncoder(
        AutoTokenizer.from_pretrained(BASE / "tokenizer"), gemma, instruction_text(SanaSprintPipeline)
    )
    autoencoder = AutoencoderDC.from_pretrained(BASE / "vae", torch_dtype=torch.float32)
    transformer = SanaTransformer2DModel.from_pretrained(BASE / "transformer", torch_dtype=torch.float32)
    transformer.requires_grad_(False)
    prompts, latents, sketches = examples_of(arguments.what, autoencoder, rng, arguments.examples)
    net = build_controlnet(transformer) if arguments.what == "controlnet" else None
    weights = list(net.parameters()) if net else add_lora(transformer)
    print(f"{sum(w.numel() for w in weights)} weights", flush=True)
    optimisers = optimisers_of(net, weights, arguments.rate)
    started = time.time()
    for step in range(arguments.steps):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = learning_rate(step, arguments.steps, group["peak"], warmup=50)
        chosen = [rng.randrange(len(prompts)) for _ in range(arguments.batch)]
        with torch.no_grad():
            states, mask = encoder([prompts[i].lower() for i in chosen])
        x0, z = latents[chosen], torch.randn(len(chosen), 32, 8, 8, generator=generator)
        t = sample_timesteps(len(chosen), generator)
        wide = t.view(-1, 1, 1, 1)
        x = torch.cos(wide) * x0 + torch.sin(wide) * z
        guidance = torch.full((len(chosen),), 4.5 * 0.1)
        led = None
        if net:

            def led(scaled, timestep, hint=sketches[chosen], states=states, mask=mask):
                return net(scaled, states, timestep, hint, encoder_attention_mask=mask, return_dict=False)[0]

        found, field = denoised(transformer, x, t, states, mask, guidance, led)
        true_field = torch.cos(wide) * z - torch.sin(wide) * x0
        weight = saliency(x0)
        loss = (weight * (found - x0).square()).mean() + 0.1 * (weight * (field - true_field).square()).mean()
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        if step % 20 == 0:
            error = (found - x0).abs().mean().item()
            print(f"{step} loss {loss.item():.4f} error {error:.4f} {time.time() - started:.0f} s", flush=True)
        if step % 200 == 199 or step == arguments.steps - 1:
            save(net, transformer, arguments.output)


def save(net, transformer, output: Path) -> None:
    """The ControlNet's folder, or the LoRA's file, in bfloat16."""
    if net is not None:
        import copy

        copy.deepcopy(net).to(torch.bfloat16).save_pretrained(output)
        return
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    output.parent.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(transformer)
    save_file({f"transformer.{name}": value.to(torch.bfloat16).contiguous() for name, value in state.items()}, output)


if __name__ == "__main__":
    main()
