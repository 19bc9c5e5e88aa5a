"""Contexts as users write them: what pydantic allows in a model works, or is refused with a clear error."""

from __future__ import annotations

import base64
import dataclasses
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, Json, field_serializer, model_validator
from typing_extensions import TypedDict

from aioflow import Engine, complete, get_context
from aioflow.codec import ContextCodec, Unstorable
from aioflow.context import undeclared_field
from aioflow.errors import ContextInvalid
from tests.flows import PATIENCE, completed, done, ended, flow


class Status(Enum):
    NEW = "new"


def codec_of(context: type[BaseModel]) -> ContextCodec:
    return ContextCodec(context, undeclared_field)


class Encoded(BaseModel):
    """A Context with a model validator, and with fields whose values would not validate again."""

    photo: Base64Bytes = b""
    tags: Json[list[int]] = []
    total: int = 0

    @model_validator(mode="after")
    def _any(self) -> Encoded:
        return self


async def test_complete_decodes_nothing_twice() -> None:
    """``complete(**data)`` does not validate the other fields again, even if a model validator needs their values."""

    def first(self: object) -> Any:
        return complete(total="3")

    async with Engine("memory://") as engine:
        run = await ended(engine, flow(Encoded, first), photo=base64.b64encode(b"aGVsbG8="), tags="[1]")
    assert (run.error, run.context.photo, run.context.tags, run.context.total) == (None, b"aGVsbG8=", [1], 3)


class Street(BaseModel):
    street_name: str = Field(alias="streetName")


class Home(BaseModel):
    address: Street | None = None


class CheckedHome(Home):
    @model_validator(mode="after")
    def _any(self) -> CheckedHome:
        return self


@pytest.mark.parametrize("name", ["street_name", "streetName"])
@pytest.mark.parametrize("context", [Home, CheckedHome])
def test_nested_values_may_use_names_or_aliases(context: type[BaseModel], name: str) -> None:
    """Values given to complete() for a nested model may use names or aliases, with and without a model validator."""
    codec = codec_of(context)
    merged = codec.merge(codec.adopt(context()), {"address": {name: "x"}})
    assert codec.encode(merged)[0] == '{"address":{"street_name":"x"}}'


class Tracking(BaseModel):
    total: int = 0
    items: list[int] = []
    changed: list[str] = []

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name != "changed":
            self.changed.append(name)


async def test_a_setattr_of_the_context_is_called() -> None:
    """A Context's own ``__setattr__`` is called when a step assigns."""

    def first(self: object) -> Any:
        context = get_context(Tracking)
        context.total = "3"
        context.items = [1]
        return complete()

    async with Engine("memory://") as engine:
        assert await completed(engine, flow(Tracking, first)) == Tracking.model_construct(
            total=3, items=[1], changed=["total", "items"]
        )


class Owed(BaseModel):
    """A Context whose default is an int for a Decimal, as users write it."""

    amount: Decimal = Field(0, ge=0)  # type: ignore[assignment]
    items: list[Decimal] = []


@pytest.mark.parametrize("create", [False, True])
async def test_a_default_may_be_of_another_class_if_it_is_equal(create: bool) -> None:
    """A default of another class is accepted if it equals the field's value, such as 0 for a Decimal."""

    def first(self: object) -> Any:
        assert type(get_context(Owed).amount) is Decimal
        return complete()

    order = flow(Owed, first)
    if create:
        order.create_context = classmethod(lambda cls: Owed())
    async with Engine("memory://") as engine:
        assert await completed(engine, order) == Owed()


async def test_a_field_with_such_a_default_may_be_added_while_runs_go_on(tmp_path: Path) -> None:
    """If a field with such a default is added, a run that was stored without the field gets the default."""

    class Before(BaseModel):
        pass

    def first(self: object) -> Any:
        return complete()

    store = f"sqlite:///{tmp_path}/runs.db"
    async with Engine(store, worker=False, workflows=[flow(Before, first)]) as client:
        run_id = (await client.start("order")).id
    async with Engine(store, workflows=[flow(Owed, first)]) as engine:
        run = await engine.wait(run_id, PATIENCE)
        assert (run.error, run.context) == (None, Owed())


async def test_a_default_that_is_not_what_its_field_makes_of_it_is_told() -> None:
    """The error for a default that its field would change says that it is the default, and what to do."""

    class Valued(BaseModel):
        model_config = ConfigDict(use_enum_values=True)
        status: Status = Status.NEW

    async with Engine("memory://") as engine:
        with pytest.raises(ContextInvalid, match="field's default: give one that the field leaves as it is, or say"):
            await engine.start(flow(Valued, done))


class Derived(BaseModel):
    """A Context whose validator assigns a field."""

    price: int = 2
    quantity: int = 1
    total: int = 0

    @model_validator(mode="after")
    def _sum(self) -> Derived:
        self.total = self.price * self.quantity
        return self


