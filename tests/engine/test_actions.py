"""Actions of running engines: what opens them, how they are called, and what a call does to the run."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field
from pydantic_core import core_schema
from structlog.typing import EventDict

from aioflow import (
    Engine,
    GiveUp,
    RetryLater,
    StartOptions,
    WorkflowRun,
    WorkflowStatus,
    action,
    complete,
    errors,
    fail,
    get_context,
    get_run,
    goto,
    on,
    sleep,
    statezero_action,
    step,
    wait,
    wait_for_event,
    workflow,
)
from aioflow.changes import Post
from aioflow.commands import Command
from aioflow.testing.conformance_samples import a_signal
from tests.engine.conftest import MakeEngine, ShiftedClock, kinds_of, moved_on
from tests.support import wait_until

HOUR = timedelta(hours=1)


class Review(BaseModel):
    """A reviewer's input."""

    reviewer_notes: str = Field(max_length=500)
    priority: Literal["low", "medium", "high"] = "medium"
    due: date | None = None


@workflow("act-expense")
class Expense:
    """An expense with an action to review it and one to pay it."""

    class Context(BaseModel):
        approved: bool | None = None
        notes: str = ""
        amount: Decimal = Decimal(0)
        by: str = ""

    @step(start=True)
    async def submit(self) -> Command:
        return goto(self.review)

    @action()
    async def review(self, approved: bool, notes: str = Field(default="", max_length=20)) -> Command:
        """Approve or refuse an expense."""
        context = get_context(self.Context)
        context.approved, context.notes = approved, notes
        if notes == "raise":
            raise ValueError("not like this")
        if not approved:
            return fail("refused")
        return goto(self.pay)

    @action("act_pay", permissions=())
    @step(title="Pay it")
    def pay(self, amount: Decimal, on_day: date | None = None) -> Command:
        get_context(self.Context).amount = amount
        return complete(by=f"{type(amount).__name__} {on_day!r}")


@workflow("act-armed")
class Armed:
    """Waits for a signal or one of two actions, with a timeout."""

    class Context(BaseModel):
        by: str = ""
        tries: int = 0

    @step(start=True)
    async def ask(self) -> Command:
        return wait.any(
            on("paid", then=self.paid), on(self.review), on(self.give_up), timeout=HOUR, on_timeout=self.escalate
        )

    @step
    async def paid(self) -> Command:
        return complete(by="paid")

    @action()
    async def review(self, ok: bool = True) -> Command:
        get_context(self.Context).tries += 1
        if not ok:
            raise ValueError("not ok")
        return complete(by="review")

    @action()
    def give_up(self) -> Command:
        return complete(by="given up")

    @step
    async def escalate(self) -> Command:
        assert get_run().timed_out
        return goto(self.review)


async def parked(engine: Engine, flow: Any, /, **context: Any) -> WorkflowRun[Any]:
    """Start a run; returns it once it is parked."""
    run: WorkflowRun[Any] = await engine.start(flow, **context)
    return await run.wait(5, until="parked")


async def names_of(engine: Engine, run: WorkflowRun[Any]) -> list[str]:
    """The names of the run's open actions."""
    return [found.name for found in await engine.open_actions(run.id)]


# ---- what opens an action, and ways to call it


async def test_a_goto_to_an_action_waits_to_be_called(make_engine: MakeEngine) -> None:
    """A run that goes to an action parks there; a call runs it with its input, and returns the run after the step."""
    async with make_engine(Expense) as engine:
        run = await parked(engine, Expense)
        assert (run.status, run.current_step, run.waiting_for) == ("waiting", "review", "action")
        assert (run.waiting_signal, run.waiting_key, run.on_timeout, run.wake_at) == (None, None, None, None)
        assert [found.id for found in await engine.runs(waiting_for="action")] == [run.id]
        assert (await engine.stats()).waiting == {"action": 1}
        reviewed = await engine.act(Expense.review, run.id, approved=True, notes="fine")
        assert (reviewed.status, reviewed.current_step, reviewed.waiting_for) == ("waiting", "pay", "action")
        assert reviewed.data["notes"] == "fine"
        assert await names_of(engine, run) == ["act_pay"]
        paid = await engine.act("act_pay", run.id, amount="12.50", on_day="2026-01-02")
        assert paid.status is WorkflowStatus.COMPLETED
        assert (paid.data["amount"], paid.data["by"]) == ("12.50", "Decimal datetime.date(2026, 1, 2)")
        assert await kinds_of(engine, run) == ["start", "goto", "action", "goto", "action", "complete"]
        assert await engine.open_actions(run.id) == []


