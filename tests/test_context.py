"""The Context inside a step: what may be assigned, and under which names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from aioflow import Engine, WorkflowStatus, complete, get_context, goto
from aioflow.commands import Command
from tests.flows import PATIENCE, STORES, completed, done, ended, failed_at_once, flow, unstorable


class Total(BaseModel):
    """The Context of most tests here."""

    total: int = 0
    items: list[str] = []


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each store in turn, as an argument of Engine."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def engine(store: Any) -> AsyncIterator[Engine]:
    """An open engine."""
    async with Engine(store) as engine:
        yield engine


# ---- assignment


async def test_assignment_is_validated(engine: Engine) -> None:
    """An assigned value is coerced as by pydantic, or refused at the line that assigns it."""

    def first(self: object) -> Command:
        context = get_context(Total)
        context.total = "3"
        assert context.total == 3
        with pytest.raises(ValidationError):
            context.total = "three"
        assert context.total == 3
        return complete()

    assert await completed(engine, flow(Total, first)) == Total(total=3)


async def test_a_refused_assignment_is_an_ordinary_error(engine: Engine) -> None:
    """The ValidationError of an assignment makes the attempt fail and be retried, like any other exception."""

    def first(self: object) -> Command:
        get_context(Total).total = "three"
        return complete()

    run = await ended(engine, flow(Total, first))
    assert run.status == WorkflowStatus.FAILED
    assert (run.error or "").startswith("ValidationError: 1 validation error for Total\ntotal\n")
    assert [t.kind for t in await engine.history(run.id)] == ["start", *["retry", "wake"] * 2, "fail"]


class Unchecked(BaseModel):
    """A Context that turns off the validation of assignments."""

    model_config = ConfigDict(validate_assignment=False)
    total: int = Field(0, ge=0)


class Checked(BaseModel):
    """A Context with a model validator that turns on the validation of assignments."""

    model_config = ConfigDict(validate_assignment=True)
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Checked:
        if self.low > self.high:
            raise ValueError("low is over high")
        return self


class Range(BaseModel):
    """A Context whose validator compares two fields and assigns a third."""

    low: int = 0
    high: int = 1
    width: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low > self.high:
            raise ValueError("low is over high")
        self.width = self.high - self.low
        return self


async def test_a_context_may_leave_assignments_unchecked(engine: Engine) -> None:
    """A Context with ``validate_assignment=False`` is validated at the step's end, and fails the run at once."""

    def first(self: object) -> Command:
        get_context(Unchecked).total = -1
        assert get_context(Unchecked).total == -1
        return complete()

    error = await failed_at_once(engine, flow(Unchecked, first))
    assert error == unstorable("it does not read back: total: Input should be greater than or equal to 0")


async def test_a_context_with_model_validators_is_checked_at_the_end(engine: Engine) -> None:
    """In a Context with model validators, related fields are assigned one by one and validated at the step's end."""

    def first(self: object) -> Command:
        context = get_context(Range)
        context.low = 10
        context.high = 15
        context.width = 5
        return complete()

    assert await completed(engine, flow(Range, first)) == Range(low=10, high=15)


async def test_a_context_with_model_validators_is_refused_at_the_end(engine: Engine) -> None:
    """If a model validator refuses the Context when the step ends, the run fails without a retry."""

    def first(self: object) -> Command:
        get_context(Range).low = 10
        return complete()

    error = await failed_at_once(engine, flow(Range, first))
    assert error == unstorable("it does not read back: Context: Value error, low is over high")


async def test_a_context_may_check_assignments_with_its_validators(engine: Engine) -> None:
    """A Context with ``validate_assignment=True`` runs its model validators at each assignment."""

    def first(self: object) -> Command:
        context = get_context(Checked)
        with pytest.raises(ValidationError, match="low is over high"):
            context.low = 10
        context.high = 15
        context.low = 10
        return complete()

    assert await completed(engine, flow(Checked, first)) == Checked(low=10, high=15)


async def test_a_misspelt_field_is_an_error_at_its_line(engine: Engine) -> None:
    """Assigning an undeclared name fails the run at once; the error names the step, the name and the fields."""
    after: list[str] = []

    def first(self: object) -> Command:
        get_context().totl = 3
        after.append("not reached")
        return complete()

    run = await ended(engine, flow(Total, first))
    assert run.error == (
        "Step 'first' of workflow 'order' (run 1) assigned 'totl', which Total does not declare "
        "(fields: total, items). Declare the field, or mend the spelling."
    )
    assert "get_context().totl = 3" in (run.traceback or "")
    assert [t.kind for t in await engine.history(run.id)] == ["start", "fail"]
    assert not after


