"""A checked workflow class: its steps, its Context, and the targets that its commands can name."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any

from pydantic import BaseModel, ValidationError

from aioflow.arguments import Parameters
from aioflow.clock import Micros
from aioflow.codec import ContextCodec
from aioflow.errors import ContextInvalid
from aioflow.events import Event
from aioflow.inputs import ActionDefinition, ActionOptions
from aioflow.likeness import explain
from aioflow.retry import Retry


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """The arguments of ``@step``."""

    start: bool
    retry: Retry | None
    timeout: Micros | None
    title: str | None
    thread: bool | None
    on_fail: str | None


@dataclass(frozen=True, slots=True)
class StepDefinition:
    """A step of a workflow.

    ``is_async``: whether it is a coroutine function, also below decorators that keep ``__wrapped__``. ``in_thread``:
    whether it runs in a worker thread, as sync steps do unless they say ``thread=False``. ``parameters``: its
    parameters besides self (``takes``: whether there are any). ``called``: if it is an action, its name and the
    arguments of ``@action``; ``action`` is made from these.
    """

    name: str
    function: Callable[..., Any]
    options: StepOptions
    called: tuple[str, ActionOptions] | None = None
    is_async: bool = field(init=False)
    in_thread: bool = field(init=False)
    parameters: Parameters = field(init=False)
    takes: bool = field(init=False)
    action: ActionDefinition | None = field(init=False)

    def __post_init__(self) -> None:
        is_async = inspect.iscoroutinefunction(self.function) or (
            callable(self.function) and inspect.iscoroutinefunction(inspect.unwrap(self.function))
        )
        object.__setattr__(self, "is_async", is_async)
        object.__setattr__(self, "in_thread", not is_async and self.options.thread is not False)
        object.__setattr__(self, "parameters", Parameters(self.function))
        object.__setattr__(self, "takes", bool(self.parameters))
        action = None
        if self.called is not None:
            name, options = self.called
            action = ActionDefinition(name, self.name, inspect.getdoc(self.function), self.parameters, options)
        object.__setattr__(self, "action", action)


@dataclass(frozen=True, slots=True)
class EventTrigger:
    """What starts an event workflow: events of this name in this namespace ("*": any), one run for each offset."""

    event_name: str
    namespace: str
    offsets: tuple[Micros, ...]


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
    timeout: Micros | None
    on_timeout: str | None
    on_fail: str | None
    #: (file, qualified name) of the class: a class at the same place may define the workflow again.
    source: tuple[str, str]
    #: What starts it, if it is an event workflow.
    event: EventTrigger | None = None
    #: A plain function, of which no two are equal -> the step that it is, if it is that of one step alone.
    _names: Mapping[object, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plain = {name: step.function for name, step in self.steps.items() if type(step.function) is FunctionType}
        count = Counter(plain.values())
        names = {function: name for name, function in plain.items() if count[function] == 1}
        object.__setattr__(self, "_names", names)

    def resolve(self, target: object) -> str | None:
        """The name of the step that a command's target means, or None if it is not a step of this workflow."""
        if type(target) is MethodType and isinstance(target.__self__, self.cls):
            function = target.__func__
            if type(function) is FunctionType and (known := self._names.get(function)) is not None:
                return known
        return self._resolve(target)

    def _resolve(self, target: object) -> str | None:
        if isinstance(target, str):
            return target if target in self.steps else None
        try:
            owner, function = getattr(target, "__self__", None), getattr(target, "__func__", None)
            name = getattr(target, "__name__", None)
        except Exception:  # noqa: BLE001 - a user's __getattr__ may raise anything
            return None
        if not isinstance(owner, self.cls):
            return None
        named = self.steps.get(name) if isinstance(name, str) else None
        if named is not None and named.function is function:
            return named.name
        # Its name may be hidden by a wrapper. If not: super().step means this class's step of that name.
        hidden = next((step.name for step in self.steps.values() if step.function is function), None)
        return hidden or (named.name if named is not None else None)

    @property
    def actions(self) -> list[ActionDefinition]:
        """Its steps that are actions."""
        return [step.action for step in self.steps.values() if step.action is not None]

    def action_of(self, action: object) -> ActionDefinition | None:
        """The action with this name, of the step with this name, or that is this step (``Order.review``)."""
        if isinstance(action, str):
            named = next((found for found in self.actions if found.name == action), None)
            return named or (self.steps[action].action if action in self.steps else None)
        function = getattr(action, "__func__", action)
        name = next(
            (name for klass in self.cls.__mro__ for name, member in vars(klass).items() if member is function), None
        )
        return None if name is None or name not in self.steps else self.steps[name].action

    def retry_of(self, step: str) -> Retry:
        """The step's own policy, else the workflow's."""
        definition = self.steps.get(step)
        return (definition.options.retry if definition else None) or self.default_retry

    def on_fail_of(self, step: str) -> str | None:
        """The step's own ``on_fail``: where a run goes when the step has failed for good."""
        definition = self.steps.get(step)
        return definition.options.on_fail if definition else None

    def falls_to(self, step: str, on_timeout: str | None) -> str | None:
        """Where a wait without ``then=`` goes on: the next declared step that is not its ``on_timeout``."""
        names = iter(self.steps)
        for name in names:
            if name == step:
                return next((after for after in names if after != on_timeout), None)
        return None

    def new_context(
        self, keywords: Mapping[str, Any], *, from_json: bool = False
    ) -> BaseModel | Coroutine[Any, Any, BaseModel]:
        """A live Context from the keywords given to ``start``; if create_context makes it, a coroutine that gives it.

        ``from_json``: the fields of a Context come from JSON.

        Raises:
            TypeError: a keyword that create_context, or without one the Context, does not take.
            ContextInvalid: they do not make a valid Context.
            Unstorable: create_context made one that cannot be stored as it is.
        """
        create = getattr(self.cls, "create_context", None)
        if create is not None:
            return self._created(create, keywords)
        self.check_keywords(keywords)
        try:
            return self.codec.build(keywords, from_json=from_json)
        except ValidationError as error:
            raise ContextInvalid(self.name, explain(error)) from error

    async def _created(self, create: Callable[..., object], keywords: Mapping[str, Any]) -> BaseModel:
        self.check_keywords(keywords)
        try:
            return await self._adopted(create(**keywords))
        except ValidationError as error:
            raise ContextInvalid(self.name, explain(error)) from error

    async def context_for(self, event: Event) -> BaseModel | None:
        """A live Context for the run that an event starts, or None if ``should_run_for_event`` declines the start.

        Raises:
            ContextInvalid: the event does not make a valid Context.
            Unstorable: create_context made one that cannot be stored as it is.
            Others: what should_run_for_event and create_context raise.
        """
        should_run = getattr(self.cls, "should_run_for_event", None)
        if should_run is not None:
            wanted: object = should_run(event)
            if not (await wanted if inspect.isawaitable(wanted) else wanted):
                return None
        create = getattr(self.cls, "create_context", None)
        try:
            if create is not None:
                return await self._adopted(create(event))
            given = {"event_id": event.id, "event_name": event.name, "entity_id": event.entity_id}
            fields = [(name, field) for name, field in self.codec.context.model_fields.items() if name in given]
            # Without an entity, entity_id keeps the field's default, which need not be None.
            return self.codec.build({n: given[n] for n, field in fields if given[n] is not None or field.is_required()})
        except ValidationError as error:
            raise ContextInvalid(self.name, explain(error)) from error

    async def _adopted(self, created: object) -> BaseModel:
        """The live Context for the one that create_context returned."""
        context = await created if inspect.isawaitable(created) else created
        if not isinstance(context, self.codec.context):
            raise ContextInvalid(
                self.name,
                f"create_context returned {type(context).__name__}, not {self.codec.context.__qualname__}. "
                "Return cls.Context(...).",
            )
        return self.codec.adopt(context)

    def check_keywords(self, keywords: Mapping[str, Any]) -> None:
        """Raise TypeError if the keywords do not fit create_context; without one, if the Context has no such field."""
        codec = self.codec
        create = getattr(self.cls, "create_context", None)
        if create is not None:
            try:
                inspect.signature(create).bind(**keywords)
            except TypeError as error:
                raise TypeError(_keyword_advice(f"{self.cls.__qualname__}.create_context", str(error))) from None
            return
        if codec.declared.issuperset(keywords) or codec.takes_any_keyword:
            return
        raise TypeError(_keyword_advice(f"{self.cls.__qualname__}.Context", _no_fields(codec, keywords)))


def _no_fields(codec: ContextCodec, keywords: Mapping[str, Any]) -> str:
    unknown = [name for name in keywords if name not in codec.declared]
    return f"it has no field {', '.join(map(repr, unknown))} (fields: {', '.join(codec.context.model_fields)})"


def _keyword_advice(where: str, problem: str) -> str:
    return (
        f"These keywords do not fit {where}: {problem}. Keywords of start() fill the Context; "
        "key, reuse, delay and start_at go into StartOptions(...), before them."
    )