async def test_an_action_is_shown_with_its_schema(make_engine: MakeEngine) -> None:
    """``open_actions`` gives name, step, title, docstring and input schema of each open action."""
    async with make_engine(Expense) as engine:
        run = await parked(engine, Expense)
        (review,) = await engine.open_actions(run.id)
        assert (review.name, review.step, review.title) == ("act_expense_review", "review", None)
        assert review.description == "Approve or refuse an expense."
        assert review.schema["required"] == ["approved"]
        assert review.schema["properties"] == {
            "approved": {"title": "Approved", "type": "boolean"},
            "notes": {"default": "", "maxLength": 20, "title": "Notes", "type": "string"},
        }
        await engine.act(Expense.review, run.id, approved=True)
        (pay,) = await engine.open_actions(run.id)
        assert (pay.name, pay.step, pay.title, pay.description) == ("act_pay", "pay", "Pay it", None)


class Money:
    """A class for which pydantic has no schema."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return core_schema.no_info_plain_validator_function(lambda value: value)


async def test_an_action_without_a_schema_is_shown(make_engine: MakeEngine) -> None:
    """An action whose input has no JSON Schema is listed with an empty one, and so are the other actions."""

    @workflow("act-obscure")
    class Flow:
        class Context(BaseModel):
            pass

        @step(start=True)
        async def ask(self) -> Command:
            return wait.any(on(self.pay), on(self.look), on(self.go))

        @action("obscure_pay")
        async def pay(self, money: Money) -> Command:
            return complete()

        @action("obscure_look")
        async def look(self, thing: "Nowhere") -> Command:  # type: ignore[name-defined] # noqa: F821, UP037
            return complete()

        @action("obscure_go")
        async def go(self, far: bool) -> Command:
            return complete()

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        shown = {found.name: found.schema for found in await engine.open_actions(run.id)}
        assert list(shown) == ["obscure_pay", "obscure_look", "obscure_go"]
        assert shown["obscure_pay"] == shown["obscure_look"] == {"type": "object"}
        assert shown["obscure_go"]["required"] == ["far"]


@pytest.mark.parametrize("name", ["act_expense_review", "review", Expense.review, Expense().review])
async def test_an_action_is_named_in_several_ways(make_engine: MakeEngine, name: Any) -> None:
    """An action is called by its name, its step's name, the function in the class, or the method of an instance."""
    async with make_engine(Expense) as engine:
        run = await parked(engine, Expense)
        assert (await engine.act(name, run.id, approved=True)).current_step == "pay"


async def test_a_start_step_may_be_an_action(make_engine: MakeEngine) -> None:
    """A run whose start step is an action waits for a call from its start, or from the end of its delay."""

    @workflow("act-start")
    class Flow:
        class Context(BaseModel):
            said: str = ""

        @action()
        @step(start=True)
        async def begin(self, said: str) -> Command:
            return complete(said=said)

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        assert (run.status, run.waiting_for, run.current_step) == ("waiting", "action", "begin")
        assert await kinds_of(engine, run) == ["start"]
        assert (await engine.act(Flow.begin, run.id, said="hi")).data == {"said": "hi"}
        later = await engine.start(Flow, StartOptions(delay=HOUR))
        assert (later.waiting_for, await engine.open_actions(later.id)) == ("start", [])
        engine._clock.shift(HOUR)  # type: ignore[attr-defined]
        await wait_until(lambda: opened(engine, later))
        assert await kinds_of(engine, later) == ["start", "wake", "wait"]
        assert (await engine.act(Flow.begin, later.id, said="late")).data == {"said": "late"}


