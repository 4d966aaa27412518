"""Damage model files in every way that we can think of, and see that loading them ends in our own error.

    python tests/support/fuzz.py --kind lora --cases 500
    python tests/support/fuzz.py --cases 500            (so many of each kind)

Each case writes a small valid model, damages it and loads it with the real loaders. It must either load, and then
work, or raise UnusableFile, FileNotFoundError or ValueError with the name of the file or model; it must run no code,
open nothing outside its folder, end within ten seconds, and need no more memory than the limit of a case (resident)
and the limit that this process gives itself (addresses; Linux). A line for each kind says how its cases ended.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import fuzz_configs
import fuzz_listing
import fuzz_loras
import fuzz_quantised
import fuzz_tokenizers
import fuzz_weights
import platforms
import tiny
from fuzz_case import Case, Samples, Way, written_samples
from fuzz_use import use
from sana_nodes.model_loaders.files.checkpoint import UnusableFile

SECONDS = 10
MEMORY = 3 * 2**30
"""Bytes of address space beyond what the process has when it begins."""

GROWTH = 64 * 2**20
"""Bytes of resident memory that one case may need."""

LONGEST_ERROR = 2000
OUT_OF_MEMORY = ("allocate memory", "not enough memory", "MemoryError")
OURS = (UnusableFile, FileNotFoundError, ValueError)

KINDS: dict[str, tuple[Way, ...]] = {
    "weights": fuzz_weights.WAYS,
    "lora": fuzz_loras.WAYS,
    "controlnet": fuzz_configs.CONTROLNET,
    "vae": fuzz_configs.VAE,
    "config": fuzz_configs.CONFIG,
    "index": fuzz_configs.INDEX,
    "tokenizer": fuzz_tokenizers.WAYS,
    "quantised": fuzz_quantised.WAYS,
    "listing": fuzz_listing.WAYS,
}
"""Kinds of files, and the ways to damage them."""

MESSAGES = 3
"""Different errors that the cases of a kind show at least, so that they do not all end at one early check."""


@dataclass
class Outcomes:
    """How the cases of one kind ended. ``messages``: the errors, without paths, numbers and names."""

    kind: str
    loaded: int = 0
    messages: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: int = 0
    seconds: float = 0.0

    def line(self) -> str:
        errors = sum(self.messages.values())
        return (
            f"{self.kind}: {self.loaded + errors + len(self.wrong)} cases, {self.loaded} loaded, {errors} refused with "
            f"{len(self.messages)} messages, {len(self.wrong)} ended wrongly; {self.seconds:.0f} s, the slowest "
            f"{self.slowest:.1f} s, at most {self.memory / 2**20:.0f} MiB"
        )

    @property
    def shallow(self) -> bool:
        """Whether nothing loads, or all cases end at the same checks."""
        return not self.loaded or len(self.messages) < MESSAGES


class _TooLong(BaseException):
    """The alarm rang; nothing that catches Exception may catch it."""


def _ring(*_):
    raise _TooLong


def _reset_peak() -> int:
    """Bytes that the process has now, from which its peak is counted."""
    Path("/proc/self/clear_refs").write_text("5")
    return platforms.peak_memory()


def _pattern(message: str) -> str:
    """A message without what differs from case to case."""
    return re.sub(r"/\S{0,200}/case-[^\s:]*|\d+|\[.*?\]|'[^']*'|\"[^\"]*\"", "…", message[:LONGEST_ERROR])[:90]


def _judged(error: Exception, case: Case) -> str | None:
    """What is wrong with an error of ours, or None."""
    text = str(error)
    if text != text.encode("utf-8", "replace").decode():
        return f"a message that cannot be shown: {text[:300]!r}"
    if not any(name in text for name in case.named):
        return f"{type(error).__name__} does not name the file: {text[:300]}"
    if any(words in text for words in OUT_OF_MEMORY):
        return f"memory ran out: {text[:300]}"
    return f"an error of {len(text)} characters: {text[:100]}" if len(text) > LONGEST_ERROR else None


def run_case(kind: str, number: int, root: Path, samples: Samples, outcomes: Outcomes) -> None:
    """Run one case and add how it ended to ``outcomes``."""
    turn, chosen = divmod(number, len(KINDS[kind]))
    way = KINDS[kind][chosen]
    case = Case(root / f"case-{number}", random.Random(f"{kind} {number}"), samples, turn)
    case.folder.mkdir()
    error = wrong = None
    run = way(case)
    before, start = _reset_peak(), time.perf_counter()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        use(run(), samples)
    except OURS as ours:
        error = ours
    except _TooLong:
        wrong = f"not over after {SECONDS} seconds"
    except BaseException as other:
        wrong = f"{type(other).__name__}: {str(other)[:300]}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    seconds, memory = time.perf_counter() - start, platforms.peak_memory() - before
    shutil.rmtree(case.folder, ignore_errors=True)
    if error is not None:
        wrong = _judged(error, case)
    if memory > GROWTH:
        wrong = wrong or f"it needs {memory / 2**20:.0f} MiB"
    if case.canary.exists():
        wrong = "code in the file was run"
    outcomes.slowest, outcomes.memory = max(outcomes.slowest, seconds), max(outcomes.memory, memory)
    if wrong:
        outcomes.wrong.append(wrong)
        print(f"case {kind} {number} ({way.__name__}): {wrong}", flush=True)
    elif error is not None:
        outcomes.messages[_pattern(str(error))] += 1
    else:
        outcomes.loaded += 1


def run_kind(kind: str, numbers: range, root: Path, samples: Samples, show: bool = False) -> Outcomes:
    """Run the cases of one kind and print a line about them; with ``show`` its messages too."""
    outcomes, start = Outcomes(kind), time.perf_counter()
    for number in numbers:
        run_case(kind, number, root, samples, outcomes)
    outcomes.seconds = time.perf_counter() - start
    print(outcomes.line(), flush=True)
    for message, count in outcomes.messages.most_common() if show else ():
        print(f"    {count:5} {message}")
    return outcomes


def _warm_up(root: Path, samples: Samples) -> None:
    """Load every valid sample, so that no case pays for imports."""
    for name, load in fuzz_configs.LOADERS.items():
        use(load(samples.folders[name]), samples)
    case = Case(root, random.Random(0), samples)
    for name, tensors in fuzz_loras.NAMINGS.items():
        use(fuzz_loras.load_lora(case.weights(tensors(), f"{name}.safetensors"), samples.lora_shapes), samples)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, action="append", help="may be given several times; else all")
    parser.add_argument("--cases", type=int, default=500, help="cases of each kind")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--messages", action="store_true", help="also print the errors of each kind")
    given = parser.parse_args()
    faulthandler.enable()
    sys.stdout.reconfigure(errors="backslashreplace")
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _ring)
    with tempfile.TemporaryDirectory() as name:
        samples = written_samples(Path(name))
        _warm_up(Path(name), samples)
        platforms.limit_memory(MEMORY)
        numbers = range(given.first, given.first + given.cases)
        ended = [run_kind(kind, numbers, Path(name), samples, given.messages) for kind in given.kind or KINDS]
    wrong = sum(len(outcomes.wrong) for outcomes in ended)
    shallow = [outcomes.kind for outcomes in ended if outcomes.shallow]
    print(f"{given.cases * len(ended)} cases, {wrong} ended wrongly; shallow: {', '.join(shallow) or 'none'}")
    return 1 if wrong else 0


def check(cases: int, *kinds: str) -> None:
    """Run so many cases of each kind in a process of their own, which limits its memory; a test of pytest."""
    import pytest

    if not sys.platform.startswith("linux"):
        pytest.skip("its alarm and memory limit are Linux's")
    command = [sys.executable, __file__, "--cases", str(cases), *(f"--kind={kind}" for kind in kinds)]
    done = subprocess.run(command, cwd=tiny.REPOSITORY, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "0 ended wrongly; shallow: none" in done.stdout, done.stdout[-4000:]


if __name__ == "__main__":
    raise SystemExit(main())
