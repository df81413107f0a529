"""Sums and products of whole numbers, as $((...)) of a shell writes them, without `eval`."""

import ast
import operator
from collections.abc import Callable

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),  # C's, towards 0
    ast.Mod: lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1),
}


class NotANumber(ValueError):
    """A text that is no such expression."""


def whole_number(text: str, value: Callable[[str], str]) -> int:
    """Compute `text`; value(name) is the text of a variable. Raises NotANumber."""
    try:
        return _computed(ast.parse(text.strip(), mode="eval").body, value)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError) as error:
        raise NotANumber(f"{text.strip()} is no whole number") from error


def _computed(node: ast.expr, value: Callable[[str], str]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return whole_number(value(node.id), value)  # as in bash, where 010 is not 10
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_computed(node.operand, value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _computed(node.left, value), _computed(node.right, value)
        return OPERATORS[type(node.op)](left, right)
    raise NotANumber("an operation that is not computed")