async def opened(engine: Engine, run: WorkflowRun[Any]) -> bool:
    """Whether the run has an open action."""
    return bool(await engine.open_actions(run.id))


async def test_whatever_else_leads_to_an_action_parks_there(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A sleep, a signal, a failed step and the run's timeout may lead to an action, which then waits for a call."""

    @workflow("act-ways", timeout=3 * HOUR, on_timeout="last")
    class Flow:
        class Context(BaseModel):
            way: str = ""

        @step(start=True, on_fail="first")
        async def begin(self) -> Command:
            raise GiveUp("so that on_fail leads on")

        @action()
        async def first(self, way: str) -> Command:
            return sleep(HOUR, then=self.second)

        @action()
        async def second(self, way: str) -> Command:
            return wait.for_signal("go", then=self.third)

        @action()
        async def third(self, way: str) -> Command:
            raise AssertionError("nobody calls it")

        @action()
        async def last(self, way: str) -> Command:
            return complete(way=way)

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        assert (run.current_step, run.waiting_for) == ("first", "action")
        await engine.act(Flow.first, run.id, way="x")
        clock.shift(HOUR)
        await wait_until(lambda: opened(engine, run))
        assert await names_of(engine, run) == ["act_ways_second"]
        await engine.act(Flow.second, run.id, way="x")
        await engine.signal("go", {"way": "merged"}, run_id=run.id)
        await wait_until(lambda: opened(engine, run))
        await run.refresh()
        assert (await names_of(engine, run), run.data["way"]) == (["act_ways_third"], "merged")
        clock.shift(2 * HOUR)
        await wait_until(lambda: at_last(engine, run))
        assert (await engine.act(Flow.last, run.id, way="end")).status == "completed"


@pytest.mark.parametrize("event", [False, True])
async def test_what_leads_to_an_action_need_not_give_its_input(make_engine: MakeEngine, event: bool) -> None:
    """A signal or an event may lead to an action without fitting its input, which its caller gives."""

    @workflow("act-led-to")
    class Flow:
        class Context(BaseModel):
            way: str = ""

        @step(start=True)
        async def begin(self) -> Command:
            by_event = wait_for_event("submitted", then=self.review)
            return by_event if event else wait.for_signal("submitted", then=self.review)

        @action()
        async def review(self, notes: str) -> Command:
            return complete(way=notes)

    async with make_engine(Flow) as engine:
        run = await (await engine.start(Flow)).wait(5, until="parked")
        if event:
            await engine.emit("submitted")
        else:
            assert (await engine.signal("submitted", {"way": "on"}, run_id=run.id)).state == "delivered"
        await wait_until(lambda: opened(engine, run))
        await run.refresh()
        assert run.data["way"] == ("" if event else "on")
        assert (await engine.act(Flow.review, run.id, notes="good")).data["way"] == "good"


async def at_last(engine: Engine, run: WorkflowRun[Any]) -> bool:
    """Whether the run waits at its last action."""
    return await names_of(engine, run) == ["act_ways_last"]


# ---- an action as an arm


async def test_an_action_as_one_of_several_arms(make_engine: MakeEngine) -> None:
    """A run that waits for a signal or one of two actions goes on with whichever comes first."""
    async with make_engine(Armed) as engine:
        runs = [await parked(engine, Armed) for _ in range(3)]
        assert [(run.current_step, run.waiting_for, run.on_timeout) for run in runs] == [
            ("ask", "signal", "escalate")
        ] * 3
        assert await names_of(engine, runs[0]) == ["act_armed_review", "act_armed_give_up"]
        assert await engine.count(waiting_for="action") == await engine.count(waiting_for="signal") == 3
        assert await engine.count(waiting_for=["event", "sleep"]) == 0
        assert (await engine.signal("paid", run_id=runs[0].id)).delivered == [runs[0].id]
        assert (await runs[0].wait(5)).data["by"] == "paid"
        assert (await engine.act(Armed.review, runs[1].id)).data["by"] == "review"
        assert (await engine.act(Armed.give_up, runs[2].id)).data["by"] == "given up"
        with pytest.raises(errors.RunEnded):
            await engine.signal("paid", run_id=runs[2].id)


async def test_an_action_as_an_arm_has_a_timeout(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """A wait with an action times out, and its on_timeout may go to that action, which is then open for any time."""
    async with make_engine(Armed) as engine:
        run = await parked(engine, Armed)
        assert run.wake_at is not None
        clock.shift(HOUR)
        await moved_on(run)
        await wait_until(lambda: opened(engine, run))
        await run.refresh()
        assert (run.current_step, run.waiting_for, run.wake_at) == ("review", "action", None)
        with pytest.raises(errors.ActionNotOpen, match=r"open actions: 'act_armed_review'"):
            await engine.act(Armed.give_up, run.id)
        assert (await engine.act(Armed.review, run.id)).data["by"] == "review"


async def test_a_signal_that_was_there_first_wins(make_engine: MakeEngine) -> None:
    """A call is refused while the mailbox holds an undelivered signal for the same wait, which then resumes the run."""
    async with make_engine(Armed) as engine:
        run = await parked(engine, Armed)
        parts = engine._parts
        assert parts is not None
        now = parts.clock.micros()
        post = Post(a_signal(1 << 40, run.id, payload="{}", sent_at=now))
        assert [result.outcome for result in await parts.store.apply([post], now)] == ["applied"]
        with pytest.raises(errors.ActionNotOpen):
            await engine.act(Armed.review, run.id)
        await run.wait(5)
        assert run.data["by"] == "paid"


async def test_an_action_that_takes_everything_is_not_given_its_self(make_engine: MakeEngine) -> None:
    """``**more`` gets all undeclared inputs except one named like the step's own first parameter."""

    @workflow("act-everything")
    class Flow:
        class Context(BaseModel):
            got: dict[str, Any] = {}

        @action("act_everything")
        @step(start=True)
        async def only(self, a: int, **more: Any) -> Command:
            return complete(got={"a": a, **more})

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        done = await engine.act("act_everything", run.id, a=1, self=2, cls=3, b=[4])
        assert done.data["got"] == {"a": 1, "cls": 3, "b": [4]}


# ---- two calls at once


@pytest.mark.parametrize("where", ["one engine", "two engines"])
async def test_of_many_calls_one_runs_the_step(make_engine: MakeEngine, where: str) -> None:
    """Of many concurrent calls, also through two engines, one runs the step once, and the others are ActionNotOpen."""
    bodies: list[int] = []

    @workflow("act-once")
    class Flow:
        class Context(BaseModel):
            by: int = 0

        @action()
        @step(start=True)
        async def only(self, by: int) -> Command:
            bodies.append(by)
            await asyncio.sleep(0)
            return complete(by=by)

    async with make_engine(Flow) as one, make_engine(Flow, worker=False) as other:
        for _ in range(10):
            bodies.clear()
            run = await one.start(Flow)
            engines = [one, one if where == "one engine" else other] * 3
            told = await asyncio.gather(
                *[engine.act(Flow.only, run.id, by=number) for number, engine in enumerate(engines)],
                return_exceptions=True,
            )
            winners = [number for number, result in enumerate(told) if isinstance(result, WorkflowRun)]
            losers = [result for result in told if isinstance(result, errors.ActionNotOpen)]
            assert (bodies, len(losers)) == (winners, 5)
            assert (await one.get(run.id)).data == {"by": winners[0]}
            assert await kinds_of(one, run) == ["start", "action", "complete"]


async def test_a_second_call_is_refused(make_engine: MakeEngine) -> None:
    """A second call is ActionNotOpen, which names the run's status, its step and the open actions."""
    async with make_engine(Expense) as engine:
        run = await parked(engine, Expense)
        await engine.act(Expense.review, run.id, approved=True)
        with pytest.raises(errors.ActionNotOpen) as caught:
            await engine.act(Expense.review, run.id, approved=True)
        assert (caught.value.action, caught.value.status) == ("act_expense_review", "waiting")
        assert "waiting at step 'pay' (open actions: 'act_pay')" in str(caught.value)
        await engine.cancel(run.id)
        with pytest.raises(errors.ActionNotOpen, match=r"cancelled at step 'pay' \(open actions: none\)"):
            await engine.act(Expense.pay, run.id, amount=Decimal(1))


async def test_an_action_of_another_workflow_is_not_open(make_engine: MakeEngine) -> None:
    """An action of another workflow, or an unknown one, is not open on a run."""
    async with make_engine(Expense, Armed) as engine:
        run = await parked(engine, Expense)
        for wrong in (Armed.review, "act_armed_review", "nothing", "submit"):
            with pytest.raises(errors.ActionNotOpen, match=r"open actions: 'act_expense_review'"):
                await engine.act(wrong, run.id)  # type: ignore[arg-type]


# ---- the input


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "approved: Field required"),
        ({"approved": "perhaps"}, "approved: Input should be a valid boolean"),
        ({"approved": True, "notes": "x" * 21}, "notes: String should have at most 20 characters"),
        ({"approved": True, "notes": "a\0b"}, "beyond the limit of characters that every store can hold"),
    ],
    ids=["missing", "wrong", "too long", "not storable"],
)
async def test_an_input_that_does_not_fit_changes_nothing(make_engine: MakeEngine, given: Any, text: str) -> None:
    """An input that does not validate is refused before anything is written, and the run waits on."""
    async with make_engine(Expense) as engine:
        run = await parked(engine, Expense)
        with pytest.raises((errors.ActionInputInvalid, errors.LimitExceeded)) as caught:
            await engine.act(Expense.review, run.id, **given)
        assert text in str(caught.value)
        assert await kinds_of(engine, run) == ["start", "goto"]


