"""Gemma's tokens are transformers' own, from a SentencePiece model and a tokenizer.json; other files are refused."""

from __future__ import annotations

import copy
import json
import sys
import time

import gemma
import pytest
import scripts
import spieces
import tiny
from sana_nodes.model_loaders import gemma_tokenizer
from sana_nodes.model_loaders.files.checkpoint import UnusableFile
from sana_nodes.model_loaders.gemma_tokenizer import load_spiece, load_tokenizer_json

pytest.importorskip("google.protobuf", reason="transformers reads a tokenizer.model with protobuf")

SECONDS = 2
"""Of the processor, for any file that is refused."""

NAMED = [
    "<start_of_turn>user <bos><eos> x<end_of_turn>",
    "<pad> a <unk>b<mask><bos",
    "▁ under ▁▁ lines",
    "▁▁ x  ▁▁ y ▁▁▁▁▁▁z▁ ▁",
    " ▁▁  ▁",
    "a" + " " * 31 + "b" + " " * 20,
]
"""Texts that name pieces: the special ones, and those that spaces become too."""


@pytest.fixture(params=["spiece", "json"])
def mine(request, spiece, theirs):
    if request.param == "spiece":
        return load_spiece(spiece, "here")
    return load_tokenizer_json(theirs.folder / "tokenizer.json")


@pytest.mark.parametrize("text", [*gemma.TRICKY, *NAMED], ids=ascii)
def test_tokens_are_transformers_own(mine, theirs, text):
    ids = theirs(text).input_ids
    assert mine(text).input_ids == mine.encode(text) == ids and ids[0] == 2
    assert mine.decode(ids) == theirs.decode(ids)
    if not any(name in text for name in ("<mask>", "_of_turn>")):  # of which transformers knows by a config alone
        assert mine.decode(ids, skip_special_tokens=True) == theirs.decode(ids, skip_special_tokens=True)


def test_tokens_in_thirty_scripts(mine, theirs):
    words = scripts.words_of(theirs.get_vocab())
    seen = set()
    for script, line in scripts.lines(600, seed=1, words=words):
        seen.add(script)
        assert mine(line).input_ids == theirs(line).input_ids, (script, line)
    assert len(seen) == 30


@pytest.mark.parametrize("limit", [1, 2, 5, 300])
def test_a_text_is_cut_as_transformers_cuts_it(mine, theirs, limit):
    text = "a red ring on the left"
    cut = {"max_length": limit, "truncation": True}
    assert mine(text, **cut).input_ids == theirs(text, **cut).input_ids == theirs(text).input_ids[:limit]
    assert mine(text, max_length=limit).input_ids == theirs(text).input_ids
    plain = theirs(text, add_special_tokens=False).input_ids
    assert mine(text, add_special_tokens=False).input_ids == plain


def test_the_rest_of_what_our_code_asks(mine, theirs):
    assert len(mine) == len(theirs) and mine.bos_token_id == theirs.bos_token_id == 2
    ids = theirs("a red <bos>\nring").input_ids
    assert [mine.convert_ids_to_tokens(token) for token in ids] == theirs.convert_ids_to_tokens(ids)
    assert copy.deepcopy(mine).encode("a ring") == mine.encode("a ring")
    with pytest.raises(ValueError, match=r"half of a character \(a lone surrogate\) at position 2"):
        mine("a \ud83d")


def test_turns_are_special_as_in_googles_tokenizer_json(spiece):
    mine = load_spiece(spiece, "here")
    turn = mine.encode("<start_of_turn>a ring<end_of_turn>")
    assert mine.decode(turn, skip_special_tokens=True) == "a ring"
    assert mine.decode(turn) == "<bos><start_of_turn>a ring<end_of_turn>"


def test_spaces_stay_whatever_the_model_asks_of_them(theirs):
    """tokenizer.json keeps them too: the setting is one that Google's converter does not read."""
    squeezing = load_spiece(gemma.spiece(remove_extra_whitespaces=True), "here")
    assert squeezing.decode(squeezing.encode("  a   b "), skip_special_tokens=True) == "  a   b "


def test_without_sentencepiece_the_error_says_what_to_install(spiece, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match="spiece_model, need the package sentencepiece.*pip install sentencepiece"):
        load_spiece(spiece, "here")


