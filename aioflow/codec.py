"""Context <-> JSON: the one canon, and the proof that what is written reads back equal.

A step works on an instance of a *live* class, made from the user's Context: it also checks assignments and keeps
names that the Context does not declare. ``encode`` writes it by field name and parses the bytes back; only a Context
that comes back equal is ever offered to a store, and the parsed object is what the next step gets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints, is_typeddict

from pydantic import (
    BaseModel,
    PlainSerializer,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    WrapSerializer,
)
from pydantic.types import EncodedBytes
from pydantic_core import from_json

from aioflow.errors import LimitExceeded
from aioflow.model import MAX_DATA, MAX_DEPTH, MAX_NAME

#: Makes the error for an assignment to a name that the Context does not declare: (context, field, declared names).
Undeclared = Callable[[str, str, Sequence[str]], AttributeError]


class Unstorable(ValueError):
    """A Context that would not come back from the store as it is; the message says which field, and why."""


class ContextCodec:
    """Writes and reads the Contexts of one workflow.

    Args:
        context: the user's Context class.
        undeclared: makes the error for assigning an undeclared name.
    """

    def __init__(self, context: type[BaseModel], undeclared: Undeclared) -> None:
        self.context = context
        self.live = _live_class(context, undeclared)
        #: The names that the Context's keywords may have: fields and their aliases.
        self.declared = frozenset(_keywords_of(context))

    @property
    def takes_any_keyword(self) -> bool:
        """Whether the Context itself asks for undeclared names (``extra="allow"``)."""
        return self.context.model_config.get("extra") == "allow"

    def adopt(self, context: BaseModel) -> BaseModel:
        """The live twin of a Context that user code made.

        Raises:
            ValidationError: its values do not validate (it was made with ``model_construct``, or changed since).
        """
        values = {name: context.__dict__[name] for name in self.context.model_fields if name in context.__dict__}
        return self._validate({**values, **(context.__pydantic_extra__ or {})})

    def build(self, keywords: Mapping[str, Any]) -> BaseModel:
        """A live Context from the keywords of its class.

        Raises:
            ValidationError: they do not validate.
        """
        return self.live(**keywords)

    def merge(self, live: BaseModel, data: Mapping[str, Any]) -> BaseModel:
        """A new live Context with ``data`` laid over the old one's fields.

        Raises:
            ValidationError: a value does not validate, or the Context forbids undeclared names.
        """
        return self._validate({**live.__dict__, **(live.__pydantic_extra__ or {}), **data})

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
        try:
            raw = live.__pydantic_serializer__.to_json(live, by_alias=False, round_trip=True, warnings="error")
        except RecursionError:
            raise LimitExceeded("The Context", f"depth {MAX_DEPTH}", "it is nested deeper") from None
        except Exception as error:  # custom serializers may raise anything
            if "depth" in str(error):  # pydantic-core's own limit, which is above ours
                raise LimitExceeded("The Context", f"depth {MAX_DEPTH}", "it is nested deeper") from None
            raise Unstorable(_one_line(error)) from error
        check_json(raw, "The Context")
        try:
            parsed = self.decode(raw)
        except Exception as error:
            raise Unstorable(f"it does not read back: {explain(error)}") from error
        try:
            same = live.__dict__ == parsed.__dict__ and live.__pydantic_extra__ == parsed.__pydantic_extra__
            difference = None if same else next(_differences(live, parsed, ""), None)
        except Exception as error:
            raise Unstorable(f"it cannot be compared with what reads back: {explain(error)}") from error
        if difference is not None:
            raise Unstorable(difference)
        return raw.decode(), parsed

    def _validate(self, values: dict[str, Any]) -> BaseModel:
        return self.live.__pydantic_validator__.validate_python(values, by_alias=False, by_name=True)  # type: ignore[no-any-return]


def _keywords_of(context: type[BaseModel]) -> Iterator[str]:
    for name, field in context.model_fields.items():
        yield name
        for alias in (field.alias, field.validation_alias):
            if isinstance(alias, str):
                yield alias


def _live_class(context: type[BaseModel], undeclared: Undeclared) -> type[BaseModel]:
    """A subclass that validates assignments, keeps undeclared names and refuses to assign new ones."""
    config: dict[str, Any] = {}
    if "extra" not in context.model_config:
        config["extra"] = "allow"
    # A model validator may assign (and recurse), or compare two fields that are assigned one after the other.
    if "validate_assignment" not in context.model_config and not context.__pydantic_decorators__.model_validators:
        config["validate_assignment"] = True
    asks_for_any = context.model_config.get("extra") == "allow"

    fields = context.model_fields
    checked = config.get("validate_assignment", False)

    def __setattr__(self: BaseModel, name: str, value: object) -> None:  # noqa: N807 - the body of a class made below
        if checked and name in fields:  # what pydantic comes to, by a shorter way
            self.__pydantic_validator__.validate_assignment(self, name, value)
            return
        if (
            name not in fields
            and not asks_for_any
            and not name.startswith("_")
            and name not in (self.__pydantic_extra__ or ())
            and not hasattr(type(self), name)  # a property or class attribute: Python or pydantic decides
        ):
            raise undeclared(context.__qualname__, name, list(context.model_fields))
        super(live, self).__setattr__(name, value)

    def __eq__(self: BaseModel, other: object) -> bool:  # noqa: N807
        if not isinstance(other, context):
            return NotImplemented
        return next(_differences(self, other, ""), None) is None

    namespace: dict[str, Any] = {
        "__module__": context.__module__,
        "__qualname__": context.__qualname__,
        "__doc__": context.__doc__,
        "__setattr__": __setattr__,
        "__eq__": __eq__,
        "__hash__": None,
        "model_config": config,
        "__annotations__": {},
    }
    metaclass: Any = type(context)
    live: type[BaseModel] = metaclass(context.__name__, (context,), namespace)
    return live


# ---- the canon


def check_json(raw: bytes, what: str) -> None:
    """Refuse JSON that some store could not hold. The quick looks come first: nearly all JSON passes them.

    Args:
        raw: JSON text.
        what: names it in the error.

    Raises:
        LimitExceeded: over 1 MiB, deeper than 64, a key over 200 characters, or a NUL.
    """
    if len(raw) > MAX_DATA:
        raise LimitExceeded(what, f"{MAX_DATA} bytes of JSON", f"it has {len(raw)}")
    if (
        b"\\u0000" in raw
        or raw.count(b"{") + raw.count(b"[") > MAX_DEPTH
        or (len(raw) > MAX_NAME and (b'\\"' in raw or len(max(raw.split(b'"'), key=len)) > MAX_NAME))
    ):
        _walk_json(raw, what)


def _walk_json(raw: bytes, what: str) -> None:
    try:
        root = from_json(raw)
    except ValueError:  # it was just written, so it can only be too deep for the parser
        raise LimitExceeded(what, f"depth {MAX_DEPTH}", "it is nested deeper") from None
    todo: list[tuple[str, Any, int]] = [("", root, 1)]
    while todo:
        path, value, depth = todo.pop()
        if isinstance(value, str):
            if "\0" in value:
                raise LimitExceeded(what, "characters that every store can hold", f"a NUL at {path or 'its top'}")
            continue
        if not isinstance(value, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise LimitExceeded(what, f"depth {MAX_DEPTH}", f"deeper at {path[:MAX_NAME]}")
        if isinstance(value, list):
            todo.extend((f"{path}[{i}]", item, depth + 1) for i, item in enumerate(value))
            continue
        for key, item in value.items():
            if len(key) > MAX_NAME:
                raise LimitExceeded(what, f"{MAX_NAME} characters for a key", f"{len(key)} below {path or 'its top'}")
            if "\0" in key:
                raise LimitExceeded(
                    what, "characters that every store can hold", f"a NUL in a key below {path or 'its top'}"
                )
            todo.append((f"{path}.{key}" if path else key, item, depth + 1))


# ---- telling differences


def _differences(left: Any, right: Any, path: str) -> Iterator[str]:
    """Where two values differ, comparing models by their fields: private and cached attributes are not stored."""
    if isinstance(left, BaseModel) and isinstance(right, BaseModel):
        if path and type(left) is not type(right):
            yield f"{path} is a {type(left).__name__}, but reads back as a {type(right).__name__}"
            return
        for name in type(right).model_fields:
            yield from _differences(getattr(left, name), getattr(right, name), f"{path}.{name}" if path else name)
        extra, other = left.__pydantic_extra__ or {}, right.__pydantic_extra__ or {}
        for name in {**extra, **other}:
            where = f"{path}.{name}" if path else name
            if (name in extra) != (name in other):
                yield f"{where} would be {'lost' if name in extra else 'added'}"
            else:
                yield from _differences(extra[name], other[name], where)
    elif left == right:
        return
    elif isinstance(left, list | tuple) and type(left) is type(right) and len(left) == len(right):
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from _differences(a, b, f"{path}[{i}]")
    elif isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        for key in left:
            yield from _differences(left[key], right[key], f"{path}[{key!r:.50}]")
    elif type(left) is not type(right):
        yield f"{path} is a {type(left).__name__}, but reads back as a {type(right).__name__}"
    else:
        yield f"{path} reads back as another {type(left).__name__} than was written"


def explain(error: Exception) -> str:
    """Which fields do not validate and why, without their values; or what a Context's own code raised."""
    if not isinstance(error, ValidationError):
        return _one_line(error)
    parts = [
        f"{'.'.join(str(at) for at in item['loc']) or 'Context'}: {item['msg']}"
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(parts[:10]) + (f"; and {len(parts) - 10} more" if len(parts) > 10 else "")


def _one_line(error: Exception) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an exception whose __str__ raises
        text = "<its __str__ raised>"
    return f"{type(error).__name__}: {text}"[:500]


# ---- what a Context may declare


def problems_of(context: type[BaseModel]) -> list[str]:
    """Why this class cannot be a Context: sentences, none if it can."""
    name = context.__qualname__
    if issubclass(context, RootModel):
        return [f"{name} is a RootModel: a Context has named fields. Subclass BaseModel."]
    problems = []
    if context.model_config.get("frozen"):
        problems.append(f"{name} is frozen: steps change their Context. Take frozen=True out of its model_config.")
    problems += _field_problems(context, name, set())
    return problems


_SECRETS = (SecretStr, SecretBytes, Secret)


def _field_problems(model: type[BaseModel], path: str, seen: set[object]) -> Iterator[str]:
    if model in seen:
        return
    seen.add(model)
    config = model.model_config
    bytes_as_text = config.get("ser_json_bytes", "utf8") == config.get("val_json_bytes", "utf8") != "utf8"
    for name, field in model.model_fields.items():
        where = f"{path}.{name}"
        if field.exclude:
            yield f"{where} has exclude=True: it would be lost at every step. Take it out of the Context."
            continue
        yield from _type_problems(field.annotation, tuple(field.metadata), where, bytes_as_text, seen)


def _type_problems(
    annotation: Any, metadata: Sequence[object], where: str, bytes_as_text: bool, seen: set[object]
) -> Iterator[str]:
    if hasattr(annotation, "__value__"):  # a type alias
        annotation = annotation.__value__
    encoded = any(isinstance(m, EncodedBytes | PlainSerializer | WrapSerializer) for m in metadata)
    if hasattr(annotation, "__metadata__"):  # Annotated
        yield from _type_problems(annotation.__origin__, annotation.__metadata__, where, bytes_as_text, seen)
        return
    if isinstance(annotation, type) and issubclass(annotation, _SECRETS):
        yield f"{where} is a {annotation.__name__}: it would be stored as asterisks. Store a reference to the secret."
    elif isinstance(annotation, type) and issubclass(annotation, bytes | bytearray):
        if not encoded and not bytes_as_text:
            yield f"{where} holds raw bytes, which JSON cannot. Declare it as pydantic.Base64Bytes."
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from _field_problems(annotation, where, seen)
    elif dataclasses.is_dataclass(annotation) or is_typeddict(annotation):
        if annotation not in seen:
            seen.add(annotation)
            try:
                hints = get_type_hints(annotation, include_extras=True)
            except Exception:  # noqa: BLE001 - an unresolvable annotation: pydantic itself has decided about it
                hints = {}
            for name, hint in hints.items():
                yield from _type_problems(hint, (), f"{where}.{name}", bytes_as_text, seen)
    for argument in get_args(annotation):
        yield from _type_problems(argument, (), where, bytes_as_text, seen)
