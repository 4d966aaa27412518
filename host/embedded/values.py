"""What a workflow gives a node: values converted and checked as ComfyUI's execution.validate_inputs does."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

CONVERSIONS = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
"""The kinds of input that have a widget, and what ComfyUI makes of a value for each."""

MOST_CHOICES = 30
"""Choices of a list that a message tells."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def short(value: object) -> str:
    """A value for a message: its repr, cut in the middle where it is long."""
    return _SHORT.repr(value)


@dataclass(frozen=True)
class Declaration:
    """What a node class declares: its inputs by name, and which of them it checks itself (None: all of them)."""

    cls: Any
    name: str
    required: Mapping[str, tuple]
    optional: Mapping[str, tuple]
    hidden: Mapping[str, str]
    own: frozenset[str] | None

    @classmethod
    def of(cls, class_type: str, node_class: Any) -> Declaration:
        """``name`` is what the canvas calls a node of the class."""
        inputs = node_class.INPUT_TYPES()
        name = getattr(node_class, "DISPLAY_NAME", class_type)
        required, optional, hidden = (inputs.get(kind, {}) for kind in ("required", "optional", "hidden"))
        return cls(node_class, name, required, optional, hidden, _validated_names(node_class))

    def checked_again(self) -> Declaration:
        """The same for another graph, of which a node's own check may look at other inputs."""
        return replace(self, own=_validated_names(self.cls))

    def spec(self, name: str) -> Any:
        """The kind and the options of an input, None for one that the class does not have."""
        return self.required.get(name) or self.optional.get(name)

    def names(self) -> str:
        """The inputs for a message."""
        return ", ".join([*self.required, *self.optional]) or "none"

    def checks(self, name: str) -> bool:
        """Whether the node checks an input itself: ComfyUI then leaves its limits to it."""
        return self.own is None or name in self.own


def _validated_names(cls: type) -> frozenset[str] | None:
    check = getattr(cls, "VALIDATE_INPUTS", None)
    parameters = inspect.signature(check).parameters.values() if check else ()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def unwrapped(value: object) -> object:
    """A value out of ``{"__value__": …}``, in which the editor wraps what could be taken for a link."""
    return value["__value__"] if isinstance(value, Mapping) and "__value__" in value else value


def converted(name: str, value: object, declared: Declaration) -> object:
    """The value of an input that no link feeds, as the kind that its node declares; ValueError says what to give."""
    spec, value = declared.spec(name), unwrapped(value)
    kind = spec[0]
    if isinstance(kind, str) and kind not in CONVERSIONS:
        if value is None and name in declared.optional:
            return value
        raise ValueError(f"must come from another node's {kind} output, not be {short(value)}")
    if isinstance(kind, str):
        value = _as(kind, value, spec)
    elif declared.checks(name):
        _check_type(value, kind)
    if not declared.checks(name):
        _check_limits(value, spec)
    return value


def _as(kind: str, value: Any, spec: tuple) -> Any:
    try:
        value = CONVERSIONS[kind](value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"is {short(value)}; give {_NAMES[kind]}") from error
    if kind == "FLOAT" and not math.isfinite(value):
        raise ValueError(f"is {value}; give a finite number{_limits(spec)}")
    return value


_NAMES = {"INT": "a whole number", "FLOAT": "a number", "STRING": "a text", "BOOLEAN": "true or false"}


def _check_type(value: object, options: list) -> None:
    """ValueError for what cannot be in a list; whether the list has it is for the node to say."""
    if not isinstance(value, tuple({type(option) for option in options} or {str})):
        raise ValueError(f"is {short(value)}; {_choose(options)}")


def _choose(options: list) -> str:
    listed = [str(option) for option in options[:MOST_CHOICES]] + ["…"] * (len(options) > MOST_CHOICES)
    return f"choose one of {', '.join(listed)}" if listed else "give a name"


def _check_limits(value: object, spec: tuple) -> None:
    """ValueError for a value outside the limits or the list that its input declares."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    if not isinstance(kind, str):
        if value not in kind:
            raise ValueError(f"is {short(value)}; {_choose(kind) if kind else 'there is none to choose'}")
    elif kind in CONVERSIONS and (
        ("min" in options and value < options["min"]) or ("max" in options and value > options["max"])
    ):
        raise ValueError(f"is {short(value)}; give a number{_limits(spec)}")


def _limits(spec: tuple) -> str:
    options = spec[1] if len(spec) > 1 else {}
    low, high = options.get("min"), options.get("max")
    return f" from {low} to {high}" if low is not None and high is not None else ""


def node_problem(declared: Declaration, given: Mapping, hidden: Mapping) -> str | None:
    """What a node's own VALIDATE_INPUTS has against its inputs; an input that a link feeds is None to it."""
    if declared.own is not None and not declared.own:
        return None
    arguments = {key: value for key, value in {**given, **hidden}.items() if declared.checks(key)}
    try:
        answer = declared.cls.VALIDATE_INPUTS(**arguments)
    except Exception as error:  # ComfyUI too refuses a node whose check raises
        return f"its inputs cannot be checked: {type(error).__name__}: {error}"
    if answer is True:
        return None
    return str(answer) if answer is not False else "its inputs do not go together"
