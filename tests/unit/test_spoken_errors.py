"""What an error is called in ComfyUI's dialog, and what stays a bug."""

from __future__ import annotations

import drawing
import pytest
import torch
from sana_nodes.host import errors


def shown(kind: type) -> str:
    """An exception's type as ComfyUI's dialog has it."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def test_errors_of_nodes_are_sana_errors(host, reference):
    with pytest.raises(ValueError, match="batch_size is 0") as caught:
        drawing.call("SanaEmptyLatent", batch_size=0)
    assert shown(caught.type) == "SanaError" and str(caught.value).startswith("batch_size is 0")
    with pytest.raises(FileNotFoundError, match="absent") as caught:
        drawing.call("SanaLoadVAE", vae_name="absent")
    assert shown(caught.type) == "SanaError" and isinstance(caught.value, errors.SanaError)


def test_errors_of_core_nodes_that_use_our_vae(host, reference):
    if host.name != "comfyui":
        pytest.skip("core nodes run in ComfyUI")
    vae = drawing.call("SanaLoadVAE", vae_name="tiny")[0]
    with pytest.raises(ValueError) as caught:
        vae.decode(torch.zeros(1, 4, 8, 8))
    assert shown(caught.type) == "SanaError"


def test_bugs_stay_bugs():
    @errors.spoken
    def broken():
        return torch.zeros(2) @ torch.zeros(3)

    with pytest.raises(RuntimeError) as caught:
        broken()
    assert caught.type is RuntimeError
    with pytest.raises(ValueError) as caught:  # this file is no file of the package's
        errors.spoken(int)("x")
    assert caught.type is ValueError
