"""Which steps a step names in its commands, read from its source without running it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from aioflow import commands

#: Where each command takes a target: (positional index or None, keyword).
_PLACES: dict[Callable[..., Any], tuple[tuple[int | None, str], ...]] = {
    commands.goto: ((0, "target"),),
    commands.sleep: ((None, "then"),),
}


def named_targets(function: Callable[..., Any]) -> Iterator[tuple[str, str, bool]]:
    """The targets that a step's source names literally.

    Args:
        function: the step, decorated or not.

    Yields:
        (how it is written, e.g. ``goto()`` or ``sleep(then=)``, the step's name, whether as ``self.name``).
        Nothing for targets that are computed, and nothing at all without source.
    """
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or not code.co_varnames:
        return
    try:
        source = inspect.getsource(function)
        # A method is indented, but not every line in it need be: a block around it takes what dedent would not.
        body: list[ast.stmt] = ast.parse(f"if True:\n{source}" if source[:1].isspace() else source).body
    except (OSError, TypeError, SyntaxError):
        return
    outer = body[0] if body else None
    definition = outer.body[0] if isinstance(outer, ast.If) else outer
    if not isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef) or definition.name != code.co_name:
        return  # the file has changed since it was imported
    myself = code.co_varnames[0]
    for node, hidden in _calls(definition, frozenset()):
        if _first_name(node.func) in hidden:
            continue
        command = _value_of(node.func, function)
        for index, keyword in _PLACES.get(command, ()) if callable(command) and _hashable(command) else ():
            given = [k.value for k in node.keywords if k.arg == keyword]
            if index is not None and len(node.args) > index and not isinstance(node.args[0], ast.Starred):
                given.append(node.args[index])
            written = f"{command.__name__}()" if index is not None else f"{command.__name__}({keyword}=)"
            for value in given:
                match value:
                    case ast.Constant(value=str() as name):
                        yield written, name, False
                    case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner == myself and owner not in hidden:
                        yield written, name, True


_SCOPES = (
    ast.FunctionDef
    | ast.AsyncFunctionDef
    | ast.Lambda
    | ast.ClassDef
    | ast.ListComp
    | ast.SetComp
    | ast.DictComp
    | ast.GeneratorExp
)


def _calls(node: ast.AST, hidden: frozenset[str]) -> Iterator[tuple[ast.Call, frozenset[str]]]:
    """Every call in it, with the names that mean something else there than in the function itself."""
    for child in ast.iter_child_nodes(node):
        inner = hidden
        if isinstance(child, _SCOPES):
            inner |= {part.arg for part in ast.walk(child) if isinstance(part, ast.arg)}
            inner |= {
                part.id for part in ast.walk(child) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
            }
        if isinstance(child, ast.Call):
            yield child, inner
        yield from _calls(child, inner)


def _first_name(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _hashable(value: object) -> bool:
    return value.__hash__ is not None


def _value_of(node: ast.expr, function: Callable[..., Any]) -> Any:
    """What a name or dotted name means in the function: a global or a closed-over variable, never a local."""
    match node:
        case ast.Name(id=name):
            code = function.__code__
            if name in code.co_varnames or name in code.co_cellvars:
                return None
            if name in code.co_freevars:
                cell = (function.__closure__ or ())[code.co_freevars.index(name)]
                try:
                    return cell.cell_contents
                except ValueError:  # not assigned yet
                    return None
            return function.__globals__.get(name)
        case ast.Attribute(value=owner, attr=name):
            module = _value_of(owner, function)
            return getattr(module, name, None) if inspect.ismodule(module) else None
    return None
