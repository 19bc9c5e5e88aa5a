"""Retries of a step that raises: by its own policy, by its workflow's, after a delay that the bank asks for, or never.

python examples/02_retry.py

The bank is busy (RetryLater, which does not count as a failure), then drops the connection twice (Retry, with growing
delays). The second card is refused (GiveUp), so that run goes to the on_fail step. The warnings are aioflow's log.
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import (
    Engine,
    Failure,
    GiveUp,
    Retry,
    RetryLater,
    complete,
    fail,
    get_context,
    get_run,
    goto,
    step,
    workflow,
)

BRIEFLY = timedelta(milliseconds=100)
BUSY = "429 Retry-After: 0.3"
ANSWERS = {"4242": [BUSY, "timeout", "timeout", "200 receipt 17"], "1111": ["402 card expired"]}


async def bank(card: str, idempotency_key: str) -> str:
    answer = ANSWERS[card].pop(0)
    print(f"bank, {card}, payment {idempotency_key[-3:]}: {answer}")  # the same key for each attempt: no double payment
    if answer == "timeout":
        raise ConnectionError("the line dropped")
    return answer


@workflow("payment", default_retry=Retry(max_attempts=2, base_delay=BRIEFLY), on_fail="apologise")
class Payment:
    class Context(BaseModel):
        card: str
        receipt: str = ""

    # Retried after 0.1, 0.2, 0.4 … seconds, each up to a fifth shorter or longer. Other exceptions fail at once.
    @step(start=True, retry=Retry(max_attempts=5, base_delay=BRIEFLY, jitter=0.2, retry_on=(ConnectionError,)))
    async def charge(self):
        ctx = get_context(self.Context)
        answer = await bank(ctx.card, idempotency_key=get_run().step_key)
        if answer.startswith("429"):
            raise RetryLater(timedelta(seconds=float(answer.split()[-1])))
        if answer.startswith("402"):
            raise GiveUp(answer)
        ctx.receipt = answer
        return goto(self.send_receipt)

    @step  # retried by the workflow's default_retry
    async def send_receipt(self):
        if get_run().attempt == 1:
            raise OSError("the mail server restarts")
        return complete()

    @step  # a step like any other: it may wait, be retried, or go back to charge with another card
    async def apologise(self, failure: Failure):
        print(f"Sorry: {failure.step} {failure.kind} after attempt {failure.attempts}")
        return fail(failure.error)


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with Engine(f"sqlite:///{folder}/payments.db") as engine:
            for card in ANSWERS:
                run = await engine.start(Payment, card=card)
                await run.wait()
                print(f"{run.status} after {run.updated_at - run.created_at}: {run.error or run.context.receipt}")


if __name__ == "__main__":
    asyncio.run(main())
