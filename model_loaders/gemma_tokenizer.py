"""Gemma's tokenizer: a SentencePiece model in Google's own library, or a tokenizer.json in the tokenizers library.

Both give the tokens of transformers' Gemma tokenizer, which diffusers' pipelines use. A file is checked before a
library reads it: sentencepiece 0.2.0 and 0.2.1 end the process on some damaged models, and a regular expression in a
tokenizer.json can take for ever on a prompt. Neither tokenizer_config.json nor any code beside it is read.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .files.checkpoint import UnusableFile, brief

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
"""Gemma's first four pieces, in this order. A text may name them, as in transformers."""

TURNS = ("<start_of_turn>", "<end_of_turn>")
"""Special too, although the SentencePiece model calls them user-defined."""

MOST_BYTES, MOST_PIECES, MOST_SYMBOLS, LONGEST_PIECE = 16 * 2**20, 300_000, 4096, 127
"""Of a SentencePiece model; Gemma-2's is 4.2 MB and has 256,000 pieces, 505 symbols among them, 93 bytes at most."""

MOST_SETTINGS, MOST_JSON = 2**20, 64 * 2**20
"""Bytes of a SentencePiece model that are no pieces, and of a tokenizer.json (Gemma-2's: 34 MB at most)."""

PROBE = "Aa  b\t1\n漢 🦊\ue000é"
"""Gemma leaves a text as it is: letters, runs of spaces, and characters that only bytes can write."""

PIECE, TRAINER, NORMALIZER, DENORMALIZER = 1, 2, 3, 5
BPE, NORMAL, USER_DEFINED = 2, 1, 4
"""Of sentencepiece_model.proto: fields of ModelProto, and values of TrainerSpec.model_type and SentencePiece.type."""

KEEP_SPACES = bytes((0x1A, 4, 0x20, 0, 0x28, 1))
"""A normalizer_spec with remove_extra_whitespaces off and escape_whitespaces on; a later one wins, field by field."""

SCORE_AND_TYPE = re.compile(rb"(?:\x15.{4})?(?:\x18([\x01-\x06]))?", re.DOTALL)


