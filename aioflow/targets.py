"""Which steps a step's source names in its commands, and which of its waits name none; read without running it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel

from aioflow import commands
from aioflow.waits import on, wait

#: Where each command takes a target: (positional index or None, keyword).
_PLACES: dict[Callable[..., Any], tuple[tuple[int | None, str], ...]] = {
    commands.goto: ((0, "target"),),
    commands.sleep: ((None, "then"),),
    on: ((0, "action"), (None, "then")),
    on.event: ((None, "then"),),
    wait.for_signal: ((None, "then"), (None, "on_timeout")),
    wait.for_event: ((None, "then"), (None, "on_timeout")),
    wait.any: ((None, "on_timeout"),),
}
_NAMES = {
    commands.goto: "goto",
    commands.sleep: "sleep",
    on: "on",
    on.event: "on.event",
    wait.for_signal: "wait.for_signal",
    wait.for_event: "wait_for_event",
    wait.any: "wait.any",
}


class Named(NamedTuple):
    """One target that a step's source names literally."""

    #: How it is written: ``goto()`` or ``sleep(then=)``.
    written: str
    step: str
    #: Whether it is written as ``self.step``.
    is_attribute: bool
    #: "target", "then", "on_timeout" or "action".
    role: str
    #: The command: "goto", "sleep", "on", "on.event", "wait.for_signal", "wait_for_event" or "wait.any".
    command: str
    #: The pydantic model that the wait is for, if it is for one.
    model: type[BaseModel] | None


class FallThrough(NamedTuple):
    """A wait without ``then=``: the run goes on with the step that is declared next."""

    #: The step named as its ``on_timeout``, if one is.
    on_timeout: str | None
    #: The command: "wait.for_signal" or "wait_for_event".
    command: str
    model: type[BaseModel] | None


class NoWayOut(NamedTuple):
    """A wait with ``timeout=`` and without ``on_timeout=``."""

    command: str


Reading = Named | FallThrough | NoWayOut


def named_targets(function: Callable[..., Any]) -> Iterator[Reading]:
    """The targets that a step's source names literally, and its waits that name none.

    Args:
        function: the step, decorated or not.

    Yields:
        Only what the source states literally: nothing for computed targets, and nothing at all without source.
    """
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or not code.co_varnames:
        return
    try:
        source = inspect.getsource(function)
        # A method is indented, but not every line in it need be: a block around it parses where dedent would fail.
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
        if callable(command) and _hashable(command) and command in _PLACES:
            yield from _read(node, command, function, None if myself in hidden else myself)


def _read(
    node: ast.Call, command: Callable[..., Any], function: Callable[..., Any], myself: str | None
) -> Iterator[Reading]:
    name = _NAMES[command]
    first = node.args[0] if node.args and not isinstance(node.args[0], ast.Starred) else None
    model = _value_of(first, function) if first is not None and command is not commands.goto else None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        model = None
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    found: dict[str, str] = {}
    for index, keyword in _PLACES[command]:
        given = [keywords[keyword]] if keyword in keywords else []
        if index is not None and first is not None:
            given.append(first)
        for value in given:
            match value:
                case ast.Constant(value=str() as target) if keyword != "action":
                    is_attribute = False
                case ast.Attribute(value=ast.Name(id=owner), attr=target) if owner == myself:
                    is_attribute = True
                case _:
                    continue
            found[keyword] = target
            written = f"{name}({keyword}=)" if index is None else f"{name}()"
            yield Named(written, target, is_attribute, keyword, name, model if keyword == "then" else None)
    says = {keyword for keyword, value in keywords.items() if keyword is None or not _is_none(value)}
    if "timeout" in says and "on_timeout" not in says and None not in says:
        yield NoWayOut(name)
    says_all = None not in keywords and not any(isinstance(arg, ast.Starred) for arg in node.args)
    if command in (wait.for_signal, wait.for_event) and says_all:
        late = keywords.get("on_timeout")
        computed = late is not None and "on_timeout" not in found and not _is_none(late)
        if ("then" not in keywords or _is_none(keywords["then"])) and not computed:
            yield FallThrough(found.get("on_timeout"), name, model)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


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
    """Every call within the node, with the names that an inner scope hides there."""
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
            value = _value_of(owner, function)
            return getattr(value, name, None) if inspect.ismodule(value) or value is wait or value is on else None
    return None