async def test_undeclared_input_is_left_out(make_engine: MakeEngine) -> None:
    """Undeclared inputs are dropped, and missing ones have their defaults."""
    async with make_engine(Expense) as engine:
        run = await parked(engine, Expense)
        reviewed = await engine.act("review", run.id, approved=True, unknown=3, workflow_run_id=99)
        assert (reviewed.current_step, reviewed.data["notes"]) == ("pay", "")


async def test_a_model_is_given_as_keywords_or_whole(make_engine: MakeEngine) -> None:
    """The fields of an explicit input model are the step's parameters, or one parameter of its type gets the model."""
    seen: list[Any] = []

    @workflow("act-models")
    class Flow:
        class Context(BaseModel):
            pass

        @action("act_models_keywords", input=Review)
        @step(start=True)
        async def keywords(self, reviewer_notes: str, priority: str) -> Command:
            seen.append((reviewer_notes, priority))
            return goto(self.whole)

        @statezero_action(name="act_models_whole", serializer=Review)
        @step()
        def whole(self, review: Review) -> Command:
            seen.append(review)
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        await engine.act(Flow.keywords, run.id, reviewer_notes="fine", due=date(2030, 1, 1))
        done = await engine.act(Flow.whole, run.id, reviewer_notes="good", priority="high", due="2030-01-01")
        assert done.status == "completed"
        assert seen == [("fine", "medium"), Review(reviewer_notes="good", priority="high", due=date(2030, 1, 1))]