def damaged(spiece: bytes) -> dict[str, bytes]:
    """SentencePiece models that cannot be read, or that a reader should not be given."""
    charsmap = b"\x00\x04\x00\x00" + bytes(range(256)) * 16
    return {
        "nothing": b"",
        "cut short": spiece[:-100],
        "cut in a piece": spiece[:100],
        "no protocol buffer": b"\xff" * 40,
        "JSON": b"{}",
        "a number without end": b"\x08" + b"\xff" * 2_000_000,
        "a piece of 200 kB": spieces.model([("ab" * 100_000, -1.0, 1)]),
        "a symbol of 200 kB": spieces.model([("ab" * 100_000, 0.0, 4)]),
        "a million pieces": spieces.model([(f"x{n:x}", -1.0, 1) for n in range(10**6)]),
        "300,000 symbols": spieces.model([(f"x{n:x}", 0.0, 4) for n in range(290_000)]),
        "four million empty pieces": spieces.model() + b"\x0a\x02\x0a\x00" * 4_000_000,
        "eight million settings": spieces.model() + b"\x30\x00" * 8_000_000,
        "eight million of the trainer's": spieces.model() + spieces.field(2, b"\x30\x00" * 8_000_000),
        "20 MB": bytes(20 * 2**20),
        "a symbol with the character 0": spieces.model([("a\0b", 0.0, 4)]),
        "a table of replacements": spieces.model() + spieces.field(3, spieces.field(2, charsmap)),
        "a table for the way back": spieces.model() + spieces.field(5, spieces.field(2, charsmap)),
        "a number as trainer": spieces.model() + b"\x10\x00",
        "no text": spieces.model([(b"\xff\xfe", 0.0, 4)]),
        "two of a piece": spieces.model([("a", -1.0, 1)]),
        "no <unk>": spieces.model().replace(b"<unk>", b"<UNK>"),
        "an empty piece": spieces.model([("", -1.0, 1)]),
    }


def others() -> dict[str, bytes]:
    """SentencePiece models as T5, Llama and others have them."""
    return {
        "a space before the text": gemma.spiece(400, add_dummy_prefix=True),
        "a normalised text": gemma.spiece(400, normalization_rule_name="nmt_nfkc"),
        "unigram pieces": gemma.spiece(400, model_type="unigram"),
        "no bytes to fall back on": gemma.spiece(400, byte_fallback=False),
        "another order": gemma.spiece(400).replace(b"<bos>", b"<BOS>"),
    }


def refusal(load) -> str:
    """What a loader says of a file that it refuses, within a time."""
    start = time.process_time()
    with pytest.raises(UnusableFile) as caught:
        load()
    assert time.process_time() - start < SECONDS
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def test_damaged_models_are_refused_in_time(spiece):
    for name, data in damaged(spiece).items():
        message = refusal(lambda data=data: load_spiece(data, "x.safetensors: its spiece_model"))
        wanted = (
            "its spiece_model holds no SentencePiece model that can be read",
            "is not Gemma-2's SentencePiece model",
        )
        assert any(words in message for words in wanted), (name, message)


def test_models_of_others_are_refused():
    for name, data in others().items():
        message = refusal(lambda data=data: load_spiece(data, "tokenizer.model"))
        assert "is not Gemma" in message, (name, message)
    assert "this one with <pad>, <eos>, <BOS>, <unk>" in message


def test_the_written_model_is_one():
    """What the damaged ones are made of is read, so each is refused for its damage."""
    tokenizer = load_spiece(spieces.model([("ab", -1.0, 1), ("▁▁", 0.0, 4)]), "here")
    pieces = [tokenizer.convert_ids_to_tokens(i) for i in tokenizer.encode("abc  <eos>")]
    assert pieces == ["<bos>", "ab", "c", "▁▁", "<eos>"]


def changed(*path_and_value):
    """A change to a tokenizer.json: the value at a path."""
    *path, key, value = path_and_value

    def change(table: dict) -> None:
        for name in path:
            table = table[name]
        table[key] = value

    return change


