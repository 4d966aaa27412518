"""Lines of text in many scripts for tests of tokenizers, made from Unicode's ranges by a seed."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

SCRIPTS = {
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Armenian": ((0x531, 0x58A),),
    "Hebrew": ((0x591, 0x5F4),),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F)),
    "Syriac": ((0x700, 0x74F),),
    "Devanagari": ((0x900, 0x97F),),
    "Bengali": ((0x980, 0x9FE),),
    "Gurmukhi": ((0xA01, 0xA76),),
    "Gujarati": ((0xA81, 0xAFF),),
    "Tamil": ((0xB82, 0xBFA),),
    "Telugu": ((0xC00, 0xC7F),),
    "Kannada": ((0xC80, 0xCF3),),
    "Malayalam": ((0xD00, 0xD7F),),
    "Sinhala": ((0xD81, 0xDF4),),
    "Thai": ((0xE01, 0xE5B),),
    "Lao": ((0xE81, 0xEDF),),
    "Tibetan": ((0xF00, 0xFDA),),
    "Myanmar": ((0x1000, 0x109F),),
    "Georgian": ((0x10A0, 0x10FF),),
    "Hangul": ((0xAC00, 0xD7A3), (0x1100, 0x11FF)),
    "Ethiopic": ((0x1200, 0x137C),),
    "Cherokee": ((0x13A0, 0x13FD),),
    "Khmer": ((0x1780, 0x17F9),),
    "Mongolian": ((0x1800, 0x18AA),),
    "Hiragana": ((0x3041, 0x309F),),
    "Katakana": ((0x30A0, 0x30FF),),
    "Han": ((0x4E00, 0x9FFF), (0x20000, 0x2A6DF)),
    "Gothic": ((0x10330, 0x1034A),),
}
"""Names of scripts to ranges of their code points, both ends included."""

EMOJI = ("🦊", "🏔️", "👩‍👩‍👧‍👦", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "👍🏽", "🇯🇵", "❤️", "🎉🎉🎉", "♪", "…", "——")
SPACES = (
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    "\t\t",
    " \n ",
    "\r\n",
    "\u3000",
    "\u00a0",
    "\u200d",
    "▁",
    "▁▁",
)
NAMES = (
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<b>",
    "</b>",
    "<h1>",
    "<0x41>",
)
"""Pieces that a text may name; Gemma's tokenizer.json finds them in it."""

ENGLISH = (
    "a red ring",
    "HDR",
    "don't",
    "e.g.",
    "(close-up)",
    "16:9",
    "3.14",
    "100%",
    "C#",
    "x_y",
    "https://a.b/c?d=1&e=2",
)


def lines(count: int, seed: int = 0, words: Sequence[str] = ()) -> Iterator[tuple[str, str]]:
    """``count`` pairs of a script's name and a line, the scripts in turn; one word in three is of ``words``, if any."""
    rng = random.Random(seed)
    letters = {name: _letters(ranges) for name, ranges in SCRIPTS.items()}
    names = list(SCRIPTS)
    for number in range(count):
        name = names[number % len(names)]
        yield name, "".join(_part(rng, letters[name], words) for _ in range(rng.randrange(1, 16)))


def words_of(vocabulary: Iterable[str]) -> list[str]:
    """A tokenizer's pieces as they stand in a text, in the order of the alphabet, without runs of spaces."""
    return sorted(piece.replace("▁", " ") for piece in vocabulary if piece.strip("▁"))


def _letters(ranges: Sequence[tuple[int, int]]) -> list[str]:
    points = (chr(point) for first, last in ranges for point in range(first, last + 1))
    return [letter for letter in points if unicodedata.category(letter)[0] in "LMN"]


def _part(rng: random.Random, letters: Sequence[str], words: Sequence[str]) -> str:
    """A word, mostly of the script, and what stands behind it, mostly one space."""
    kind = rng.random()
    if words and kind < 1 / 3:
        word = rng.choice(words)
    elif kind < 0.75:
        word = "".join(rng.choice(letters) for _ in range(rng.randrange(1, 12)))
    elif kind < 0.8:
        word = rng.choice(letters) * rng.randrange(2, 40)
    elif kind < 0.84:
        word = "".join(rng.choice(letters) + chr(rng.randrange(0x300, 0x370)) * rng.randrange(4) for _ in range(4))
    elif kind < 0.88:
        word = str(rng.randrange(10 ** rng.randrange(1, 12)))
    else:
        word = rng.choice(rng.choice((EMOJI, NAMES, ENGLISH)))
    return word + (" " if rng.random() < 0.7 else rng.choice(("", *SPACES)))