async def test_a_request_is_handed_on(make_engine: MakeEngine) -> None:
    """A parameter ``request`` gets the request given to ``act``, and is not part of the input or its schema."""

    class Request:
        user = "ann"

    @workflow("act-request")
    class Flow:
        class Context(BaseModel):
            pass

        @action()
        @step(start=True)
        async def only(self, request: Request, approved: bool) -> Command:
            return complete(by=request.user, approved=approved)

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        (shown,) = await engine.open_actions(run.id)
        assert list(shown.schema["properties"]) == ["approved"]  # type: ignore[arg-type, call-overload]
        with pytest.raises(errors.ActionInputInvalid, match=r"it takes the request that calls it\. Give request="):
            await engine.act("only", run.id, approved=True)
        done = await engine.act("only", run.id, request=Request(), approved=True)
        assert (done.data["by"], done.data["approved"]) == ("ann", True)


# ---- an action that raises


async def test_the_caller_gets_the_error_of_an_action(make_engine: MakeEngine, log: list[EventDict]) -> None:
    """The caller gets the action's own error, history and log have it, and the run waits with its Context unchanged."""
    async with make_engine(Expense) as engine:
        run = await parked(engine, Expense)
        before = run.row
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^not like this$"):
                await engine.act(Expense.review, run.id, approved=True, notes="raise")
        await run.refresh()
        assert run.row == before._replace(seq=run.row.seq, fence=run.row.fence, updated_at=run.row.updated_at)
        rows = await engine.history(run.id)
        assert [row.kind for row in rows] == ["start", "goto", "action", "reopen", "action", "reopen"]
        assert (rows[3].step, rows[3].error) == ("review", "ValueError: not like this")
        told = [entry for entry in log if entry["event"] == "action failed, is open again"]
        assert len(told) == 2
        assert (told[0]["run_id"], told[0]["step"]) == (run.id, "review")
        assert "ValueError: not like this" in told[0]["exception"]
        assert (await engine.act(Expense.review, run.id, approved=True)).current_step == "pay"


