"""Damage what comes with a Gemma-2 (a SentencePiece model, a tokenizer.json, a config.json) and see how loading ends.

    python tests/support/fuzz_gemma.py --cases 5000

Each case must load a tokenizer or config that works, or raise UnusableFile, in two seconds of the processor and
within the memory that this process allows itself (Linux). A library that ends the process ends the count.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gemma
import platforms
import spieces
import tiny
from fuzz_case import damaged_bytes
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.files.open import open_checkpoint
from sana_nodes.model_loaders.gemma_config import read_config
from sana_nodes.model_loaders.gemma_tokenizer import load_spiece, load_tokenizer_json

SECONDS, MEMORY = 2, 2**30
TEXT = "Aa  b\t1\n漢 <bos>🦊\ue000é" + "a" * 40 + "!"
DEMO = tiny.DEMO / "tokenizer" / "tokenizer.json"

ODD = [None, 0, -1, 5, 2**31, 2**40, 10**400, 1e300, 1.5, float("nan"), True, "", "x", "\ud800", "org/kernel", [], {}]
ODD += [[None], ["a", "b"], [[1, 2]], {"a": 1}, {"type": "x"}, {"String": ""}, {"Regex": "(a+)+$"}, [10**9] * 3]

TEXTS = [
    b"",
    b"\0",
    b"a\0b",
    b"\xff\xfe",
    b"a",
    b"ab",
    "▁".encode(),
    b"<0xZZ>",
    b"<s>",
    b"<bos>",
    b"a" * 100,
    b"ab" * 5000,
]
SCORES = [0.0, -1.0, 1e30, float("nan"), float("inf"), -float("inf")]
KINDS = [1, 1, 4, 4, 4, 3, 2, 5, 6, 0, 7, 99]


def odd_pieces(rng: random.Random) -> bytes:
    """A whole model with a few odd pieces and settings."""
    pieces = [(rng.choice(TEXTS), rng.choice(SCORES), rng.choice(KINDS)) for _ in range(rng.randrange(3))]
    settings = spieces.SETTINGS
    if rng.random() < 0.5:
        table = rng.choice([0, 4, 1024, 2**31]).to_bytes(4, "little") + rng.randbytes(rng.randrange(3000))
        odd = spieces.field(rng.choice([1, 2, 3, 24, 35, 40, 41, 42, 43, 45]), rng.choice([0, 1, 7, 2**64 - 1, table]))
        settings += spieces.field(rng.choice([2, 3, 4, 5, 6]), odd)
    return spieces.model(pieces, settings)


def odd_table(rng: random.Random, table: dict) -> dict:
    """A JSON object with odd values in one or two places, however deep."""
    changed = copy.deepcopy(table)
    for _ in range(rng.randrange(1, 3)):
        at = changed
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = rng.choice(keys[:40])
            if not isinstance(at[key], (dict, list)) or rng.random() < 0.2:
                at[key] = copy.deepcopy(rng.choice(ODD))
                break
            at = at[key]
    return changed


def _spiece(rng: random.Random, folder: Path, samples: dict):
    data = odd_pieces(rng) if rng.random() < 0.5 else damaged_bytes(rng, samples["spiece"])
    return load_spiece(data, "here")


def _json(rng: random.Random, folder: Path, samples: dict):
    file = folder / "tokenizer.json"
    if rng.random() < 0.2:
        file.write_bytes(damaged_bytes(rng, DEMO.read_bytes()))
    else:
        file.write_text(json.dumps(odd_table(rng, samples["json"])))
    return load_tokenizer_json(file)


def _config(rng: random.Random, folder: Path, samples: dict):
    from transformers import Gemma2Config

    entries = odd_table(rng, samples["config"])
    for key in ("num_labels", "auto_map", "_attn_implementation", "rope_scaling", "layer_types"):
        if rng.random() < 0.2:
            entries[key] = rng.choice(ODD)
    Gemma2Config.from_dict(read_config(samples["checkpoint"], Path("config.json"), entries))


KINDS_OF_CASE = (_spiece, _json, _config)


def samples_in(folder: Path) -> dict:
    """Whole files to damage."""
    tiny.text_encoder().save_pretrained(folder / "gemma")
    checkpoint = open_checkpoint(folder / "gemma")
    table = json.loads(DEMO.read_text())
    return {"spiece": gemma.spiece(), "json": table, "config": checkpoint.config, "checkpoint": checkpoint}


def outcome(number: int, folder: Path, samples: dict) -> str | None:
    """What was wrong with how case ``number`` ended, or None."""
    start = time.process_time()
    try:
        loaded = KINDS_OF_CASE[number % len(KINDS_OF_CASE)](random.Random(number), folder, samples)
        if loaded is not None and max(loaded.encode(TEXT)) >= len(loaded):
            return "a token is not in the vocabulary"
    except UnusableFile as error:
        if not 20 < len(str(error)) < 2000:
            return f"an error of {len(str(error))} characters"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    seconds = time.process_time() - start
    return f"{seconds:.1f} seconds" if seconds > SECONDS else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        samples = samples_in(Path(name))
        load_spiece(samples["spiece"], "here")
        platforms.limit_memory(MEMORY)
        counts, wrong = Counter(), 0
        for number in range(given.first, given.first + given.cases):
            said = outcome(number, Path(name), samples)
            counts[KINDS_OF_CASE[number % len(KINDS_OF_CASE)].__name__] += 1
            if said is not None:
                wrong += 1
                sys.stdout.write(f"case {number}: {said}\n")
    sys.stdout.write(f"{given.cases} cases ({dict(counts)}), {wrong} ended wrongly\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
