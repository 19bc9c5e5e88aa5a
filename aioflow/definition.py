"""``@workflow`` and ``@step``: from a plain class to a checked definition, in a registry.

Everything that can be checked is checked when the class is defined, in one error. Targets of commands are read from
the source of the steps; only what is positively read is refused, the rest is decided when the step returns.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError

from aioflow import clock
from aioflow.clock import Micros
from aioflow.codec import ContextCodec, explain, problems_of
from aioflow.commands import Returned
from aioflow.context import undeclared_field
from aioflow.errors import ContextInvalid, DefinitionError, WorkflowUnknown
from aioflow.model import check_name
from aioflow.retry import Retry
from aioflow.targets import named_targets

_MARK = "__aioflow_step__"
_DEFINITION = "__aioflow_definition__"

F = TypeVar("F", bound=Callable[..., Returned])
K = TypeVar("K", bound=type)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What ``@step`` was given."""

    start: bool
    retry: Retry | None
    timeout: Micros | None
    title: str | None
    thread: bool | None


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """A step of a workflow."""

    name: str
    function: Callable[..., Any]
    options: StepOptions

    @property
    def is_async(self) -> bool:
        """Whether it is a coroutine function, also below decorators that keep ``__wrapped__``."""
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(inspect.unwrap(self.function))

    @property
    def in_thread(self) -> bool:
        """Whether it runs in a worker thread: sync steps do unless ``thread=False``."""
        return not self.is_async and self.options.thread is not False


@dataclass(frozen=True, slots=True)
class WorkflowDefinition:
    """A checked workflow class."""

    name: str
    version: str
    cls: type
    codec: ContextCodec
    steps: Mapping[str, StepDefinition]
    start: str
    default_retry: Retry
    max_transitions: int
    #: Where it stands: the same (file, qualified name) may define it again.
    source: tuple[str, str]

    def resolve(self, target: object) -> str | None:
        """The name of the step that a command's target means, or None if it is no step of this workflow."""
        if isinstance(target, str):
            return target if target in self.steps else None
        owner = getattr(target, "__self__", None)
        name: str | None = getattr(target, "__name__", None)
        return name if isinstance(owner, self.cls) and name in self.steps else None

    def retry_of(self, step: str) -> Retry:
        """The step's own policy, else the workflow's."""
        definition = self.steps.get(step)
        return (definition.options.retry if definition else None) or self.default_retry

    async def new_context(self, keywords: Mapping[str, Any]) -> BaseModel:
        """A live Context from the keywords given to ``start``.

        Raises:
            TypeError: a keyword that neither create_context nor the Context takes.
            ContextInvalid: they do not make a valid Context.
        """
        create = getattr(self.cls, "create_context", None)
        try:
            if create is None:
                self._check_keywords(keywords)
                context: object = self.codec.context(**keywords)
            else:
                try:
                    inspect.signature(create).bind(**keywords)
                except TypeError as error:
                    raise TypeError(_keyword_advice(f"{self.cls.__qualname__}.create_context", str(error))) from None
                context = create(**keywords)
                if inspect.isawaitable(context):
                    context = await context
            if not isinstance(context, self.codec.context):
                raise ContextInvalid(
                    self.name,
                    f"create_context returned {type(context).__name__}, not {self.codec.context.__qualname__}. "
                    "Return cls.Context(...).",
                )
            return self.codec.adopt(context)
        except ValidationError as error:
            raise ContextInvalid(self.name, explain(error)) from error

    def _check_keywords(self, keywords: Mapping[str, Any]) -> None:
        codec = self.codec
        if codec.takes_any_keyword:
            return
        unknown = [name for name in keywords if name not in codec.declared]
        if unknown:
            problem = (
                f"it has no field {', '.join(map(repr, unknown))} (fields: {', '.join(codec.context.model_fields)})"
            )
            raise TypeError(_keyword_advice(f"{self.cls.__qualname__}.Context", problem))


