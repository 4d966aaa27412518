"""Weights as others write them: NVlabs' names of transformers, ControlNets and DC-AE, ComfyUI's prefix, scaled fp8."""

from __future__ import annotations

import re

import torch

TRANSFORMER = (
    (r"^patch_embed(ding|\.proj)\.", "x_embedder.proj."),
    (r"^caption_projection\.linear_", "y_embedder.y_proj.fc"),
    (r"^caption_norm\.", "attention_y_norm."),
    (r"^time_embed\.(emb\.)?timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_embed\.(emb\.)?timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^time_embed\.guidance_embedder\.linear_1\.", "cfg_embedder.mlp.0."),
    (r"^time_embed\.guidance_embedder\.linear_2\.", "cfg_embedder.mlp.2."),
    (r"^time_embed\.linear\.", "t_block.1."),
    (r"^proj_out\.", "final_layer.linear."),
    (r"^scale_shift_table", "final_layer.scale_shift_table"),
    (r"attn1\.(norm_q|norm_k)\.", lambda m: f"attn.{m[1][-1]}_norm."),
    (r"attn1\.to_out\.0\.", "attn.proj."),
    (r"attn2\.to_q\.", "cross_attn.q_linear."),
    (r"attn2\.(norm_q|norm_k)\.", lambda m: f"cross_attn.{m[1][-1]}_norm."),
    (r"attn2\.to_out\.0\.", "cross_attn.proj."),
    (r"ff\.conv_temp\.", "mlp.t_conv."),
    (r"ff\.conv_(\w+)\.", r"mlp.\1_conv.conv."),
    (r"^transformer_blocks\.", "blocks."),
)
CONTROLNET = (
    (r"^input_block\.", "controlnet.0.before_proj."),
    (r"^controlnet_blocks\.(\d+)\.", r"controlnet.\1.after_proj."),
    *TRANSFORMER,
    (r"^blocks\.(\d+)\.", r"controlnet.\1.copied_block."),
)
DC_AE = (
    (r"^(\w+)\.(down|up)_blocks\.(\d+)\.(\d+)\.", r"\1.stages.\3.op_list.\4."),
    (r"encoder\.conv_in\.", "encoder.project_in.conv."),
    (r"encoder\.conv_out\.", "encoder.project_out.main.op_list.0.conv."),
    (r"decoder\.conv_in\.", "decoder.project_in.main.conv."),
    (r"decoder\.norm_out\.", "decoder.project_out.op_list.0."),
    (r"decoder\.conv_out\.", "decoder.project_out.op_list.2.conv."),
    (r"attn\.to_qkv_multiscale\.(\d+)\.proj_in\.", r"context_module.main.aggreg.\1.0."),
    (r"attn\.to_qkv_multiscale\.(\d+)\.proj_out\.", r"context_module.main.aggreg.\1.1."),
    (r"attn\.to_qkv\.", "context_module.main.qkv.conv."),
    (r"attn\.to_out\.", "context_module.main.proj.conv."),
    (r"attn\.norm_out\.", "context_module.main.proj.norm."),
    (r"(stages\.\d+\.op_list\.\d+)\.conv_out\.conv_(\w+)\.", r"\1.local_module.main.\2_conv.conv."),
    (r"(stages\.\d+\.op_list\.\d+)\.conv_out\.norm\.", r"\1.local_module.main.point_conv.norm."),
    (r"(stages\.\d+\.op_list\.\d+)\.(conv1|conv2|conv)\.(weight|bias)$", r"\1.main.\2.conv.\3"),
    (r"(stages\.\d+\.op_list\.\d+)\.norm\.", r"\1.main.conv2.norm."),
)
"""diffusers' names to the original ones: what is found to what takes its place, one after another."""


def _renamed(weights: dict, table) -> dict:
    out = {}
    for name, value in weights.items():
        for found, new in table:
            name = re.sub(found, new, name)
        out[name] = value.contiguous()
    return out


def _fused(weights: dict, parts: tuple[str, ...], into: str) -> dict:
    """The same with the tensors whose names differ in ``parts`` alone put into one."""
    out = dict(weights)
    for name in [name for name in weights if re.search(rf"\.{re.escape(parts[0])}\.(weight|bias)$", name)]:
        pieces = [out.pop(name.replace(parts[0], part)) for part in parts]
        out[name.replace(parts[0], into)] = torch.cat(pieces)
    return out


def nvlabs(weights: dict, table=TRANSFORMER, positions: int = 4) -> dict:
    """A transformer's weights as NVlabs writes them: fused, renamed, with what inference does not use.

    ``positions``: rows of pos_embed, one for each latent cell of the size that the model is made for.
    """
    width = weights["caption_norm.weight"].shape[0]
    fused = _fused(weights, ("attn1.to_q", "attn1.to_k", "attn1.to_v"), "attn.qkv")
    fused = _fused(fused, ("attn2.to_k", "attn2.to_v"), "cross_attn.kv_linear")
    new = dict.fromkeys(("y_embedder.y_embedding", "pos_embed", "logvar_linear.weight", "logvar_linear.bias"))
    shapes = ((300, weights["caption_projection.linear_1.weight"].shape[1]), (1, positions, width), (1, width), (1,))
    like = weights["caption_norm.weight"]
    return {**_renamed(fused, table), **{n: like.new_zeros(s) for n, s in zip(new, shapes)}}


def nvlabs_controlnet(weights: dict, base: dict) -> dict:
    """A ControlNet's weights as NVlabs writes them: with the whole transformer that it leads."""
    return {**nvlabs(base), **nvlabs(weights, CONTROLNET)}


def original_dc_ae(weights: dict) -> dict:
    """A DC-AE's weights as mit-han-lab writes them: qkv fused, matrices as kernels of 1 by 1."""
    fused = _fused(weights, ("attn.to_q", "attn.to_k", "attn.to_v"), "attn.to_qkv")
    kernels = (".attn.to_qkv.weight", ".attn.to_out.weight")
    fused = {n: v[:, :, None, None] if n.endswith(kernels) else v for n, v in fused.items()}
    return _renamed(fused, DC_AE)


def prefixed(weights: dict) -> dict:
    return {f"model.diffusion_model.{name}": value for name, value in weights.items()}


def scaled_fp8(weights: dict, dtype=torch.float8_e4m3fn, suffix="scale_weight", rows=False) -> dict:
    """Matrices divided by a scale and stored in 8 bits, as ComfyUI's converters do; a scale for each with ``rows``."""
    top, out = torch.finfo(dtype).max, {"scaled_fp8": torch.zeros(2, dtype=dtype)}
    for name, value in weights.items():
        if value.ndim != 2 or not name.endswith(".weight"):
            out[name] = value
            continue
        scale = (value.abs().amax(1, keepdim=True) if rows else value.abs().max()).float() / top
        out[name] = (value.float() / scale).to(dtype)
        out[name.removesuffix("weight") + suffix] = scale
        out[name.removesuffix("weight") + "scale_input"] = torch.tensor(1.0)
    return out


def true_values(weights: dict) -> dict:
    """What a scaled fp8 file means, in float32."""
    out = {}
    for name, value in weights.items():
        scale = weights.get(name.removesuffix("weight") + "scale_weight", weights.get(f"{name}_scale"))
        if not name.endswith(("scale_weight", "weight_scale", "scale_input", "scaled_fp8")):
            out[name] = value.float() if scale is None else value.float() * scale
    return out
