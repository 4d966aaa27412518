"""Use a loaded model a little: what loads must also work, and have numbers for what a host reads of it."""

from __future__ import annotations

import math

import torch
from fuzz_case import all_numbers
from sana_nodes.model_loaders.controlnet import LoadedControlNet
from sana_nodes.model_loaders.lora import LoadedLora
from sana_nodes.model_loaders.pipeline import LoadedPipeline
from sana_nodes.model_loaders.quantised.formats import set_values
from sana_nodes.model_loaders.text_encoder import LoadedTextEncoder
from sana_nodes.model_loaders.transformer import LoadedTransformer
from sana_nodes.model_loaders.vae import LoadedVae
from sana_nodes.networks import lora

TEXT = "Aa  b\t1\n漢 <bos>🦊 é" + "a" * 40


def use(loaded, samples) -> None:
    """AssertionError, or what torch raises, if a loaded model does not work."""
    if isinstance(loaded, LoadedPipeline):
        for part in (loaded.transformer, loaded.text_encoder, loaded.vae):
            use(part, samples)
        return
    for kind, function in USES.items():
        if isinstance(loaded, kind):
            with torch.no_grad():
                function(loaded, samples)


def _prepared(loaded) -> torch.nn.Module:
    """The module in float32, as a host prepares it."""
    set_values(loaded.module, loaded.quantised, torch.float32)
    return loaded.module.float()


def check_numbers(**values) -> None:
    """AssertionError unless every value consists of finite numbers."""
    for name, value in values.items():
        for number in all_numbers(value):
            right = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
            assert right, f"it loads with {name} {str(value)[:80]}"


def _transformer(loaded: LoadedTransformer, samples) -> None:
    spec, module = loaded.spec, _prepared(loaded)
    guidance = 1.0 if spec.guidance_scale is None else spec.guidance_scale
    check_numbers(guidance=guidance, flow_shift=spec.flow_shift, time_scale=spec.time_scale, patch=spec.patch)
    assert spec.flow_shift > 0
    size = [side * 2 for side in (spec.patch if spec.family.video else spec.patch[1:])]
    if math.prod(size) > 4096:
        return
    more = {} if spec.guidance_scale is None else {"guidance": torch.ones(1)}
    module(
        torch.zeros(1, spec.latent_channels, *size),
        encoder_hidden_states=torch.zeros(1, 2, spec.caption_channels),
        timestep=torch.ones(1),
        **more,
    )


def _controlnet(loaded: LoadedControlNet, samples) -> None:
    module, channels = _prepared(loaded), loaded.spec.latent_channels
    side = module.config.patch_size * 2
    module(
        torch.zeros(1, channels, side, side),
        encoder_hidden_states=torch.zeros(1, 2, module.config.caption_channels),
        timestep=torch.ones(1),
        controlnet_cond=torch.zeros(1, channels, side, side),
    )


def _vae(loaded: LoadedVae, samples) -> None:
    spec, module = loaded.spec, _prepared(loaded)
    ratios = (spec.spatial_ratio, spec.temporal_ratio, spec.latent_channels)
    check_numbers(gain=spec.gain, offset=spec.offset, ratios=ratios)
    assert all(spec.gain) and all(ratio >= 1 for ratio in ratios), f"it loads with {spec}"
    side = 2 if spec.spatial_ratio <= 64 else 1
    module.decode(torch.zeros(1, spec.latent_channels, *((1,) if spec.is_video else ()), side, side))


def _text_encoder(loaded: LoadedTextEncoder, samples) -> None:
    ids = loaded.tokenizer.encode(TEXT)
    assert max(ids) < loaded.spec.vocabulary, "a token is not in the vocabulary"
    _prepared(loaded)(input_ids=torch.tensor([ids[:8]]), use_cache=False)


def _lora(loaded: LoadedLora, samples) -> None:
    for layer in loaded.layers:
        parts = loaded.parts(layer)
        if not parts.keys() - lora.PLAIN:
            weight = torch.ones(samples.lora_shapes[f"{layer}.weight"])
            assert lora.patched(weight, parts, 1.0).shape == weight.shape


USES = {
    LoadedTransformer: _transformer,
    LoadedControlNet: _controlnet,
    LoadedVae: _vae,
    LoadedTextEncoder: _text_encoder,
    LoadedLora: _lora,
}
