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
    place = 0
    while place < len(pattern):
        if pattern[place] == "(":
            end = pattern.find(")", place)
            inside = pattern[place + 1 : end].removeprefix("?:")
            if end < 0 or "(" in inside or pattern[end + 1 : end + 2] in ("*", "+", "?", "{"):
                raise UnsupportedPattern(f"{pattern!r} nests or repeats a group, which is unsupported")
            parts.append([_tokens(choice, pattern) for choice in inside.split("|")])
            place = end + 1
        else:
            end = pattern.find("(", place)
            end = len(pattern) if end < 0 else end
            choices = pattern[place:end].split("|")
            if len(choices) > 1 and (place or end < len(pattern)):
                raise UnsupportedPattern(f"{pattern!r} has alternatives outside of a group, which is unsupported")
            parts.append([_tokens(choice, pattern) for choice in choices])
            place = end
    count = 1
    for part in parts:
        count *= len(part)
    if count > MOST_ALTERNATIVES:
        raise UnsupportedPattern(f"{pattern!r} has more than {MOST_ALTERNATIVES} readings, which is unsupported")
    return [[token for piece in choice for token in piece] for choice in product(*parts)]


def _tokens(text: str, pattern: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    text = text.removeprefix("^").removesuffix("$")
    while place < len(text):
        what, place = _one(text, place, pattern)
        suffix = text[place : place + 1]
        if suffix in ("*", "+"):
            tokens.append(_Token(what, 0 if suffix == "*" else 1, True))
            place += 1
        else:
            tokens.append(_Token(what))
    return tokens


def _one(text: str, place: int, pattern: str) -> tuple[object, int]:
    """The character or class that begins at ``place``, and where the next one begins."""
    character = text[place]
    if text.startswith("[0-9]", place):
        return DIGIT, place + 5
    if text.startswith("\\d", place):
        return DIGIT, place + 2
    if character == "\\" and place + 1 < len(text) and not text[place + 1].isalnum():
        return text[place + 1], place + 2
    if character == ".":
        return ANY, place + 1
    if character.isalnum() or character in "_-":
        return character, place + 1
    raise UnsupportedPattern(f"{pattern!r} holds {character!r}, which is unsupported")


def _matches(tokens: list[_Token], name: str) -> bool:
    """Whether tokens match the whole of a name: one pass with the set of places that a match can have reached."""
    places = _closed({0}, tokens)
    for character in name:
        moved = set()
        for place in places:
            if place < len(tokens) and tokens[place].takes(character):
                moved.add(place + 1)
                if tokens[place].repeats:
                    moved.add(place)
        places = _closed(moved, tokens)
        if not places:
            return False
    return len(tokens) in places


def _closed(places: set[int], tokens: list[_Token]) -> set[int]:
    """The places, and those behind tokens that may be absent."""
    reached = set()
    for place in places:
        reached.add(place)
        while place < len(tokens) and tokens[place].least == 0:
            place += 1
            reached.add(place)
    return reached
