"""The parameters of a step besides ``self``, filled by name and type from what resumed the run.

- A message goes to the parameter annotated with its model or a base of it, else to the only needed one of unknown type.
- A signal's payload goes to the parameters named like its keys, each validated by its type.
- A ``Failure`` goes to the parameters of that type, else to one named ``failure``; an ``Event`` likewise, and its
  event_id, event_name and entity_id to parameters of these names.

Classes are taken from the step's own annotations, or from waits and messages that this process has seen: never looked
up by a name in the data.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, JsonValue, TypeAdapter
from pydantic_core import to_json

from aioflow.events import Event
from aioflow.likeness import explain
from aioflow.model import Failure, Resumption
from aioflow.plans import ABOUT_EVENT

#: The default of a parameter that has none.
EMPTY = inspect.Parameter.empty
_UNKNOWN: Any = object()
#: Models that named a wait or were sent in this process, by name: for annotations that cannot be evaluated.
_seen: dict[str, type[BaseModel]] = {}


class Unfillable(ValueError):
    """The step's parameters do not fit what resumed the run; the message says which, and why."""


def note_model(model: type[BaseModel]) -> None:
    """Remember a model that names a wait, or was sent as a message."""
    _seen[model.__name__] = model


class Parameters:
    """The parameters of one step.

    The mutable state: the annotations, once they have been evaluated (they may name what is defined later), and the
    models of waits that lead to this step, by name (None: several models have the name).

    Args:
        function: the step, decorated or not.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._types: dict[str, Any] | None = None
        parameters = _parameters_of(function)
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self._named = [p for p in parameters[1:] if p.kind in named]
        #: Whether it takes any keyword.
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._self = parameters[0].name if parameters else ""
        self.names = [p.name for p in self._named]
        #: Whether it takes self at all.
        self.bound = bool(parameters)
        #: Names of positional-only parameters without a default: nothing can fill them.
        self.positional = [p.name for p in parameters[1:] if p.kind is p.POSITIONAL_ONLY and p.default is EMPTY]
        #: Names without a default.
        self.needed = [p.name for p in self._named if p.default is EMPTY]
        self._expected: dict[str, type[BaseModel] | None] = {}

    def __bool__(self) -> bool:
        return bool(self._named) or self.takes_all

    @property
    def takes_event(self) -> bool:
        """Whether a parameter takes the event that resumed the run."""
        return bool(self._names_of(Event) or self._called("event"))

    def takes(self, name: str) -> bool:
        """Whether a keyword of this name may be given."""
        return name in self.names or (self.takes_all and name != self._self)

    def fill(self, resumption: Resumption | None, failure: Failure | None, event: object = None) -> dict[str, Any]:
        """The keywords for the step.

        Args:
            resumption: what resumed the run, if anything did.
            failure: the failure that led to an ``on_fail`` step, if one did.
            event: the Event, if an event resumed the run.

        Raises:
            Unfillable: a value does not validate, or a parameter without default gets none.
        """
        values: dict[str, Any] = {}
        if resumption is not None and resumption.kind == "message":
            values |= self._message(resumption)
        elif resumption is not None and resumption.kind == "signal" and isinstance(resumption.payload, dict):
            values |= self._payload(resumption.payload)
        elif resumption is not None and resumption.kind == "event" and isinstance(resumption.payload, dict):
            values |= self._payload({name: resumption.payload[name] for name in ABOUT_EVENT})
            values |= dict.fromkeys(self._names_of(Event) or self._called("event"), event)
        if failure is not None:  # last: the payload of a signal must not replace it
            values |= dict.fromkeys(self._names_of(Failure) or self._called("failure"), failure)
        if missing := [name for name in self.needed if name not in values]:
            raise Unfillable(
                f"nothing gives its parameter{'s'[: len(missing) > 1]} {', '.join(missing)}. Give a default, or "
                + (
                    "take event: Event."
                    if resumption is not None and resumption.kind == "event"
                    else "resume it by a signal that has it."
                )
            )
        return values

    def declared(self, *, beside: str) -> dict[str, tuple[Any, Any]]:
        """The type (Any if unknown) and default (``EMPTY`` if none) of all parameters except ``beside``, by name.

        Raises:
            NameError: an annotation cannot be evaluated, or not yet.
        """
        types = self._annotations()
        named = [parameter for parameter in self._named if parameter.name != beside]
        for parameter in named:
            if types[parameter.name] is _UNKNOWN and parameter.annotation is not EMPTY:
                raise NameError(f"the type of {parameter.name}, {parameter.annotation}, is not known")
        return {p.name: (Any if types[p.name] is _UNKNOWN else types[p.name], p.default) for p in named}

    def needed_beside_event(self, *, after: bool = False) -> list[str]:
        """The required parameters that an event does not fill; ``after``: nor does the Failure of an ``on_fail``."""
        given = {*ABOUT_EVENT, "event", *self._names_of(Event)}
        if after:
            given |= {*(self._names_of(Failure) or self._called("failure"))}
        return [name for name in self.needed if name not in given]

    def failure_only(self) -> bool:
        """Whether a Failure fills all required parameters."""
        return set(self.needed) <= set(self._names_of(Failure) or self._called("failure"))

    def takes_model(self, model: type[BaseModel]) -> bool:
        """Whether a message of this model fills all required parameters."""
        name = self._place_of(model.__name__)[0]
        return set(self.needed) <= {name}

    def expect(self, model: type[BaseModel]) -> None:
        """A wait for this model leads to the step: its messages are validated even if no parameter takes them."""
        known = self._expected.setdefault(model.__name__, model)
        if known is not model:
            self._expected[model.__name__] = None

    def _message(self, resumption: Resumption) -> dict[str, Any]:
        name, model = self._place_of(resumption.name)
        if name is None:
            model = self._expected.get(resumption.name)
        value: Any = resumption.payload
        if model is not None:
            try:
                # By name, as it was written: an alias is for the outside world.
                value = model.__pydantic_validator__.validate_json(to_json(value), by_alias=False, by_name=True)
            except Exception as error:  # a validator may raise anything
                raise Unfillable(explain(error, name or resumption.name)) from error
        return {} if name is None else {name: value}

    def _payload(self, payload: Mapping[str, JsonValue]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        types = self._annotations()
        failures = self._names_of(Failure)
        for parameter in self._named:
            if parameter.name not in payload or parameter.name in failures:
                continue
            value: Any = payload[parameter.name]
            kind = types[parameter.name]
            if kind is not _UNKNOWN:
                try:
                    value = TypeAdapter(kind).validate_json(to_json(value))
                except Exception as error:
                    raise Unfillable(f"{parameter.name}: {explain(error, '')}") from error
            values[parameter.name] = value
        if self.takes_all:
            known = {*self.names, self._self}
            values |= {name: value for name, value in payload.items() if name not in known}
        return values

    def _place_of(self, message: str) -> tuple[str | None, type[BaseModel] | None]:
        """The parameter that takes a message of this name, and the message's model; each None if not known here."""
        seen = _seen.get(message)
        types = self._annotations()
        models = [(p.name, model) for p in self._named for model in _models_in(types[p.name])]
        for name, model in models:
            if model.__name__ == message:
                return name, model
        for name, model in models:
            if seen is not None and issubclass(seen, model):
                return name, seen
        unclear = [
            p.name
            for p in self._named
            if types[p.name] is _UNKNOWN and (p.default is EMPTY or message in str(p.annotation))
        ]
        return (unclear[0], seen) if len(unclear) == 1 else (None, seen)

    def _names_of(self, wanted: type) -> list[str]:
        types = self._annotations()
        return [p.name for p in self._named if any(part is wanted for part in _parts(types[p.name]))]

    def _called(self, name: str) -> list[str]:
        return [p.name for p in self._named if p.name == name]

    def _annotations(self) -> dict[str, Any]:
        """Each parameter's type; ``_UNKNOWN`` without annotation, or for one that does not evaluate here."""
        if self._types is None:
            function = inspect.unwrap(self._function)
            names = {**getattr(function, "__globals__", {}), **_closure_of(function)}
            types = {p.name: _evaluated(p.annotation, names) for p in self._named}
            if any(types[p.name] is _UNKNOWN and p.annotation is not EMPTY for p in self._named):
                return types  # it may be defined later
            self._types = types
        return self._types


class _Annotated:
    """Holds one annotation for ``get_type_hints``, which evaluates strings, and strings within it."""

    def __init__(self, annotation: Any) -> None:
        self.__annotations__ = {"parameter": annotation}


def _parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of a function; if it is a wrapper that takes any keyword, those of the function it wraps."""
    try:
        parameters = list(inspect.signature(function, follow_wrapped=False).parameters.values())
    except (TypeError, ValueError):
        return []
    wrapped = getattr(function, "__wrapped__", None)
    if callable(wrapped) and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return _parameters_of(wrapped)
    return parameters


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    if annotation is EMPTY:
        return _UNKNOWN
    try:
        return typing.get_type_hints(_Annotated(annotation), names, include_extras=True)["parameter"]
    except Exception:  # noqa: BLE001 - it may name what only a type checker sees
        return _UNKNOWN


def _closure_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return dict(inspect.getclosurevars(function).nonlocals)
    except (TypeError, ValueError):
        return {}


def _parts(annotation: Any) -> Iterator[Any]:
    """The annotation and its parts: of ``A | None`` also A and None."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from _parts(part)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    for part in _parts(annotation):
        if isinstance(part, type) and issubclass(part, BaseModel):
            yield part
