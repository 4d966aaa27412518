"""Train the demo's Gemma-2, tokenizer and SANA-Sprint transformer, and write them as a diffusers folder.

    python demo/train_autoencoder.py --output demo/models/diffusers/sana-sprint-demo
    python demo/train_sprint.py --output demo/models/diffusers/sana-sprint-demo

A prompt of the language (language.py) has one image, so plain denoising with TrigFlow is enough:
x_t = cos t * x0 + sin t * z, and the network predicts x0 = cos t * x_t - sin t * F (SANA-Sprint,
arXiv 2503.09641, section 3). Two thirds of the timesteps are pi/2, where a sampler starts, and the
others are uniform below it. At pi/2 the noise grows to full strength over the first steps, so that
prompts are learned first; latent cells of the shape have a higher weight than those of the
background. Gemma and the transformer, which has the position embedding of SANA's 2K and 4K models,
are trained together; the instruction's keys and values are computed once per step for the whole batch.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from language import Scene, all_scenes, render
from train_autoencoder import Average, learning_rate

WIDTH = 128
FIRST = 0.2
"""The smallest angle in training; the last of four steps starts at 0.39."""


def instruction_text(pipeline_class) -> str:
    """The instruction that a diffusers pipeline adds before a prompt."""
    import inspect

    lines = inspect.signature(pipeline_class.__call__).parameters["complex_human_instruction"].default
    return "\n".join(lines)


def phrasings(scene: Scene) -> list[str]:
    """The prompt of a scene and variants of it, in lower case as in the pipeline."""
    place = (
        scene.place.replace("centre", "center") if len(scene.prompt) % 2 else scene.place.replace("centre", "middle")
    )
    bare = scene.place.split("the ")[1]
    prompts = [
        scene.prompt,
        scene.prompt,
        scene.prompt,
        scene.prompt.replace(scene.place, place),
        f"{scene.colour} {scene.shape} {scene.place} of a {scene.background} background",
        f"{scene.colour} {scene.shape}, {bare}, {scene.background} background",
    ]
    if bare == "centre":
        prompts.append(scene.prompt.replace(" in the centre of ", " on "))
    return prompts


def build_tokenizer(folder: Path, corpus: list[str]) -> None:
    """A byte-fallback BPE in Gemma's file format; its vocabulary is that of the corpus."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    learner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>"]))
    learned = json.loads(learner.to_str())["model"]
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    tokens = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += [token for token in learned["vocab"] if token not in specials]
    vocab = {token: index for index, token in enumerate(tokens)}

    model = models.BPE(
        vocab, [tuple(m) for m in learned["merges"]], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(specials)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", 2)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 8192,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def build_text_encoder(vocabulary: int):
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        max_position_embeddings=8192,
    )
    return Gemma2Model(config)


def build_transformer():
    from diffusers import SanaTransformer2DModel

    transformer = SanaTransformer2DModel(
        num_attention_heads=5,
        attention_head_dim=32,
        num_layers=5,
        num_cross_attention_heads=5,
        cross_attention_head_dim=32,
        cross_attention_dim=160,
        caption_channels=WIDTH,
        sample_size=8,
        interpolation_scale=1.0,
        mlp_ratio=2.5,
        guidance_embeds=True,
        guidance_embeds_scale=0.1,
        qk_norm="rms_norm_across_heads",
    )
    with torch.no_grad():
        for block in transformer.transformer_blocks:
            # attention and feed-forward start with open gates: from near 0 they barely open in so few steps
            block.scale_shift_table[[2, 5]] = 1.0
    return transformer


