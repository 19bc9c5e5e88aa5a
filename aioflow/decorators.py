"""``@workflow`` and ``@step``: from a plain class to a checked definition, in a registry.

Everything that can be checked is checked when the class is defined, and reported in one error. Targets of commands are
read from the source of the steps; only what is certainly wrong is refused, the rest is checked when the step returns.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, TypeAlias, TypeVar, overload

from pydantic import BaseModel

from aioflow import clock
from aioflow.codec import ContextCodec
from aioflow.commands import Returned
from aioflow.context import undeclared_field
from aioflow.definition import StepDefinition, StepOptions, WorkflowDefinition
from aioflow.edges import edge_problems, target_problems
from aioflow.errors import DefinitionError
from aioflow.inputs import ACTION, ActionDefinition
from aioflow.model import MAX_NAME, check_name
from aioflow.registry import DEFINITION, registry
from aioflow.retry import Retry
from aioflow.storable import problems_of

#: Where ``@step`` leaves its options, on the method.
MARK = "__aioflow_step__"

F = TypeVar("F", bound=Callable[..., Returned])
#: A step of the class that is being defined: the function, or its name.
StepName: TypeAlias = Callable[..., Returned] | str
K = TypeVar("K", bound=type)


@overload
def step(function: F, /) -> F: ...
@overload
def step(
    *,
    start: bool = False,
    retry: Retry | None = None,
    timeout: timedelta | None = None,
    on_fail: StepName | None = None,
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
    on_fail: StepName | None = None,
    title: str | None = None,
    thread: bool | None = None,
) -> Any:
    """Make a method a step. Write it as ``@step``, or with options as ``@step(...)``.

    Args:
        function: the method, sync or async; it returns a command. It may take parameters beside ``self``, which are
            filled, by name and type, from what resumed the run: a message, the keys of a signal's payload, a Failure.
        start: whether runs begin here; exactly one step of a workflow does.
        retry: how its failures are retried; the workflow's ``default_retry`` if not given.
        timeout: how long one attempt may take; a longer one fails with StepTimeout and is retried. A thread cannot
            be stopped: a sync step that is too late is left alone, and what it returns is dropped.
        on_fail: the step, or its name, that the run goes on with when this one has failed for good; the workflow's
            ``on_fail`` if not given.
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
    after = _step_name("@step(on_fail=...)", on_fail)
    options = StepOptions(start=start, retry=retry, timeout=micros, title=title, thread=thread, on_fail=after)

    def mark(method: Any) -> Any:
        if not callable(method) and not isinstance(method, classmethod):  # the class's DefinitionError reports that one
            raise TypeError(
                f"@step decorates a method, got {type(method).__name__}. Options are keywords: @step(start=True)."
            )
        setattr(method, MARK, options)
        return method

    return mark if function is None else mark(function)


def workflow(
    name: str,
    *,
    version: str = "1",
    default_retry: Retry = Retry(),  # noqa: B008 - frozen
    timeout: timedelta | None = None,
    on_timeout: StepName | None = None,
    on_fail: StepName | None = None,
    max_transitions: int = 10_000,
) -> Callable[[K], K]:
    """Make a class a workflow, and register it.

    The class has a pydantic ``Context`` and ``@step`` methods, one of them with ``start=True``. A classmethod
    ``create_context``, sync or async, may build the Context from the keywords of ``engine.start``.

    Args:
        name: what runs are stored under; up to 200 characters.
        version: runs go on with the version they started with; change it when the new code cannot take old runs.
        default_retry: for the steps that have no policy of their own.
        timeout: how long a run may take from its start in all, waiting and retrying included. A step that is running
            then runs to its end; before its next step the run goes to ``on_timeout``, without it to ``on_fail``, and
            without that it fails.
        on_timeout: the step, or its name, for a run whose timeout is over; the run does not time out again.
        on_fail: the step, or its name, that a run goes on with when a step without an ``on_fail`` of its own has failed
            for good, or when the run's timeout is over and there is no ``on_timeout`` (its ``failure: Failure`` then
            has ``kind="timeout"``). A run goes there once.
        max_transitions: how many steps a run may take without waiting before it fails as an endless loop.

    Returns:
        A decorator that gives the class back.

    Raises:
        DefinitionError: the class cannot work as it is written; the error lists every reason.
        TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
    """
    options = checked_options(
        "@workflow",
        version=version,
        default_retry=default_retry,
        timeout=timeout,
        on_timeout=on_timeout,
        on_fail=on_fail,
        max_transitions=max_transitions,
    )
    options["name"] = check_name("@workflow(name)", name)

    def decorate(cls: K) -> K:
        return define(cls, options)

    return decorate


