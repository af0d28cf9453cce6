"""Conditions that people write in a search space, such as `model.num_layers % 2 == 0`.

A small, closed language: dotted paths, numbers, text, arithmetic, comparisons, `and or not in`.
Nothing of Python is reachable from it.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from planner.errors import ConfigError

__all__ = ["Expression", "lookup"]

_BINARY: Final[dict[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: Final[dict[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_ALLOWED: Final = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp,
    ast.Compare, ast.Constant, ast.Name, ast.Attribute, ast.Load, ast.List, ast.Tuple,
    *_BINARY, *_COMPARE,
)  # fmt: skip
_NAMES: Final = (ast.Name, ast.Attribute)


def lookup(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    """Return the value at a path of keys, or None where there is none."""
    value: Any = config
    for part in path:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed condition."""

    text: str
    tree: ast.expr

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse(text: str) -> Expression:
        """Return the parsed condition.

        Raises:
            ValueError: It is not in the language.

        >>> Expression.parse("model.num_layers % 2 == 0").of({"model": {"num_layers": 6}})
        True
        """
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"condition {text!r} cannot be read: {error.args[0]}") from error
        for node in ast.walk(tree):
            starts_oddly = isinstance(node, ast.Attribute) and not isinstance(node.value, _NAMES)
            if starts_oddly or not isinstance(node, _ALLOWED):
                raise ValueError(
                    f"condition {text!r} may hold dotted names, numbers, text, + - * / // %, "
                    f"comparisons, and, or, not, in (got {type(node).__name__})"
                )
        return Expression(text, tree.body)

    def names(self) -> set[str]:
        """Return the dotted names that it speaks of.

        >>> sorted(Expression.parse("a.b > 2 or a.b == c").names())
        ['a.b', 'c']
        """
        found: set[str] = set()
        nodes: list[ast.AST] = [self.tree]
        while nodes:
            node = nodes.pop()
            if isinstance(node, _NAMES):
                found.add(".".join(_path(node)))
            else:
                nodes += ast.iter_child_nodes(node)
        return found

    def of(self, config: Mapping[str, Any]) -> Any:
        """Return the value of the condition for a configuration as plain data.

        An absent name is None; a comparison of None with `<` and the like is false.

        Raises:
            ConfigError: The values do not fit the operators: text with a number, division by 0.
        """
        try:
            return _value(self.tree, config)
        except (TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"condition {self.text!r} cannot be evaluated: {error}.") from error


def _path(node: ast.expr) -> tuple[str, ...]:
    if isinstance(node, ast.Name):
        return (node.id,)
    assert isinstance(node, ast.Attribute)  # noqa: S101 -- the parser admits nothing else
    return (*_path(node.value), node.attr)


def _value(node: ast.expr, config: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name | ast.Attribute):
        return lookup(config, _path(node))
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(item, config) for item in node.elts]
    if isinstance(node, ast.UnaryOp):
        value = _value(node.operand, config)
        return not value if isinstance(node.op, ast.Not) else -value
    if isinstance(node, ast.BoolOp):
        values = (_value(item, config) for item in node.values)
        return all(values) if isinstance(node.op, ast.And) else any(values)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, config), _value(node.right, config)
        return None if left is None or right is None else _BINARY[type(node.op)](left, right)
    assert isinstance(node, ast.Compare)  # noqa: S101 -- the parser admits nothing else
    return _compare(node, config)


def _compare(node: ast.Compare, config: Mapping[str, Any]) -> bool:
    left = _value(node.left, config)
    for op, item in zip(node.ops, node.comparators, strict=True):
        right = _value(item, config)
        orders = not isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn)
        if orders and (left is None or right is None):
            return False
        if not _COMPARE[type(op)](left, right):
            return False
        left = right
    return True
