"""The live class: what a step gets as its Context, made from the user's own class.

It is a subclass that validates assignments, keeps names that the Context does not declare, and refuses to assign new
ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from pydantic import BaseModel, model_validator

from aioflow.likeness import difference, unchanged_fields

#: Makes the error for an assignment to a name that the Context does not declare: (context, field, declared names).
Undeclared = Callable[[str, str, Sequence[str]], AttributeError]


def live_class(context: type[BaseModel], undeclared: Undeclared) -> type[BaseModel]:
    """A subclass that validates assignments, keeps undeclared names and refuses to assign new ones."""
    config: dict[str, Any] = {}
    if "hide_input_in_errors" not in context.model_config:  # the text of an error is logged, and kept as run.error
        config["hide_input_in_errors"] = True
    if "extra" not in context.model_config:
        config["extra"] = "allow"
    # A model validator may assign (and recurse), or compare two fields that are assigned one after the other.
    if "validate_assignment" not in context.model_config and not context.__pydantic_decorators__.model_validators:
        config["validate_assignment"] = True
    asks_for_any = context.model_config.get("extra") == "allow"

    fields = context.model_fields
    checked = (
        config.get("validate_assignment", False)
        and not context.model_config.get("frozen")  # pydantic itself raises for such a one
        and context.__setattr__ is BaseModel.__setattr__  # a Context's own has to be called
    )
    unchanged = unchanged_fields(context) if checked else {}

    def __setattr__(self: BaseModel, name: str, value: object) -> None:  # noqa: N807 - the body of a class made below
        # Fields as pydantic does it, in fewer steps.
        if type(value) in unchanged.get(name, ()):
            self.__dict__[name] = value
            self.__pydantic_fields_set__.add(name)
            return
        if checked and name in fields:
            self.__pydantic_validator__.validate_assignment(self, name, value)
            return
        if (
            name not in fields
            and not asks_for_any
            and not name.startswith("_")
            and name not in (self.__pydantic_extra__ or ())
            and name not in context.__class_vars__  # pydantic refuses it
            and not hasattr(getattr(type(self), name, None), "__set__")  # a property
            and not isinstance(getattr(type(self), name, None), cached_property)
        ):
            raise undeclared(context.__qualname__, name, list(context.model_fields))
        super(live, self).__setattr__(name, value)

    def __eq__(self: BaseModel, other: object) -> bool:  # noqa: N807
        if not isinstance(other, context):
            return NotImplemented
        return difference(self, other) is None

    def __reduce__(self: BaseModel) -> tuple[Any, ...]:  # noqa: N807
        return _unpickled, (context, self.__getstate__())

    body: dict[str, Any] = {
        "__doc__": context.__doc__,
        "__setattr__": __setattr__,
        "__eq__": __eq__,
        "__hash__": None,
        "__reduce__": __reduce__,
        "model_config": config,
    }
    if "extra" in config:
        body["__get_pydantic_core_schema__"] = _keeps_to_itself(context)
    live = _subclass(context, body)
    return live


def fields_only(live: type[BaseModel]) -> type[BaseModel]:
    """The live class without the model validators of its Context."""
    decorators = live.__pydantic_decorators__.model_validators
    if not decorators:
        return live
    before: Any = classmethod(lambda _, data: data)
    wrap: Any = classmethod(lambda _, data, check: check(data))
    idle: dict[str, Any] = {
        "after": lambda: model_validator(mode="after")(lambda self: self),
        "before": lambda: model_validator(mode="before")(before),
        "wrap": lambda: model_validator(mode="wrap")(wrap),
    }
    overridden = {name: idle[found.info.mode]() for name, found in decorators.items()}
    return _subclass(live, {"model_config": {"validate_assignment": True}, **overridden})


def _keeps_to_itself(context: type[BaseModel]) -> Any:
    """A live class's ``__get_pydantic_core_schema__``.

    Pydantic passes the settings of a model on to the dataclasses and TypedDicts in it. ``extra``, which the live class
    has added, must apply to the model alone.
    """
    its_own: Any = context.__get_pydantic_core_schema__
    plain: Any = BaseModel.__get_pydantic_core_schema__

    def schema_of(cls: type[BaseModel], source: Any, handler: Any) -> Any:
        extra = cls.model_config.pop("extra")
        try:
            # Pydantic warns when BaseModel's own is called.
            overridden = its_own.__func__ is not plain.__func__
            schema = its_own.__func__(cls, source, handler) if overridden else handler(source)
        finally:
            cls.model_config["extra"] = extra
        inner = handler.resolve_ref_schema(schema)
        while inner["type"] != "model":  # wrapped in the schemas of its validators
            inner = inner["schema"]
        inner["config"] = {**inner.get("config", {}), "extra_fields_behavior": extra}
        return schema

    return classmethod(schema_of)


def _subclass(base: type[BaseModel], body: dict[str, Any]) -> type[BaseModel]:
    """A subclass with the same name."""
    named = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__annotations__": {}}
    metaclass: Any = type(base)
    made: type[BaseModel] = metaclass(base.__name__, (base,), {**named, **body})
    return made


def _unpickled(context: type[BaseModel], state: dict[Any, Any]) -> BaseModel:
    """A Context of the user's class with the state of a live one that was pickled."""
    made = context.__new__(context)
    if not state["__pydantic_extra__"] and context.model_config.get("extra") != "allow":
        state["__pydantic_extra__"] = None
    made.__setstate__(state)
    return made
