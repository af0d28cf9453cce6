"""The one strict reader of what people write, and the base of every class that they write.

YAML scalars follow YAML 1.2 (`1e19` and `3e-4` are numbers, `no` is text), a key may be given
once, and every problem of a file is reported together as `file:line: path: rule (got value)`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Self, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from planner.errors import ConfigError, did_you_mean

__all__ = [
    "Config",
    "Count",
    "Document",
    "Fraction",
    "Key",
    "Name",
    "PositiveCount",
    "PositiveFloat",
    "field_names",
    "load_config",
    "parse_config",
    "problems_error",
    "read_yaml",
    "validate",
]

Key = tuple[str | int, ...]
Model = TypeVar("Model", bound="Config")

_MAX_NODES: Final = 100_000
"""More nodes than any study has; aliases of aliases can otherwise grow without bound."""
_MAX_DEPTH: Final = 50
_MAX_DIGITS: Final = 100
"""More digits than any number of a study has; Python refuses to print thousands of them."""


def _integral(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_integral), Field(ge=0)]
"""A whole number; `2e9` is accepted, `1.5` is not."""
PositiveCount = Annotated[int, BeforeValidator(_integral), Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=120)]


class Config(BaseModel):
    """Base of everything that people write: strict, frozen, no unknown keys, no NaN."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    def replace(self, **changes: object) -> Self:
        """Return a copy with some fields changed, validated again.

        Raises:
            ConfigError: The changed copy breaks a rule.
        """
        data = self.model_dump(mode="json") | {
            key: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
            for key, value in changes.items()
        }
        return parse_config(data, type(self))


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """What a file says, with the place of every value."""

    source: str
    """Name to print in messages: a path."""
    data: dict[str, Any]
    places: Mapping[Key, str] = field(default_factory=dict)
    """Path of keys -> `file:line` (or the option that set it)."""
    problems: tuple[str, ...] = ()
    """Problems found while reading: repeated keys, keys that are not text."""

    def place(self, key: Key) -> str:
        """Return where a key was written, or its nearest parent."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, self.source)

    def with_overrides(self, overrides: Sequence[str]) -> Document:
        """Return the document with each `a.b=value` put in; values are read as YAML.

        Raises:
            ConfigError: An override is not of that form.
        """
        data = json.loads(json.dumps(self.data))
        places = dict(self.places)
        for text in overrides:
            path, value = _parse_override(text)
            target = data
            for part in path[:-1]:
                if not isinstance(target.get(part), dict):
                    target[part] = {}
                target = target[part]
            target[path[-1]] = value
            places[path] = f"--set {text}"
        return Document(source=self.source, data=data, places=places, problems=self.problems)


class _Yaml12Loader(yaml.SafeLoader):
    """Composes nodes with YAML 1.2 scalar tags; constructs nothing."""


_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|false|True|False|TRUE|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+|0o[0-7]+)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)"
        r"|[0-9][0-9_]*\.[0-9_]*)$",
        "-+.0123456789",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


class _Reader:
    """Turns a tree of YAML nodes into data, noting places and problems."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.places: dict[Key, str] = {}
        self.problems: list[str] = []
        self._count = 0

    def _at(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}"

    def read(self, node: yaml.Node, key: Key, parents: frozenset[int] = frozenset()) -> Any:
        self._count += 1
        if id(node) in parents or self._count > _MAX_NODES:
            raise ConfigError(f"{self._at(node)}: aliases must not repeat themselves without end.")
        if len(key) > _MAX_DEPTH:
            raise _too_deep(self._at(node))
        self.places.setdefault(key, self._at(node))
        parents = parents | {id(node)}
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, parents)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*key, i), parents) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, key: Key, parents: frozenset[int]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        lines: dict[str, str] = {}
        for name_node, value_node in node.value:
            name = name_node.value
            if not isinstance(name, str) or not name_node.tag.endswith(":str"):
                self.problems.append(
                    f"{self._at(name_node)}: keys must be text (got {name!r}); put it in quotes"
                )
                continue
            if name in data:
                path = ".".join(str(part) for part in (*key, name))
                self.problems.append(
                    f"{self._at(name_node)}: {path}: a key may be given once"
                    f" (first given at line {lines[name].rpartition(':')[2]})"
                )
                continue
            lines[name] = self._at(name_node)
            self.places[(*key, name)] = lines[name]
            data[name] = self.read(value_node, (*key, name), parents)
        return data

    def _scalar(self, node: yaml.Node) -> object:
        kind, text = node.tag.rpartition(":")[2], str(node.value)
        if kind in ("int", "float") and len(text) > _MAX_DIGITS:
            self.problems.append(
                f"{self._at(node)}: a number has at most {_MAX_DIGITS} digits (got {len(text)})"
            )
            return None
        if kind == "int":
            return int(text.replace("_", ""), 0)
        if kind == "float":
            return float(text.replace("_", ""))
        if kind == "bool":
            return text.lower() == "true"
        if kind == "null":
            return None
        if kind != "str":
            self.problems.append(f"{self._at(node)}: tags are not allowed (got {node.tag!r})")
        return text


