"""SentencePiece models written field by field: damaged ones, hostile ones, and the one that a tokenizer.json tells."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
"""sentencepiece_model.proto's SentencePiece.type."""

SPECIAL = (("<pad>", 0.0, CONTROL), ("<eos>", 0.0, CONTROL), ("<bos>", 0.0, CONTROL), ("<unk>", 0.0, UNKNOWN))
BYTES = tuple((f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256))
LETTERS = tuple((letter, -float(place), NORMAL) for place, letter in enumerate("▁abcdefghijklmnopqrstuvwxyz"))


def varint(number: int) -> bytes:
    data = bytearray()
    while number > 127:
        data.append(number & 127 | 128)
        number >>= 7
    return bytes((*data, number))


def field(number: int, value: int | bytes | str) -> bytes:
    """One field of a protocol buffer message: a number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(text: str | bytes, score: float = 0.0, kind: int = NORMAL) -> bytes:
    return field(1, field(1, text) + b"\x15" + struct.pack("<f", score) + (field(3, kind) if kind != NORMAL else b""))


TRAINER = field(2, field(3, 2) + field(35, 1) + field(40, 3) + field(41, 2) + field(42, 1) + field(43, 0))
NORMALIZER = field(3, field(1, "identity") + field(2, b"") + field(3, 0) + field(4, 0))
SETTINGS = TRAINER + NORMALIZER
"""Gemma's: byte-pair pieces with bytes to fall back on, special pieces in its order, a text left as it is."""


def model(pieces: Iterable[tuple[str | bytes, float, int]] = (), settings: bytes = SETTINGS) -> bytes:
    """A model of the special pieces, the bytes, the letters of the alphabet and ``pieces`` (text, score, type)."""
    return b"".join(piece(*one) for one in (*SPECIAL, *BYTES, *LETTERS, *pieces)) + settings


def of_tokenizer_json(file: Path) -> bytes:
    """The SentencePiece model that Google's ``tokenizer.json`` was made of.

    Its merges stand in the order of the pieces that they make, best score first, so a piece's score is its place
    among them. Added tokens are the special and user-defined pieces; the tab stands for its byte.
    """
    table = json.loads(file.read_text(encoding="utf-8"))
    ranks: dict[str, int] = {}
    for merge in table["model"]["merges"]:
        ranks.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), len(ranks))
    added = {token["content"] for token in table["added_tokens"]}
    special = {text: kind for text, _, kind in SPECIAL}
    pieces = []
    for text in sorted(table["model"]["vocab"], key=table["model"]["vocab"].get):
        if text in added:
            pieces.append(piece(text, 0.0, special.get(text, USER_DEFINED)))
        elif text == "\t" or (text.startswith("<0x") and len(text) == 6):
            pieces.append(piece("<0x09>" if text == "\t" else text, 0.0, BYTE))
        else:
            pieces.append(piece(text, -float(ranks.get(text, len(ranks)))))
    return b"".join(pieces) + SETTINGS
