"""Parse and evaluate the arithmetic of [derived], which is never run as Python code."""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

Number = int | float

_MAX_LENGTH = 500
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Number]] = {"min": min, "max": max}


@dataclass(frozen=True)
class Expression:
    """Arithmetic on numbers and parameters; `names` are those of the parameters."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    def evaluate(self, values: Mapping[str, Any]) -> Number:
        """Return the result with the values of the parameters. Raises ValueError if it is no finite number."""
        used = {name: values[name] for name in self.names}
        for name, value in used.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} = {value!r} is not a number")  # noqa: TRY004 - a value of the file.
        try:
            result = _evaluate(self.tree, used)
        except (ArithmeticError, TypeError, RecursionError) as error:
            result, reason = math.nan, f" ({error})"
        else:
            reason = ""
        if isinstance(result, complex) or not math.isfinite(result):
            where = ", ".join(f"{name} = {value!r}" for name, value in used.items())
            raise ValueError(f"{self.text!r} is not a finite number{f' with {where}' if where else ''}{reason}")
        return result


@lru_cache(maxsize=256)
def parse_expression(text: str) -> Expression:
    """Parse arithmetic of numbers, names, + - * / **, min and max. Raises ValueError for anything else."""
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"longer than {_MAX_LENGTH} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{text!r} is not an expression") from error
    names: dict[str, None] = {}
    _check(tree, names)
    return Expression(text, tuple(names), tree)


def _check(node: ast.expr, names: dict[str, None]) -> None:
    """Raise ValueError for a node that is no arithmetic, and collect the names of parameters."""
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool) and math.isfinite(value):
            return
        case ast.Name(id=name):
            names[name] = None
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
            _check(operand, names)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATORS:
            _check(left, names)
            _check(right, names)
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as arguments, keywords=[]) if name in _FUNCTIONS:
            for argument in arguments:
                _check(argument, names)
        case _:
            problem = "expected numbers, names, + - * / **, min(a, b) and max(a, b)"
            raise ValueError(f"{ast.unparse(node)!r} is not arithmetic; {problem}")


def _evaluate(node: ast.expr, values: Mapping[str, Number]) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=sign, operand=operand):
            return _SIGNS[type(sign)](_evaluate(operand, values))
        case ast.BinOp(left=left, op=operation, right=right):
            operands = _evaluate(left, values), _evaluate(right, values)
            if isinstance(operation, ast.Pow):
                # It raises OverflowError where the power of two integers would have too many digits.
                float(operands[0]) ** float(operands[1])
            return _OPERATORS[type(operation)](*operands)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_evaluate(argument, values) for argument in arguments))
    raise ValueError(f"{ast.unparse(node)!r} is not arithmetic")
