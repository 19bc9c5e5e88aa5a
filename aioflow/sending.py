"""``Engine.signal``: puts a signal into the mailbox, and tells what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

from pydantic import BaseModel

from aioflow.changes import Result
from aioflow.client import PATIENCE
from aioflow.clock import SECOND
from aioflow.delivery import Watch
from aioflow.errors import IdTaken, RunEnded, RunNotFound
from aioflow.model import LIVE, Run, Signal
from aioflow.parts import Parts
from aioflow.signals import Draft, Misfit, SignalReceipt, draft
from aioflow.store import RunQuery
from aioflow.watching import Watching


class Sending(Watching):
    """The call that sends signals."""

    async def signal(
        self,
        name_or_message: str | BaseModel,
        payload: Mapping[str, Any] | None = None,
        *,
        run_id: int | None = None,
        key: str | None = None,
        workflow: Any = None,
        signal_id: str | None = None,
        ttl: timedelta | None = None,
    ) -> SignalReceipt:
        """Send a signal. When it returns, a run has taken the signal, or it is stored for its addressee.

        Addressed to a run or a key, it is kept until a run waits for it, and taken by one run, once, in the order of
        sending. A key reaches the run whose wait names it, or that was started with it; of several, the one that has
        waited longest. With neither, the signal is a broadcast to every run that waits for its name now.

        Args:
            name_or_message: the signal's name; or a pydantic model, whose class name is the signal's name, and which
                the next step of the run gets as an argument.
            payload: with a name: what is merged into the Context of the run; must serialize to JSON.
            run_id: the run that it is for.
            key: the key that it is for; up to 200 characters.
            workflow: with a key: address the run of this workflow (class or name) that was started with the key.
            signal_id: makes sending it idempotent, store-wide, until 7 days after it was taken: ``f"paid-{order_id}"``.
            ttl: how long it may wait to be taken. Without it, to a run: as long as the run lives; to a key: 7 days.

        Returns:
            What became of it: delivered, buffered, rejected or none.

        Raises:
            RunNotFound, RunEnded: there is no such run, or it has ended.
            SignalInvalid: the payload or message cannot be stored.
            IdTaken: a signal with this signal_id was taken by another run than ``run_id``.
            TypeError, ValueError, LimitExceeded: an argument of the wrong type or out of its range.
            EngineClosed: the engine is not open.
            StoreUnavailable: the store did not answer for 15 s. Whether the signal was sent is unknown: with a
                signal_id, repeat the call to find out.
        """
        parts = self._open_for("signal()")
        asked = draft(name_or_message, payload, run_id=run_id, key=key, workflow=workflow, signal_id=signal_id, ttl=ttl)
        with ExitStack() as stack:
            # One at a time until it is in the committer's queue, so that one engine's signals are taken in order.
            async with parts.delivery.turn((run_id, key)) as alone:
                post = await parts.office.post_of(asked, PATIENCE)
                signal = post.signal
                # With a signal_id it may have been sent before: it goes through the mailbox, which remembers that.
                run = None if signal_id is not None else await self._waiting_for(parts, signal)
                if run is not None and alone():
                    try:
                        if await parts.delivery.straight(run, signal, PATIENCE):
                            return SignalReceipt("delivered", [run.id])
                    except Misfit as misfit:
                        return SignalReceipt("rejected", rejected={run.id: str(misfit)})
                elif run is not None and (why := parts.delivery.refusal(run, signal)) is not None:
                    return SignalReceipt("rejected", rejected={run.id: why})
                watch = stack.enter_context(parts.delivery.watching(signal.id))
                committed = parts.committer.submit(post, PATIENCE)
            result = await committed
            if result.outcome == "stale":
                raise _nowhere(signal, result.run)
            if result.outcome == "exists":
                return _known(asked, signal, result)
            if watch.pending:
                try:
                    async with asyncio.timeout(PATIENCE / SECOND):
                        await watch.settled.wait()
                except TimeoutError:
                    pass  # it is in the store, and will be taken
        return _receipt(signal, result, watch)

    async def _waiting_for(self, parts: Parts, signal: Signal) -> Run | None:
        """The run that waits for the signal now, or that it is addressed to. Raises RunNotFound or RunEnded."""
        store, clock, ask = parts.store, parts.clock, parts.office.ask
        if signal.run_id:
            found = await ask(lambda: store.load([signal.run_id], clock.micros()), PATIENCE)
            if not found or found[0].status not in LIVE:
                raise _nowhere(signal, found[0] if found else None)
        elif signal.key is not None:
            query = RunQuery(
                waiting_signal=(signal.name,),
                waiting_key=(signal.key,),
                order="updated_at",
                descending=False,
                limit=1,
                own=True,
            )
            found = await ask(lambda: store.select(query, clock.micros()), PATIENCE)
        else:
            return None
        return found[0] if found else None


def _known(asked: Draft, signal: Signal, result: Result) -> SignalReceipt:
    """What became of the signal sent before with this signal_id. Raises IdTaken if another run has taken it."""
    if asked.run_id is not None and result.run_ids and asked.run_id not in result.run_ids:
        raise IdTaken("signal_id", asked.signal_id or "", f"a signal that run {result.run_ids[0]} has taken")
    return _receipt(signal, result, None)


def _receipt(signal: Signal, result: Result, watch: Watch | None) -> SignalReceipt:
    """What became of a signal that was posted; ``watch`` is None if it had been sent before."""
    if watch is None:
        if result.run_ids:
            return SignalReceipt("delivered", list(result.run_ids))
        return SignalReceipt("buffered" if result.mail else "none")
    if watch.delivered:
        return SignalReceipt("delivered", sorted(watch.delivered), watch.rejected)
    if watch.rejected:
        return SignalReceipt("rejected", [], watch.rejected)
    return SignalReceipt("buffered" if signal.run_id or signal.key is not None or result.run_ids else "none")


def _nowhere(signal: Signal, run: Run | None) -> RunNotFound | RunEnded:
    if run is None:
        return RunNotFound(signal.run_id)
    return RunEnded(run.id, run.workflow, run.status)
