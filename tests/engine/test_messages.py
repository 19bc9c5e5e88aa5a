"""Messages: pydantic models that are passed to a parameter of the next step, and stored for when it runs again."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from typing import Any

import pytest
from pydantic import BaseModel, Field, PrivateAttr, RootModel, field_validator

from aioflow import Engine, Retry, WorkflowRun, complete, errors, get_run, on, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine
from tests.flows import flow
from tests.support import wait_until


class Paid(BaseModel):
    """A message with a Decimal, an alias and a validator."""

    amount: int
    day: date = date(2024, 2, 29)
    by: str = Field(default="card", alias="paidBy")

    @field_validator("amount")
    @classmethod
    def _positive(cls, amount: int) -> int:
        if amount < 0:
            raise ValueError("not negative")
        return amount


class Empty(BaseModel):
    """A Context without fields."""


async def parked(engine: Engine, order: Any, /, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(order, **context)
    return await run.wait(5, until="parked")


def ask(self: Any) -> Command:
    """A step that waits for the message."""
    return wait.for_signal(Paid)


def given(paid: object) -> Command:
    """The command that completes the run with the fields of the message."""
    assert isinstance(paid, Paid | None)
    if paid is None:
        return complete(got=None)
    return complete(got=[paid.amount, paid.day.isoformat(), paid.by])


async def receive(self: Any, paid: Paid) -> Command:
    return given(paid)


#: Typed as ``flow`` takes it.
plain: Any = receive


async def optional(self: Any, paid: Paid | None) -> Command:
    return given(paid)


async def defaulted(self: Any, paid: Paid | None = None) -> Command:
    return given(paid)


async def keyword_only(self: Any, *, paid: Paid) -> Command:
    return given(paid)


async def among_others(self: Any, number: int = 3, *, paid: Paid, **rest: Any) -> Command:
    assert (number, rest) == (3, {})
    return given(paid)


async def unannotated(self, paid):  # type: ignore[no-untyped-def]
    return given(paid)


def in_thread(self: Any, paid: Paid) -> Command:
    return given(paid)


@pytest.mark.parametrize("taker", [plain, optional, defaulted, keyword_only, among_others, unannotated, in_thread])
async def test_message_is_given_to_the_parameter(make_engine: MakeEngine, taker: Any) -> None:
    """However the parameter is declared, it gets the message as an instance of its class, equal to what was sent."""
    order = flow(Empty, ask, taker)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        assert run.waiting_signal == "Paid"
        receipt = await engine.signal(Paid(amount=5, paidBy="cash"), run_id=run.id)
        assert (receipt.state, receipt.delivered) == ("delivered", [run.id])
        await run.wait(5)
        assert (run.status, run.error) == ("completed", None)
        assert run.data == {"got": [5, "2024-02-29", "cash"]}


async def test_wait_by_model_takes_name_and_mapping(make_engine: MakeEngine) -> None:
    """A mapping sent under the model's name is validated, by field names, and passed as the model."""
    order = flow(Empty, ask, plain)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        receipt = await engine.signal("Paid", {"amount": "5", "by": "cash", "day": date(2020, 1, 1)}, run_id=run.id)
        assert receipt.state == "delivered"
        assert (await run.wait(5)).data == {"got": [5, "2020-01-01", "cash"]}


@pytest.mark.parametrize("payload", [{"amount": -1}, {"amount": "SECRET"}, {}, {"amount": None}])
async def test_mapping_that_is_no_such_message_is_rejected(
    make_engine: MakeEngine, payload: dict[str, Any], log: list[Any]
) -> None:
    """A mapping that the model does not accept is rejected with the reason, and the run waits on unchanged."""
    order = flow(Empty, ask, plain)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        before = await engine.history(run.id)
        receipt = await engine.signal("Paid", payload, run_id=run.id)
        assert (receipt.state, list(receipt.rejected)) == ("rejected", [run.id])
        assert "amount" in receipt.rejected[run.id]
        assert await engine.history(run.id) == before
        assert (await engine.stats()).mailbox == 0
        assert "SECRET" not in f"{receipt}{log}"
        await engine.signal(Paid(amount=1), run_id=run.id)
        assert (await run.wait(5)).status == "completed"


def without(self: Any) -> Command:
    """A step without parameters for the message."""
    return complete()


def with_another(self: Any, note: str = "") -> Command:
    return complete()


@pytest.mark.parametrize("taker", [without, with_another])
async def test_a_message_that_no_parameter_takes_is_validated(make_engine: MakeEngine, taker: Any) -> None:
    """A message is validated by the wait's model even if the step has no parameter for it."""
    order = flow(Empty, ask, taker)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        receipt = await engine.signal("Paid", {"amount": -1}, run_id=run.id)
        assert "not negative" in receipt.rejected[run.id]
        receipt = await engine.signal("Paid", {"day": "2020-01-01"}, run_id=run.id)
        assert "amount: Field required" in receipt.rejected[run.id]
        assert (await engine.signal("Paid", {"amount": 3}, run_id=run.id)).state == "delivered"
        assert (await run.wait(5)).data == {}


