"""Open weight files lazily and say what they hold.

A checkpoint is a safetensors file, a PyTorch file of plain tensors (.pth), or a folder as diffusers
and transformers write them: a config.json beside one file or beside shards with an index. Opening
reads headers alone; a tensor is a view of the memory-mapped file until somebody writes to it. A
PyTorch file is read with weights_only: code in it is never run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

BASENAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
VARIANTS = ("", ".bf16", ".fp16", ".fp32")
PYTORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")
LFS_MARK = b"version https://git-lfs.github.com/spec/"

SIGNATURES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("SANA ControlNet", ("controlnet_blocks.0.weight", "input_block.weight")),
    ("SANA ControlNet in NVlabs' naming", ("controlnet.0.copied_block.scale_shift_table", "attention_y_norm.weight")),
    ("SANA-Sprint transformer", ("time_embed.guidance_embedder.linear_1.weight", "caption_norm.weight")),
    ("SANA-Video transformer", ("transformer_blocks.0.ff.conv_temp.weight", "caption_norm.weight")),
    ("SANA transformer", ("transformer_blocks.0.ff.conv_inverted.weight", "caption_norm.weight")),
    ("SANA-Video transformer in NVlabs' naming", ("blocks.0.mlp.t_conv.weight", "attention_y_norm.weight")),
    ("SANA-Sprint transformer in NVlabs' naming", ("cfg_embedder.mlp.0.weight", "attention_y_norm.weight")),
    ("SANA transformer in NVlabs' naming", ("blocks.0.mlp.inverted_conv.conv.weight", "attention_y_norm.weight")),
    ("DC-AE", ("encoder.down_blocks.0.0.conv1.weight", "decoder.conv_in.weight", "decoder.norm_out.weight")),
    ("DC-AE", ("encoder.conv_in.conv.weight", "decoder.conv_in.weight", "decoder.norm_out.weight")),
    ("DC-AE in NVlabs' naming", ("encoder.project_in.conv.weight", "decoder.project_in.main.conv.weight")),
    ("DC-AE in NVlabs' naming", ("encoder.project_in.conv.conv.weight", "decoder.project_in.main.conv.weight")),
    ("Gemma-3 text encoder", ("layers.0.self_attn.q_norm.weight", "layers.0.pre_feedforward_layernorm.weight")),
    (
        "Gemma-3 text encoder",
        ("model.layers.0.self_attn.q_norm.weight", "model.layers.0.pre_feedforward_layernorm.weight"),
    ),
    ("Gemma-2 text encoder", ("layers.0.pre_feedforward_layernorm.weight", "embed_tokens.weight")),
    ("Gemma-2 text encoder", ("model.layers.0.pre_feedforward_layernorm.weight", "model.embed_tokens.weight")),
    ("language model that is not Gemma-2", ("model.layers.0.self_attn.q_proj.weight",)),
    ("Stable Diffusion XL checkpoint", ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids",)),
    ("Stable Diffusion XL checkpoint", ("conditioner.embedders.1.model.ln_final.weight",)),
    ("Stable Diffusion 2 checkpoint", ("cond_stage_model.model.ln_final.weight",)),
    ("Stable Diffusion 1 checkpoint", ("cond_stage_model.transformer.text_model.final_layer_norm.weight",)),
    ("Stable Diffusion checkpoint", ("model.diffusion_model.input_blocks.0.0.weight",)),
    ("Stable Diffusion 3 model", ("model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight",)),
    ("Flux model", ("double_blocks.0.img_attn.qkv.weight",)),
    ("Flux model", ("model.diffusion_model.double_blocks.0.img_attn.qkv.weight",)),
    ("Wan video model", ("blocks.0.cross_attn.k.weight", "patch_embedding.weight")),
    ("Wan VAE in Wan's naming", ("decoder.middle.0.residual.0.gamma", "conv2.weight")),
    ("Wan VAE", ("decoder.mid_block.resnets.0.norm1.gamma", "post_quant_conv.weight")),
    ("LTX-2 video VAE", ("decoder.mid_block.resnets.0.conv1.conv.weight", "latents_mean")),
    ("Stable Diffusion VAE", ("decoder.mid.block_1.norm1.weight",)),
    ("Stable Diffusion VAE", ("decoder.mid_block.resnets.0.norm1.weight",)),
    ("T5 text encoder", ("encoder.block.0.layer.0.SelfAttention.q.weight",)),
    ("CLIP text encoder", ("text_model.encoder.layers.0.self_attn.q_proj.weight",)),
)
"""What a file is by keys that it alone holds; the first row whose keys are all there wins."""

PREFIX = "model.diffusion_model."
"""What ComfyUI's own savers put before a transformer's names."""

LORA_MARKS = (".lora_A.", ".lora_down.", ".lora.down.", "lora_unet_", "lora_transformer_", ".hada_w1_a", ".lokr_w1")


class UnusableFile(ValueError):
    """A weight file or folder that cannot be used, with the reason and what to do."""


@dataclass(frozen=True)
class Checkpoint(Mapping[str, "object"]):
    """A lazily opened checkpoint: a mapping of key to CPU tensor, views of the mapped file."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    config: dict | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    _readers: dict[str, Callable] = field(default_factory=dict, repr=False)

    def config_with(self, key: str) -> dict | None:
        """The config where it says ``key``, and so is of the model that was looked for; else None."""
        return self.config if self.config and key in self.config else None

    def __getitem__(self, key: str):
        return self._readers[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def renamed(self, table: Mapping[str, tuple[str, int, int]]) -> Checkpoint:
        """The same tensors under other names: new name to (old name, part, parts).

        ``parts`` above 1 cuts the old tensor's first dimension into that many equal views; a single
        number is shared.
        """
        shapes, readers = {}, {}
        for new, (old, part, parts) in table.items():
            shape = self.shapes[old]
            if parts == 1 or math.prod(shape) == 1:
                shapes[new], readers[new] = shape, self._readers[old]
                continue
            if shape[0] % parts:
                raise UnusableFile(f"{self.path}: {old} has {shape[0]} rows, which {parts} cannot share")
            shapes[new] = (shape[0] // parts, *shape[1:])
            readers[new] = partial(_rows, self._readers[old], part, parts)
        return Checkpoint(self.path, shapes, self.config, self.metadata, readers)

    def table(self, rows: Iterable[tuple[str, tuple[str, int, int]]]) -> dict[str, tuple[str, int, int]]:
        """Rows of a table for :meth:`renamed`; UnusableFile where two of the file's keys would become one."""
        table: dict[str, tuple[str, int, int]] = {}
        for new, source in rows:
            if new in table:
                raise UnusableFile(f"{self.path}: the keys {table[new][0]} and {source[0]} are both {new}")
            table[new] = source
        return table

    def as_matrices(self, keys: Iterable[str]) -> Checkpoint:
        """The same with those tensors, kernels [O, I, 1, 1], as matrices [O, I]."""
        shapes, readers = dict(self.shapes), dict(self._readers)
        for key in keys:
            if shapes[key][2:] != (1, 1):
                raise UnusableFile(f"{self.path}: {key} has the shape {list(shapes[key])} where [O, I, 1, 1] belongs")
            shapes[key] = shapes[key][:2]
            readers[key] = partial(_matrix, readers[key])
        return Checkpoint(self.path, shapes, self.config, self.metadata, readers)

    def read_alone(self, key: str):
        """A tensor in a mapping of its own, whose memory goes when the tensor does."""
        return self._readers[key](alone=True)


def _rows(read: Callable, part: int, parts: int, **how):
    return read(**how).chunk(parts)[part]


def _matrix(read: Callable, **how):
    return read(**how).flatten(1)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a safetensors file or a folder of them.

    Raises FileNotFoundError or UnusableFile, naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    config = _read_config(path / "config.json") if path.is_dir() else _read_config(path.with_suffix(".json"))
    shapes, readers, metadata = {}, {}, {}
    for file in weight_files(path):
        if file.suffix in PYTORCH_SUFFIXES:
            for key, tensor in _open_pytorch(file).items():
                shapes[key], readers[key] = tuple(tensor.shape), partial(_itself, tensor)
            continue
        handle = _open_file(file)
        metadata.update(handle.metadata() or {})
        for key in handle.keys():  # noqa: SIM118 - a safetensors handle, no dict
            if key in shapes:
                raise UnusableFile(f"{file} holds {key}, which another file of {path} holds too; keep one of them")
            shapes[key] = tuple(handle.get_slice(key).get_shape())
            readers[key] = partial(_tensor, handle, file, key)
    if not shapes:
        raise UnusableFile(f"{path} holds no tensors")
    from .comfy_quant import dequantised  # it builds on this file

    return dequantised(Checkpoint(path, shapes, config, metadata, readers))


def _itself(tensor, alone: bool = False):
    return tensor


def _tensor(handle, file: Path, key: str, alone: bool = False):
    return (_open_file(file) if alone else handle).get_tensor(key)


def _open_pytorch(file: Path) -> dict:
    """The tensors of a PyTorch file, mapped where its format allows; nothing else of it is used."""
    import torch

    try:
        try:
            held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file in the format before PyTorch 1.6 cannot be mapped
            held = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnusableFile(
            f"{file} cannot be read as a PyTorch file of plain tensors ({reason}); it may be cut short, or hold code, "
            "which is never run: download it again, or get it as safetensors"
        ) from error
    for name in ("state_dict", "model", "module"):
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict):
        raise UnusableFile(f"{file} holds {type(held).__name__}, not a dictionary of tensors")
    return {key: value for key, value in held.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def weight_files(path: Path) -> list[Path]:
    """The files of a checkpoint: the file itself, a folder's one safetensors file, or its shards."""
    if path.is_file():
        return [path]
    for name in (base + variant for base in BASENAMES for variant in VARIANTS):
        stem, _, variant = name.partition(".")
        index = path / (f"{stem}.safetensors.index.json" if not variant else f"{stem}.safetensors.index.{variant}.json")
        if index.is_file():
            return _shards(index)
        if (path / f"{name}.safetensors").is_file():
            return [path / f"{name}.safetensors"]
    names = sorted(p.name for p in path.iterdir())
    if old := [name for name in names if name.endswith(PYTORCH_SUFFIXES)]:
        raise UnusableFile(f"{path} holds its weights as {old[0]} alone; get the folder's safetensors files instead")
    there = ", ".join(names[:8]) or "nothing"
    raise FileNotFoundError(f"{path} holds no {BASENAMES[0]}.safetensors or model.safetensors (it holds {there})")


def _shards(index: Path) -> list[Path]:
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UnusableFile(f"{index} has no weight_map; download it again")
    for name in table.values():
        if not isinstance(name, str) or not name or Path(name).name != name or "\\" in name or "\0" in name:
            raise UnusableFile(f"{index} names the shard {name!r}, which is no file of its folder")
    names = sorted(set(table.values()))
    for name in names:
        if not (index.parent / name).is_file():
            raise FileNotFoundError(
                f"{index} names the shard {name}, which is missing; download it into {index.parent}"
            )
    return [index.parent / name for name in names]


def _open_file(file: Path):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        refuse_pointer(file)
        size = file.stat().st_size if file.exists() else 0
        raise UnusableFile(
            f"{file} ({size:,} bytes) is not a whole safetensors file ({error}); "
            "it may be cut short or of another format: download it again"
        ) from error


def refuse_pointer(file: Path) -> None:
    """UnusableFile where a git clone without Git LFS left a text of some 130 bytes in a large file's place."""
    with file.open("rb") as stream:
        if stream.read(len(LFS_MARK)) == LFS_MARK:
            raise UnusableFile(
                f"{file} is a Git LFS pointer, not the file itself: run `git lfs pull` in its folder, or download it"
            )


def read_json(file: Path) -> dict:
    """A JSON object from a file; UnusableFile where it is not one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UnusableFile(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UnusableFile(f"{file} holds {type(value).__name__}, not a JSON object")
    return value


def _read_config(file: Path) -> dict | None:
    return read_json(file) if file.is_file() else None


def describe(shapes: Mapping[str, object]) -> str | None:
    """What a checkpoint is, in words, or None; ``shapes`` is any mapping with its keys."""
    for names in (shapes, {key.removeprefix(PREFIX) for key in shapes}):
        for kind, keys in SIGNATURES:
            if all(key in names for key in keys):
                return kind
    if any(mark in key for key in shapes for mark in LORA_MARKS):
        return "LoRA"
    return None


def require_kind(checkpoint: Checkpoint, wanted: tuple[str, ...], node_hint: str) -> str:
    """The checkpoint's kind where it is one of ``wanted``; else UnusableFile saying what it is."""
    kind = describe(checkpoint.shapes)
    if kind in wanted:
        return kind
    said = f"is a {kind}" if kind else f"holds unknown keys such as {', '.join(sorted(checkpoint.shapes)[:3])}"
    raise UnusableFile(f"{checkpoint.path} {said}, not a {wanted[0]}. {node_hint}")


@contextmanager
def describing(checkpoint: Checkpoint, kind: str):
    """Reading an architecture off shapes or a config: whatever goes wrong there is the file's fault and is said so."""
    try:
        yield
    except (UnusableFile, OSError):
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise UnusableFile(
            f"{checkpoint.path}: its tensors' shapes or its config.json do not describe a {kind} ({error}); it may be "
            "damaged: download it again"
        ) from error


def load_strictly(module, checkpoint: Checkpoint, rename=lambda key: key) -> None:
    """Put a checkpoint's tensors into a module without copying them.

    ``rename`` gives a key's name in the module, or None for a key to leave out. Raises
    UnusableFile for a missing, unknown or misshapen key.
    """
    expected = {key: tuple(value.shape) for key, value in module.state_dict(keep_vars=True).items()}
    rows = [(new, (key, 0, 1)) for key in checkpoint if (new := rename(key)) is not None]
    names = {new: key for new, (key, _, _) in checkpoint.table(rows).items()}
    missing = sorted(expected.keys() - names.keys())
    unknown = sorted(names.keys() - expected.keys())
    if missing or unknown:
        counts = [
            f"{len(keys)} {word} (such as {keys[0]}{said(keys[0])})"
            for keys, word, said in (
                (missing, "missing", lambda key: f" {list(expected[key])}"),
                (unknown, "unknown", lambda key: ""),
            )
            if keys
        ]
        raise UnusableFile(f"{checkpoint.path} does not fit its architecture: keys {' and '.join(counts)}")
    for new, key in names.items():
        if checkpoint.shapes[key] != expected[new]:
            raise UnusableFile(
                f"{checkpoint.path}: {key} has the shape {list(checkpoint.shapes[key])} where "
                f"{list(expected[new])} was expected; its config.json may belong to another model"
            )
    module.load_state_dict({new: checkpoint[key] for new, key in names.items()}, strict=True, assign=True)
    left = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    if left:
        raise UnusableFile(f"{checkpoint.path}: {type(module).__name__} was left without {left[0]}")
    module.eval().requires_grad_(False)
    for parameter in module.parameters():
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize > 4:
            raise UnusableFile(
                f"{checkpoint.path} holds {parameter.dtype} weights; float32, float16, bfloat16, float8_e4m3fn and "
                "float8_e5m2 are read"
            )


MOST_WEIGHTS, LARGEST_SIDE = 6_000, 1024
"""What a config may ask for: tensors (the largest published model has 1,600) and latent cells on a side."""


def build_empty(make):
    """``make()`` with weights that hold no memory: whatever torch.empty and torch.randn would fill.

    Those two begin every weight in diffusers and transformers; tables that files do not hold
    (rotary frequencies, position embeddings) come from other calls and are computed for real.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyWeights(TorchFunctionMode):
        count = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if function in (torch.empty, torch.randn):
                kwargs["device"] = "meta"
                self.count += 1
                if self.count > MOST_WEIGHTS:
                    raise UnusableFile(f"it asks for more than {MOST_WEIGHTS} weights")
            return function(*args, **kwargs)

    with EmptyWeights():
        return make()


def build_from_config(make_class, config: dict, path: Path):
    """An empty module of a diffusers class from its config.json; unknown entries are left out."""
    import inspect

    known = inspect.signature(make_class.__init__).parameters
    arguments = {key: value for key, value in config.items() if key in known}
    side = arguments.get("sample_size")
    if isinstance(side, (int, float)) and not 0 < side <= LARGEST_SIDE:
        raise UnusableFile(f"{path}: its config.json says a sample_size of {side}; 1 to {LARGEST_SIDE} can be built")
    try:
        return build_empty(lambda: make_class(**arguments))
    except Exception as error:
        raise UnusableFile(f"{path}: its config.json does not describe a {make_class.__name__} ({error})") from error
