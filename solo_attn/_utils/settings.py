"""Typed settings, checked by pydantic, whose errors are one line of this library's form."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    StrictBool,
    StrictInt,
    ValidationError,
)
from pydantic.fields import FieldInfo
from typing_extensions import Self

from .text import printable, shown


def _of_64_bits(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ValueError("too large for what counts with it")
    return value


Integer = Annotated[StrictInt, AfterValidator(_of_64_bits)]  # 2.5, true and "3" are none
Flag = StrictBool


def _number(value: Any) -> Any:
    """PyYAML reads 1e-4, without a dot, as text; true is not a number."""
    if isinstance(value, bool):
        raise ValueError("a boolean")
    return float(value) if isinstance(value, str) else value


Number = Annotated[float, BeforeValidator(_number)]


class Settings(BaseModel):
    """A group of settings: each with its type, range, default and a sentence, once.

    Unknown names are refused, and numbers are finite. `parse` takes values from outside: its errors are one
    line; the constructor raises pydantic's own `ValidationError`, which is a ValueError too.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def parse(cls, values: Mapping[str, Any], where: str, error: type[ValueError] = ValueError) -> Self:
        """Settings of plain values, such as YAML's.

        Args:
            values: by name; those that are not there keep their defaults.
            where: what the message begins with.
            error: what is raised.

        Raises:
            ValueError: unknown names, values of another type or out of their range, all in one message.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as caught:
            raise error(f"{where}: {explain(cls, values, caught)}") from None

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, as in YAML and JSON: tuples are lists."""
        return self.model_dump(mode="json")

    def given(self) -> dict[str, Any]:
        """`as_dict` of the settings that were set explicitly; the rest follows from the defaults."""
        return self.model_dump(mode="json", exclude_unset=True)


def explain(cls: type[Settings], values: Mapping[str, Any], error: ValidationError) -> str:
    """All of pydantic's errors in this library's form: unknown names first, then "expected ..., got ..."."""
    unknown: list[str] = []
    expected: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        place = [str(part) for part in fault["loc"]]
        if fault["type"] == "extra_forbidden":
            unknown.append(_unknown(cls, place))
            continue
        key, kind, got = _field(cls, place, values)
        if fault["type"] == "value_error" and (kind is None or not place):
            # A rule of this library about several settings, with its own message.
            expected.setdefault(str(fault["ctx"]["error"]), "")
        elif kind is None:
            expected[key] = f"{key or 'the settings'} to hold names and values, got {_shown(got)}"
        else:
            expected[key] = f"{key} to be {describe(kind)}, got {_shown(got)}"
    phrases = [phrase or rule.removeprefix("expected ") for rule, phrase in expected.items()]
    return "; ".join([*unknown[:5], *(["expected " + "; ".join(phrases)] if phrases else [])])


def _unknown(cls: type[Settings], place: list[str]) -> str:
    *sections, name = place
    group: type[BaseModel] = cls
    for section in sections:
        group = group.model_fields[section].annotation  # type: ignore[assignment]
    known = list(group.model_fields)
    close = [".".join([*sections, other]) for other in get_close_matches(name, known, n=3)]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"
    return f"unknown key {printable('.'.join(place))}; {hint}"


def _field(cls: type[Settings], place: list[str], values: Any) -> tuple[str, FieldInfo | None, Any]:
    """The setting that a place lies in, as "section.name", its declaration (None of a section), its value."""
    group: type[BaseModel] = cls
    key: list[str] = []
    for part in place:
        if not isinstance(values, Mapping) or part not in group.model_fields:
            break
        key.append(part)
        values, declared = values.get(part), group.model_fields[part]
        if not (isinstance(declared.annotation, type) and issubclass(declared.annotation, BaseModel)):
            return ".".join(key), declared, values
        group = declared.annotation
    return ".".join(key), None, values


def _shown(value: Any) -> str:
    """The value, cut where a file made it endless."""
    text = shown(value, 200)
    return text if len(text) <= 200 else f"{text} ({type(value).__name__})"


def describe(field: FieldInfo) -> str:
    """The allowed values of a setting in words: "an integer >= 1 or null"."""
    return _describe(field.annotation, field.metadata)


def _describe(kind: Any, metadata: Iterable[Any] = ()) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _describe(arguments[0], [*arguments[1:], *metadata])
    if origin in (Union, types.UnionType):
        return " or ".join(
            _describe(option, metadata if option is not type(None) else ()) for option in arguments
        )
    if origin is Literal:
        return " or ".join(repr(value) for value in arguments)
    if origin is list or arguments[1:] == (...,):
        return f"a list of {_plural(arguments[0], metadata)}"
    if origin is tuple:
        return f"{len(arguments)} {_plural(arguments[0], metadata)}"
    names = {
        int: "an integer",
        float: "a finite number",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names[kind] + (_bounds(metadata) if kind in (int, float) else "")


def _plural(kind: Any, metadata: Iterable[Any]) -> str:
    """ "integers >= 1", and "pairs of finite numbers"."""
    bare, own = (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())
    if get_origin(bare) is tuple:
        return f"pairs of {_plural(get_args(bare)[0], ())}"
    return {int: "integers", float: "finite numbers"}[bare] + _bounds([*own, *metadata])


def _bounds(metadata: Iterable[Any]) -> str:
    low = next((rule for rule in metadata if isinstance(rule, (Ge, Gt))), None)
    high = next((rule for rule in metadata if isinstance(rule, (Le, Lt))), None)
    least = None if low is None else low.ge if isinstance(low, Ge) else low.gt
    most = None if high is None else high.le if isinstance(high, Le) else high.lt
    if least is not None and most is not None:
        return (
            f" in {'[' if isinstance(low, Ge) else '('}{least}, {most}{']' if isinstance(high, Le) else ')'}"
        )
    if least is not None:
        return f" {'>=' if isinstance(low, Ge) else '>'} {least}"
    return ""