async def test_a_misspelt_field_is_an_attribute_error(engine: Engine) -> None:
    """Assigning an undeclared name raises an AttributeError, which the step can catch."""

    def first(self: object) -> Command:
        try:
            get_context().totl = 3
        except AttributeError:
            return complete(total=1)
        return complete()

    assert await completed(engine, flow(Total, first)) == Total(total=1)


@pytest.mark.parametrize("name", ["json", "copy", "model_dump", "doubled"])
async def test_the_name_of_a_method_is_no_field(engine: Engine, name: str) -> None:
    """Assigning to the name of a method of the model, its own or pydantic's, fails the run."""

    class Methods(Total):
        def doubled(self) -> int:
            return self.total * 2

    def first(self: object) -> Command:
        setattr(get_context(), name, 3)
        return complete()

    run = await ended(engine, flow(Methods, first))
    assert run.data == {"total": 0, "items": []}
    assert run.status == WorkflowStatus.FAILED
    assert f"assigned {name!r}, which " in (run.error or "")


async def test_a_property_may_be_assigned(engine: Engine) -> None:
    """A property with a setter can be assigned."""

    class WithProperty(Total):
        @property
        def half(self) -> int:
            return self.total // 2

        @half.setter
        def half(self, value: int) -> None:
            self.total = value * 2

    def first(self: object) -> Command:
        get_context(WithProperty).half = 4
        return complete()

    assert (await completed(engine, flow(WithProperty, first))).half == 4


async def test_what_a_caller_reads_is_checked_too(engine: Engine) -> None:
    """Outside a step ``run.context`` refuses undeclared names, and changes to it do not reach the store."""
    run = await ended(engine, flow(Total, done), total=1)
    context = run.context
    with pytest.raises(AttributeError) as caught:
        context.totl = 3
    assert str(caught.value) == "Total does not declare 'totl' (fields: total, items)."
    context.total = 7
    assert run.context == Total(total=1)
    await run.refresh()
    assert run.context == Total(total=1)


# ---- names that the Context does not declare


def completes_with(**data: Any) -> Callable[[Any], Command]:
    def first(self: object) -> Command:
        return complete(**data)

    return first


async def test_complete_merges_into_the_context(engine: Engine) -> None:
    """``complete(**data)`` validates declared names and keeps the others, both as data and as attributes."""
    order = flow(Total, completes_with(total="5", receipt={"number": 7}, note=None))
    run = await ended(engine, order, items=["a"])
    assert run.data == {"total": 5, "items": ["a"], "receipt": {"number": 7}, "note": None}
    assert run.context.receipt == {"number": 7}
    assert run.context.note is None
    assert isinstance(run.context, Total)
    assert run.context != Total(total=5, items=["a"])


async def test_complete_data_has_to_fit(engine: Engine) -> None:
    """A wrong value for a field in ``complete(**data)`` fails the run without a retry."""
    error = await failed_at_once(engine, flow(Total, completes_with(total="many", items=[1])))
    assert error == unstorable(
        "complete(...) does not fit: total: Input should be a valid integer, unable to parse string as an integer; "
        "items.0: Input should be a valid string"
    )


async def test_undeclared_data_has_to_be_storable(engine: Engine) -> None:
    """Undeclared values in ``complete(**data)`` must read back equal, like those of fields."""
    error = await failed_at_once(engine, flow(Total, completes_with(receipt={"parts": (1, 2)})))
    assert error == unstorable("receipt['parts'] is a tuple, but reads back as a list")


async def test_a_context_may_ignore_undeclared_names(engine: Engine) -> None:
    """A Context with ``extra="ignore"`` drops undeclared names."""

    class Ignoring(Total):
        model_config = ConfigDict(extra="ignore")

    run = await ended(engine, flow(Ignoring, completes_with(total=1, note="x")))
    assert run.status == WorkflowStatus.COMPLETED
    assert run.data == {"total": 1, "items": []}
    assert not hasattr(run.context, "note")


