"""Nothing of ours looks anything up, and no code beside a model runs, whatever its configs ask for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import tiny

CODE = "import pathlib\npathlib.Path({canary!r}).touch()\nraise SystemExit('this code was run')\n"

REMOTE = {
    "_attn_implementation": "org/kernel",
    "attn_implementation": "org/kernel",
    "_experts_implementation": "org/kernel",
    "auto_map": {"AutoModel": "org/repository--code.Model", "AutoConfig": "code.Config"},
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "trust_remote_code": True,
    "use_kernels": True,
}
TOKENIZER = {
    "auto_map": {"AutoTokenizer": ["org/repository--code.Tokenizer", "code.TokenizerFast"]},
    "tokenizer_class": "RemoteTokenizer",
    "name_or_path": "org/repository",
    "bos_token": None,
    "added_tokens_decoder": 5,
    "trust_remote_code": True,
}


@pytest.fixture(scope="module")
def remote(home, reference, tmp_path_factory):
    """A pipeline in models/diffusers, and its text encoder alone, whose configs ask for a hub's code everywhere."""
    canary = tmp_path_factory.mktemp("canary") / "ran"
    folder = home / "models" / "diffusers" / "tiny-remote"
    shutil.copytree(home / "models" / "diffusers" / "tiny", folder)
    for part in ("text_encoder", "transformer", "vae", "scheduler", "tokenizer"):
        name = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(part, "config.json")
        file = folder / part / name
        asked = TOKENIZER if part == "tokenizer" else REMOTE
        file.write_text(json.dumps({**json.loads(file.read_text()), **asked}))
        (folder / part / "code.py").write_text(CODE.format(canary=str(canary)))
    alone = home / "models" / "text_encoders" / "tiny-remote-text-encoder"
    shutil.copytree(folder / "text_encoder", alone)
    shutil.copytree(folder / "tokenizer", alone, dirs_exist_ok=True)
    yield canary
    shutil.rmtree(folder)
    shutil.rmtree(alone)


@pytest.mark.parametrize("host", ["embedded", pytest.param("comfyui", marks=pytest.mark.comfyui)])
def test_a_pipeline_is_loaded_without_a_network(home, remote, host):
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    script = tiny.REPOSITORY / "tests" / "support" / "without_network.py"
    command = [sys.executable, str(script), host, str(home), "tiny-remote"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] == [] and found["offline"] == [] and found["difference"] < 1e-4
    assert found["seen"] > 0, f"a lookup was not seen; it ended in {found['refusal']}"
    assert not remote.exists()
