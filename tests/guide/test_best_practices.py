"""Best practices in one workflow: a flat Context, retries by kind of error, limits on waits, clear errors."""

# Steps are written as in the guide, without annotations.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from datetime import timedelta

import pytest
import structlog
from pydantic import BaseModel
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from aioflow import (
    Failure,
    Retry,
    StartOptions,
    complete,
    engine,
    fail,
    get_context,
    get_run,
    goto,
    step,
    wait,
    workflow,
)
from aioflow.testing import TimeMachine

log = structlog.get_logger()


class CardDeclined(Exception):
    """The bank declines the card, which is an expected error."""


class Bank:
    """The outside world: the cards that it accepts, and its charges by idempotency key."""

    def __init__(self) -> None:
        self.cards = {"good": 100}
        self.outages = 0
        self.charges: dict[str, int] = {}

    def charge(self, card: str, amount: int, idempotency_key: str) -> str:
        if self.outages:
            self.outages -= 1
            raise ConnectionError("the bank does not answer")
        if self.cards.get(card, 0) < amount:
            raise CardDeclined(f"card {card!r} is declined")
        self.charges[idempotency_key] = amount
        return f"charge-{len(self.charges)}"


#: What steps load by the id in the Context, instead of keeping the invoice there.
INVOICES = {7: 40, 8: 1000}
bank = Bank()


@workflow("invoice_payment", on_fail="tell_accounting")
class InvoicePaymentWorkflow:
    class Context(BaseModel):
        invoice_id: int
        card: str
        state: str = "open"
        charge_id: str = ""
        last_error: str = ""

    @step(start=True, retry=Retry(max_attempts=4, base_delay=timedelta(minutes=1), retry_on=(ConnectionError,)))
    def charge_card(self):
        ctx = get_context(self.Context)
        try:
            ctx.charge_id = bank.charge(ctx.card, INVOICES[ctx.invoice_id], get_run().step_key)
        except CardDeclined as error:
            ctx.last_error = str(error)
            return goto(self.ask_for_another_card)
        ctx.state = "charged"
        log.info("invoice charged", invoice_id=ctx.invoice_id)
        return goto(self.send_receipt)

    @step()
    def ask_for_another_card(self):
        ctx = get_context(self.Context)
        ctx.state = "declined"
        return wait.for_signal(
            "card_changed", timeout=timedelta(days=7), on_timeout=self.give_up, then=self.charge_card
        )

    @step()
    def give_up(self):
        ctx = get_context(self.Context)
        return fail(f"invoice {ctx.invoice_id} was not paid within 7 days: {ctx.last_error}")

    @step()
    def send_receipt(self):
        return complete(state="paid")

    @step()
    def tell_accounting(self, failure: Failure):
        ctx = get_context(self.Context)
        return fail(f"invoice {ctx.invoice_id}: {failure.step} failed {failure.attempts} times: {failure.error}")


@pytest.fixture(autouse=True)
def _new_bank() -> None:
    bank.outages = 0
    bank.charges.clear()


async def test_paid(flow: TimeMachine) -> None:
    """A paid invoice has its state and the charge's id in a flat Context."""
    run = await flow.start("invoice_payment", invoice_id=7, card="good")
    await run.wait()
    assert run.data == {"invoice_id": 7, "card": "good", "state": "paid", "charge_id": "charge-1", "last_error": ""}


async def test_expected_error_is_handled(flow: TimeMachine) -> None:
    """A declined card does not fail the run, which keeps the reason in its Context and waits for another card."""
    run = await flow.start(InvoicePaymentWorkflow, StartOptions(key="invoice-7"), invoice_id=7, card="bad")
    await run.wait(until="parked")
    assert (run.status, run.current_step) == ("waiting", "ask_for_another_card")
    assert (run.context.state, run.context.last_error) == ("declined", "card 'bad' is declined")
    await engine.signal("card_changed", {"card": "good"}, key="invoice-7")
    assert (await run.result()).state == "paid"
    assert list(bank.charges.values()) == [40]


async def test_unexpected_error_is_retried(flow: TimeMachine) -> None:
    """After two failures the third attempt works, and the card is charged once."""
    bank.outages = 2
    run = await flow.start(InvoicePaymentWorkflow, invoice_id=7, card="good")
    assert (await run.result()).state == "paid"
    assert flow.now == run.created_at + timedelta(minutes=3)
    assert len(bank.charges) == 1


async def test_error_says_what_it_means(flow: TimeMachine) -> None:
    """When the attempts are used up, the run's error names the invoice, the step and the cause."""
    bank.outages = 4
    run = await flow.start(InvoicePaymentWorkflow, invoice_id=7, card="good")
    await run.wait()
    assert run.status == "failed"
    assert run.error == "invoice 7: charge_card failed 4 times: ConnectionError: the bank does not answer"


async def test_error_of_another_kind_is_not_retried(flow: TimeMachine) -> None:
    """The policy retries only outages, so that an unknown invoice fails at once."""
    run = await flow.start(InvoicePaymentWorkflow, invoice_id=99, card="good")
    await run.wait()
    assert run.error == "invoice 99: charge_card failed 1 times: KeyError: 99"
    assert run.ended_at == run.created_at


async def test_waits_have_an_end(flow: TimeMachine) -> None:
    """A wait that times out ends the run with a reason."""
    run = await flow.start(InvoicePaymentWorkflow, invoice_id=8, card="good")
    await run.wait()
    assert run.error == "invoice 8 was not paid within 7 days: card 'good' is declined"
    assert run.ended_at == run.created_at + timedelta(days=7)


async def test_log_lines_tell_their_run(flow: TimeMachine) -> None:
    """A step's log lines have the run, the workflow, the step and the attempt."""
    bank.outages = 1
    with capture_logs(processors=[merge_contextvars]) as lines:
        run = await flow.start(InvoicePaymentWorkflow, invoice_id=7, card="good")
        await run.wait()
    assert [line for line in lines if line["event"] == "invoice charged"] == [
        {
            "event": "invoice charged",
            "log_level": "info",
            "invoice_id": 7,
            "run_id": run.id,
            "workflow": "invoice_payment",
            "step": "charge_card",
            "attempt": 2,
        }
    ]


async def test_processing_times(flow: TimeMachine) -> None:
    """The history has how long each step took, and the stats how late the engine is."""
    run = await flow.start(InvoicePaymentWorkflow, invoice_id=7, card="good")
    await run.wait()
    durations = {row.step: row.duration for row in await flow.history(run.id) if row.kind != "start"}
    assert list(durations) == ["charge_card", "send_receipt"]
    assert all(timedelta(0) < duration < timedelta(seconds=10) for duration in durations.values())
    stats = await flow.stats()
    assert (stats.running_here, stats.overdue, stats.lag) == (0, 0, timedelta(0))
