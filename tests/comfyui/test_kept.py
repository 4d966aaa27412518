"""In ComfyUI what the transformer reads of a prompt is computed once in a run, and never kept beyond it."""

from __future__ import annotations

import drawing
import in_process
import pytest

STEPS = 4


@pytest.fixture
def parts(home, reference):
    with in_process.comfyui(home):
        yield drawing.call("SanaLoadPipeline", pipeline="tiny")


def keys_computed(parts, model=None) -> float:
    """How often in a run each block computes the prompt's keys; the latent beside it."""
    blocks, counts = parts[0].model.diffusion_model.transformer_blocks, []
    hooks = [block.attn2.to_k.register_forward_hook(lambda *_: counts.append(1)) for block in blocks]
    made = drawing.ours((model or parts[0], *parts[1:]), "a red ring", steps=STEPS)
    for hook in hooks:
        hook.remove()
    return len(counts) / len(blocks), made


def calls_itself(apply, given):
    return apply(given["input"], given["timestep"], **given["c"])


def test_once_in_a_run_and_again_in_the_next(parts):
    for _ in range(2):
        count, made = keys_computed(parts)
        assert count == 1
    assert parts[0].model.diffusion_model.kept_of_run is None
    own = parts[0].clone()
    own.set_model_unet_function_wrapper(calls_itself)
    count, same = keys_computed(parts, own)
    assert count == STEPS, "a node that calls the model its own way may change the prompt"
    assert drawing.difference(made, same) < drawing.ROUNDING


def test_wrappers_of_the_call_keep_nothing(parts):
    from comfy.patcher_extension import WrappersMP

    own = parts[0].clone()
    own.add_wrapper(WrappersMP.APPLY_MODEL, lambda executor, *args, **kwargs: executor(*args, **kwargs))
    assert keys_computed(parts, own)[0] == STEPS


def test_weights_that_hooks_change_keep_nothing(parts):
    from types import SimpleNamespace

    from sana_nodes.host.comfyui.kept import _stays_the_same

    patcher = SimpleNamespace(model_options={}, forced_hooks=None)
    plain = SimpleNamespace(model_patcher=patcher, model_options={}, conds={"positive": [{}]})
    assert _stays_the_same(plain)
    plain.conds = {"positive": [{}, {"hooks": object()}]}
    assert not _stays_the_same(plain)
    plain.conds, patcher.forced_hooks = {}, object()
    assert not _stays_the_same(plain)


def test_layers_that_cast_nothing_are_called_as_they_are(parts):
    """The stored dtype is that which is computed in: no cast, and one hook for the tensors that are no layers'."""
    network = parts[0].model.diffusion_model
    layers = [part for part in network.modules() if hasattr(part, "comfy_cast_weights")]
    assert layers and not any(layer.comfy_cast_weights for layer in layers)
    assert sum(bool(part._forward_pre_hooks) for part in network.modules()) == 1