async def test_an_arm_that_raises_is_open_again(make_engine: MakeEngine, clock: ShiftedClock) -> None:
    """If an action raises, the whole wait is restored: its other arms, and its deadline, which was not moved."""
    async with make_engine(Armed) as engine:
        run = await parked(engine, Armed)
        wake_at = run.wake_at
        with pytest.raises(ValueError, match="not ok"):
            await engine.act(Armed.review, run.id, ok=False)
        await run.refresh()
        assert (run.current_step, run.waiting_signal, run.wake_at) == ("ask", "paid", wake_at)
        assert (run.data["tries"], await names_of(engine, run)) == (0, ["act_armed_review", "act_armed_give_up"])
        clock.shift(HOUR)
        await wait_until(lambda: opened(engine, run))
        await run.refresh()
        assert run.current_step in {"ask", "review"}
        await wait_until(lambda: sent_to_review(engine, run))
        assert (await engine.act(Armed.review, run.id)).data["tries"] == 1


async def sent_to_review(engine: Engine, run: WorkflowRun[Any]) -> bool:
    """Whether the review is the only open action."""
    return await names_of(engine, run) == ["act_armed_review"]


async def test_a_signal_sent_meanwhile_reaches_an_arm_that_raises(make_engine: MakeEngine) -> None:
    """A signal sent while an action runs is buffered, and resumes the run if the action raises."""
    gate = asyncio.Event()
    begun = asyncio.Event()

    @workflow("act-meanwhile")
    class Flow:
        class Context(BaseModel):
            by: str = ""

        @step(start=True)
        async def ask(self) -> Command:
            return wait.any(on("paid", then=self.paid), on(self.review))

        @step
        async def paid(self) -> Command:
            return complete(by="paid")

        @action()
        async def review(self) -> Command:
            begun.set()
            await gate.wait()
            raise ValueError("too slow")

    async with make_engine(Flow) as engine:
        run = await parked(engine, Flow)
        call = asyncio.create_task(engine.act(Flow.review, run.id))
        await begun.wait()
        assert (await engine.signal("paid", run_id=run.id)).state == "buffered"
        gate.set()
        with pytest.raises(ValueError, match="too slow"):
            await call
        assert (await run.wait(5)).data["by"] == "paid"


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (RetryLater(HOUR), RetryLater),
        (GiveUp("no more"), GiveUp),
        (LookupError("nothing"), LookupError),
        (KeyboardInterrupt("stop"), errors.ActionFailed),
        (asyncio.CancelledError("stop"), errors.ActionFailed),
        (StopIteration("stop"), errors.ActionFailed),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_no_retry_policy_applies(make_engine: MakeEngine, error: BaseException, raised: type[Exception]) -> None:
    """Whatever an action raises, it is not retried; cancellations and the like reach the caller as ActionFailed."""

    @workflow("act-raising")
    class Flow:
        class Context(BaseModel):
            pass

        @action()
        @step(start=True, thread=False)
        def only(self) -> Command:
            raise error

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        with pytest.raises(raised) as caught:
            await engine.act(Flow.only, run.id)
        assert caught.value is error or caught.value.__cause__ is error
        await run.refresh()
        assert (run.status, run.waiting_for, run.attempt) == ("waiting", "action", 1)
        assert await kinds_of(engine, run) == ["start", "action", "reopen"]


