"""What an error of ours is called where a person sees it: SanaError, of any kind that Python has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve()
PACKAGE = HERE.parent.parent
KINDS = (ValueError, OSError, RuntimeError)


class SanaError(ValueError):
    """Something that a person can mend; the message says how.

    ComfyUI shows an exception's class with its module, except for Python's own exceptions: so it claims to be one.
    """


SanaError.__module__ = "builtins"


@functools.cache
def _kind(original: type) -> type:
    """SanaError that is also an ``original``, for whoever catches that."""
    return SanaError if original is ValueError else type("SanaError", (SanaError, original), {"__module__": "builtins"})


def spoken(function: Callable) -> Callable:
    """The function, whose errors that we raise for a person are SanaErrors; all others are bugs and pass."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except KINDS as error:
            if isinstance(error, SanaError) or not _is_ours(error):
                raise
            raise _kind(type(error))(str(error)).with_traceback(error.__traceback__) from error.__cause__

    return call


def _is_ours(error: BaseException) -> bool:
    """Whether an error was raised in a file of ours; a RuntimeError, which PyTorch raises too, of a class of ours."""
    if isinstance(error, RuntimeError) and type(error).__module__.partition(".")[0] != __name__.partition(".")[0]:
        return False
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    file = None if trace is None else Path(trace.tb_frame.f_code.co_filename).resolve()
    return file is not None and PACKAGE in file.parents and file != HERE


def speak(cls: type) -> type:
    """A node class whose function's errors are spoken."""
    name = cls.FUNCTION  # type: ignore[attr-defined]
    setattr(cls, name, spoken(getattr(cls, name)))
    return cls