async def test_of_two_messages_of_one_name_neither_is_asked_for(make_engine: MakeEngine) -> None:
    """If waits for two models of the same name lead to one step without parameters, a message is not validated."""
    first = Paid

    def other_model() -> type[BaseModel]:
        class Paid(BaseModel):
            text: str

        return Paid

    second = other_model()

    def ask_both(self: Any) -> Command:
        return wait.any(on(first, then="without"), on(second, key="k", then="without"))

    order = flow(Empty, ask_both, without)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        assert (await engine.signal("Paid", {"text": "x"}, run_id=run.id)).state == "delivered"
        assert (await run.wait(5)).status == "completed"


async def test_message_to_a_wait_by_name_is_not_merged(make_engine: MakeEngine) -> None:
    """A model sent to a wait by name is passed to the step as the message, and not merged into the Context."""

    def by_name(self: Any) -> Command:
        return wait.for_signal("Paid")

    class Context(BaseModel):
        amount: int = 1

    order = flow(Context, by_name, plain)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.signal(Paid(amount=5), run_id=run.id)
        assert (await run.wait(5)).data == {"amount": 1, "got": [5, "2024-02-29", "card"]}


async def test_payload_keys_are_parameters(make_engine: MakeEngine) -> None:
    """Payload keys that are parameters of the step are validated and passed, and the payload is merged as well."""
    got = []

    @workflow("messages-keys")
    class Flow:
        class Context(BaseModel):
            number: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", then=self.ship)

        @step
        async def ship(self, amount: int, day: date, tags: tuple[str, ...] = ("none",), *, who: str = "me") -> Command:
            got.append((amount, day, tags, who))
            return complete()

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        for payload, why in (
            ({}, "amount, day"),
            ({"amount": 1}, "day"),
            ({"amount": 1, "day": "x"}, "day"),
            ({"amount": 1, "day": "2020-01-01", "tags": 3}, "tags"),
        ):
            receipt = await engine.signal("paid", payload, run_id=run.id)
            assert receipt.state == "rejected"
            assert why in receipt.rejected[run.id]
        await engine.signal("paid", {"amount": "2", "day": "2020-01-01", "number": 9, "other": 1}, run_id=run.id)
        await run.wait(5)
        assert got == [(2, date(2020, 1, 1), ("none",), "me")]
        assert run.data == {"number": 9, "amount": "2", "day": "2020-01-01", "other": 1}


async def test_retries_get_the_same_message(make_engine: MakeEngine) -> None:
    """Each attempt gets the message as it was sent, even if the one before changed the object."""
    seen = []

    @workflow("messages-retry", default_retry=Retry(max_attempts=3, base_delay=timedelta(0)))
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal(Paid, then=self.ship)

        @step
        async def ship(self, paid: Paid) -> Command:
            seen.append((paid.amount, paid.by, get_run().attempt))
            paid.amount, paid.by = 0, "spoilt"
            if get_run().attempt < 3:
                raise RuntimeError("again")
            return complete()

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        await engine.signal(Paid(amount=5), run_id=run.id)
        assert (await run.wait(10)).status == "completed"
        assert seen == [(5, "card", 1), (5, "card", 2), (5, "card", 3)]


async def test_restart_in_the_step_gives_the_same_arguments(make_engine: MakeEngine) -> None:
    """A step interrupted by a close gets the same message and step key in the next engine."""
    gate, seen = asyncio.Event(), []

    @workflow("messages-restart")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal(Paid, then=self.ship)

        @step
        async def ship(self, paid: Paid) -> Command:
            seen.append((paid.amount, paid.day, get_run().step_key))
            if len(seen) == 1:
                await gate.wait()
            return complete()

    async with make_engine(Flow, shutdown_timeout=timedelta(0)) as engine:
        run = await parked(engine, Flow)
        await engine.signal(Paid(amount=5, day=date(2020, 1, 1)), run_id=run.id)
        await wait_until(lambda: seen)
    async with make_engine(Flow) as engine:
        assert (await engine.wait(run.id, 5)).status == "completed"
        assert len(seen) == 2
        assert seen[0] == seen[1]
        assert (await engine.stats()).mailbox == 0


class Numbers(RootModel[list[int]]):
    """Not a message: it has no named fields."""


class Hiding(BaseModel):
    """Not a message: its excluded field would be lost."""

    number: int = Field(default=0, exclude=True)


class Keeping(BaseModel):
    """A message with a private attribute."""

    number: int
    _seen: int = PrivateAttr(default=0)


@pytest.mark.parametrize(
    "message",
    [Numbers([1]), Hiding(number=1), Paid.model_construct(amount="x")],  # type: ignore[arg-type]
    ids=["RootModel", "excluded field", "invalid value"],
)
async def test_message_that_does_not_survive_json_is_refused(make_engine: MakeEngine, message: BaseModel) -> None:
    """A model that would not arrive as it was sent is SignalInvalid, and nothing is sent."""
    order = flow(Empty, ask, plain)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        with pytest.raises(errors.SignalInvalid, match=f"Signal '{type(message).__name__}' cannot be sent: "):
            await engine.signal(message, run_id=run.id)
        assert (await engine.stats()).mailbox == 0


async def test_private_attributes_of_a_message_stay_with_the_sender(make_engine: MakeEngine) -> None:
    """A private attribute of a message is not sent."""
    got = []

    @workflow("messages-private")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal(Keeping, then=self.ship)

        @step
        async def ship(self, message: Keeping) -> Command:
            got.append((message.number, message._seen))
            return complete()

    message = Keeping(number=1)
    message._seen = 7
    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        assert (await engine.signal(message, run_id=run.id)).state == "delivered"
        await run.wait(5)
        assert got == [(1, 0)]
