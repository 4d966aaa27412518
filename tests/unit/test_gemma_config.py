"""A Gemma's config.json: held against the weights before anything is built, and read no further than Gemma needs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time

import pytest
import tiny
import torch
from safetensors.torch import save_file
from sana_nodes.model_loaders import text_encoder
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.files.open import open_checkpoint
from sana_nodes.model_loaders.gemma_config import read_config
from sana_nodes.model_loaders.text_encoder import load_text_encoder

IDS = torch.tensor([[2, 400, 300, 10]])
MILLISECONDS = 250
"""Of the processor, for a config that is refused; the header is read in them too."""


@pytest.fixture(scope="module")
def module():
    return tiny.text_encoder()


@pytest.fixture
def folder(module, tmp_path):
    """Write a folder whose config.json has some entries changed; "left out" takes one out."""

    def written(**changes):
        path = tmp_path / "gemma"
        module.save_pretrained(path)
        shutil.copytree(tiny.DEMO / "tokenizer", path, dirs_exist_ok=True)
        config = {**json.loads((path / "config.json").read_text()), **changes}
        (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "left out"}))
        return path

    return written


WRONG_SIZES = {
    "hidden_size": [10**8, 10**400, 47, 0, -48, 48.5, "48", None, True, [48], {}],
    "num_attention_heads": [4_000_000, 3, 0, "4", None],
    "num_key_value_heads": [2_000_000, 4, 0, None],
    "vocab_size": [2**40, 799, 801, -1, None],
    "intermediate_size": [10**9, 95, 0],
    "num_hidden_layers": [10**7, 2, 4, 0, "3", None],
}
WRONG_NUMBERS = {
    "head_dim": [10**6, 31, 15, 0, -16, 32, 1, "16", None, [16], 2.5],
    "max_position_embeddings": [10**12, 0, -1, "8192", None, 1e300],
    "sliding_window": [0, -5, 10**12, None, "64", True],
    "query_pre_attn_scalar": [0, -4, 1e300, None, "x", 2.5],
    "rms_norm_eps": ["x", 1e300, -1, None, float("nan")],
    "attn_logit_softcapping": ["x", 0, -1, float("inf"), []],
    "final_logit_softcapping": ["x", 0],
    "rope_parameters": [
        5,
        "x",
        {"rope_type": "org/x"},
        {"rope_theta": 0, "rope_type": "default"},
        {"rope_theta": None},
    ],
    "rope_theta": [float("nan"), "x", -1],
    "layer_types": [[], ["x"] * 3, ["full_attention"], "full_attention", {}, 5, [{}] * 3],
    "hidden_activation": ["x", "org/kernel", [], 5, None],
    "attention_bias": ["x", None, 1],
    "use_bidirectional_attention": [True, "x"],
}


def refusal(path) -> str:
    open_checkpoint(path)  # the imports for it are not timed
    start = time.process_time()
    with pytest.raises(UnusableFile) as caught:
        load_text_encoder(path)
    assert 1000 * (time.process_time() - start) < MILLISECONDS
    return str(caught.value)


@pytest.fixture
def unbuilt(monkeypatch):
    """Nothing may be built, nor an object of transformers be made."""
    import transformers

    def built(*args, **kwargs):
        raise AssertionError("something was built")

    monkeypatch.setattr(text_encoder, "build_empty", built)
    monkeypatch.setattr(transformers.Gemma2Config, "from_dict", built)


@pytest.mark.parametrize("key", WRONG_SIZES)
def test_sizes_are_held_against_the_weights(folder, unbuilt, key):
    for value in WRONG_SIZES[key]:
        message = refusal(folder(**{key: value}))
        assert f"config.json says {key} is {str(value)[:80]}" in message and ", but the weights have" in message
        assert "download it again" in message


@pytest.mark.parametrize("key", WRONG_NUMBERS)
def test_numbers_are_those_that_a_gemma_can_have(folder, unbuilt, key):
    for value in WRONG_NUMBERS[key]:
        changes = {"rope_parameters": "left out"} if key == "rope_theta" else {}
        message = refusal(folder(**{**changes, key: value}))
        names = {
            "rope_parameters": ("rope_parameters is", "rope_theta is"),
            "head_dim": ("head_dim is", "heads of", "of 32 chan"),
        }
        assert "gemma/config.json says" in message
        assert any(name in message for name in names.get(key, (f"{key} is",))), (value, message)


HOSTILE = {
    "_attn_implementation": "org/kernel",
    "attn_implementation": "org/kernel",
    "_attn_implementation_internal": "org/kernel",
    "_experts_implementation": "org/kernel",
    "experts_implementation": "org/kernel",
    "auto_map": {"AutoModel": "org/repository--modeling.Model", "AutoConfig": "modeling.Config"},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "trust_remote_code": True,
    "use_kernels": True,
    "num_labels": 10**9,
    "id2label": {"a": "b"},
    "dtype": "nonsense",
    "torch_dtype": "os.system",
    "output_attentions": True,
    "return_dict": False,
    "pad_token_id": 10**6,
    "initializer_range": -1,
    "attention_dropout": 9.5,
    "use_cache": "x",
    "tie_word_embeddings": "x",
    "is_encoder_decoder": True,
    "name_or_path": "org/repository",
    "_name_or_path": "org/repository",
    "transformers_weights": "org/repository",
    "unknown": [0] * 1000,
}


@pytest.mark.parametrize("key", HOSTILE)
def test_what_gemma_is_not_built_from_is_not_read(folder, module, key):
    loaded = load_text_encoder(folder(**{key: HOSTILE[key]}))
    made = loaded.module.config
    assert made._attn_implementation == module.config._attn_implementation in ("eager", "sdpa")
    plain = load_text_encoder(folder()).module.config.to_dict()
    assert made.to_dict() == plain
    with torch.no_grad():
        assert torch.allclose(loaded.module(IDS)[0], module(IDS)[0], atol=1e-6)


def test_a_config_of_transformers_4_and_one_with_gaps(folder, module):
    """rope_theta alone, and sizes left out that the shapes tell."""
    path = folder(rope_parameters="left out", rope_theta=10000.0, rope_scaling=None, hidden_size="left out")
    read = read_config(open_checkpoint(path), path / "config.json", json.loads((path / "config.json").read_text()))
    assert (read["rope_theta"], read["hidden_size"], read["num_attention_heads"]) == (10000.0, 48, 4)
    for theta in (5000.0, 10000.0):
        for changes in (
            {"rope_theta": theta, "rope_parameters": "left out"},
            {"rope_parameters": {"rope_theta": theta}},
        ):
            loaded = load_text_encoder(folder(**changes))
            same = torch.allclose(loaded.module(IDS)[0], module(IDS)[0], atol=1e-6)
            assert same == (theta == 10000.0)


def test_layer_types_and_caps_are_read(folder, module):
    loaded = load_text_encoder(folder(layer_types=["full_attention"] * 3, attn_logit_softcapping=None))
    assert loaded.module.config.layer_types == ["full_attention"] * 3
    assert loaded.module.config.attn_logit_softcapping is None
    assert load_text_encoder(folder(attn_logit_softcapping=7)).module.config.attn_logit_softcapping == 7.0


def test_a_thousand_layers_are_refused_before_they_are_built(tmp_path, module, unbuilt):
    tensors = dict(module.state_dict())
    tensors |= {f"layers.{n}.mlp.gate_proj.weight": torch.zeros(1) for n in range(3, 1000)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert "has 1000 layers; Gemma-2 has 256 at most" in refusal(tmp_path / "model.safetensors")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its memory limit is Linux's")
def test_damaged_gemmas_end_in_our_own_error():
    command = [sys.executable, "tests/support/fuzz_gemma.py", "--cases", "300"]
    done = subprocess.run(command, cwd=tiny.REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "300 cases ({'_spiece': 100, '_json': 100, '_config': 100}), 0 ended wrongly" in done.stdout
