"""Context <-> JSON, and the proof that what is written reads back equal.

A step works on an instance of a *live* class, made from the user's Context: it also checks assignments and keeps
names that the Context does not declare. ``encode`` writes it by field name and parses the bytes back; only a Context
that comes back equal is ever offered to a store, and the parsed object is what the next step gets.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Literal

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ValidationError,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, to_json

from aioflow.canon import beyond, check_json
from aioflow.likeness import alike, difference, explain, loose_fields, one_line
from aioflow.live import Undeclared, fields_only, live_class


class Unstorable(ValueError):
    """A Context that would not come back from the store as it is; the message says which field, and why."""


class ContextCodec:
    """Writes and reads the Contexts of one workflow.

    Args:
        context: the user's Context class.
        undeclared: makes the error for assigning an undeclared name.

    The mutable state: the live class, which is made again if the Context was completed by its own model_rebuild().
    """

    def __init__(self, context: type[BaseModel], undeclared: Undeclared) -> None:
        self.context = context
        self._undeclared = undeclared
        self._make()
        #: The names that the Context's keywords may have: fields and their aliases.
        self.declared = frozenset(_keywords_of(context))

    def _make(self) -> None:
        fields = self.context.model_fields.items()
        self._live = live_class(self.context, self._undeclared)
        #: The same without model validators.
        self._fields = fields_only(self._live)
        #: The defaults that all Contexts share, as they are not copied. They have not been validated.
        self._defaults = {name: field.default for name, field in fields if isinstance(field.default, Hashable)}
        self._loose = loose_fields(self.context, checked=self._live.model_config.get("validate_assignment", False))

    @property
    def live(self) -> type[BaseModel]:
        """The live class."""
        if not self._live.__pydantic_complete__ and self.context.__pydantic_complete__:
            self._make()
        return self._live

    @property
    def takes_any_keyword(self) -> bool:
        """Whether the Context itself asks for undeclared names (``extra="allow"``)."""
        return self.context.model_config.get("extra") == "allow"

    @property
    def takes_more(self) -> bool:
        """Whether a live Context keeps or drops undeclared names, instead of forbidding them."""
        return self.context.model_config.get("extra") != "forbid"

    def adopt(self, context: BaseModel) -> BaseModel:
        """A live Context with the values of one that user code made; ``encode`` finds out whether they are valid.

        Raises:
            Unstorable: a value is of a class that its field does not have.
        """
        # Not validated again: a type whose validation decodes its input would decode it twice.
        live = self._bare(context)
        self._check_classes(live)
        return live

    def build(self, keywords: Mapping[str, Any], *, from_json: bool = False) -> BaseModel:
        """A live Context from the keywords of its class; ``from_json``: as JSON has them, where a date is a string.

        Raises:
            ValidationError: they do not validate.
        """
        # By name and by alias: pydantic itself would ignore the name of a field that has an alias.
        if from_json:
            raw = to_json(keywords, inf_nan_mode="constants")
            return self.live.__pydantic_validator__.validate_json(raw, by_alias=True, by_name=True)  # type: ignore[no-any-return]
        return self.live.__pydantic_validator__.validate_python(dict(keywords), by_alias=True, by_name=True)  # type: ignore[no-any-return]

    def merge(self, live: BaseModel, data: Mapping[str, Any]) -> BaseModel:
        """A new live Context with ``data`` laid over the old one's fields.

        Raises:
            ValidationError: a value does not validate, or the Context forbids undeclared names.
        """
        merged = self._bare(live)
        extra = self.live.model_config.get("extra")
        problems: list[InitErrorDetails] = []
        for name, value in data.items():
            if name in self.context.model_fields:
                try:
                    # By either name: complete(address={"street_name": ...}) as well as its alias.
                    self._fields.__pydantic_validator__.validate_assignment(
                        merged, name, value, by_alias=True, by_name=True
                    )
                except ValidationError as error:
                    problems += map(_again, error.errors(include_url=False, include_input=False))
            elif merged.__pydantic_extra__ is not None:
                merged.__pydantic_extra__[name] = value
            elif extra == "forbid":
                problems.append(InitErrorDetails(type="extra_forbidden", loc=(name,), input=None))
        if problems:
            raise ValidationError.from_exception_data(self.context.__qualname__, problems)
        if not self.context.__pydantic_decorators__.model_validators:
            return merged
        # Model validators get all values at once; from JSON, as a type that decodes its input would decode it twice.
        try:
            raw = _write(merged)
        except Exception:  # noqa: BLE001 - encode() raises an error that tells more
            return merged
        return self.decode(raw)

    def decode(self, data: str | bytes) -> BaseModel:
        """The live Context that was stored as ``data``.

        Raises:
            ValidationError: the Context, as it is declared now, does not accept it.
            Others: what a validator raises.
        """
        return self.live.__pydantic_validator__.validate_json(data, by_alias=False, by_name=True)  # type: ignore[no-any-return]

    def encode(self, live: BaseModel) -> tuple[str, BaseModel]:
        """JSON for the store, and the Context parsed back from it.

        Raises:
            Unstorable: it cannot be written, does not read back, or reads back different.
            LimitExceeded: it is too large, too deep, or holds what not every store can hold.
        """
        # What _write() and decode() do, without the calls: this is done for every step.
        try:
            raw = live.__pydantic_serializer__.to_json(live, by_alias=False, round_trip=True, warnings=False)
        except Exception as error:  # custom serializers may raise anything
            raise self._why_not(live, error) from error
        text = check_json(raw, "The Context")
        try:
            parsed: BaseModel = live.__pydantic_validator__.validate_json(raw, by_alias=False, by_name=True)
        except Exception as error:
            limit = beyond(self._values(live), "The Context", unread=True)
            raise limit or Unstorable(f"it does not read back: {explain(error)}") from error
        try:
            left, right = live.__dict__, parsed.__dict__
            same = exact = left == right and live.__pydantic_extra__ == parsed.__pydantic_extra__
            if same:
                for name in self._loose:
                    value = left[name]
                    if not alike(value, right[name]) and value is not self._defaults.get(name, left):
                        exact = False
                        break
        except Exception:  # noqa: BLE001 - difference() finds the value that cannot be compared
            same = exact = False
        if not exact:
            self._check_classes(live)
        if not same and (found := difference(live, parsed)) is not None:
            raise Unstorable(found + self._advice(live, found, raw))
        return text, parsed

    def _advice(self, live: BaseModel, found: str, raw: bytes) -> str:
        """What to do about a difference, if its cause is known."""
        if self._fields is not self._live:
            try:
                plain = self._fields.__pydantic_validator__.validate_json(raw, by_alias=False, by_name=True)
            except Exception:  # noqa: BLE001 - the difference is reported without advice
                return ""
            if difference(live, plain) is None:
                return ". A model validator changes it: assign the same in the step, or make it a computed_field"
        name = re.split(r"[ .\[]", found, maxsplit=1)[0]
        if live.__dict__.get(name, self) is self._defaults.get(name, live):
            return ". It is the field's default: give one that the field leaves as it is, or say validate_default=True"
        return ""

    def _check_classes(self, live: BaseModel) -> None:
        """Raise Unstorable for a value whose class is not its field's, even if it is equal to what reads back."""
        try:
            # Except for defaults: 0 as that of a Decimal is as good as what reads back.
            given = self._values(live)
            include = {name for name in given if given[name] is not self._defaults.get(name, self)}
            _write(live, include=None if len(include) == len(given) else include, warnings="error")
        except Exception as error:
            raise self._why_not(live, error) from error

    def _values(self, context: BaseModel) -> dict[str, Any]:
        """Fields and undeclared names; neither private nor cached attributes."""
        fields = {name: context.__dict__[name] for name in self.context.model_fields if name in context.__dict__}
        return {**fields, **(context.__pydantic_extra__ or {})}

    def _why_not(self, live: BaseModel, error: Exception) -> Exception:
        """A sentence for a Context that cannot be written, naming the place."""
        values = self._values(live)
        if (limit := beyond(values, "The Context")) is not None:
            return limit
        try:  # the validator says more clearly than the serializer what does not fit
            self.decode(_write(live))
        except ValidationError as invalid:
            return Unstorable(f"it does not read back: {explain(invalid)}")
        except Exception:  # noqa: BLE001, S110 - the first error is the one to explain
            pass
        for name in values:
            try:
                _write(live, include={name}, warnings="error")
            except Exception as problem:  # noqa: BLE001 - a serializer may raise anything
                return Unstorable(f"{name}: {one_line(problem)}")
        return Unstorable(one_line(error))

    def _bare(self, context: BaseModel) -> BaseModel:
        """A live Context with the values of another, without validation."""
        # Not by model_construct, which would look for aliases.
        live = self.live.__new__(self.live)
        keeps = self.live.model_config.get("extra") == "allow"
        fields = {name: context.__dict__[name] for name in self.context.model_fields if name in context.__dict__}
        object.__setattr__(live, "__dict__", fields)
        object.__setattr__(live, "__pydantic_extra__", dict(context.__pydantic_extra__ or {}) if keeps else None)
        object.__setattr__(live, "__pydantic_fields_set__", set(context.model_fields_set))
        object.__setattr__(live, "__pydantic_private__", None)
        if self.live.__pydantic_post_init__:
            live.model_post_init(None)
        return live


def _keywords_of(context: type[BaseModel]) -> Iterator[str]:
    for name, field in context.model_fields.items():
        yield name
        choices = field.validation_alias
        for alias in (field.alias, *(choices.choices if isinstance(choices, AliasChoices) else [choices])):
            first = alias.path[0] if isinstance(alias, AliasPath) else alias
            if isinstance(first, str):
                yield first


def _again(problem: ErrorDetails) -> InitErrorDetails:
    """A problem, to be raised together with others."""
    text = problem["msg"].replace("{", "{{").replace("}", "}}")
    return InitErrorDetails(type=PydanticCustomError(problem["type"], text), loc=problem["loc"], input=None)


def _write(live: BaseModel, *, include: set[str] | None = None, warnings: Literal["error", False] = False) -> bytes:
    """JSON by field name. ``warnings="error"``: raise for a value of a class that its field does not have."""
    # With a string for ``warnings`` pydantic releases the GIL once a call: if another thread waits for it, that costs
    # more than all else that a step does. So False, unless something is wrong already.
    return live.__pydantic_serializer__.to_json(
        live, include=include, by_alias=False, round_trip=True, warnings=warnings
    )
