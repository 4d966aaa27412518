"""Damage what stands beside the weights: config.json of each part, the files of a pipeline, and indexes of shards."""

from __future__ import annotations

import json

import layouts
import tiny
from fuzz_case import Case, Way, damage_json, damaged_bytes, odd_tensors, replace
from safetensors.torch import save_file
from sana_nodes.model_loaders.controlnet import load_controlnet
from sana_nodes.model_loaders.pipeline import load_pipeline
from sana_nodes.model_loaders.text_encoder import load_text_encoder
from sana_nodes.model_loaders.transformer import load_transformer
from sana_nodes.model_loaders.vae import load_vae

LOADERS = {
    **dict.fromkeys(("image", "sprint", "video"), load_transformer),
    "control": load_controlnet,
    **dict.fromkeys(("dc_ae", "wan", "ltx2"), load_vae),
    "gemma": load_text_encoder,
}
MORE = {
    "gemma": ("num_labels", "auto_map", "_attn_implementation", "rope_scaling", "layer_types", "quantization_config"),
    "dc_ae": (*("scaling_factor",) * 9, "auto_map"),
    "wan": (*("latents_mean", "latents_std") * 3, "is_residual", "attn_scales", "patch_size"),
}
"""Entries that a config may have too."""


def _config_of(*names: str) -> Way:
    def config(case: Case):
        """The config.json in a model's folder."""
        name = case.rng.choice(names)
        folder = case.copy(case.samples.folders[name])
        damage_json(case, folder / "config.json", MORE.get(name, ()))
        return lambda: LOADERS[name](folder)

    return config


def _config_beside(*names: str) -> Way:
    def config_beside(case: Case):
        """The config beside a model's one file, which has the file's name, or that of another model."""
        name = case.rng.choice(names)
        other = case.rng.choice([name, name, case.rng.choice(list(LOADERS))])
        file = case.weights(case.samples.tensors[name], "alone.safetensors")
        beside = case.folder / ("config.json" if name == "gemma" and case.rng.random() < 0.6 else "alone.json")
        beside.write_text(json.dumps(case.samples.config(other)))
        if other == name:
            damage_json(case, beside, MORE.get(name, ()))
        if name == "gemma":
            return lambda: load_text_encoder(file, tiny.DEMO / "tokenizer")
        return lambda: LOADERS[name](file)

    return config_beside


def _weights_of(*names: str) -> Way:
    def weights(case: Case):
        """The weights in a model's folder, whose config.json is right."""
        name = case.rng.choice(names)
        folder = case.copy(case.samples.folders[name])
        file = next(folder.glob("*.safetensors"))
        if case.rng.random() < 0.3:
            replace(file, damaged_bytes(case.rng, file.read_bytes()))
        else:
            file.unlink()
            save_file(odd_tensors(case.rng, case.samples.tensors[name]), file)
        return lambda: LOADERS[name](folder)

    return weights


def _original(case: Case, name: str) -> dict:
    """The tensors of a sample as its authors name them."""
    tensors = case.samples.tensors[name]
    if name == "control":
        return layouts.nvlabs_controlnet(tensors, case.samples.tensors["image"])
    if name == "dc_ae":
        return layouts.original_dc_ae(tensors)
    return {tiny.original_wan_name(key): value for key, value in tensors.items()}


def _original_of(*names: str) -> Way:
    def original(case: Case):
        """A file in its authors' naming, without a config: sizes are read from its shapes."""
        name = case.rng.choice(names)
        file = case.weights(odd_tensors(case.rng, _original(case, name)))
        return lambda: LOADERS[name](file)

    return original


def _alone_of(*names: str) -> Way:
    def alone(case: Case):
        """A file in diffusers' naming, without a config."""
        name = case.rng.choice(names)
        file = case.weights(odd_tensors(case.rng, case.samples.tensors[name]))
        return lambda: LOADERS[name](file)

    return alone


def scheduler(case: Case):
    folder = case.copy(case.samples.pipeline)
    damage_json(case, folder / "scheduler" / "scheduler_config.json", ("flow_shift", "shift") * 9)
    return lambda: load_pipeline(folder)


def model_index(case: Case):
    folder = case.copy(case.samples.pipeline)
    damage_json(case, folder / "model_index.json", ("_class_name",) * 3)
    return lambda: load_pipeline(folder)


def pipeline_part(case: Case):
    """A part of a pipeline that is missing, a file, or another part."""
    folder = case.copy(case.samples.pipeline)
    one, other = case.rng.sample(["transformer", "vae", "text_encoder", "tokenizer", "scheduler"], 2)
    target = folder / "moved"
    (folder / one).rename(target)
    how = case.rng.randrange(4)
    if how == 0:
        (folder / one).touch()
    elif how == 1:
        (folder / one).symlink_to(other)
    elif how == 2:
        (folder / one).symlink_to(one)
    return lambda: load_pipeline(folder)


def shards(case: Case):
    """The index of a model in two files."""
    name = case.rng.choice(list(LOADERS))
    folder = case.copy(case.samples.folders[name])
    next(folder.glob("*.safetensors")).unlink()
    stem = "model" if name == "gemma" else "diffusion_pytorch_model"
    names = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    tensors = case.samples.tensors[name]
    halves = {key: number % 2 for number, key in enumerate(tensors)}
    for number, file in enumerate(names):
        save_file({key: value for key, value in tensors.items() if halves[key] == number}, folder / file)
    index = folder / f"{stem}.safetensors.index.json"
    table = {key: names[half] for key, half in halves.items()}
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    _damage_index(case, index, table)
    return lambda: LOADERS[name](folder)


def _damage_index(case: Case, index, table: dict) -> None:
    """Damage the whole, or a row of its table."""
    if case.rng.random() < 0.5:
        return damage_json(case, index, ("weight_map",) * 3)
    key = case.rng.choice(list(table))
    odd = ["../config.json", "config.json", "", ".", "missing.safetensors", 5, None, [], "x\0", "a" * 5000, "\ud800"]
    table[key] = case.rng.choice([*odd, *set(table.values())])
    if case.rng.random() < 0.2:
        case.rng.choice([table.clear, lambda: table.update({str(n): "x" for n in range(20_000)})])()
    replace(index, json.dumps({"weight_map": table}))


CONTROLNET = tuple(way("control") for way in (_config_of, _config_beside, _weights_of, _original_of, _alone_of))
VAE = (
    _config_of("dc_ae"),
    _config_of("wan"),
    _config_of("ltx2"),
    _config_beside("dc_ae", "wan", "ltx2"),
    _weights_of("dc_ae", "wan", "ltx2"),
    _original_of("dc_ae", "wan"),
    _alone_of("dc_ae", "wan", "ltx2"),
)
CONFIG = (
    _config_of("image", "sprint"),
    _config_of("video"),
    _config_of("gemma"),
    _config_beside("image", "sprint", "video"),
    _config_beside("gemma"),
)
INDEX = (scheduler, model_index, pipeline_part, shards)
