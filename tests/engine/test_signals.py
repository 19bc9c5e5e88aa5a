"""Waiting for a signal by name: what is merged, where the run goes on, and what is visible while it waits."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from aioflow import Engine, WorkflowRun, complete, get_context, get_run, step, wait, workflow
from aioflow.commands import Command
from tests.engine.conftest import MakeEngine
from tests.flows import flow

HOUR = timedelta(hours=1)


async def parked(engine: Engine, order: Any, /, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(order, **context)
    return await run.wait(5, until="parked")


def ask(self: Any) -> Command:
    """A step that waits for "paid"."""
    return wait.for_signal("paid")


def end(self: Any) -> Command:
    """A step that ends the run."""
    return complete()


async def test_payload_is_merged_before_the_next_step(make_engine: MakeEngine) -> None:
    """Declared fields of a payload are validated, undeclared ones kept, and the next step reads both as attributes."""
    seen = []

    @workflow("signals-merge")
    class Flow:
        class Context(BaseModel):
            number: int
            amount: int = 0

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", then=self.ship)

        @step
        async def ship(self) -> Command:
            context = get_context()
            seen.append((context.number, context.amount, context.by))
            return complete()

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow, number=7)
        receipt = await engine.signal("paid", {"amount": "12", "by": ["card", None]}, run_id=run.id)
        assert (receipt.state, receipt.delivered, receipt.rejected) == ("delivered", [run.id], {})
        await run.wait(5)
        assert seen == [(7, 12, ["card", None])]
        assert run.data == {"number": 7, "amount": 12, "by": ["card", None]}
        assert [(row.kind, row.step, row.attempt) for row in await engine.history(run.id)] == [
            ("start", "ask", 1),
            ("wait", "ask", 1),
            ("signal", "ship", 1),
            ("complete", "ship", 1),
        ]


@pytest.mark.parametrize("payload", [None, {}])
async def test_signal_without_payload_changes_nothing(make_engine: MakeEngine, payload: Any) -> None:
    """A signal without a payload, or with an empty one, does not change the Context."""

    class Context(BaseModel):
        number: int = 3

    order = flow(Context, ask, end)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.signal("paid", payload, run_id=run.id)
        assert (await run.wait(5)).data == {"number": 3}


async def test_context_that_ignores_names_drops_them(make_engine: MakeEngine) -> None:
    """A Context with extra="ignore" drops undeclared keys of a payload, and merges the declared ones."""

    class Context(BaseModel):
        model_config = ConfigDict(extra="ignore")
        amount: int = 0

    order = flow(Context, ask, end)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        assert (await engine.signal("paid", {"amount": 5, "by": "card"}, run_id=run.id)).state == "delivered"
        assert (await run.wait(5)).data == {"amount": 5}


async def test_context_that_forbids_names_rejects_them(make_engine: MakeEngine) -> None:
    """A Context with extra="forbid" rejects a payload with undeclared keys, and the run waits on unchanged."""

    class Context(BaseModel):
        model_config = ConfigDict(extra="forbid")
        amount: int = 0

    order = flow(Context, ask, end)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        receipt = await engine.signal("paid", {"amount": 5, "by": "card"}, run_id=run.id)
        assert (receipt.state, receipt.delivered) == ("rejected", [])
        assert "by" in receipt.rejected[run.id]
        assert "card" not in receipt.rejected[run.id]
        before = run.row
        await run.refresh()
        assert run.row == before
        assert (await engine.stats()).mailbox == 0
        await engine.signal("paid", {"amount": 5}, run_id=run.id)
        assert (await run.wait(5)).data == {"amount": 5}


async def test_payload_is_read_as_json(make_engine: MakeEngine) -> None:
    """Values of a payload are validated from JSON to the types that the Context declares, even if it is strict."""

    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        day: date = date(2000, 1, 1)
        sum: Decimal = Decimal(0)
        id: UUID = UUID(int=0)
        tags: set[str] = set()
        pair: tuple[int, str] = (0, "")

    order = flow(Strict, ask, end)
    payload = {"day": date(2024, 2, 29), "sum": Decimal("1.10"), "id": UUID(int=9), "tags": {"a"}, "pair": (1, "x")}
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        receipt = await engine.signal("paid", payload, run_id=run.id)
        assert receipt.state == "delivered", receipt.rejected
        context = await run.result(5)
        assert {name: getattr(context, name) for name in payload} == payload


async def test_validators_see_the_payload(make_engine: MakeEngine) -> None:
    """Field and model validators of the Context run on a payload, model validators on all of it at once."""

    class Context(BaseModel):
        low: int = 0
        high: int = 10
        name: str = "a"

        @field_validator("name")
        @classmethod
        def _lower(cls, name: str) -> str:
            if not name.islower():
                raise ValueError("lower case only")
            return name

        @model_validator(mode="after")
        def _ordered(self) -> Context:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    order = flow(Context, ask, end)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        for payload, why in (({"name": "SECRET"}, "lower case only"), ({"low": 11}, "low is above high")):
            receipt = await engine.signal("paid", payload, run_id=run.id)
            assert receipt.state == "rejected"
            assert why in receipt.rejected[run.id]
            assert "SECRET" not in receipt.rejected[run.id]
        await engine.signal("paid", {"low": 20, "high": 30}, run_id=run.id)
        assert (await run.wait(5)).data == {"low": 20, "high": 30, "name": "a"}


async def test_payload_keys_are_field_names(make_engine: MakeEngine) -> None:
    """Payload keys are field names, and an alias counts as an undeclared name."""

    class Context(BaseModel):
        amount: int = Field(default=0, alias="theAmount")

    order = flow(Context, ask, end)
    async with make_engine(order) as engine:
        run = await parked(engine, order)
        await engine.signal("paid", {"amount": "5"}, run_id=run.id)
        assert (await run.wait(5)).data == {"amount": 5}


async def test_wait_falls_through_to_the_next_step(make_engine: MakeEngine) -> None:
    """Without then=, a wait goes on with the next declared step, except its own on_timeout."""

    @workflow("signals-fall")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid", timeout=HOUR, on_timeout=self.late)

        @step
        async def late(self) -> Command:
            return complete(by="late")

        @step
        async def ship(self) -> Command:
            return complete(by="ship")

        @step
        async def never(self) -> Command:
            return complete(by="never")

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        await engine.signal("paid", run_id=run.id)
        assert (await run.wait(5)).data == {"by": "ship"}


async def test_inherited_steps_keep_their_place(make_engine: MakeEngine) -> None:
    """An overridden step keeps its place among those of the base class, so a wait goes on with it as the next step."""

    class Base:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.for_signal("paid")

        @step
        async def ship(self) -> Command:
            return complete(by="base")

    @workflow("signals-inherited")
    class Flow(Base):
        @step
        async def added(self) -> Command:
            return complete(by="added")

        @step
        async def ship(self) -> Command:
            return complete(by="override")

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        await engine.signal("paid", run_id=run.id)
        assert (await run.wait(5)).data == {"by": "override"}


async def test_waiting_step_is_not_run_again_after_a_restart(make_engine: MakeEngine) -> None:
    """A signal after a restart does not run the waiting step again; the next step is a visit of its own."""
    seen = []

    @workflow("signals-once")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            seen.append(("ask", get_run().step_key))
            return wait.for_signal("paid", then=self.ship)

        @step
        async def ship(self) -> Command:
            seen.append(("ship", get_run().step_key))
            return complete()

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
    async with make_engine(Flow) as engine:
        await engine.signal("paid", run_id=run.id)
        await engine.wait(run.id, 5)
    assert [name for name, _ in seen] == ["ask", "ship"]
    assert len({key for _, key in seen}) == 2


async def test_waiting_run_shows_what_it_waits_for(make_engine: MakeEngine) -> None:
    """A waiting run has its step, signal, key, on_timeout and wake_at, which are cleared when it goes on."""

    @workflow("signals-seen")
    class Flow:
        class Context(BaseModel):
            until: datetime | None = None

        @step(start=True)
        async def ask(self) -> Command:
            until = get_context(self.Context).until
            return wait.for_signal("paid", key="k", timeout=until or HOUR, on_timeout="late", then=self.again)

        @step
        async def again(self) -> Command:
            return wait.for_signal("checked", then=self.end)

        @step
        async def late(self) -> Command:
            return complete()

        @step
        async def end(self) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        at = datetime(2100, 1, 1, tzinfo=UTC)
        other = await parked(engine, Flow, until=at)
        assert other.wake_at == at
        run = await parked(engine, Flow)
        assert (run.status, run.current_step, run.waiting_for) == ("waiting", "ask", "signal")
        assert (run.waiting_signal, run.waiting_key, run.on_timeout) == ("paid", "k", "late")
        assert run.wake_at == run.updated_at + HOUR
        await engine.signal("paid", run_id=run.id)
        await run.wait(5, until="parked")
        assert (run.status, run.current_step, run.waiting_for) == ("waiting", "again", "signal")
        assert (run.waiting_signal, run.waiting_key, run.on_timeout) == ("checked", None, None)
        assert (await engine.get(run.id)).wake_at is None
        await engine.signal("checked", run_id=run.id)
        await run.wait(5)
        assert (run.waiting_for, run.waiting_signal, run.waiting_key) == (None, None, None)
