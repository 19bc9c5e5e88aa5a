"""The Context inside a step: what may be assigned, and which names it has."""

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
    """Each store in turn, as Engine takes it."""
    return STORES[request.param](tmp_path)


@pytest.fixture
async def engine(store: Any) -> AsyncIterator[Engine]:
    """An open engine."""
    async with Engine(store) as engine:
        yield engine


# ---- assignment


async def test_assignment_is_validated(engine: Engine) -> None:
    """A value is coerced as pydantic does it, or refused at the line that assigns it."""

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
    """The ValidationError of an assignment is retried like any other exception of a step."""

    def first(self: object) -> Command:
        get_context(Total).total = "three"
        return complete()

    run = await ended(engine, flow(Total, first))
    assert run.status == WorkflowStatus.FAILED
    assert (run.error or "").startswith("ValidationError: 1 validation error for Total\ntotal\n")
    assert [t.kind for t in await engine.history(run.id)] == ["start", *["retry", "wake"] * 2, "fail"]


class Unchecked(BaseModel):
    """It has decided about assignments itself."""

    model_config = ConfigDict(validate_assignment=False)
    total: int = Field(0, ge=0)


class Checked(BaseModel):
    """It has model validators, and has decided about assignments itself."""

    model_config = ConfigDict(validate_assignment=True)
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _ordered(self) -> Checked:
        if self.low > self.high:
            raise ValueError("low is over high")
        return self


class Range(BaseModel):
    """Its validator compares two fields, and assigns one."""

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
    """With its own ``validate_assignment=False`` a Context is checked when the step ends, without a retry."""

    def first(self: object) -> Command:
        get_context(Unchecked).total = -1
        assert get_context(Unchecked).total == -1
        return complete()

    error = await failed_at_once(engine, flow(Unchecked, first))
    assert error == unstorable("it does not read back: total: Input should be greater than or equal to 0")


async def test_a_context_with_model_validators_is_checked_at_the_end(engine: Engine) -> None:
    """Fields that belong together can be assigned one after the other; validators run when the step ends."""

    def first(self: object) -> Command:
        context = get_context(Range)
        context.low = 10
        context.high = 15
        context.width = 5
        return complete()

    assert await completed(engine, flow(Range, first)) == Range(low=10, high=15)


async def test_a_context_with_model_validators_is_refused_at_the_end(engine: Engine) -> None:
    """What a model validator refuses when the step ends fails the run without a retry."""

    def first(self: object) -> Command:
        get_context(Range).low = 10
        return complete()

    error = await failed_at_once(engine, flow(Range, first))
    assert error == unstorable("it does not read back: Context: Value error, low is over high")


async def test_a_context_may_check_assignments_with_its_validators(engine: Engine) -> None:
    """With its own ``validate_assignment=True`` model validators run at each assignment, as the Context asked."""

    def first(self: object) -> Command:
        context = get_context(Checked)
        with pytest.raises(ValidationError, match="low is over high"):
            context.low = 10
        context.high = 15
        context.low = 10
        return complete()

    assert await completed(engine, flow(Checked, first)) == Checked(low=10, high=15)


async def test_a_misspelt_field_is_an_error_at_its_line(engine: Engine) -> None:
    """Assigning an undeclared name fails the run at once, naming step, field and declared fields."""
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
    """A step that asks for it can catch what a misspelt assignment raises."""

    def first(self: object) -> Command:
        try:
            get_context().totl = 3
        except AttributeError:
            return complete(total=1)
        return complete()

    assert await completed(engine, flow(Total, first)) == Total(total=1)


@pytest.mark.parametrize("name", ["json", "copy", "model_dump", "doubled"])
async def test_the_name_of_a_method_is_no_field(engine: Engine, name: str) -> None:
    """Assigning to a name that is a method of the model, its own or pydantic's, is as undeclared as any other."""

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
    """A property of the Context with a setter is the Context's business."""

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
    """Outside a step ``run.context`` refuses undeclared names, and changing it changes nothing in the store."""
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
    """Declared names in ``complete(**data)`` are validated, the others kept, as data and as attributes."""
    order = flow(Total, completes_with(total="5", receipt={"number": 7}, note=None))
    run = await ended(engine, order, items=["a"])
    assert run.data == {"total": 5, "items": ["a"], "receipt": {"number": 7}, "note": None}
    assert run.context.receipt == {"number": 7}
    assert run.context.note is None
    assert isinstance(run.context, Total)
    assert run.context != Total(total=5, items=["a"])