class PromptEncoder:
    """Prompts to hidden states as in SanaSprintPipeline; the instruction is computed once per batch."""

    def __init__(self, tokenizer, gemma, instruction: str):
        self.tokenizer, self.gemma, self.instruction = tokenizer, gemma, instruction
        self.count = len(tokenizer.encode(self.instruction)) - 1

    def __call__(self, prompts: list[str]):
        """States [B, L, WIDTH] (the first token, then the prompt's) and their mask [B, L]."""
        batch = self.tokenizer([self.instruction + p for p in prompts], padding=True, return_tensors="pt")
        ids, mask = batch.input_ids, batch.attention_mask
        head = self.gemma(ids[:1, : self.count], use_cache=True)
        cache = head.past_key_values
        cache.batch_repeat_interleave(len(prompts))
        tail = self.gemma(ids[:, self.count :], attention_mask=mask, past_key_values=cache, use_cache=True)
        first = head.last_hidden_state[:, :1].expand(len(prompts), -1, -1)
        return torch.cat([first, tail.last_hidden_state], 1), torch.cat([mask[:, :1], mask[:, self.count :]], 1)

    def plain(self, prompts: list[str]):
        """The same without an instruction."""
        batch = self.tokenizer(prompts, padding=True, return_tensors="pt")
        states = self.gemma(batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return states, batch.attention_mask


def encode_images(autoencoder, scenes: list[Scene]) -> torch.Tensor:
    """Every scene's latent, scaled to unit variance: [len(scenes), 32, 8, 8]."""
    latents = []
    autoencoder = autoencoder.to(memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(scenes), 16):
            images = torch.stack([render(s) for s in scenes[start : start + 16]]) * 2 - 1
            latents.append(autoencoder.encode(images.to(memory_format=torch.channels_last)).latent.float())
    return torch.cat(latents) * autoencoder.config.scaling_factor


def saliency(latents: torch.Tensor) -> torch.Tensor:
    """The loss weight of each cell: 1 on the background, up to 9 on the shape. [N, 1, 8, 8]."""
    background = latents.flatten(2).median(dim=2).values[..., None, None]
    return 1 + 8 * (latents - background).square().mean(1, keepdim=True).clamp(max=1.0)


def sample_timesteps(count: int, generator: torch.Generator) -> torch.Tensor:
    times = FIRST + torch.rand(count, generator=generator) * (math.pi / 2 - FIRST)
    times[: 2 * count // 3] = math.pi / 2
    return times


def denoise(transformer, x, t, states, mask, guidance):
    """x0 and F of TrigFlow for x_t [B, 32, 8, 8] at angles t [B]."""
    s = torch.sin(t) / (torch.cos(t) + torch.sin(t))
    wide = s.view(-1, 1, 1, 1)
    scale = torch.sqrt(wide**2 + (1 - wide) ** 2)
    out = transformer(x * scale, states, timestep=s, guidance=guidance, encoder_attention_mask=mask, return_dict=False)[
        0
    ]
    field = ((1 - 2 * wide) * x * scale + (1 - 2 * wide + 2 * wide**2) * out) / scale
    t = t.view(-1, 1, 1, 1)
    return torch.cos(t) * x - torch.sin(t) * field, field


def training_loss(transformer, encoder, latents, scenes, rng, generator, batch, noise_strength):
    chosen = [rng.randrange(len(scenes)) for _ in range(batch)]
    x0 = latents[chosen]
    prompts = [rng.choice(phrasings(scenes[i])) for i in chosen]
    states, mask = encoder.plain(prompts) if rng.random() < 0.15 else encoder(prompts)
    z = torch.randn(x0.shape, generator=generator)
    t = sample_timesteps(batch, generator)
    z[: 2 * batch // 3] *= noise_strength
    wide = t.view(-1, 1, 1, 1)
    x = torch.cos(wide) * x0 + torch.sin(wide) * z
    guidance = (1 + 8 * torch.rand(batch, generator=generator)) * 0.1
    denoised, field = denoise(transformer, x, t, states, mask, guidance)
    true_field = torch.cos(wide) * z - torch.sin(wide) * x0
    weight = saliency(x0)
    loss = (weight * (denoised - x0).square()).mean() + 0.1 * (weight * (field - true_field).square()).mean()
    return loss, (denoised - x0).abs().mean().item()


def build_optimisers(modules, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for all other weights; ``peak`` is the highest learning rate of each."""
    named = [item for module in modules for item in module.named_parameters()]
    tables = ("embed_tokens", "scale_shift_table")
    matrices = [w for name, w in named if w.ndim == 2 and not any(table in name for table in tables)]
    others = [w for name, w in named if w.ndim != 2 or any(table in name for table in tables)]
    muon = torch.optim.Muon(matrices, lr=13 * rate, weight_decay=1e-3)
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=1e-3)
    for optimiser in (muon, adam):
        for group in optimiser.param_groups:
            group["peak"] = group["lr"]
    return [muon, adam]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--quiet", type=int, default=400, help="steps until the noise at pi/2 has full strength")
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args()

    from diffusers import AutoencoderDC, SanaSprintPipeline
    from transformers import AutoTokenizer

    torch.manual_seed(arguments.seed)
    rng, generator = random.Random(arguments.seed), torch.Generator().manual_seed(arguments.seed)
    instruction = instruction_text(SanaSprintPipeline)
    corpus = [instruction.lower(), instruction] + [prompt for scene in all_scenes() for prompt in phrasings(scene)]
    build_tokenizer(arguments.output / "tokenizer", corpus)
    tokenizer = AutoTokenizer.from_pretrained(arguments.output / "tokenizer")
    gemma, transformer = build_text_encoder(len(tokenizer)), build_transformer()
    encoder = PromptEncoder(tokenizer, gemma, instruction)
    scenes = all_scenes()
    latents = encode_images(AutoencoderDC.from_pretrained(arguments.output / "vae"), scenes)
    weights = [*gemma.parameters(), *transformer.parameters()]
    averages = [Average(gemma, 0.995), Average(transformer, 0.995)]
    optimisers = build_optimisers([gemma, transformer], arguments.rate)
    print(f"{sum(w.numel() for w in weights)} weights, {len(tokenizer)} tokens, {encoder.count} of instruction")
    curve, started = [], time.time()
    for step in range(arguments.steps):
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, arguments.steps, group["peak"], warmup=50)
        loss, error = training_loss(
            transformer, encoder, latents, scenes, rng, generator, arguments.batch, min(1.0, step / arguments.quiet)
        )
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        for average in averages:
            average.update()
        curve.append((step, loss.item(), error))
        if step % 20 == 0:
            print(f"{step} loss {loss.item():.4f} error {error:.4f} {time.time() - started:.0f} s", flush=True)
        if step % 500 == 499:
            save(gemma, transformer, averages, arguments.output, curve)
    save(gemma, transformer, averages, arguments.output, curve)


def save(gemma, transformer, averages, folder: Path, curve) -> None:
    """Write the averaged weights in bfloat16, the scheduler and model_index.json: a folder for diffusers."""
    from diffusers import SCMScheduler

    kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in (gemma, transformer)]
    for average in averages:
        average.apply()
    copies = [build_text_encoder(gemma.config.vocab_size), build_transformer()]
    for copy, trained in zip(copies, (gemma, transformer)):
        copy.load_state_dict(trained.state_dict())
        copy.to(torch.bfloat16)
    copies[0].save_pretrained(folder / "text_encoder")
    copies[1].save_pretrained(folder / "transformer")
    for module, weights in zip((gemma, transformer), kept):
        module.load_state_dict(weights)
    SCMScheduler().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "SanaSprintPipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "SCMScheduler"],
        "text_encoder": ["transformers", "Gemma2Model"],
        "tokenizer": ["transformers", "GemmaTokenizerFast"],
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / "sprint_curve.json").write_text(json.dumps(curve))


if __name__ == "__main__":
    main()