REGEX = {"Regex": "(a+)+$"}
SPLIT = {"type": "Split", "pattern": REGEX, "behavior": "Isolated", "invert": False}
TOKEN = {"content": "<z>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BOS = ("post_processor", "special_tokens", "<bos>")
ODD_TABLES = {
    "cannot be read": {
        "added tokens null": changed("added_tokens", None),
        "an added token without content": changed("added_tokens", [{"id": 1}]),
        "an added token's content a number": changed("added_tokens", 0, "content", 5),
        "an added token's id negative": changed("added_tokens", 0, "id", -1),
        "an added token's flag null": changed("added_tokens", 2, "special", None),
        "vocabulary a list": changed("model", "vocab", ["a"]),
        "an id of a text": changed("model", "vocab", "<bos>", "2"),
        "an id of a half": changed("model", "vocab", "<bos>", 2.5),
        "merges a number": changed("model", "merges", 5),
        "a merge of three": changed("model", "merges", [["a", "b", "c"]]),
        "a merge of unknown pieces": changed("model", "merges", [["qqqq", "zzzz"]]),
        "normalizer a text": changed("normalizer", "x"),
        "steps 200 deep": changed("normalizer", "NESTED"),
        "no text to begin with": changed(*BOS, "tokens", None),
        "a template of numbers": changed("post_processor", "single", [1, 2]),
        "a template's piece unknown": changed("post_processor", "single", 0, "SpecialToken", "id", "<none>"),
        "another kind of model": changed("model", "type", "Neural"),
        "truncation a text": changed("truncation", "x"),
        "padding a list": changed("padding", []),
    },
    "does not begin a prompt with <bos>": {
        "no template": changed("post_processor", None),
        "no <bos>": lambda table: (table["added_tokens"].pop(2), table["model"]["vocab"].pop("<bos>")),
        "a template of another id": changed(*BOS, "ids", [99_999]),
    },
    "is not Gemma's": {
        "a pattern before the pieces": changed("pre_tokenizer", SPLIT),
        "a pattern in the text": changed("normalizer", {"type": "Replace", "pattern": REGEX, "content": "b"}),
        "a pattern on the way back": changed("decoder", {"type": "Replace", "pattern": REGEX, "content": "b"}),
        "lower case": changed("normalizer", {"type": "Lowercase"}),
        "no bytes to fall back on": changed("model", "byte_fallback", False),
        "pieces by chance": changed("model", "dropout", 0.5),
        "whole words": lambda table: table.update(
            model={"type": "WordLevel", "vocab": table["model"]["vocab"], "unk_token": "<unk>"}
        ),
        "no decoder": changed("decoder", None),
    },
}


@pytest.fixture
def table(theirs):
    return json.loads((theirs.folder / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("words", ODD_TABLES)
def test_an_odd_tokenizer_json_is_refused(words, table, tmp_path):
    for name, change in ODD_TABLES[words].items():
        odd = copy.deepcopy(table)
        change(odd)
        nested = '{"type": "Sequence", "normalizers": [' * 200 + "]}" * 200
        text = json.dumps(odd).replace('"NESTED"', nested)
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        message = refusal(lambda: load_tokenizer_json(tmp_path / "tokenizer.json"))
        assert f"the tokenizer in {tmp_path} {words}" in message, (name, message)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "5", "[" * 100_000, "\ufeff{}", "\0"], ids=ascii)
def test_a_tokenizer_json_that_is_none_is_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    assert "cannot be read" in refusal(lambda: load_tokenizer_json(tmp_path / "tokenizer.json"))


def test_a_huge_tokenizer_json_is_refused_unread(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(gemma_tokenizer.MOST_JSON + 1)
    assert "67,108,865 bytes" in refusal(lambda: load_tokenizer_json(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    "change",
    [
        changed("truncation", {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}),
        changed(
            "padding",
            {
                "strategy": {"Fixed": 50},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "<pad>",
            },
        ),
    ],
    ids=["truncation", "padding"],
)
def test_a_text_is_neither_cut_nor_padded_by_the_file(change, table, theirs, tmp_path):
    change(table)
    (tmp_path / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    text = "a red ring on the left"
    assert load_tokenizer_json(tmp_path / "tokenizer.json").encode(text) == theirs(text).input_ids


@pytest.mark.parametrize("name", ["sana-sprint-demo", "sana-video-demo"])
def test_the_demos_tokens_are_transformers_own(name):
    from transformers import AutoTokenizer

    folder = tiny.DEMO.with_name(name) / "tokenizer"
    mine, theirs = load_tokenizer_json(folder / "tokenizer.json"), AutoTokenizer.from_pretrained(str(folder))
    for _, line in scripts.lines(200, seed=2, words=scripts.words_of(theirs.get_vocab())):
        assert mine(line).input_ids == theirs(line).input_ids, line