def checked_options(
    decorator: str,
    *,
    version: str,
    default_retry: Retry,
    timeout: timedelta | None,
    on_timeout: StepName | None,
    on_fail: StepName | None,
    max_transitions: int,
) -> dict[str, Any]:
    """A workflow decorator's arguments, as fields of WorkflowDefinition; ``decorator`` is its name, for errors.

    Raises:
        TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
    """
    check_name(f"{decorator}(version=...)", version)
    if not isinstance(default_retry, Retry):
        raise TypeError(f"{decorator}(default_retry=...) takes a Retry, got {type(default_retry).__name__}.")
    if not isinstance(max_transitions, int) or max_transitions < 1:
        raise ValueError(f"{decorator}(max_transitions=...) must be an int of at least 1, got {max_transitions!r}.")
    if timeout is not None and not isinstance(timeout, timedelta):
        raise TypeError(f"{decorator}(timeout=...) takes a timedelta, got {type(timeout).__name__}.")
    micros = None if timeout is None else clock.duration_micros(timeout, f"{decorator}(timeout=...)")
    if micros == 0:
        raise ValueError(f"{decorator}(timeout=...) must be longer than zero.")
    if on_timeout is not None and timeout is None:
        raise TypeError(f"{decorator}(on_timeout=...) needs timeout=. Say how long a run may take.")
    return {
        "version": version,
        "default_retry": default_retry,
        "max_transitions": max_transitions,
        "timeout": micros,
        "on_timeout": _step_name(f"{decorator}(on_timeout=...)", on_timeout),
        "on_fail": _step_name(f"{decorator}(on_fail=...)", on_fail),
    }


def define(cls: K, options: Mapping[str, Any], problems: Iterable[str] = ()) -> K:
    """Check the class and register it. ``problems``: what is already known to be wrong with it."""
    definition = _define(cls, options, problems)
    registry.add(definition)
    setattr(cls, DEFINITION, definition)
    return cls


def _step_name(option: str, step: object) -> str | None:
    if step is None or isinstance(step, str):
        return step
    name = getattr(step, "__name__", None)
    if not callable(step) or not isinstance(name, str):
        raise TypeError(f"{option} takes a step of the class or its name, got {type(step).__name__}.")
    return name


def _define(cls: type, options: Mapping[str, Any], known: Iterable[str]) -> WorkflowDefinition:
    if not isinstance(cls, type):
        raise TypeError(f"@workflow decorates a class, got {type(cls).__name__}.")
    steps, problems = _steps_of(cls, options["name"], by_event=options.get("event") is not None)
    problems += [*edge_problems(steps, options), *known]
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
        cls=cls,
        codec=ContextCodec(context, undeclared_field),
        steps=steps,
        start=starts[0],
        source=(_file_of(cls), cls.__qualname__),
        **options,
    )


def _steps_of(cls: type, workflow: str, *, by_event: bool) -> tuple[dict[str, StepDefinition], list[str]]:
    """The steps, and what is wrong with them. Base classes come first; a step that overrides one keeps its place.

    ``by_event``: whether events start the runs.
    """
    steps: dict[str, StepDefinition] = {}
    problems: list[str] = []
    for klass in reversed(cls.__mro__):
        for name, member in vars(klass).items():
            options = getattr(member, MARK, None) or getattr(getattr(member, "__func__", None), MARK, None)
            if options is not None:
                action = getattr(member, ACTION, None)
                called = None if action is None else (action.name or _action_name(workflow, name), action)
                steps[name] = StepDefinition(name, member, options, called)
            elif name in steps:
                if member is not None:
                    problems.append(f"{klass.__qualname__}.{name} overrides a step without being one. Add @step to it.")
                del steps[name]
    for name, definition in steps.items():
        if isinstance(definition.function, staticmethod | classmethod):
            problems.append(f"step {name!r} is a {type(definition.function).__name__}. A step is a plain method.")
            continue
        problems += _signature_problems(name, definition, by_event=by_event)
    problems += target_problems(cls, steps)
    return steps, problems


def _signature_problems(name: str, definition: StepDefinition, *, by_event: bool) -> Iterable[str]:
    if len(name) > MAX_NAME:
        yield f"step {name!r} has a name of over {MAX_NAME} characters."
    if definition.is_async and definition.options.thread:
        yield f"step {name!r} is async and says thread=True. An async step runs on the event loop."
    if inspect.isgeneratorfunction(definition.function) or inspect.isasyncgenfunction(definition.function):
        yield f"step {name!r} yields. A step returns its command: return it."
    parameters = definition.parameters
    if not parameters.bound:
        yield f"step {name!r} takes no self. A step is a plain method."
    if parameters.positional:
        yield f"step {name!r} takes {', '.join(parameters.positional)} by position only. Leave out the '/'."
    needed = parameters.needed_beside_event() if by_event else parameters.needed
    if definition.action is not None:
        yield from _action_problems(definition, definition.action)
    elif definition.options.start and needed:
        takes = "self and the event alone" if by_event else "self alone"
        yield f"step {name!r} needs the arguments {', '.join(needed)}. A start step takes {takes}: read the Context."


def _action_problems(definition: StepDefinition, action: ActionDefinition) -> Iterable[str]:
    name = definition.name
    if definition.options.retry is not None or definition.options.on_fail is not None:
        option = "retry=" if definition.options.retry is not None else "on_fail="
        yield (
            f"step {name!r} is an action, and has {option} What an action raises goes to its caller, and the run waits "
            "as before: leave it out."
        )
    if isinstance(definition.function, staticmethod | classmethod) or not definition.parameters.bound:
        return
    yield from action.problems()


def _action_name(workflow: str, step: str) -> str:
    """The name of an action that was not given one."""
    name = re.sub(r"\W", "_", f"{workflow}_{step}")
    return (name if name.isidentifier() else f"action_{name}")[:MAX_NAME]


def _file_of(cls: type) -> str:
    try:
        return inspect.getsourcefile(cls) or cls.__module__
    except (OSError, TypeError):
        return cls.__module__
