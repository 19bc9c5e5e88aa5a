"""``@workflow`` and ``@step``: from a plain class to a checked definition, in a registry.

Everything that can be checked is checked when the class is defined, in one error. Targets of commands are read from
the source of the steps; only what is positively read is refused, the rest is decided when the step returns.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeVar, overload

from pydantic import BaseModel

from aioflow import clock
from aioflow.codec import ContextCodec
from aioflow.commands import Returned
from aioflow.context import undeclared_field
from aioflow.definition import StepDefinition, StepOptions, WorkflowDefinition
from aioflow.errors import DefinitionError
from aioflow.model import MAX_NAME, check_name
from aioflow.registry import DEFINITION, registry
from aioflow.retry import Retry
from aioflow.storable import problems_of
from aioflow.targets import named_targets

_MARK = "__aioflow_step__"

F = TypeVar("F", bound=Callable[..., Returned])
K = TypeVar("K", bound=type)


@overload
def step(function: F, /) -> F: ...
@overload
def step(
    *,
    start: bool = False,
    retry: Retry | None = None,
    timeout: timedelta | None = None,
    title: str | None = None,
    thread: bool | None = None,
) -> Callable[[F], F]: ...
def step(
    function: Callable[..., Returned] | None = None,
    /,
    *,
    start: bool = False,
    retry: Retry | None = None,
    timeout: timedelta | None = None,
    title: str | None = None,
    thread: bool | None = None,
) -> Any:
    """Make a method a step. Write it as ``@step``, or with options as ``@step(...)``.

    Args:
        function: the method, sync or async; it takes ``self`` alone and returns a command.
        start: whether runs begin here; exactly one step of a workflow does.
        retry: how its failures are retried; the workflow's ``default_retry`` if not given.
        timeout: how long one attempt may take; a longer one fails with StepTimeout and is retried. A thread cannot
            be stopped: a sync step that is too late is left alone, and what it returns is dropped.
        title: a name for people.
        thread: False runs a sync step on the event loop, which it must not block. By default sync steps run in a
            bounded pool of worker threads.

    Returns:
        The method, marked.

    Raises:
        TypeError, ValueError: an option of the wrong type or out of its range.
    """
    for option, value, kind, takes in (
        ("start", start, bool, "a bool"),
        ("title", title, str | None, "a string"),
        ("thread", thread, bool | None, "a bool"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"@step({option}=...) takes {takes}, got {type(value).__name__}.")
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"@step(retry=...) takes a Retry, got {type(retry).__name__}.")
    if timeout is not None and not isinstance(timeout, timedelta):
        raise TypeError(f"@step(timeout=...) takes a timedelta, got {type(timeout).__name__}.")
    micros = None if timeout is None else clock.duration_micros(timeout, "@step(timeout=...)")
    if micros == 0:
        raise ValueError("@step(timeout=...) must be longer than zero.")
    options = StepOptions(start=start, retry=retry, timeout=micros, title=title, thread=thread)

    def mark(method: Any) -> Any:
        if not callable(method) and not isinstance(method, classmethod):  # which is told of with its class
            raise TypeError(
                f"@step decorates a method, got {type(method).__name__}. Options are keywords: @step(start=True)."
            )
        setattr(method, _MARK, options)
        return method

    return mark if function is None else mark(function)


def workflow(
    name: str,
    *,
    version: str = "1",
    default_retry: Retry = Retry(),  # noqa: B008 - frozen
    max_transitions: int = 10_000,
) -> Callable[[K], K]:
    """Make a class a workflow, and register it.

    The class has a pydantic ``Context`` and ``@step`` methods, one of them with ``start=True``. A classmethod
    ``create_context``, sync or async, may build the Context from the keywords of ``engine.start``.

    Args:
        name: what runs are stored under; up to 200 characters.
        version: runs go on with the version they started with; change it when old runs could not.
        default_retry: for the steps that have no policy of their own.
        max_transitions: how many steps a run may take without waiting, before it is failed as an endless loop.

    Returns:
        A decorator that gives the class back.

    Raises:
        DefinitionError: the class cannot work as it is written; it lists every reason.
        TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
    """
    check_name("@workflow(name)", name)
    check_name("@workflow(version=...)", version)
    if not isinstance(default_retry, Retry):
        raise TypeError(f"@workflow(default_retry=...) takes a Retry, got {type(default_retry).__name__}.")
    if not isinstance(max_transitions, int) or max_transitions < 1:
        raise ValueError(f"@workflow(max_transitions=...) must be an int of at least 1, got {max_transitions!r}.")

    def decorate(cls: K) -> K:
        definition = _define(cls, name, version, default_retry, max_transitions)
        registry.add(definition)
        setattr(cls, DEFINITION, definition)
        return cls

    return decorate


def _define(cls: type, name: str, version: str, default_retry: Retry, max_transitions: int) -> WorkflowDefinition:
    if not isinstance(cls, type):
        raise TypeError(f"@workflow decorates a class, got {type(cls).__name__}.")
    steps, problems = _steps_of(cls)
    starts = [s.name for s in steps.values() if s.options.start]
    if not starts:
        problems.append("it has no start step. Mark the first one: @step(start=True).")
    elif len(starts) > 1:
        problems.append(f"it has {len(starts)} start steps ({', '.join(starts)}). Keep start=True on one.")
    context: Any = getattr(cls, "Context", None)
    if context is None:
        problems.append("it has no Context. Add 'class Context(BaseModel): ...', or assign one.")
    elif not (isinstance(context, type) and issubclass(context, BaseModel)):
        problems.append("its Context is not a pydantic model. Subclass pydantic.BaseModel.")
    else:
        problems += problems_of(context)
    if inspect.isfunction(inspect.getattr_static(cls, "create_context", None)):
        problems.append("its create_context would need an instance. Make it a classmethod.")
    if problems:
        raise DefinitionError(cls.__qualname__, problems)
    return WorkflowDefinition(
        name=name,
        version=version,
        cls=cls,
        codec=ContextCodec(context, undeclared_field),
        steps=steps,
        start=starts[0],
        default_retry=default_retry,
        max_transitions=max_transitions,
        source=(_file_of(cls), cls.__qualname__),
    )


def _steps_of(cls: type) -> tuple[dict[str, StepDefinition], list[str]]:
    """Base classes first; a step that overrides one keeps its place."""
    steps: dict[str, StepDefinition] = {}
    problems: list[str] = []
    for klass in reversed(cls.__mro__):
        for name, member in vars(klass).items():
            options = getattr(member, _MARK, None) or getattr(getattr(member, "__func__", None), _MARK, None)
            if options is not None:
                steps[name] = StepDefinition(name, member, options)
            elif name in steps:
                if member is not None:
                    problems.append(f"{klass.__qualname__}.{name} overrides a step without being one. Add @step to it.")
                del steps[name]
    for name, definition in steps.items():
        if isinstance(definition.function, staticmethod | classmethod):
            problems.append(f"step {name!r} is a {type(definition.function).__name__}. A step is a plain method.")
            continue
        problems += _signature_problems(name, definition)
        problems += _target_problems(cls, name, definition, steps)
    return steps, problems


def _signature_problems(name: str, definition: StepDefinition) -> Iterable[str]:
    if len(name) > MAX_NAME:
        yield f"step {name!r} has a name of over {MAX_NAME} characters."
    if definition.is_async and definition.options.thread:
        yield f"step {name!r} is async and says thread=True. An async step runs on the event loop."
    parameters = list(inspect.signature(definition.function, follow_wrapped=False).parameters.values())
    if not parameters:
        yield f"step {name!r} takes no self. A step is a plain method."
    required = [
        p.name for p in parameters[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if required:
        yield f"step {name!r} needs the arguments {', '.join(required)}. A step takes self alone: read the Context."


def _attributes_set(cls: type) -> set[str]:
    """The attributes that the class's own functions set, on self or on whatever else."""
    return {
        str(instruction.argval)
        for klass in cls.__mro__
        for member in vars(klass).values()
        if inspect.isfunction(member)
        for instruction in dis.get_instructions(inspect.unwrap(member))
        if instruction.opname == "STORE_ATTR"
    }


def _target_problems(
    cls: type, name: str, definition: StepDefinition, steps: Mapping[str, StepDefinition]
) -> Iterable[str]:
    for command, target, is_attribute in named_targets(definition.function):
        if target in steps:
            continue
        member = inspect.getattr_static(cls, target, None) if is_attribute else None
        if is_attribute and hasattr(cls, "__getattr__"):
            continue
        if member is not None and not inspect.isfunction(member):
            continue  # a property or the like may give a step: decided when the step returns
        if is_attribute and member is None and target in _attributes_set(cls):
            continue  # an instance has it, whatever it is
        known = ", ".join(steps)
        if member is not None:
            yield f"step {name!r}: {command} names {target!r}, which is a method but no step (steps: {known}). Add @step."
        else:
            yield f"step {name!r}: {command} names {target!r}, which is no step of this class (steps: {known})."


def _file_of(cls: type) -> str:
    try:
        return inspect.getsourcefile(cls) or cls.__module__
    except (OSError, TypeError):
        return cls.__module__