async def test_an_error_in_the_code_puts_the_run_back(make_engine: MakeEngine, log: list[EventDict]) -> None:
    """Errors in an action's code are raised to the caller as well, and the run waits on."""

    @workflow("act-wrong")
    class Flow:
        class Context(BaseModel):
            total: int = 0

        @action()
        @step(start=True)
        async def only(self, how: str) -> Any:
            if how == "nothing":
                return None
            if how == "nowhere":
                return goto(how)
            get_context(self.Context).totl = 3  # type: ignore[attr-defined]
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        for how, error in (
            ("nothing", errors.NoCommand),
            ("nowhere", errors.ActionFailed),  # it has raised nothing
            ("typo", errors.UndeclaredField),
        ):
            with pytest.raises(error):
                await engine.act("only", run.id, how=how)
        await run.refresh()
        assert (run.status, run.waiting_for) == ("waiting", "action")
        (nowhere,) = [e for e in log if "no step of it" in (e.get("error") or "") and e["log_level"] == "warning"]
        assert (nowhere["event"], nowhere["run_id"]) == ("action failed, is open again", run.id)


async def test_nothing_is_started_by_an_action_that_fails(make_engine: MakeEngine) -> None:
    """What an action starts is not committed if it raises, or if its command has an unknown target."""

    @workflow("act-starting")
    class Flow:
        class Context(BaseModel):
            pass

        @action()
        @step(start=True)
        async def only(self, how: str) -> Command:
            get_run().start(Expense, StartOptions(key=how))
            if how == "raise":
                raise ValueError("no")
            return goto(how) if how == "nowhere" else complete()

    async with make_engine(Flow, Expense) as engine:
        run = await engine.start(Flow)
        for how, error in (("raise", ValueError), ("nowhere", errors.ActionFailed)):
            with pytest.raises(error):
                await engine.act(Flow.only, run.id, how=how)
            assert await engine.count(workflow=Expense) == 0
        await engine.act(Flow.only, run.id, how="well")
        assert [found.key for found in await engine.runs(workflow=Expense)] == ["well"]


async def test_cancelling_the_run_fails_the_call(make_engine: MakeEngine) -> None:
    """If the run is cancelled while its action runs, the caller gets ActionFailed with the reason."""
    begun = asyncio.Event()

    @workflow("act-cancelled")
    class Flow:
        class Context(BaseModel):
            pass

        @action()
        @step(start=True)
        async def only(self) -> Command:
            begun.set()
            await asyncio.Event().wait()
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        call = asyncio.create_task(engine.act(Flow.only, run.id))
        await begun.wait()
        assert await engine.cancel(run.id, "no longer needed")
        with pytest.raises(errors.ActionFailed, match="the run was cancelled meanwhile: no longer needed"):
            await call


async def test_a_cancelled_caller_does_not_stop_the_action(make_engine: MakeEngine) -> None:
    """An action runs to its end even if its caller is cancelled."""
    gate, begun = asyncio.Event(), asyncio.Event()

    @workflow("act-impatient")
    class Flow:
        class Context(BaseModel):
            pass

        @action()
        @step(start=True)
        async def only(self) -> Command:
            begun.set()
            await gate.wait()
            return complete()

    async with make_engine(Flow) as engine:
        run = await engine.start(Flow)
        call = asyncio.create_task(engine.act(Flow.only, run.id))
        await begun.wait()
        call.cancel()
        await asyncio.wait([call])
        assert call.cancelled()
        gate.set()
        assert (await run.wait(5)).status == "completed"
