"""Small random SANA models in the real file formats, made at run time."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

COMFYUI = Path(os.environ["COMFYUI_PATH"]) if os.environ.get("COMFYUI_PATH") else None
REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "demo" / "models" / "diffusers" / "sana-sprint-demo"
VIDEO_DEMO = DEMO.with_name("sana-video-demo")
LONG_DEMO = DEMO.with_name("sana-video-long-demo")


SIZE = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "num_layers": 3,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 64,
    "caption_channels": 48,
}
"""What the random transformers and ControlNets have in common."""


def stirred(module: torch.nn.Module, seed: int, amount: float = 0.02) -> torch.nn.Module:
    """The module with every weight moved a little, so that no bias is 0 and no norm is 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * amount)
    return module.eval()


def transformer(seed: int = 0, **changes):
    from diffusers import SanaTransformer2DModel

    torch.manual_seed(seed)
    settings = {
        **SIZE,
        "guidance_embeds": True,
        "qk_norm": "rms_norm_across_heads",
    }
    return stirred(SanaTransformer2DModel(**{**settings, **changes}), seed)


def text_encoder(seed: int = 1, vocabulary: int = 800, **changes):
    from transformers import Gemma2Config, Gemma2Model

    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocabulary,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "max_position_embeddings": 8192,
    }
    return stirred(Gemma2Model(Gemma2Config(**{**settings, **changes})), seed)


def autoencoder(seed: int = 2, **changes):
    from diffusers import AutoencoderDC

    torch.manual_seed(seed)
    stages = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    scales = ((), (), (), (5,), (5,), (5,))
    channels = (8, 8, 16, 16, 32, 32)
    settings = {
        "latent_channels": 32,
        "attention_head_dim": 8,
        "encoder_block_types": stages,
        "decoder_block_types": stages,
        "encoder_block_out_channels": channels,
        "decoder_block_out_channels": channels,
        "encoder_layers_per_block": (1, 1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 2, 1, 1, 1, 1),
        "encoder_qkv_multiscales": scales,
        "decoder_qkv_multiscales": scales,
        "downsample_block_type": "Conv",
        "upsample_block_type": "interpolate",
        "scaling_factor": 0.41407,
    }
    return stirred(AutoencoderDC(**{**settings, **changes}), seed)


LITE = {
    "decoder_block_types": "ResBlock",
    "decoder_block_out_channels": (8, 16, 16, 32, 32, 32),
    "decoder_layers_per_block": (0, 1, 2, 1, 1, 1),
    "decoder_qkv_multiscales": ((),) * 6,
    "upsample_block_type": "pixel_shuffle",
    "decoder_conv_act_fn": "silu",
}
"""How DC-AE-Lite differs: convolutions alone in its decoder, none of them at the picture's full size."""


def video_transformer(seed: int = 3, **changes):
    from diffusers import SanaVideoTransformer3DModel

    torch.manual_seed(seed)
    settings = {
        "in_channels": 16,
        "out_channels": 16,
        **SIZE,
        "mlp_ratio": 3.0,
        "sample_size": 30,
        "patch_size": (1, 2, 2),
    }
    return stirred(SanaVideoTransformer3DModel(**{**settings, **changes}), seed)


def long_transformer(seed: int = 9, **changes):
    """A LongSANA, whose weights are large enough that a frame depends on those before."""
    return stirred(video_transformer(seed, **changes), seed, 0.08)


def long_pipeline(folder: Path) -> None:
    """Write a whole LongSANA folder, whose transformer's config names the class that diffusers lacks."""
    video_pipeline(folder, wan_vae(), long_transformer())
    config = folder / "transformer" / "config.json"
    text = config.read_text()
    assert text.count("SanaVideoTransformer3DModel") == 1
    config.write_text(text.replace("SanaVideoTransformer3DModel", "SanaVideoCausalTransformer3DModel"))


def wan_vae(seed: int = 4, **changes):
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    settings = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 2, 2], "num_res_blocks": 2}
    return stirred(AutoencoderKLWan(**{**settings, **changes}), seed)


WAN_NAMES = (
    ("encoder.conv_in.", "encoder.conv1."),
    ("decoder.conv_in.", "decoder.conv1."),
    ("coder.norm_out.", "coder.head.0."),
    ("coder.conv_out.", "coder.head.2."),
    ("post_quant_conv.", "conv2."),
    ("quant_conv.", "conv1."),
    (".norm1.", ".residual.0."),
    (".conv1.", ".residual.2."),
    (".norm2.", ".residual.3."),
    (".conv2.", ".residual.6."),
    (".conv_shortcut.", ".shortcut."),
    ("mid_block.resnets.0.", "middle.0."),
    ("mid_block.attentions.0.", "middle.1."),
    ("mid_block.resnets.1.", "middle.2."),
    ("encoder.down_blocks.", "encoder.downsamples."),
)


