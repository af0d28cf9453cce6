"""Every setting that people can write, with its type, default and meaning, read off the classes."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["Setting", "settings_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One field of a class that people write."""

    path: str
    """Dotted path, as a search space or `--set` names it."""
    kind: str
    """What may be written."""
    default: str
    """What holds when nothing is written; `required` where something must be."""
    meaning: str


def settings_of(model: type[BaseModel], prefix: str = "") -> Iterator[Setting]:
    """Yield the settings of a class and of the classes inside it, in their order."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        inner = _model_in(field.annotation)
        if inner is not None:
            yield from settings_of(inner, f"{path}.")
            continue
        yield Setting(
            path=path,
            kind=_kind(field.annotation),
            default=_default(field),
            meaning=" ".join((field.description or "").split()),
        )
        if get_origin(field.annotation) is dict:
            named = _model_in(get_args(field.annotation)[1])
            if named is not None:
                yield from settings_of(named, f"{path}.NAME.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    parts = [p for p in get_args(annotation) if p not in (types.NoneType, Ellipsis)]
    is_wrapped = _is_union(annotation) or get_origin(annotation) is tuple
    return _model_in(parts[0]) if is_wrapped and len(parts) == 1 else None


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _kind(annotation: Any) -> str:
    if annotation is types.NoneType:
        return "nothing"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if _is_union(annotation):
        return " or ".join(_kind(p) for p in get_args(annotation) if p is not types.NoneType)
    if get_origin(annotation) in (tuple, list):
        return f"list of {_kind(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return "mapping"
    if hasattr(annotation, "__metadata__"):
        return _kind(get_args(annotation)[0])
    names = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ((), {}, ""):
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