async def test_a_field_that_a_validator_assigns_is_told_with_advice() -> None:
    """A field that a validator would change is refused with advice, but complete() runs the validator itself."""

    def first(self: object) -> Any:
        get_context(Derived).quantity = 5
        return complete()

    def second(self: object) -> Any:
        return complete(quantity=5)

    async with Engine("memory://") as engine:
        failed, done_ = await ended(engine, flow(Derived, first)), await ended(engine, flow(Derived, second))
    assert "total reads back as another int than was written. A model validator changes it: assign" in str(failed.error)
    assert (done_.error, done_.data) == (None, {"price": 2, "quantity": 5, "total": 10})


def test_a_lossy_serializer_is_not_blamed_on_a_validator() -> None:
    """The error for a serializer that loses information does not blame a model validator."""

    class Dated(Derived):
        when: datetime = datetime(2030, 1, 1, tzinfo=UTC)

        @field_serializer("when")
        def _day(self, when: datetime) -> str:
            return when.date().isoformat()

    codec = codec_of(Dated)
    live = codec.adopt(Dated())
    live.when = datetime(2030, 1, 1, 12, tzinfo=UTC)  # type: ignore[attr-defined]
    with pytest.raises(Unstorable, match=r"when reads back as another datetime than was written$"):
        codec.encode(live)


@dataclasses.dataclass
class Counted:
    shown: int = 0
    seen: int = dataclasses.field(default=0, init=False)


class Tagged(TypedDict, total=False):
    street: str


class Holding(BaseModel):
    counted: Counted = Counted()
    tagged: Tagged = {}


def test_the_settings_of_a_live_context_are_not_those_of_what_it_holds() -> None:
    """Dataclasses and TypedDicts inside a live Context keep the user's ``extra`` setting, not the live class's."""
    codec = codec_of(Holding)
    keywords = {"counted": {"shown": 2}, "tagged": {"street": "x", "junk": 1}}
    live = codec.merge(codec.build(keywords), {"note": 1})
    text, parsed = codec.encode(live)
    assert text == '{"counted":{"shown":2,"seen":0},"tagged":{"street":"x"},"note":1}'
    assert parsed.tagged == Holding(**keywords).tagged  # type: ignore[attr-defined, arg-type]


def test_a_live_context_can_be_pickled() -> None:
    """A live Context is pickled as an instance of the user's class."""
    codec = codec_of(Owed)
    made = pickle.loads(pickle.dumps(codec.adopt(Owed(amount=Decimal(3)))))
    assert type(made) is Owed
    assert made == Owed(amount=Decimal(3))


def test_a_context_may_be_completed_by_its_own_rebuild() -> None:
    """A Context with a forward reference works after ``model_rebuild``, even if that follows the codec's creation."""

    def defined() -> ContextCodec:
        class Local(BaseModel):
            items: list[Thing] = []  # type: ignore[name-defined]

        codec = codec_of(Local)

        class Thing(BaseModel):
            price: int = 0

        Local.model_rebuild()
        return codec

    codec = defined()
    assert codec.encode(codec.build({"items": [{}]}))[0] == '{"items":[{"price":0}]}'


def test_a_model_that_lacks_a_field_is_told() -> None:
    """A nested model from which a field was deleted is refused as Unstorable."""

    class Pair(BaseModel):
        left: int = 0
        right: list[int] = []

    class Whole(BaseModel):
        pair: Pair = Pair()

    codec = codec_of(Whole)
    live = codec.adopt(Whole())
    del live.pair.right  # type: ignore[attr-defined]
    with pytest.raises(Unstorable, match=r"^pair.right would be added$"):
        codec.encode(live)


@pytest.mark.filterwarnings("error")
async def test_a_message_may_have_a_deprecated_field() -> None:
    """Sending a message that has a deprecated field gives no warning."""

    class Ping(BaseModel):
        old: Annotated[int, Field(deprecated="use new")] = 0

    async with Engine("memory://") as engine:
        assert (await engine.signal(Ping(), key="k")).state == "buffered"


class Joined(BaseModel):
    """A model that is serialized in a form only its own validator reads, and that counts such reads."""

    parts: list[str] = []
    reads: int = 0

    @field_serializer("parts")
    def _join(self, parts: list[str]) -> str:
        return ",".join(parts)

    @model_validator(mode="before")
    @classmethod
    def _split(cls, data: Any) -> Any:
        if isinstance(data.get("parts"), str):
            return {**data, "parts": data["parts"].split(","), "reads": data["reads"] + 1}
        return data


def test_no_advice_if_the_context_needs_its_validator() -> None:
    """The error gives no advice about validators if the Context cannot be read without them."""
    codec = codec_of(Joined)
    with pytest.raises(Unstorable, match=r"^reads reads back as another int than was written$"):
        codec.encode(codec.adopt(Joined(parts=["a"])))


class Anything(Encoded):
    """A Context with a model validator, and a field of any type."""

    thing: Any = None


async def test_what_complete_is_given_and_cannot_be_stored_is_told() -> None:
    """If complete() is given what cannot be stored, the error names field and class, even with a model validator."""

    def first(self: object) -> Any:
        return complete(thing=object())

    async with Engine("memory://") as engine:
        run = await ended(engine, flow(Anything, first))
    assert run.status == "failed"
    assert "thing" in str(run.error)
    assert "object" in str(run.error)