class GemmaTokenizer(ABC):
    """What our code asks of a tokenizer, answered as transformers' Gemma tokenizer does.

    ``len()`` is one more than the highest token id.
    """

    bos_token_id: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of some tokens."""

    @abstractmethod
    def _encode(self, text: str) -> list[int]: ...

    def encode(self, text: str) -> list[int]:
        """The ids of ``text`` after that of <bos>. ValueError for a text that UTF-8 cannot hold."""
        return [self.bos_token_id, *self._encode(_writable(text))]

    def __call__(self, text: str, max_length: int | None = None, truncation: bool = False, add_special_tokens=True):
        """A namespace whose ``input_ids`` are those of ``encode``, cut to ``max_length`` with ``truncation``."""
        ids = self.encode(text)[0 if add_special_tokens else 1 :]
        return SimpleNamespace(input_ids=ids[:max_length] if truncation else ids)


class SpieceTokenizer(GemmaTokenizer):
    """Over a sentencepiece.SentencePieceProcessor.

    transformers looks for two kinds of piece in the text itself, before spaces become ``▁``, and sentencepiece does
    not: the special ones, and ``symbols`` such as ``▁▁``, which stand for themselves and do not join a space.
    """

    bos_token_id = SPECIAL.index("<bos>")

    def __init__(self, processor, symbols: Iterable[str] = ()):
        self._processor = processor
        apart = sorted((symbol for symbol in symbols if "▁" in symbol), key=len, reverse=True)
        self._apart = re.compile(f"({'|'.join(map(re.escape, (*SPECIAL, *apart)))})")
        self._hidden = {*range(len(SPECIAL)), *(processor.piece_to_id(turn) for turn in TURNS)}

    def __len__(self) -> int:
        return self._processor.get_piece_size()

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in self._apart.split(text):
            ids += [SPECIAL.index(part)] if part in SPECIAL else self._processor.encode(part)
        return ids

    def convert_ids_to_tokens(self, token: int) -> str:
        return self._processor.id_to_piece(token)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        ids = [int(token) for token in token_ids]
        if skip_special_tokens:
            ids = [token for token in ids if token not in self._hidden]
        runs = groupby(ids, lambda token: token < len(SPECIAL))  # sentencepiece leaves the first three out
        return "".join(
            "".join(SPECIAL[i] for i in run) if named else self._processor.decode([*run]) for named, run in runs
        )


class JsonTokenizer(GemmaTokenizer):
    """Over a tokenizers.Tokenizer."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.token_to_id("<bos>")
        self._size = max(tokenizer.get_vocab().values(), default=-1) + 1

    def __len__(self) -> int:
        return self._size

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self._tokenizer.id_to_token(token)

    def decode(self, token_ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        return self._tokenizer.decode([int(token) for token in token_ids], skip_special_tokens=skip_special_tokens)


def _writable(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has half of a character (a lone surrogate) at position {error.start}; type it again"
        ) from error
    return text


def load_spiece(data: bytes, where: str) -> SpieceTokenizer:
    """The tokenizer of the SentencePiece model ``data``; ``where`` names it in errors.

    UnusableFile for bytes that are none, or another model's; ImportError without the package sentencepiece.
    """
    try:
        symbols = _check_model(data, where)
        processor = _sentencepiece().SentencePieceProcessor(model_proto=data + KEEP_SPACES)
    except UnusableFile:
        raise
    except (LookupError, ValueError, TypeError, RuntimeError) as error:
        raise UnusableFile(
            f"{where} holds no SentencePiece model that can be read ({error}); download the file again"
        ) from error
    tokenizer = SpieceTokenizer(processor, symbols)
    _check_behaviour(tokenizer, where)
    return tokenizer


def _sentencepiece():
    try:
        import sentencepiece
    except ImportError as error:
        raise ImportError(
            "Gemma's tokenizer.model, and a file that holds it as spiece_model, need the package sentencepiece, which "
            "is not installed: pip install sentencepiece"
        ) from error
    return sentencepiece


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of one protocol buffer message: number and value; 4- and 8-byte values come as bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than ten bytes")

    while at < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
        if at + size > len(data):
            raise ValueError("it is cut short")
        yield number, data[at : at + size]
        at += size


def _check_model(data: bytes, where: str) -> list[str]:
    """The user-defined pieces of a model; UnusableFile or ValueError where it is not Gemma's or not to be read."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"it has {len(data):,} bytes; Gemma-2's has 4 million")
    pieces, settings = _read_model(data)
    symbols = [(text, kind) for text, kind in pieces if kind != NORMAL]
    if len(symbols) > MOST_SYMBOLS:
        raise ValueError(f"it has {len(symbols):,} symbols; Gemma-2's has 505")
    _check_gemma(
        [text for text, _ in pieces[: len(SPECIAL)]],
        settings[TRAINER],
        settings[NORMALIZER],
        settings[DENORMALIZER],
        where,
    )
    return [text.decode("utf-8") for text, kind in symbols if kind == USER_DEFINED]


def _read_model(data: bytes) -> tuple[list[tuple[bytes, int]], dict[int, dict]]:
    """Text and type of each piece, and the settings of trainer, normalizer and denormalizer; stops where too much."""
    pieces, others = [], 0
    settings: dict[int, dict] = {TRAINER: {}, NORMALIZER: {}, DENORMALIZER: {}}
    for number, value in _fields(data):
        if number == PIECE:
            pieces.append(_piece(value))
        else:
            others += len(value) if isinstance(value, bytes) else 8
        if len(pieces) > MOST_PIECES or others > MOST_SETTINGS:
            raise ValueError("it has more pieces or settings than Gemma-2's")
        if number in settings:
            settings[number].update(_fields(value))
    return pieces, settings


def _piece(message: bytes) -> tuple[bytes, int]:
    """Text and type of one piece: three fields in their order, as sentencepiece writes them."""
    size = message[1]
    text, rest = message[2 : 2 + size], SCORE_AND_TYPE.fullmatch(message, 2 + size)
    if message[0] != 0x0A or size > LONGEST_PIECE or not rest:
        raise ValueError(f"a piece of {len(message):,} bytes is damaged or too long")
    if b"\0" in text:  # sentencepiece 0.2.1 aborts where such a piece is user-defined
        raise ValueError("a piece holds the character 0")
    return text, rest[1][0] if rest[1] else NORMAL


def _check_gemma(first: list[bytes], trainer: dict, normalizer: dict, denormalizer: dict, where: str) -> None:
    names = tuple(text.decode("utf-8", "replace") for text in first)
    rules = normalizer.get(2) or denormalizer.get(2)  # sentencepiece 0.2.0 reads beyond the end of a damaged one
    if names != SPECIAL or trainer.get(3) != BPE or rules or normalizer.get(3, 1):
        raise UnusableFile(
            f"{where} is not Gemma-2's SentencePiece model, which begins with {', '.join(SPECIAL)} (this one with "
            f"{', '.join(names) or 'nothing'}), has byte-pair pieces and leaves the text as it is"
        )


def load_tokenizer_json(file: Path) -> JsonTokenizer:
    """The tokenizer of a tokenizer.json; UnusableFile where it cannot be read or is not Gemma's."""
    where, size = f"the tokenizer in {file.parent}", file.stat().st_size
    if size > MOST_JSON:
        raise UnusableFile(f"{file} has {size:,} bytes, more than any tokenizer.json of Gemma's")
    try:
        return _open_json(file, where)
    except UnusableFile:
        raise
    except BaseException as error:  # tokenizers raises Exception itself, and pyo3's PanicException, which is none
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnusableFile(f"{where} cannot be read ({brief(error)}); download it again") from error


def _open_json(file: Path, where: str) -> JsonTokenizer:
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(file))
    found.no_truncation()
    found.no_padding()
    _check_steps(found, where)
    bos = found.token_to_id("<bos>")
    if bos is None or found.encode("a").ids[:1] != [bos]:
        raise UnusableFile(f"{where} does not begin a prompt with <bos>: it is not Gemma's")
    tokenizer = JsonTokenizer(found)
    _check_behaviour(tokenizer, where)
    return tokenizer


def _check_steps(tokenizer, where: str) -> None:
    """UnusableFile for what Gemma's has not: regular expressions, on which a prompt can hang, and dropout."""
    from tokenizers import models

    steps = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.decoder)
    rules = b"".join(step.__getstate__() for step in steps if step is not None)
    if b'"Regex"' in rules or b'"Precompiled"' in rules:
        raise UnusableFile(f"{where} is not Gemma's: it changes or splits a text by a regular expression or a table")
    if not isinstance(tokenizer.model, models.BPE) or tokenizer.model.dropout:
        raise UnusableFile(f"{where} is not Gemma's, which has byte-pair pieces and no dropout")


def _check_behaviour(tokenizer: GemmaTokenizer, where: str) -> None:
    """UnusableFile where a text does not come back as it was, or gets tokens beyond the vocabulary."""
    ids = tokenizer.encode(PROBE)
    back = tokenizer.decode(ids, skip_special_tokens=True)
    if back != PROBE or max(ids) >= len(tokenizer):
        raise UnusableFile(f"{where} is not Gemma's: it turns the text {PROBE!r} into {back[:80]!r}")
