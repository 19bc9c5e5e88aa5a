"""The models of what a workflow takes: the keywords that start it, and the messages that its waits name."""

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

    The mutable state: a cache by workflow class, as reading its source and making a model take milliseconds.
    """

    def __init__(self) -> None:
        self._messages: WeakKeyDictionary[type, dict[str, list[type[BaseModel]]]] = WeakKeyDictionary()
        self._contexts: WeakKeyDictionary[type, type[BaseModel]] = WeakKeyDictionary()

    def messages(self, definition: WorkflowDefinition) -> dict[str, list[type[BaseModel]]]:
        """The models that its waits name, as far as the source shows them, by the names of their signals."""
        found = self._messages.get(definition.cls)
        if found is None:
            found = self._messages[definition.cls] = _messages_in(definition)
        return found

    def context(self, definition: WorkflowDefinition) -> type[BaseModel]:
        """The model of the keywords that start it: the Context, or one of the parameters of ``create_context``.

        Raises:
            Problem: "workflow-unknown", for a workflow that only events start.
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
        """Raise Problem ("invalid") for a payload that none of the models of this name in the run's workflow accepts.

        A payload that passes may still be rejected by the run, which the receipt then tells.
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
        """The keywords for ``start_run``, from JSON: for a ``create_context``, converted to its parameters' types.

        Raises:
            Problem: "invalid", for unknown names, and values that the parameters do not take; "workflow-unknown", for a
                workflow that only events start.
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
    """Whether a request can start it: only events start an event workflow that has a create_context."""
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
    """The model of an action's input; None, and a warning, if its annotations cannot be evaluated yet."""
    try:
        return action.model
    except Exception as error:  # noqa: BLE001 - evaluating annotations, or making a model of them, may raise anything
        telemetry.warn("the input of an action cannot be described", action=action.name, error=one_line(error))
        return None


def _bound_name(create: object) -> str:
    """The name of a classmethod's own first parameter, which no keyword may have; "" for any other function."""
    function = getattr(create, "__func__", None)
    return "" if function is None else next(iter(inspect.signature(function).parameters), "")


def _parameters(create: Callable[..., Any], name: str) -> type[BaseModel]:
    """A model of a function's parameters, by their annotations, as far as these can be evaluated here.

    Its fields have generated names, and the parameters' as aliases: not every name of a parameter can be a field's.
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
    """The globals and closed-over variables that a function's annotations may name."""
    inner = inspect.unwrap(getattr(function, "__func__", function))
    try:
        closed_over = dict(inspect.getclosurevars(inner).nonlocals)
    except (TypeError, ValueError):
        closed_over = {}
    return {**getattr(inner, "__globals__", {}), **closed_over}


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    """The type of a parameter; Any without annotation, or if it names something that only a type checker sees."""
    if annotation is inspect.Parameter.empty:
        return Any
    holder = type("Parameter", (), {"__annotations__": {"value": annotation}})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["value"]
    except Exception:  # noqa: BLE001 - evaluating it may raise anything
        return Any
