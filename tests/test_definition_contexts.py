"""What a Context may not declare: refused when the workflow is defined, with the path to it."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Generic, NamedTuple, NewType, TypeVar

import pytest
from pydantic import (
    Base64Bytes,
    Base64UrlBytes,
    BaseModel,
    ConfigDict,
    DirectoryPath,
    Field,
    FilePath,
    FutureDate,
    FutureDatetime,
    NewPath,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    create_model,
)
from typing_extensions import TypeAliasType, TypedDict

from aioflow import complete, step, workflow
from aioflow.commands import Command
from aioflow.errors import DefinitionError
from aioflow.registry import definition_of

T = TypeVar("T")


def define(context: type[BaseModel]) -> Any:
    """Define a workflow with this Context."""

    @workflow("order")
    class Order:
        Context = context

        @step(start=True)
        def first(self) -> Command:
            return complete()

    return Order


def context_problems(context: type[BaseModel]) -> tuple[str, ...]:
    """The problems for which the class is refused as a Context."""
    with pytest.raises(DefinitionError) as caught:
        define(context)
    return caught.value.problems


def test_a_root_model_is_no_context() -> None:
    """A RootModel is refused as a Context: it has no named fields."""

    class Numbers(RootModel[list[int]]):
        pass

    name = Numbers.__qualname__
    expected = (f"{name} is a RootModel: a Context has named fields. Subclass BaseModel.",)
    assert context_problems(Numbers) == expected


def test_a_context_can_be_changed() -> None:
    """A frozen Context is refused, even if it inherits that setting."""
    frozen = create_model("Context", __config__=ConfigDict(frozen=True), total=(int, 0))
    expected = ("Context is frozen: steps change their Context. Take frozen=True out of its model_config.",)
    assert context_problems(frozen) == expected
    assert context_problems(create_model("Context", __base__=frozen, more=(int, 0))) == expected


class Card(BaseModel):
    number: SecretStr


class Wallet(BaseModel):
    cards: dict[str, list[Card]] = {}
    parent: Wallet | None = None


@dataclasses.dataclass
class PlainCard:
    number: SecretStr


class CardDict(TypedDict):
    number: SecretStr


class CardTuple(NamedTuple):
    number: SecretStr


class Box(BaseModel, Generic[T]):
    inside: T


CardNumber = NewType("CardNumber", SecretStr)
Cards = TypeAliasType("Cards", list[Card])


@pytest.mark.parametrize(
    ("annotation", "where", "secret"),
    [
        (SecretStr, "", "SecretStr"),
        (SecretBytes, "", "SecretBytes"),
        (Secret[int], "", "Secret"),
        (SecretStr | None, "", "SecretStr"),
        (Annotated[SecretStr, Field(min_length=3)], "", "SecretStr"),
        (list[dict[str, tuple[SecretStr, ...]]], "", "SecretStr"),
        (CardNumber, "", "SecretStr"),
        (Card, ".number", "SecretStr"),
        (Wallet, ".cards.number", "SecretStr"),
        (Cards, ".number", "SecretStr"),
        (Box[SecretStr], ".inside", "SecretStr"),
        (PlainCard, ".number", "SecretStr"),
        (CardDict, ".number", "SecretStr"),
        (CardTuple, ".number", "SecretStr"),
    ],
    ids=str,
)
def test_a_context_holds_no_secret(annotation: Any, where: str, secret: str) -> None:
    """A secret is refused at any depth, with its path: pydantic would store asterisks."""
    assert context_problems(create_model("Context", pay=(annotation, ...))) == (
        f"Context.pay{where} is a {secret}: it would be stored as asterisks. Store a reference to the secret.",
    )


class Hidden(BaseModel):
    total: int = Field(default=0, exclude=True)


def test_a_context_excludes_nothing() -> None:
    """``exclude=True`` is refused at any depth: the field would be lost at every step."""
    context = create_model(
        "Context", total=(int, Field(exclude=True)), many=(list[Hidden], []), shown=(int, Field(exclude=False))
    )
    assert context_problems(context) == (
        "Context.total has exclude=True: it would be lost at every step. Take it out of the Context.",
        "Context.many.total has exclude=True: it would be lost at every step. Take it out of the Context.",
    )


class Photo(BaseModel):
    pixels: bytes


@dataclasses.dataclass
class PlainPhoto:
    pixels: bytes


class PhotoDict(TypedDict):
    pixels: bytes


class PhotoTuple(NamedTuple):
    pixels: bytes


Pixels = NewType("Pixels", bytes)


@pytest.mark.parametrize(
    ("annotation", "where"),
    [
        (bytes, ""),
        (bytes | None, ""),
        (Annotated[bytes, Field(max_length=9)], ""),
        (dict[str, list[bytes]], ""),
        (Pixels, ""),
        (Photo, ".pixels"),
        (Box[bytes], ".inside"),
        (PlainPhoto, ".pixels"),
        (PhotoDict, ".pixels"),
        (PhotoTuple, ".pixels"),
    ],
    ids=str,
)
def test_a_context_holds_no_raw_bytes(annotation: Any, where: str) -> None:
    """Raw bytes are refused at any depth, with the type to use instead."""
    assert context_problems(create_model("Context", photo=(annotation, ...))) == (
        f"Context.photo{where} holds raw bytes, which JSON cannot. Declare it as pydantic.Base64Bytes.",
    )


class Base64Photo(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    pixels: bytes


@pytest.mark.parametrize(
    "context",
    [
        create_model("Context", photo=(Base64Bytes, ...)),
        create_model("Context", photo=(Base64UrlBytes | None, None)),
        create_model("Context", photos=(dict[str, list[Base64Bytes]], ...)),
        create_model("Context", photo=(Base64Photo, ...)),
        create_model(
            "Context", __config__=ConfigDict(ser_json_bytes="hex", val_json_bytes="hex"), photo=(bytes | None, None)
        ),
    ],
)
def test_bytes_may_be_written_as_text(context: type[BaseModel]) -> None:
    """Base64 types, and bytes in models whose config writes and reads them alike, are accepted."""
    assert definition_of(define(context)).codec.context is context


def test_writing_bytes_without_reading_them_is_refused() -> None:
    """Bytes are refused if the config writes them as base64 but reads UTF-8."""
    context = create_model("Context", __config__=ConfigDict(ser_json_bytes="base64"), photo=(bytes, ...))
    assert context_problems(context) == (
        "Context.photo holds raw bytes, which JSON cannot. Declare it as pydantic.Base64Bytes.",
    )


@pytest.mark.parametrize(("annotation", "instead"), [(FutureDate, "date"), (FutureDatetime, "datetime")])
def test_what_validates_only_for_a_time_is_refused(annotation: Any, instead: str) -> None:
    """FutureDate and FutureDatetime are refused: once the time is past, the run could not be read."""
    for declared in (annotation, annotation | None, list[annotation]):
        (problem,) = context_problems(create_model("Context", due=(declared, ...)))
        assert problem == (
            f"Context.due is a {annotation.__name__}: a run could not be read once that is past. Declare a {instead}, and "
            "check it in create_context."
        )


@pytest.mark.parametrize("annotation", [FilePath, DirectoryPath, NewPath])
def test_a_path_that_has_to_exist_is_refused(annotation: Any) -> None:
    """FilePath, DirectoryPath and NewPath are refused: if the path is created or removed, the run could not be read."""
    for declared in (annotation, annotation | None, dict[str, annotation]):
        assert context_problems(create_model("Context", file=(declared, ...))) == (
            "Context.file is a path that has to be there, or not: a run could not be read once that changes. Declare a Path.",
        )