def original_wan_name(name: str, resnets: int = 3) -> str:
    """Wan's own name of a weight of AutoencoderKLWan, as in ComfyUI's wan_2.1_vae.safetensors."""
    if name.startswith("decoder.up_blocks."):
        _, _, stage, kind, place, *rest = name.split(".")
        number = int(stage) * (resnets + 1) + (int(place) if kind == "resnets" else resnets)
        name = ".".join(["decoder.upsamples", str(number), *rest])
    inner = name.startswith(("quant_conv", "post_quant_conv", "encoder.conv_in", "decoder.conv_in"))
    for theirs, original in WAN_NAMES:
        if theirs in name and not (inner and theirs.startswith(".")):
            name = name.replace(theirs, original, 1)
            if inner:
                break
    return name


def write_original_wan_vae(path: Path) -> None:
    """A random Wan 2.1 VAE of the real size, in bfloat16 and in ComfyUI's file format: 254 MB."""
    from diffusers import AutoencoderKLWan
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = stirred(AutoencoderKLWan(), 0, 0.002).to(torch.bfloat16).state_dict()
    save_file({original_wan_name(name): value.contiguous() for name, value in weights.items()}, path)


def ltx2_vae(seed: int = 5, **changes):
    from diffusers import AutoencoderKLLTX2Video

    torch.manual_seed(seed)
    settings = {
        "latent_channels": 128,
        "block_out_channels": (8, 16, 32, 32),
        "decoder_block_out_channels": (8, 16, 32),
        "layers_per_block": (1, 2, 1, 1, 1),
        "decoder_layers_per_block": (2, 1, 2, 1),
        "spatial_compression_ratio": 32,
        "temporal_compression_ratio": 8,
    }
    vae = stirred(AutoencoderKLLTX2Video(**{**settings, **changes}), seed)
    generator = torch.Generator().manual_seed(seed)
    vae.latents_mean.copy_(torch.randn(128, generator=generator) * 0.3)
    vae.latents_std.copy_(torch.rand(128, generator=generator) + 0.5)
    return vae


def ltx2_video_transformer(seed: int = 6, **changes):
    channels = {"in_channels": 128, "out_channels": 128, "patch_size": (1, 1, 1), "sample_size": 22}
    return video_transformer(seed, **{**channels, **changes})


def flow_scheduler(solver: str, shift: float):
    """diffusers' scheduler for a solver of ours."""
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return DPMSolverMultistepScheduler(flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction")


def video_pipeline(folder: Path, vae, transformer, shift: float = 8.0, dtype: torch.dtype = torch.float32):
    """Write a whole SANA-Video folder and return the diffusers pipeline that reads it back."""
    from diffusers import SanaVideoPipeline

    return _written(SanaVideoPipeline, folder, vae, transformer, flow_scheduler("dpm_solver++", shift), dtype)


def sprint_pipeline(folder: Path, dtype: torch.dtype = torch.float32, **changes):
    """Write a whole SANA-Sprint folder and return the diffusers pipeline that reads it back."""
    from diffusers import SanaSprintPipeline, SCMScheduler

    return _written(SanaSprintPipeline, folder, autoencoder(), transformer(**changes), SCMScheduler(), dtype)


def image_transformer(seed: int = 7, **changes):
    """A SANA that is not Sprint."""
    return transformer(seed, **{"guidance_embeds": False, "qk_norm": None, **changes})


def image_pipeline(folder: Path, dtype: torch.dtype = torch.float32, **changes):
    """Write a whole SANA folder and return the diffusers pipeline that reads it back."""
    from diffusers import SanaPipeline

    network = image_transformer(**changes)
    return _written(SanaPipeline, folder, autoencoder(), network, flow_scheduler("dpm_solver++", 3.0), dtype)


def write_lora(path: Path, seed: int = 0, rank: int = 4, width: int = 64) -> None:
    """A random LoRA of kohya's naming for the random transformers of a width, whose attention it changes."""
    from safetensors.torch import save_file

    generator, tensors = torch.Generator().manual_seed(seed), {}
    for block in range(3):
        for layer in ("attn1_to_q", "attn1_to_v", "attn2_to_v", "attn2_to_out_0"):
            name = f"lora_unet_transformer_blocks_{block}_{layer}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=generator) * 0.3
            tensors[f"{name}.lora_up.weight"] = torch.randn(width, rank, generator=generator) * 0.3
            tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)


def controlnet(seed: int = 8, **changes):
    from diffusers import SanaControlNetModel

    torch.manual_seed(seed)
    settings = {
        **SIZE,
        "num_layers": 2,
    }
    return stirred(SanaControlNetModel(**{**settings, **changes}), seed, 0.05)


def _written(pipeline_class, folder: Path, vae, network, scheduler, dtype: torch.dtype):
    from transformers import AutoTokenizer

    pipeline = pipeline_class(
        tokenizer=AutoTokenizer.from_pretrained(str(DEMO / "tokenizer"), local_files_only=True),
        text_encoder=text_encoder().to(dtype),
        vae=vae.to(dtype),
        transformer=network.to(dtype),
        scheduler=scheduler,
    )
    pipeline.save_pretrained(folder)
    shutil.rmtree(folder / "tokenizer")
    shutil.copytree(DEMO / "tokenizer", folder / "tokenizer")
    pipeline = pipeline_class.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
