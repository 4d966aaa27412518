"""Build modules on the meta device and load a checkpoint's tensors into them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path

from .checkpoint import Checkpoint, UnusableFile, Value, brief

MOST_WEIGHTS, LARGEST_NUMBER = 6_000, 1024
"""What a config may ask for: tensors (the largest published model has 1,600), and numbers that no shape shows."""


NOT_DESCRIBED = (
    *(ValueError, TypeError, AttributeError, LookupError),
    *(ArithmeticError, RuntimeError, AssertionError, NameError),
)
"""What the classes of diffusers raise for configs that are not theirs."""


def build_empty(make: Callable):
    """``make()`` with weights that take no memory: tensors of torch.empty and torch.randn are on the meta device.

    diffusers and transformers create every weight with these two; tables that are not in files (rotary
    frequencies, position embeddings) come from other calls and are computed.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class EmptyWeights(TorchFunctionMode):
        count = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            if getattr(function, "__module__", "") == "torch.nn.init":
                tensor = kwargs["tensor"] if "tensor" in kwargs else args[0]
                if tensor.is_meta:  # else torch works out what it would do to each weight
                    return tensor
            if function in (torch.empty, torch.randn):
                kwargs["device"] = "meta"
                self.count += 1
                if self.count > MOST_WEIGHTS:
                    raise UnusableFile(f"it has more than {MOST_WEIGHTS} weights")
            return function(*args, **kwargs)

    with EmptyWeights():
        return make()


def build_from_config(make_class: type, checkpoint: Checkpoint, own: dict | None, from_shapes: Callable[[], dict]):
    """An empty module of a diffusers class, from its config.json (``own``) or otherwise from ``from_shapes()``.

    Entries that the class does not have are ignored. UnusableFile if the config.json does not describe
    such a model; errors with a config from shapes are not the file's and are raised unchanged.
    """
    known = inspect.signature(make_class).parameters
    config = from_shapes() if own is None else own
    arguments = {key: value for key, value in config.items() if key in known}
    if own is None:
        return build_empty(lambda: make_class(**arguments))
    _check_types(arguments, make_class, checkpoint)
    _check_numbers(arguments, checkpoint)
    try:
        return build_empty(lambda: make_class(**arguments))
    except NOT_DESCRIBED as error:
        raise UnusableFile(
            f"{checkpoint.config_file} does not describe a {make_class.__name__} ({brief(error)}); "
            "it may belong to another model: download it again"
        ) from error


def _check_types(arguments: Mapping, make_class: type, checkpoint: Checkpoint) -> None:
    """UnusableFile for a value of another type than the class has: many fail only in a model's forward."""
    known = inspect.signature(make_class).parameters
    for key, value in arguments.items():
        if not _is_like(value, known[key].default, str(known[key].annotation)):
            raise UnusableFile(
                f"{checkpoint.config_file} does not describe a {make_class.__name__} ({key} is {brief(repr(value))}, "
                f"not like {brief(known[key].default)}); it may belong to another model: download it again"
            )


def _is_like(value: object, default: object, annotation: str = "") -> bool:
    """Whether a value of a config has the type of a default: lists have items like its first, or are of texts."""
    if value is None:
        return default is None or "None" in annotation or "Optional" in annotation
    if default is None:
        return isinstance(value, str) if "str" in annotation else _is_like(value, 0.0)
    if isinstance(default, str):
        return all(isinstance(item, str) for item in value) if isinstance(value, list) else isinstance(value, str)
    if isinstance(default, (list, tuple)):
        if not isinstance(value, (list, tuple)):
            return isinstance(value, bool) and bool(default) and isinstance(default[0], bool)
        first = max(default, key=lambda item: item != (), default=0.0)
        return all(_is_like(item, first) for item in value)
    if isinstance(default, bool):
        return isinstance(value, bool)
    return isinstance(value, int if isinstance(default, int) else (int, float)) and not isinstance(value, bool)


