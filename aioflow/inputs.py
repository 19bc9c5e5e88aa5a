"""The input of an action: a pydantic model, given to ``@action`` or made from the step's signature.

The input is stored, so that a step which was interrupted gets the same arguments again: it is validated, written as
JSON, and the step gets what reads back from that. A parameter ``request`` gets the request of the call, which is not
stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, JsonValue, RootModel, create_model
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from aioflow.arguments import EMPTY, Parameters, Unfillable
from aioflow.canon import beyond, check_json
from aioflow.errors import ActionInputInvalid, LimitExceeded
from aioflow.events import Event
from aioflow.likeness import difference, explain
from aioflow.model import Failure

#: The attribute of the method in which ``@action`` leaves its arguments.
ACTION: Final = "__aioflow_action__"
#: The parameter that gets the request of the call.
REQUEST: Final = "request"
#: The field that gets the run's id, in a model that has it.
RUN_ID: Final = "workflow_run_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionOptions:
    """The arguments of ``@action``."""

    name: str | None
    input: type[BaseModel] | None
    permissions: tuple[Any, ...]


class ActionDefinition:
    """An action: a step that is called from outside.

    Args:
        name: the name to call it by.
        step: the step's name.
        docstring: the step's.
        parameters: the step's parameters.
        options: the arguments of ``@action``.

    The mutable state: the model of its input, once the step's annotations can be evaluated (they may name what is
    defined later).
    """

    def __init__(
        self, name: str, step: str, docstring: str | None, parameters: Parameters, options: ActionOptions
    ) -> None:
        self.name = name
        self.step = step
        self.docstring = docstring
        self.permissions = options.permissions
        self.takes_request = REQUEST in parameters.names
        self._needs_request = REQUEST in parameters.needed
        self._parameters = parameters
        self._given = options.input
        self._model = options.input

    def __repr__(self) -> str:
        return f"<action {self.name!r}, step {self.step!r}>"

    @property
    def model(self) -> type[BaseModel]:
        """The model of its input.

        Raises:
            NameError: an annotation of the step still cannot be evaluated.
            Others: what pydantic raises for an annotation that it cannot validate.
        """
        if self._model is None:
            self._model = self._inferred()
        return self._model

    def problems(self) -> Iterator[str]:
        """What is wrong with the action, as far as its definition tells: sentences for DefinitionError."""
        which = f"action {self.name!r} (step {self.step!r})"
        model = self._given
        if model is None:
            try:
                model = self.model
            except NameError:
                return  # it may name what is defined later
            except Exception as error:  # noqa: BLE001 - pydantic's, of whatever class
                yield f"{which} has a signature that no input can be made of: {explain(error)}"
                return
            declared = self._parameters.declared(beside=REQUEST)
            idle = {name for name, (kind, _) in declared.items() if _given_by_engine(kind)}
        elif issubclass(model, RootModel):
            yield f"{which} says input={model.__name__}, which has no fields. Give it a model with fields."
            return
        else:
            idle = set()
        fields = {*model.model_fields, self._place(), REQUEST}
        missing = [name for name in self._parameters.needed if name not in fields or name in idle]
        if missing:
            yield (
                f"{which} needs {', '.join(missing)}, which its input does not have "
                f"(fields: {', '.join(model.model_fields) or 'none'}). Add a field, or give the parameter a default."
            )

    def read(self, given: Mapping[str, Any], run_id: int, *, request: bool, from_json: bool = False) -> str:
        """The input as JSON, validated.

        Args:
            given: values by name; those that the input does not declare are dropped.
            run_id: the run that the action is called on.
            request: whether the call has a request.
            from_json: whether the values come from JSON, where a date is a string.

        Raises:
            ActionInputInvalid: the values do not validate, or cannot be stored. The cause tells more.
            LimitExceeded: it is larger or deeper than aioflow stores.
        """
        made = self.validated(given, run_id, request=request, from_json=from_json)
        what = f"The input of action {self.name!r}"
        try:
            raw = made.__pydantic_serializer__.to_json(made, by_alias=False, round_trip=True, warnings="error")
            check_json(raw, what)
            again = self.model.__pydantic_validator__.validate_json(raw, by_alias=False, by_name=True)
        except LimitExceeded:
            raise
        except Exception as error:  # serializers and validators may raise anything
            values = {**made.__dict__, **(made.__pydantic_extra__ or {})}
            raise beyond(values, what) or ActionInputInvalid(self.name, explain(error)) from error
        if (problem := difference(made, again)) is not None:
            raise ActionInputInvalid(self.name, f"it does not survive JSON: {problem}")
        return raw.decode()

    def validated(self, given: Mapping[str, Any], run_id: int, *, request: bool, from_json: bool = False) -> BaseModel:
        """The input as an instance of its model, which may not be storable. Arguments as for ``read``.

        Raises:
            ActionInputInvalid: the values do not validate. The cause tells more.
        """
        if self._needs_request and not request:
            raise ActionInputInvalid(
                self.name, "it takes the request that calls it. Give request=, or call it over HTTP."
            )
        values = {name: value for name, value in given.items() if name != RUN_ID}
        try:
            model = self.model
            if RUN_ID in model.model_fields:
                values[RUN_ID] = run_id
            validator = model.__pydantic_validator__
            if from_json:
                made: BaseModel = validator.validate_json(to_json(values), by_alias=True, by_name=True)
            else:
                made = validator.validate_python(values, by_alias=True, by_name=True)
        except Exception as error:  # a validator may raise anything
            raise ActionInputInvalid(self.name, explain(error)) from error
        return made

    def fill(self, stored: JsonValue, request: object) -> dict[str, Any]:
        """The keywords for the step, from a stored input.

        Raises:
            Unfillable: the code, as it is now, does not accept it.
        """
        try:
            made = self.model.__pydantic_validator__.validate_json(to_json(stored), by_alias=False, by_name=True)
        except Exception as error:  # a validator may raise anything
            raise Unfillable(explain(error)) from error
        place = self._place()
        if place is not None:
            values: dict[str, Any] = {place: made}
        else:
            given = {**made.__dict__, **(made.__pydantic_extra__ or {})}
            values = {name: value for name, value in given.items() if self._parameters.takes(name)}
        if self.takes_request and request is not None:
            values[REQUEST] = request
        if missing := [name for name in self._parameters.needed if name not in values]:
            raise Unfillable(f"its input has nothing for {', '.join(missing)}.")
        return values

    def _place(self) -> str | None:
        """The parameter that takes an instance of the given model; None if its fields go to the parameters."""
        given = self._given
        if given is None:
            return None
        try:
            declared = self._parameters.declared(beside=REQUEST)
        except NameError:
            unclear = [name for name in self._parameters.needed if name not in (REQUEST, *given.model_fields)]
            return unclear[0] if len(unclear) == 1 else None
        return next((name for name, (kind, _) in declared.items() if kind is given or given in get_args(kind)), None)

    def _inferred(self) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for name, (kind, default) in self._parameters.declared(beside=REQUEST).items():
            if _given_by_engine(kind):
                continue
            if default is EMPTY:
                fields[name] = (kind, ...)
            else:
                optional = default is None or (isinstance(default, FieldInfo) and default.default is None)
                fields[name] = (kind | None if optional else kind, default)
        # A parameter may have any name, also ``model_id``, or that of a method of BaseModel.
        config = ConfigDict(
            extra="allow" if self._parameters.takes_all else "ignore", protected_namespaces=(), validate_default=True
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Field name .* shadows an attribute", UserWarning)
            made: type[BaseModel] = create_model(f"{self.name}_input", __config__=config, **fields)
        made.model_rebuild(raise_errors=True)
        return made


def _given_by_engine(kind: Any) -> bool:
    """Whether a parameter of this type takes a Failure or an Event, which are not input."""
    return any(part is Failure or part is Event for part in (kind, *get_args(kind)))