def parse_yaml(text: str, source: str) -> Document:
    """Return the document that a YAML text holds.

    Raises:
        ConfigError: The text is not YAML, or its top is not a mapping.
    """
    try:
        node = yaml.compose(text, Loader=_Yaml12Loader)
    except RecursionError as error:
        raise _too_deep(source) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}{line}: not valid YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {error}.") from error
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{source}:1: must be a mapping of keys to values.",
            hint="Start with a line such as 'name: my-study'.",
        )
    reader = _Reader(source)
    data = reader.read(node, ())
    return Document(source=source, data=data, places=reader.places, problems=tuple(reader.problems))


def _too_deep(place: str) -> ConfigError:
    return ConfigError(f"{place}: lists and mappings must not nest deeper than {_MAX_DEPTH}.")


def read_yaml(path: Path) -> Document:
    """Return the document that a YAML file holds.

    Raises:
        ConfigError: The file cannot be read, or is not a YAML mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be UTF-8 text (byte {error.start} is not).") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    return parse_yaml(text, str(path))


def load_config(path: Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Return the object that a YAML file describes.

    Args:
        path: A YAML file.
        model: What the file must describe.
        overrides: `a.b=value` texts that replace what the file says.

    Raises:
        ConfigError: With every problem of the file, one per line.
    """
    return validate(read_yaml(path).with_overrides(overrides), model)


def parse_config(data: Mapping[str, Any], model: type[Model], source: str = "value") -> Model:
    """Return the object that plain data describes, under the rules of a file.

    Raises:
        ConfigError: With every problem of the data, one per line.
    """
    return validate(Document(source=source, data=dict(data)), model)


def validate(document: Document, model: type[Model]) -> Model:
    """Return the object that a document describes.

    Raises:
        ConfigError: With every problem of the document, one per line.
    """
    problems = list(document.problems)
    try:
        result = model.model_validate_json(json.dumps(document.data))
    except ValidationError as error:
        problems += [_describe(detail, document, model) for detail in error.errors()]
        result = None
    if problems or result is None:
        raise problems_error(document.source, model.__name__, problems)
    return result


def problems_error(source: str, kind: str, problems: Sequence[str]) -> ConfigError:
    """Return the error that lists every problem of one file."""
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    lines = "\n".join(f"  {problem}" for problem in problems)
    return ConfigError(f"{source} is not a valid {kind} ({count})\n{lines}")


def _parse_override(text: str) -> tuple[tuple[str, ...], object]:
    path, separator, value = text.partition("=")
    parts = tuple(part.strip() for part in path.split("."))
    if not separator or not all(parts):
        raise ConfigError(f"--set takes key.path=value: got {text!r}.")
    read = parse_yaml(f"value: {value}", f"--set {text}")
    if read.problems:
        raise ConfigError(read.problems[0])
    return parts, read.data["value"]


def _describe(detail: ErrorDetails, document: Document, model: type[Config]) -> str:
    key = _without_tags(detail["loc"], document.data)
    path = ".".join(str(part) for part in key) or "(top)"
    place = document.place(key)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        known = field_names(model, key[:-1])
        return f"{place}: {path}: unknown key; {_lower_first(did_you_mean(str(key[-1]), known))}"
    if detail["type"] == "missing":
        return f"{place}: {path}: required key is missing"
    if detail["type"] == "value_error":
        return f"{place}: {path}: {message}"
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        expected = re.findall(r"'([^']+)'", detail["ctx"]["expected"])
        return f"{place}: {path}: {message} (got {detail['input']!r}). " + did_you_mean(
            detail["input"], expected
        )
    return f"{place}: {path}: {message} (got {_short(detail['input'])})"


def _lower_first(text: str) -> str:
    return text[0].lower() + text[1:]


def _short(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _without_tags(loc: Iterable[str | int], data: object) -> Key:
    """Drop the parts of pydantic's path that are no keys: names of union members."""
    key: list[str | int] = []
    parts = list(loc)
    for i, part in enumerate(parts):
        if isinstance(data, dict):
            if part not in data and i < len(parts) - 1:
                continue
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int):
            data = data[part] if part < len(data) else None
        else:
            break
        key.append(part)
    return tuple(key)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def field_names(model: type[BaseModel], key: Key) -> list[str]:
    """Return the names of the fields that the mapping at `key` may hold; none where any name goes."""
    models, is_open = [model], False
    for part in key:
        fields = [c.model_fields[str(part)] for c in models if str(part) in c.model_fields]
        is_open = not is_open and any(get_origin(f.annotation) is dict for f in fields)
        models = [inner for f in fields for inner in _models_in(f.annotation)] or models
    if is_open:
        return []
    return [name for candidate in models for name in candidate.model_fields]
