"""Files that would hurt: they cost neither time nor memory, and no other file its place in a list."""

from __future__ import annotations

import json
import os
import time

import pytest
import tiny
import torch
from platforms import peak_memory
from safetensors.torch import save_file
from sana_nodes.model_loaders.files import folders
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.files.kinds import Kind
from sana_nodes.model_loaders.files.listing import models_of_kind
from sana_nodes.model_loaders.lora import load_lora
from sana_nodes.model_loaders.patterns import LayerPatterns, UnsupportedPattern

LAYER = "transformer_blocks.0.attn1.to_q"
WEIGHTS = {f"{name}.weight": (8, 8) for name in (LAYER, "transformer_blocks.1.attn1.to_q")}


def lora(path, rank: int = 2, layers=(LAYER,), metadata=None, **more):
    tensors = {}
    for layer in layers:
        tensors[f"transformer.{layer}.lora_A.weight"] = torch.ones(rank, 8)
        tensors[f"transformer.{layer}.lora_B.weight"] = torch.ones(8, rank)
    save_file({**tensors, **more}, path, metadata)
    return path


def loop(path):
    path.symlink_to(path.name)


def fifo(path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no FIFOs")
    os.mkfifo(path)


def nowhere(path):
    path.symlink_to("absent")


BAD = {
    "loop.safetensors": loop,
    "pipe.safetensors": fifo,
    "nowhere.safetensors": nowhere,
    "looped": loop,
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_is_skipped_and_named(tmp_path, name):
    save_file(tiny.autoencoder().state_dict(), tmp_path / "good.safetensors")
    BAD[name](tmp_path / name)
    problems: list[folders.Problem] = []
    assert folders.list_models([tmp_path], problems) == ["good.safetensors"]
    assert [problem.path.name for problem in problems] == [name] and problems[0].reason
    assert models_of_kind([tmp_path], (Kind.DC_AE,)) == ["good.safetensors"]


def test_a_forbidden_folder_is_skipped_and_named(tmp_path, monkeypatch):
    save_file(tiny.autoencoder().state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "forbidden").mkdir()
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("forbidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    problems: list[folders.Problem] = []
    assert folders.list_models([tmp_path], problems) == ["good.safetensors"]
    assert [(p.path.name, p.reason) for p in problems] == [("forbidden", "Permission denied")]


@pytest.mark.parametrize("config", ['{"_class_name": ["x"]}', '{"_class_name": {}}', "[1]", "{", '{"model_type": 7}'])
def test_an_odd_config_takes_no_other_model_from_the_list(tmp_path, config):
    save_file(tiny.autoencoder().state_dict(), tmp_path / "good.safetensors")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(config)
    assert "good.safetensors" in models_of_kind([tmp_path], (Kind.DC_AE,))


def test_folders_that_link_to_one_another_are_listed_once_in_a_while(tmp_path):
    """Twenty folders that each link to all others would be a hundred thousand; what lies in them is still there."""
    save_file(tiny.autoencoder().state_dict(), tmp_path / "good.safetensors")
    for one in range(20):
        (tmp_path / f"web{one:02}").mkdir()
        (tmp_path / f"web{one:02}" / "inner.safetensors").touch()
        for other in range(20):
            (tmp_path / f"web{one:02}" / f"to{other}").symlink_to(tmp_path / f"web{other:02}")
    problems: list[folders.Problem] = []
    start = time.process_time()
    found = folders.list_models([tmp_path], problems)
    assert time.process_time() - start < 2.0
    assert {"good.safetensors", "web00/inner.safetensors", "web19/inner.safetensors"} <= set(found)
    reasons = {problem.reason for problem in problems}
    assert reasons == {"a link to a folder that it is in", "more than 8 links lead to its folder"}


def test_a_folder_that_is_linked_twice_is_listed_twice(tmp_path):
    (tmp_path / "own").mkdir()
    save_file(tiny.autoencoder().state_dict(), tmp_path / "own" / "x.safetensors")
    for name in ("one", "two"):
        (tmp_path / name).symlink_to(tmp_path / "own")
    assert folders.list_models([tmp_path]) == ["one/x.safetensors", "own/x.safetensors", "two/x.safetensors"]


def test_the_command_models_prints_no_control_characters(tmp_path, capsys):
    from sana_nodes import cli

    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "a\x1b[2J\nb.safetensors").touch()
    assert cli.main(["models", "--models", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert any(r"a\x1b[2J\nb.safetensors: unusable" in line for line in lines)
    assert all(line.isprintable() for line in lines)


def test_a_pipe_that_is_chosen_all_the_same_is_refused(tmp_path):
    from sana_nodes.model_loaders.vae import load_vae

    fifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UnusableFile, match="neither a file nor a folder"):
        load_vae(tmp_path / "pipe.safetensors")


PEFT = {
    "to_q": True,
    "attn1.to_q": True,
    LAYER: True,
    r"transformer_blocks\.0\.attn1\.to_q": True,
    r"transformer_blocks\.\d+\.attn1\.to_q": True,
    r"transformer_blocks.[0-9]+.attn1.to_q": True,
    r".*attn1\.to_q": True,
    r".*\.(to_q|to_k)": True,
    r"attn1\.(?:to_v|to_q)": True,
    r"^transformer_blocks\.0\..*$": True,
    "attn1.to_q|attn2.to_q": True,
    "o_q": False,
    "transformer_blocks.0": False,
    r"transformer_blocks\.1\.attn1\.to_q": False,
    r"attn2\.(to_q|to_k)": False,
    r"transformer_blocks\.\d+\.attn1": False,
}


@pytest.mark.parametrize("pattern", PEFT)
def test_patterns_match_as_peft_matches_them(pattern):
    import re

    assert (re.match(rf"(.*\.)?({pattern})$", LAYER) is not None) == PEFT[pattern]  # PEFT's own rule
    assert (LayerPatterns({pattern: 4}).get(LAYER) == 4) == PEFT[pattern]


def test_the_first_pattern_wins():
    assert LayerPatterns({r".*to_q": 1, LAYER: 2}).get(LAYER) == 1
    assert LayerPatterns({LAYER: 2, r".*to_q": 1}).get(LAYER) == 2
    assert LayerPatterns({"to_k": 1}).get(LAYER, 7) == 7


FREEZING = ["(.*)*x", "(a+)+$", "(a|a)*b", ".*" * 120, "(.*.*|.*.*)" * 4 + "x", "x" * 5000, "(?=a)", "[^x]+", "a{9}"]


@pytest.mark.parametrize("pattern", FREEZING, ids=lambda text: text[:12])
def test_no_pattern_freezes(tmp_path, pattern):
    path = lora(
        tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": json.dumps({"alpha_pattern": {pattern: 4}})}
    )
    start = time.process_time()
    try:
        load_lora(path, {f"{'a' * 90}.{number}.{'a' * 90}.weight": (8, 8) for number in range(300)} | WEIGHTS)
    except UnusableFile as error:
        assert "alpha_pattern" in str(error)
    assert time.process_time() - start < 2.0


def test_many_patterns_are_refused_or_quick():
    with pytest.raises(UnsupportedPattern, match="too many"):
        LayerPatterns({f".*{'x' * 50}{number}": 1 for number in range(1000)})
    start = time.process_time()
    names = LayerPatterns({f"blocks.{number}.to_q": number for number in range(20_000)})
    assert names.get("a.blocks.19999.to_q") == 19999
    assert time.process_time() - start < 2.0


def test_the_alpha_of_another_lora_is_not_taken(tmp_path):
    """adapter_config.json beside several LoRAs belongs to adapter_model.safetensors alone."""
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 32}')
    adapter = lora(tmp_path / "adapter_model.safetensors")
    other = lora(tmp_path / "other.safetensors")
    assert float(load_lora(adapter, WEIGHTS).tensors[f"{LAYER}.alpha"]) == 32
    assert f"{LAYER}.alpha" not in load_lora(other, WEIGHTS).tensors


def test_the_config_in_a_loras_own_folder_is_taken(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": 32}')
    assert float(load_lora(lora(tmp_path / "mine.safetensors"), WEIGHTS).tensors[f"{LAYER}.alpha"]) == 32


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "change,message",
    [
        ({"rank": 0}, "rank of 0"),
        ({f"transformer.{LAYER}.lora_B.weight": torch.ones(8, 2, 3)}, "changes .* as a matrix"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 8)}, f"are the lora_down.weight of {LAYER}"),
        ({f"transformer.{LAYER}.alpha": torch.ones(2)}, "alpha holds 2 values"),
        ({f"transformer.{LAYER}.alpha": torch.tensor(float("nan"))}, "alpha holds 1 values where one finite"),
        ({"metadata": {"lora_adapter_metadata": nested(20_000)}}, "is not JSON"),
        ({"metadata": {"lora_adapter_metadata": f'{{"r": {nested(5000)}}}'}}, "is not JSON|nested more than 100 deep"),
        ({"metadata": {"lora_adapter_metadata": f'{{"r": {nested(200)}}}'}}, "nested more than 100 deep"),
        ({"metadata": {"lora_adapter_metadata": "[]"}}, "not a JSON object"),
        ({"metadata": {"lora_adapter_metadata": '{"alpha_pattern": [1]}'}}, "not a table"),
        ({"metadata": {"lora_adapter_metadata": '{"lora_alpha": [1, 2]}'}}, "a number belongs there"),
        ({"metadata": {"lora_adapter_metadata": '{"lora_alpha": 1e400}'}}, "a number belongs there"),
    ],
    ids=lambda value: str(value)[:80],
)
def test_damaged_loras_say_what_is_wrong(tmp_path, change, message):
    with pytest.raises(UnusableFile, match=message):
        load_lora(lora(tmp_path / "l.safetensors", **change), WEIGHTS)


