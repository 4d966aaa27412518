"""Gemma's tokenizer from a SentencePiece model: the bytes that single-file Gemmas carry, or a tokenizer.model.

The model is turned into a byte-pair tokenizer of the tokenizers library, as transformers' GemmaConverter does, so
that prompts give the tokens of Google's tokenizer.json. The few fields needed are read from the protocol buffer
here: transformers' converter needs the package protobuf, which ComfyUI does not install.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .files.checkpoint import UnusableFile

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
"""Gemma's first four pieces, in this order."""

TURNS = ("<start_of_turn>", "<end_of_turn>")
"""Special too, although the SentencePiece model calls them user-defined."""

BPE = 2
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Values of sentencepiece_model.proto's TrainerSpec.model_type and SentencePiece.type."""


@dataclass(frozen=True)
class Piece:
    text: str
    score: float
    kind: int


def load_spiece(data: bytes, where: str):
    """A transformers tokenizer of the SentencePiece model ``data``; ``where`` names it in errors."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_tokenizer(_read_pieces(data, where)),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one protocol buffer message: number and value; 4- and 8-byte values come as bytes."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(data):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}[wire] if wire != 2 else varint()
        if position + size > len(data):
            raise ValueError("it is truncated")
        yield number, data[position : position + size]
        position += size


def _read_pieces(data: bytes, where: str) -> list[Piece]:
    """The vocabulary of Gemma's SentencePiece model; UnusableFile for other bytes or another model."""
    pieces, model_type, charsmap, dummy_prefix = [], 1, b"", 1
    try:
        for number, value in _fields(data):
            if number == 1:
                fields = dict(_fields(value))
                score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
                pieces.append(Piece(fields[1].decode("utf-8"), score, fields.get(3, NORMAL)))
            elif number == 2:
                model_type = dict(_fields(value)).get(3, model_type)
            elif number == 3:
                normalizer = dict(_fields(value))
                charsmap, dummy_prefix = normalizer.get(2, charsmap), normalizer.get(3, dummy_prefix)
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise UnusableFile(f"{where} is not a complete SentencePiece model ({error}); download it again") from error
    first = tuple(piece.text for piece in pieces[: len(SPECIAL)])
    if first != SPECIAL or model_type != BPE or charsmap or dummy_prefix:
        raise UnusableFile(
            f"{where} is not Gemma-2's SentencePiece model, which begins with {', '.join(SPECIAL)} (this one with "
            f"{', '.join(first) or 'nothing'}), has byte-pair pieces and no text normalisation"
        )
    return pieces


def _tokenizer(pieces: list[Piece]):
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {piece.text: index for index, piece in enumerate(pieces)}
    if "\t" not in vocabulary and "<0x09>" in vocabulary:  # tokenizer.json has the tab itself and not its byte
        vocabulary["\t"] = vocabulary.pop("<0x09>")
    model = models.BPE(
        vocab=vocabulary, merges=_merges(pieces, vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    special = {piece.text for piece in pieces if piece.kind == CONTROL} | {"<unk>", *TURNS}
    added = [piece.text for piece in pieces if piece.kind in (CONTROL, USER_DEFINED) or piece.text == "<unk>"]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=text in special) for text in added])
    return tokenizer


def _merges(pieces: list[Piece], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs that make each piece, in the order in which byte-pair encoding takes them: the best score first.

    SentencePiece scores the merged piece; among the pairs of one piece, and of pieces that share a score, the
    longest left part comes first, as transformers orders them.
    """
    found = []
    for piece in pieces:
        text = piece.text
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [(left, right) for left, right in pairs if left in vocabulary and right in vocabulary]
        found += [(-piece.score, -len(left), -len(right), left, right) for left, right in known]
    return [(left, right) for *_, left, right in sorted(found, key=lambda pair: pair[:3])]
