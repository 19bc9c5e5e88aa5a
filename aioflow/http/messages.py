"""The models that callers can be told of: what a workflow is started with, and the messages that its waits name."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model
from pydantic_core import to_json

from aioflow import telemetry
from aioflow.definition import WorkflowDefinition
from aioflow.http.problems import Problem, fault, invalid
from aioflow.inputs import ActionDefinition
from aioflow.likeness import one_line
from aioflow.targets import NoWayOut, named_targets


class Models:
    """Finds the models of workflows.

    The mutable state: what was found out of each class, for reading its source, and making a model, take milliseconds.
    """

    def __init__(self) -> None:
        self._messages: WeakKeyDictionary[type, dict[str, list[type[BaseModel]]]] = WeakKeyDictionary()
        self._contexts: WeakKeyDictionary[type, type[BaseModel]] = WeakKeyDictionary()

    def messages(self, definition: WorkflowDefinition) -> dict[str, list[type[BaseModel]]]:
        """The models that its waits name, as far as they can be read, by the names that their signals have."""
        found = self._messages.get(definition.cls)
        if found is None:
            found = self._messages[definition.cls] = _messages_in(definition)
        return found

    def context(self, definition: WorkflowDefinition) -> type[BaseModel]:
        """The model of what it is started with: the Context, or the parameters of ``create_context``.

        Raises:
            Problem: "workflow-unknown", for one that only events start.
        """
        if not is_started(definition):
            raise Problem("workflow-unknown", "It is started by events.")
        create = getattr(definition.cls, "create_context", None)
        if create is None:
            return definition.codec.context
        found = self._contexts.get(definition.cls)
        if found is None:
            found = self._contexts[definition.cls] = _parameters(create, definition.name)
        return found

    def check_message(self, definition: WorkflowDefinition | None, name: str, payload: Mapping[str, JsonValue]) -> None:
        """Refuse at once what no wait of the run's workflow would take. Raises Problem ("invalid").

        What it says nothing about may still be rejected by the run, which the receipt then tells.
        """
        refused: ValidationError | None = None
        for model in () if definition is None else self.messages(definition).get(name, ()):
            try:
                model.__pydantic_validator__.validate_json(to_json(payload), by_alias=False, by_name=True)
            except ValidationError as error:
                refused = error
            else:
                return
        if refused is not None:
            raise invalid(refused, at=("payload",)) from None

    def arguments(self, definition: WorkflowDefinition, values: Mapping[str, JsonValue]) -> dict[str, Any]:
        """What ``start_run`` is given, of JSON: for a ``create_context``, each value as its parameter's type has it.

        Raises:
            Problem: "invalid", for names that it is not started with, and values that its parameters do not take;
                "workflow-unknown", for one that only events start.
        """
        model = self.context(definition)
        codec = definition.codec
        if model is codec.context:
            unknown = [] if codec.takes_any_keyword else [name for name in values if name not in codec.declared]
            if unknown:
                raise fault("Extra inputs are not permitted", "extra_forbidden", at=("context", unknown[0]))
            return dict(values)
        try:
            made = model.__pydantic_validator__.validate_json(to_json(values), by_alias=True)
        except ValidationError as error:
            raise invalid(error, at=("context",)) from None
        if (bound := _bound_name(getattr(definition.cls, "create_context", None))) in (made.__pydantic_extra__ or {}):
            raise fault("Extra inputs are not permitted", "extra_forbidden", at=("context", bound))
        fields = model.model_fields
        given = {fields[name].alias or name: getattr(made, name) for name in made.model_fields_set if name in fields}
        return {**given, **(made.__pydantic_extra__ or {})}


def is_started(definition: WorkflowDefinition) -> bool:
    """Whether it can be started by a request: one whose create_context takes an event is started by events alone."""
    return definition.event is None or getattr(definition.cls, "create_context", None) is None


def _messages_in(definition: WorkflowDefinition) -> dict[str, list[type[BaseModel]]]:
    found: dict[str, list[type[BaseModel]]] = {}
    for step in definition.steps.values():
        for reading in named_targets(step.function):
            model = None if isinstance(reading, NoWayOut) else reading.model
            if model is not None and model not in found.setdefault(model.__name__, []):
                found[model.__name__].append(model)
    return found


def action_model(action: ActionDefinition) -> type[BaseModel] | None:
    """The model of an action's input; None, and a warning, as long as its annotations name what is not defined."""
    try:
        return action.model
    except Exception as error:  # noqa: BLE001 - whatever evaluating them, or making a model of them, raises
        telemetry.warn("what an action takes is not known", action=action.name, error=one_line(error))
        return None


def _bound_name(create: object) -> str:
    """What a class method calls its class, which no keyword may be; "" for what has none."""
    function = getattr(create, "__func__", None)
    return "" if function is None else next(iter(inspect.signature(function).parameters), "")


def _parameters(create: Callable[..., Any], name: str) -> type[BaseModel]:
    """A model of a function's parameters, by their annotations, as far as these can be evaluated here.

    Its fields have names of our own, with the parameters' as aliases: a parameter may be called what no field may.
    """
    fields: dict[str, Any] = {}
    extra: Literal["allow", "forbid"] = "forbid"
    names = _names_of(create)
    for number, parameter in enumerate(inspect.signature(create).parameters.values()):
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            default = ... if parameter.default is parameter.empty else parameter.default
            kind = _evaluated(parameter.annotation, names)
            fields[f"parameter_{number}"] = (kind, Field(default, alias=parameter.name))
    return create_model(name, __config__=ConfigDict(extra=extra, arbitrary_types_allowed=True), **fields)


def _names_of(function: Callable[..., Any]) -> dict[str, Any]:
    """What the names in a function's annotations may mean."""
    inner = inspect.unwrap(getattr(function, "__func__", function))
    try:
        closed_over = dict(inspect.getclosurevars(inner).nonlocals)
    except (TypeError, ValueError):
        closed_over = {}
    return {**getattr(inner, "__globals__", {}), **closed_over}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """The type of a parameter; Any without annotation, and for one that names what only a type checker sees."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = type("Parameter", (), {"__annotations__": {"value": annotation}})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:  # noqa: BLE001 - whatever evaluating it raises
        return Any
