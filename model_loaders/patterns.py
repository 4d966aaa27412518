"""PEFT's layer patterns (alpha_pattern, rank_pattern), matched in linear time.

PEFT takes each key for a regular expression that the end of a layer's name matches. A file's header must not
be able to freeze the process, so the part of that language which LoRA files use is read here: names, escaped
characters, ``.``, ``\\d``, ``[0-9]``, each with ``*`` or ``+``, and groups of alternatives ``(to_q|to_k)``. A
set of states walks over the name once (Thompson, CACM 11(6), 1968), so there is no backtracking.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

LONGEST, MOST_TOKENS, MOST_ALTERNATIVES = 256, 512, 64
"""Characters of a pattern, tokens of all patterns that are no plain names, and readings of one pattern."""

ANY, DIGIT = object(), object()


class UnsupportedPattern(ValueError):
    """A pattern that is not of the supported kind, with the reason."""


@dataclass(frozen=True)
class _Token:
    what: object
    least: int = 1
    repeats: bool = False

    def takes(self, character: str) -> bool:
        return self.what is ANY or (character.isdecimal() if self.what is DIGIT else character == self.what)


class LayerPatterns:
    """A table of pattern to value, asked for the value of a layer's name; the first pattern that matches wins."""

    def __init__(self, table: Mapping[str, object]):
        """UnsupportedPattern names the pattern that cannot be read."""
        self._names: dict[str, tuple[int, object]] = {}
        self._patterns: list[tuple[int, list[list[_Token]], object]] = []
        budget = MOST_TOKENS
        for number, (pattern, value) in enumerate(table.items()):
            if not isinstance(pattern, str) or len(pattern) > LONGEST:
                raise UnsupportedPattern(f"{str(pattern)[:80]!r} is not a layer's name or pattern")
            plain = pattern.replace("\\.", ".")
            if all(c.isalnum() or c in "_-." for c in plain):
                self._names.setdefault(plain, (number, value))
                continue
            readings = _readings(pattern)
            budget -= sum(map(len, readings))
            if budget < 0:
                raise UnsupportedPattern(f"there are too many patterns; {pattern!r} is beyond what is supported")
            self._patterns.append((number, readings, value))

    def get(self, layer: str, default: object = None) -> object:
        """The value of the first pattern that is ``layer``, or its end after a dot."""
        found = [self._names[end] for end in _endings(layer) if end in self._names]
        for number, readings, value in self._patterns:
            if any(_matches(tokens, end) for tokens in readings for end in _endings(layer)):
                found.append((number, value))
                break
        return min(found, key=lambda row: row[0])[1] if found else default


def _endings(layer: str) -> Iterator[str]:
    """A name and what is left of it after each of its dots."""
    yield layer
    while "." in layer:
        layer = layer.partition(".")[2]
        yield layer


def _readings(pattern: str) -> list[list[_Token]]:
    """A pattern's token lists, one for each choice of alternatives."""
    parts: list[list[list[_Token]]] = []
    index = 0
    while index < len(pattern):
        if pattern[index] == "(":
            end = pattern.find(")", index)
            inside = pattern[index + 1 : end].removeprefix("?:")
            if end < 0 or "(" in inside or pattern[end + 1 : end + 2] in ("*", "+", "?", "{"):
                raise UnsupportedPattern(f"{pattern!r} nests or repeats a group, which is unsupported")
            parts.append([_tokens(choice, pattern) for choice in inside.split("|")])
            index = end + 1
        else:
            end = pattern.find("(", index)
            end = len(pattern) if end < 0 else end
            choices = pattern[index:end].split("|")
            if len(choices) > 1 and (index or end < len(pattern)):
                raise UnsupportedPattern(f"{pattern!r} has alternatives outside of a group, which is unsupported")
            parts.append([_tokens(choice, pattern) for choice in choices])
            index = end
    count = 1
    for part in parts:
        count *= len(part)
    if count > MOST_ALTERNATIVES:
        raise UnsupportedPattern(f"{pattern!r} has more than {MOST_ALTERNATIVES} readings, which is unsupported")
    return [[token for piece in choice for token in piece] for choice in product(*parts)]


def _tokens(text: str, pattern: str) -> list[_Token]:
    tokens: list[_Token] = []
    index = 0
    text = text.removeprefix("^").removesuffix("$")
    while index < len(text):
        what, index = _one(text, index, pattern)
        suffix = text[index : index + 1]
        if suffix in ("*", "+"):
            tokens.append(_Token(what, 0 if suffix == "*" else 1, True))
            index += 1
        else:
            tokens.append(_Token(what))
    return tokens


def _one(text: str, index: int, pattern: str) -> tuple[object, int]:
    """The character or class that begins at ``index``, and where the next one begins."""
    character = text[index]
    if text.startswith("[0-9]", index):
        return DIGIT, index + 5
    if text.startswith("\\d", index):
        return DIGIT, index + 2
    if character == "\\" and index + 1 < len(text) and not text[index + 1].isalnum():
        return text[index + 1], index + 2
    if character == ".":
        return ANY, index + 1
    if character.isalnum() or character in "_-":
        return character, index + 1
    raise UnsupportedPattern(f"{pattern!r} holds {character!r}, which is unsupported")


def _matches(tokens: list[_Token], name: str) -> bool:
    """Whether tokens match the whole of a name: one pass with the set of states that a match can have reached."""
    states = _closed({0}, tokens)
    for character in name:
        moved = set()
        for index in states:
            if index < len(tokens) and tokens[index].takes(character):
                moved.add(index + 1)
                if tokens[index].repeats:
                    moved.add(index)
        states = _closed(moved, tokens)
        if not states:
            return False
    return len(tokens) in states


def _closed(states: set[int], tokens: list[_Token]) -> set[int]:
    """The states, and those behind tokens that may be absent."""
    reached = set()
    for index in states:
        reached.add(index)
        while index < len(tokens) and tokens[index].least == 0:
            index += 1
            reached.add(index)
    return reached