def _keyword_advice(where: str, problem: str) -> str:
    return (
        f"These keywords do not fit {where}: {problem}. Keywords of start() fill the Context; "
        "key, reuse, delay and start_at go into StartOptions(...), before them."
    )


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
    if function is not None and not callable(function):
        raise TypeError(
            f"@step decorates a method, got {type(function).__name__}. Options are keywords: @step(start=True)."
        )
    if retry is not None and not isinstance(retry, Retry):
        raise TypeError(f"@step(retry=...) takes a Retry, got {type(retry).__name__}.")
    if timeout is not None and not isinstance(timeout, timedelta):
        raise TypeError(f"@step(timeout=...) takes a timedelta, got {type(timeout).__name__}.")
    micros = None if timeout is None else clock.duration_micros(timeout, "@step(timeout=...)")
    if micros == 0:
        raise ValueError("@step(timeout=...) must be longer than zero.")
    options = StepOptions(start=start, retry=retry, timeout=micros, title=title, thread=thread)

    def mark(method: Any) -> Any:
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
        setattr(cls, _DEFINITION, definition)
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
            options = getattr(member, _MARK, None)
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
    if len(name) > 200:
        yield f"step {name!r} has a name of over 200 characters."
    if definition.is_async and definition.options.thread:
        yield f"step {name!r} is async and says thread=True. An async step runs on the event loop."
    parameters = list(inspect.signature(definition.function).parameters.values())
    if not parameters:
        yield f"step {name!r} takes no self. A step is a plain method."
    required = [
        p.name for p in parameters[1:] if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if required:
        yield f"step {name!r} needs the arguments {', '.join(required)}. A step takes self alone: read the Context."


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


class Registry:
    """The workflows that an engine knows, by name and version.

    The mutable state: ``_by_name`` (name -> version -> definition, in order of registration) and ``generation``,
    which rises with every addition.
    """

    def __init__(self, definitions: Iterable[WorkflowDefinition] = ()) -> None:
        self._by_name: dict[str, dict[str, WorkflowDefinition]] = {}
        self.generation = 0
        for definition in definitions:
            self.add(definition)

    def add(self, definition: WorkflowDefinition) -> None:
        """Register a definition; one that stands at the same place in the source is replaced.

        Raises:
            DefinitionError: another class has this name and version.
        """
        versions = self._by_name.setdefault(definition.name, {})
        other = versions.get(definition.version)
        if other is not None and other.source != definition.source:
            raise DefinitionError(
                definition.cls.__qualname__,
                [
                    (
                        f"workflow {definition.name!r} version {definition.version!r} is {other.source[1]} "
                        f"in {other.source[0]} already. Give one of them another name or version."
                    )
                ],
            )
        versions.pop(definition.version, None)
        versions[definition.version] = definition
        self.generation += 1

    def get(self, name: str, version: str) -> WorkflowDefinition | None:
        """The definition of this name and version, or None."""
        return self._by_name.get(name, {}).get(version)

    def find(self, workflow: object) -> WorkflowDefinition:
        """The definition that a workflow class or a name means; by name, the version registered last.

        Raises:
            WorkflowUnknown: there is none.
            TypeError: neither a workflow class nor a name.
        """
        if isinstance(workflow, str):
            versions = self._by_name.get(workflow)
            if not versions:
                raise WorkflowUnknown(workflow, self._by_name)
            return next(reversed(versions.values()))
        definition = definition_of(workflow)
        known = self.get(definition.name, definition.version)
        if known is None or known.cls is not workflow:
            raise WorkflowUnknown(definition.name, self._by_name)
        return known

    def known(self) -> list[tuple[str, str]]:
        """Every (name, version)."""
        return [(name, version) for name, versions in self._by_name.items() for version in versions]


#: Where ``@workflow`` registers.
registry = Registry()


def definition_of(cls: object) -> WorkflowDefinition:
    """The definition of a class that ``@workflow`` decorated.

    Raises:
        TypeError: it is no such class.
    """
    definition = vars(cls).get(_DEFINITION) if isinstance(cls, type) else None
    if not isinstance(definition, WorkflowDefinition):
        what = cls.__qualname__ if isinstance(cls, type) else f"an instance of {type(cls).__qualname__}"
        raise TypeError(f"{what} is no workflow. Pass a class decorated with @workflow(...), or a workflow's name.")
    return definition