def _check_numbers(arguments: Mapping, checkpoint: Checkpoint) -> None:
    """UnusableFile for numbers beyond anything that the file's weights could be, before anything is built."""
    most = max([LARGEST_NUMBER, *(side for entry in checkpoint.entries.values() for side in entry.shape)])
    for key, value in arguments.items():
        for number in _numbers(value):
            if not abs(number) <= most or (isinstance(number, int) and number < 0):  # NaN too
                raise UnusableFile(
                    f"{checkpoint.config_file} says {key} is {str(value)[:80]}, which no tensor of its weights "
                    "matches; it may belong to another model: download it again"
                )


def _numbers(value: object):
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def load_strictly(module, checkpoint: Checkpoint, rename: Callable[[str], str | None] = str) -> dict[str, Value]:
    """Load a checkpoint's tensors into a module without copying them.

    ``rename`` returns the name of a key in the module, or None for a key to ignore. Returns the values of
    quantised weights by name: a host sets them when it knows the dtype (formats.set_values). Raises
    UnusableFile for a missing or unknown key, or a key with the wrong shape.
    """
    kept = ((new, key, 0, 1) for key in checkpoint if (new := rename(key)) is not None)
    named = checkpoint.renamed(kept)
    expected = {key: tuple(value.shape) for key, value in module.state_dict(keep_vars=True).items()}
    _check_keys(named, expected)
    quantised = any(entry.value is not None for entry in named.entries.values())
    others = placeholder_dtype(named) if quantised else None
    state = {key: _stored(entry, others) for key, entry in named.entries.items()}
    module.requires_grad_(False)  # else torch refuses integers here, before they get their message below
    module.load_state_dict(state, strict=True, assign=True)
    left = [n for n, t in [*module.named_parameters(), *module.named_buffers()] if t.is_meta]
    if left:
        raise UnusableFile(f"{checkpoint.path} has no values for {left[0]} of {type(module).__name__}")
    module.eval()
    _check_dtypes(module, checkpoint.path)
    return {key: entry.value for key, entry in named.entries.items() if entry.value is not None}


def placeholder_dtype(checkpoint: Checkpoint):
    """float16 if most weights that are not quantised have it, else bfloat16: what the quantised ones were before."""
    import torch

    counts: dict = {}
    for entry in checkpoint.entries.values():
        if entry.value is None:
            tensor = entry.read()
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.numel()
    most = max(counts, key=lambda dtype: counts[dtype], default=None)
    return torch.float16 if most == torch.float16 else torch.bfloat16


def _stored(entry, placeholder):
    """The stored tensor; for a quantised weight a ``placeholder`` of its shape that takes no memory."""
    import torch

    if entry.value is None:
        return entry.read()
    return torch.zeros((), dtype=placeholder).expand(entry.shape)


def _check_keys(checkpoint: Checkpoint, expected: Mapping[str, tuple[int, ...]]) -> None:
    missing = sorted(expected.keys() - checkpoint.keys())
    unknown = sorted(checkpoint.keys() - expected.keys())
    counts = []
    if missing:
        counts.append(f"{len(missing)} missing (such as {missing[0]} {list(expected[missing[0]])})")
    if unknown:
        counts.append(f"{len(unknown)} unknown (such as {unknown[0]})")
    if counts:
        raise UnusableFile(f"{checkpoint.path} does not fit its architecture: keys {' and '.join(counts)}")
    for key, entry in checkpoint.entries.items():
        if entry.shape != expected[key]:
            blame = f"{checkpoint.config_file} may belong to another model" if checkpoint.config_file else (
                "its sizes are not those of a published model: put its config.json beside it"
            )  # fmt: skip
            raise UnusableFile(
                f"{checkpoint.path}: {key} has the shape {list(entry.shape)} where {list(expected[key])} was "
                f"expected; {blame}"
            )


def _check_dtypes(module, path: Path) -> None:
    for parameter in module.parameters():
        if not parameter.dtype.is_floating_point or parameter.dtype.itemsize > 4:
            raise UnusableFile(
                f"{path} holds {parameter.dtype} weights; float32, float16, bfloat16, float8_e4m3fn and float8_e5m2 "
                "are supported"
            )