async def test_complete_data_has_to_fit(engine: Engine) -> None:
    """A declared name with a wrong value in ``complete(**data)`` fails the run without a retry."""
    error = await failed_at_once(engine, flow(Total, completes_with(total="many", items=[1])))
    assert error == unstorable(
        "complete(...) does not fit: total: Input should be a valid integer, unable to parse string as an integer; "
        "items.0: Input should be a valid string"
    )


async def test_undeclared_data_has_to_be_storable(engine: Engine) -> None:
    """What ``complete(**data)`` adds has to read back like every field."""
    error = await failed_at_once(engine, flow(Total, completes_with(receipt={"parts": (1, 2)})))
    assert error == unstorable("receipt['parts'] is a tuple, but reads back as a list")


async def test_a_context_may_ignore_undeclared_names(engine: Engine) -> None:
    """With its own ``extra="ignore"`` a Context drops them."""

    class Ignoring(Total):
        model_config = ConfigDict(extra="ignore")

    run = await ended(engine, flow(Ignoring, completes_with(total=1, note="x")))
    assert run.status == WorkflowStatus.COMPLETED
    assert run.data == {"total": 1, "items": []}
    assert not hasattr(run.context, "note")


async def test_a_context_may_forbid_undeclared_names(engine: Engine) -> None:
    """With its own ``extra="forbid"`` the step that completes with them fails, at once and clearly."""

    class Forbidding(Total):
        model_config = ConfigDict(extra="forbid")

    error = await failed_at_once(engine, flow(Forbidding, completes_with(total=1, note="x")))
    assert error == unstorable("complete(...) does not fit: note: Extra inputs are not permitted")
    with pytest.raises(TypeError, match="it has no field 'note'"):
        await engine.start("order", total=1, note="x")


async def test_a_context_may_ask_for_any_name(engine: Engine) -> None:
    """With its own ``extra="allow"`` start takes any keyword, and steps assign any name."""

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
    """A run from before a field was taken out still holds it, and a step may assign to what is held."""

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
    """Aliases are for start alone: the store, ``run.data`` and ``complete(**data)`` use the fields' names."""

    class Aliased(BaseModel):
        total: int = Field(alias="sum")
        currency: str = Field("EUR", validation_alias="cur", serialization_alias="CURRENCY")

    run = await ended(engine, flow(Aliased, completes_with(currency="CHF")), sum=3, cur="USD")
    assert run.data == {"total": 3, "currency": "CHF"}
    assert run.context == Aliased(sum=3, cur="CHF")


async def test_aliases_may_cross(engine: Engine) -> None:
    """Fields that have each other's names as aliases are not mistaken for each other."""

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
    """Where a field takes one of several aliases, start takes each of them."""

    class Choosy(BaseModel):
        total: int = Field(0, validation_alias=AliasChoices("total", "sum"))

    order = flow(Choosy, done)
    assert await completed(engine, order, total=3) == Choosy(total=3)
    assert await completed(engine, order, sum=4) == Choosy(total=4)


async def test_no_keyword_of_start_is_dropped(engine: Engine) -> None:
    """The name of a field that its Context takes by alias only is either taken or refused, never ignored."""

    class Aliased(BaseModel):
        total: int = Field(0, alias="sum")

    order = flow(Aliased, done)
    try:
        run = await engine.start(order, total=3)
    except TypeError:
        return
    assert run.context.total == 3


async def test_fields_may_have_the_names_of_parameters(engine: Engine) -> None:
    """The names that start's own parameters have are free for fields."""

    class Named(BaseModel):
        self_: int = Field(alias="self")
        workflow: str
        options: list[str]
        context: dict[str, int]
        args: tuple[int, ...]

    values = {"self": 1, "workflow": "w", "options": ["o"], "context": {"c": 1}, "args": (1, 2)}
    assert await completed(engine, flow(Named, done), **values) == Named(**values)