CONFIGS = {
    "num_attention_heads": 4_000_000,
    "attention_head_dim": 10**9,
    "sample_size": 1024,
    "num_layers": 10**7,
    "mlp_ratio": 1e300,
    "caption_channels": 10**8,
    "cross_attention_dim": 10**12,
    "patch_size": 10**6,
    "num_cross_attention_heads": 10**7,
}


@pytest.mark.parametrize(
    "depth,message", [(200, "nested more than 100 deep"), (5000, "JSON|nested more than 100 deep")]
)
@pytest.mark.parametrize("key", ["patch_size", "in_channels", "qk_norm", "unknown"])
def test_a_deep_value_in_a_config(tmp_path, key, depth, message):
    """Python 3.13 reads 5000 levels, older ones refuse 1000; either way it is the file that is named."""
    from sana_nodes.model_loaders.transformer import load_transformer

    tiny.transformer().save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.dumps({**json.loads(file.read_text()), key: "DEEP"})
    file.write_text(config.replace('"DEEP"', nested(depth)))
    with pytest.raises(UnusableFile, match=f"config.json .*({message})"):
        load_transformer(tmp_path / "m")


@pytest.mark.parametrize("key", CONFIGS)
def test_a_config_costs_no_more_than_its_file(tmp_path, key):
    from sana_nodes.model_loaders.transformer import load_transformer

    tiny.transformer(interpolation_scale=1.0, sample_size=4).save_pretrained(tmp_path / "m")
    load_transformer(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, key: CONFIGS[key]}))
    before, start = peak_memory(), time.process_time()
    with pytest.raises(UnusableFile, match="config.json"):
        load_transformer(tmp_path / "m")
    assert peak_memory() - before < 64 << 20 and time.process_time() - start < 2.0


@pytest.mark.parametrize("key", ["encoder_layers_per_block", "decoder_block_out_channels", "latent_channels"])
def test_an_autoencoders_config_costs_no_more_either(tmp_path, key):
    from sana_nodes.model_loaders.vae import load_vae

    tiny.autoencoder().save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    config = json.loads(file.read_text())
    value = [10**6] * len(config[key]) if isinstance(config[key], list) else 10**8
    file.write_text(json.dumps({**config, key: value}))
    before, start = peak_memory(), time.process_time()
    with pytest.raises(UnusableFile, match="config.json"):
        load_vae(tmp_path / "m")
    assert peak_memory() - before < 64 << 20 and time.process_time() - start < 2.0


def test_a_compressed_pytorch_file_is_not_inflated(tmp_path):
    import zipfile

    from sana_nodes.model_loaders.transformer import load_transformer

    torch.save({"state_dict": {"x": torch.zeros(64 << 20)}}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "small.pth").stat().st_size < 2 << 20
    before = peak_memory()
    with pytest.raises(UnusableFile, match="compressed archive"):
        load_transformer(tmp_path / "small.pth")
    assert peak_memory() - before < 64 << 20