async def test_a_context_may_forbid_undeclared_names(engine: Engine) -> None:
    """A Context with ``extra="forbid"`` fails the run at once if complete() gives undeclared names."""

    class Forbidding(Total):
        model_config = ConfigDict(extra="forbid")

    error = await failed_at_once(engine, flow(Forbidding, completes_with(total=1, note="x")))
    assert error == unstorable("complete(...) does not fit: note: Extra inputs are not permitted")
    with pytest.raises(TypeError, match="it has no field 'note'"):
        await engine.start("order", total=1, note="x")


async def test_a_context_may_ask_for_any_name(engine: Engine) -> None:
    """With ``extra="allow"``, start takes any keyword, and steps may assign any name."""

    class Allowing(Total):
        model_config = ConfigDict(extra="allow")

    def first(self: object) -> Command:
        context = get_context()
        assert context.note == "hello"
        context.note += " world"
        context.when = 7
        return goto("second")

    def second(self: object) -> Command:
        return complete(seen=get_context().when)

    run = await ended(engine, flow(Allowing, first, second), note="hello")
    assert run.data == {"total": 0, "items": [], "note": "hello world", "when": 7, "seen": 7}


async def test_data_of_a_field_that_is_gone_is_kept(store: Any) -> None:
    """A run keeps the stored value of a field that was removed from the class, and a step may read and assign it."""

    class Before(Total):
        coupon: str

    def first(self: object) -> Command:
        context = get_context()
        assert context.coupon == "SPRING"
        context.coupon = "USED"
        return goto("second")

    def second(self: object) -> Command:
        return complete(coupon=get_context().coupon.lower())

    async with Engine(store, worker=False, workflows=[flow(Before, first, second)]) as client:
        run_id = (await client.start("order", coupon="SPRING")).id
    async with Engine(store, workflows=[flow(Total, first, second)]) as engine:
        run = await engine.wait(run_id, PATIENCE)
        assert run.data == {"coupon": "used", "total": 0, "items": []}
        assert (run.error, run.status) == (None, WorkflowStatus.COMPLETED)


# ---- names of fields


async def test_fields_are_stored_by_name(engine: Engine) -> None:
    """Aliases are for start alone: the store, ``run.data`` and ``complete(**data)`` use field names."""

    class Aliased(BaseModel):
        total: int = Field(alias="sum")
        currency: str = Field("EUR", validation_alias="cur", serialization_alias="CURRENCY")

    run = await ended(engine, flow(Aliased, completes_with(currency="CHF")), sum=3, cur="USD")
    assert run.data == {"total": 3, "currency": "CHF"}
    assert run.context == Aliased(sum=3, cur="CHF")


async def test_aliases_may_cross(engine: Engine) -> None:
    """Two fields that have each other's names as aliases keep their own values."""

    class Crossed(BaseModel):
        left: int = Field(alias="right")
        right: int = Field(alias="left")

    def first(self: object) -> Command:
        get_context(Crossed).left += 10
        return goto("second")

    def second(self: object) -> Command:
        return complete(right=5)

    run = await ended(engine, flow(Crossed, first, second), left=1, right=2)
    assert run.data == {"left": 12, "right": 5}
    order = flow(Crossed, first, second)
    order.create_context = classmethod(lambda cls: Crossed(left=1, right=2))
    assert (await ended(engine, order)).data == {"left": 12, "right": 5}


async def test_every_alias_is_a_keyword_of_start(engine: Engine) -> None:
    """If a field has several aliases, start takes each of them."""

    class Choosy(BaseModel):
        total: int = Field(0, validation_alias=AliasChoices("total", "sum"))

    order = flow(Choosy, done)
    assert await completed(engine, order, total=3) == Choosy(total=3)
    assert await completed(engine, order, sum=4) == Choosy(total=4)


async def test_no_keyword_of_start_is_dropped(engine: Engine) -> None:
    """The name of a field that can be set only by alias is taken or refused by start, never ignored."""

    class Aliased(BaseModel):
        total: int = Field(0, alias="sum")

    order = flow(Aliased, done)
    try:
        run = await engine.start(order, total=3)
    except TypeError:
        return
    assert run.context.total == 3


async def test_fields_may_have_the_names_of_parameters(engine: Engine) -> None:
    """Fields may have the names of start's own parameters."""

    class Named(BaseModel):
        self_: int = Field(alias="self")
        workflow: str
        options: list[str]
        context: dict[str, int]
        args: tuple[int, ...]

    values = {"self": 1, "workflow": "w", "options": ["o"], "context": {"c": 1}, "args": (1, 2)}
    assert await completed(engine, flow(Named, done), **values) == Named(**values)
