"""Deliberate bugs. Each changes a few words in a function of the product; the simulation, or a test, must notice it.

A mutant that no longer applies, because the code has changed, raises: rewrite it, or drop it on purpose.
"""

from __future__ import annotations
import __future__

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any, Literal, NamedTuple


class Mutant(NamedTuple):
    """A bug: in ``module``, in ``function`` (``Class.method`` or a name), ``old`` becomes ``new``."""

    name: str
    module: str
    function: str
    old: str
    new: str
    #: The seed that noticed it last, which is tried first.
    seed: int = 0
    #: The test that notices it, where the simulation cannot.
    tests: str = ""
    #: The store that it is simulated on.
    store: Literal["memory", "sqlite"] = "memory"
    #: A second function that has to change with it: module, function, old, new.
    more: tuple[str, str, str, str] | None = None


class Drifted(AssertionError):
    """The product has changed, and the mutant does not apply any more."""


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Run the block with the bug in the product."""
    with ExitStack() as stack:
        stack.enter_context(_changed(mutant.name, *mutant[1:5]))
        if mutant.more is not None:
            stack.enter_context(_changed(mutant.name, *mutant.more))
        yield


@contextmanager
def _changed(what: str, module_name: str, path: str, old: str, new: str) -> Iterator[None]:
    module = import_module(module_name)
    *owners, name = path.split(".")
    owner: Any = module
    for part in owners:
        owner = getattr(owner, part)
    function = vars(owner)[name]
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(old) != 1:
        raise Drifted(f"{what}: {path} has {old!r} {source.count(old)} times")
    code = compile(
        source.replace(old, new), f"<{what}>", "exec", flags=__future__.annotations.compiler_flag, dont_inherit=True
    )
    made: dict[str, Any] = {}
    exec(code, vars(module), made)
    places = [owner] if owners else _users(name, function)
    for place in places:
        setattr(place, name, made[name])
    try:
        yield
    finally:
        for place in places:
            setattr(place, name, function)


def _users(name: str, function: Any) -> list[Any]:
    """The modules that have imported a function by this name."""
    modules = [module for key, module in sys.modules.items() if key.startswith("aioflow")]
    return [module for module in modules if vars(module).get(name) is function]


_WORKER, _SCHEDULER, _DELIVERY = "aioflow.worker", "aioflow.scheduler", "aioflow.delivery"
_LEASE, _LOOP, _JUDGE = "aioflow.lease", "aioflow.dueloop", "aioflow_memory.judge"
_COMMITTER, _ACTIVATION, _EXECUTOR = "aioflow.committer", "aioflow.activation", "aioflow.executor"
_DECIDING, _OUTSIDE, _SIGNALS, _RUNTIME = (
    "aioflow.transitions",
    "aioflow.interventions",
    "aioflow.signals",
    "aioflow.runtime",
)
_STORE, _MAILBOX, _TIMERS = "aioflow_memory.store", "aioflow_memory.mailbox", "aioflow.timers"
_BATCH = "aioflow_sqlite.batch"
_OPENINGS, _ACTING = "aioflow.openings", "aioflow.actions"
_EVENTS, _PLANNER, _EVENT_BATCH = "aioflow_memory.events", "aioflow.planner", "aioflow_sqlite.events"

MUTANTS = [
    # ---- guards
    Mutant("skip the fence", _JUDGE, "Judge._judge_move",
           "(was.seq, was.fence) != (change.seq, change.fence)", "was.seq != change.seq", seed=37),
    Mutant("skip seq", _JUDGE, "Judge._judge_move",
           "(was.seq, was.fence) != (change.seq, change.fence)", "was.fence != change.fence", seed=46),
    Mutant("do not know what was applied", _JUDGE, "Judge._offered",
           "transition.commit_id for row in rows", "-1 for row in rows", seed=7),
    Mutant("one stale change sinks its batch", _STORE, "MemoryStore.apply",
           "    except BaseException:",
           "        assert all(result.outcome != 'stale' for result in results)\n    except AssertionError:\n"
           "        judge.undo()\n"
           "        return [Result('stale') for _ in changes]\n"
           "    except BaseException:", seed=245),
    Mutant("a key names a second run", _JUDGE, "Judge._judge_start",
           "not _may_follow(holder, change.reuse)", "False", seed=312),
    # ---- what a lost reply means
    Mutant("treat unknown as failed", _COMMITTER, "Committer._offer",
           "            self._tell(error)\n",
           "            for p in pending:\n                p.tell(error)\n            return\n", seed=1),
    Mutant("treat unknown as committed", _COMMITTER, "Committer._offer",
           "            self._tell(error)\n",
           "            done = [(p, Result('applied', getattr(p.change, 'run', None))) for p in pending]\n"
           "            self._on_commit([(p.change, result) for p, result in done])\n"
           "            for p, result in done:\n                p.tell(result)\n            return\n", seed=66),
    Mutant("go on with a run that was taken over", "aioflow.changes", "Result.left_by",
           "(run.seq, run.fence) == (move.run.seq, move.run.fence)", "run.seq == move.run.seq",
           tests="tests/engine/test_claim_races.py::test_a_run_that_was_taken_over_is_not_gone_on_with"),
    Mutant("a late claim begins a run again", _WORKER, "Worker._take_in",
           "and run.seq >= self._heard.get(run.id, 0)", "", seed=33),
    Mutant("a store that is away fails the step", "aioflow.outbox", "Office.ask",
           "if self.closed or (until", "if True or (until", seed=58),
    Mutant("lost claims stay lost", _WORKER, "Worker.look",
           "held=list(held) if compare else None", "held=None", seed=9),
    # ---- owners and leases
    Mutant("taking does not raise the fence", _STORE, "_taken", "fence=run.fence + 1", "fence=run.fence", seed=497),
    Mutant("releasing does not raise the fence", _STORE, "MemoryStore.release", "fence=run.fence + 1", "fence=run.fence", seed=394),
    Mutant("resuming does not raise the fence", _OUTSIDE, "wake", "fence=run.fence + 1", "fence=run.fence", seed=322),
    Mutant("cancelling does not raise the fence", _OUTSIDE, "cancel", "fence=run.fence + 1", "fence=run.fence", seed=322),
    Mutant("the dead live on", _STORE, "MemoryStore._alive",
           "self._leases.get(worker, now) > now", "worker in self._leases", seed=5),
    Mutant("take from the living", _STORE, "MemoryStore.claim",
           "and not self._alive(run.owner, now)", "and (run.owner is None or run.owner < worker)", seed=0),
    Mutant("renew a lease that is over", _STORE, "MemoryStore.renew",
           "if not self._alive(worker, now):", "if worker not in self._leases:", seed=5),
    # ---- several workers
    Mutant("two changes of one run under way at once", _COMMITTER, "Committer._fill",
           "if any(other.bars(batch) for other in self._lanes):", "if False:", seed=132),
    Mutant("all workers have one number", _RUNTIME, "Engine._compose", 'await store.reserve("worker", 1, clock.micros())', "1",
           seed=497),
    Mutant("a client claims", _RUNTIME, "Engine._compose", "if self._works:\n            self._tasks.keep(worker.watch",
           "if True:\n            self._tasks.keep(worker.watch", seed=497),
    Mutant("claim what no code here knows", _STORE, "MemoryStore.claim", "(run.workflow, run.version) in known and", "",
           tests="tests/stores/test_memory.py::TestMemoryStore::test_only_known_workflows_are_taken"),
    Mutant("the dead are left their runs", _STORE, "MemoryStore.claim",
           "and not self._alive(run.owner, now)", "and run.owner is None", seed=7),
    Mutant("claim more than there is room for", _STORE, "MemoryStore.claim", "taken < limit and", "",
           tests="tests/stores/test_memory.py::TestMemoryStore::test_claim_takes_what_it_has_room_for"),
    Mutant("what begins is left to whoever claims it", _WORKER, "Worker.promise", "if self.room > 0 or", "if", seed=301),
    Mutant("more is promised than there is room for", _WORKER, "Worker.promise", "if self.room > 0 or", "if self.room > -9 or",
           tests="tests/engine/test_max_running.py::test_runs_beyond_the_bound_wait_in_the_store[memory]"),
    Mutant("what was claimed takes a slot that was promised", _WORKER, "Worker._begin",
           "waits = not self._has_slot()", "waits = False", seed=354),
    Mutant("a worker that closes keeps its runs", _WORKER, "Worker.release",
           "await self._store.release(self._number, self._clock.micros())", "pass", seed=301),
    Mutant("what is gone goes on here", _WORKER, "Worker._take_in", "for run_id in claim.gone:", "for run_id in ():", seed=125),
    Mutant("a step whose run has gone on is not stopped", _WORKER, "Worker.follow", "if gone_on or status ==", "if status ==",
           tests="tests/engine/test_claim_races.py::test_a_step_whose_run_has_gone_on_is_stopped"),
    Mutant("a run that has gone on is begun where it was", _WORKER, "Worker.follow", "and activation.leads_to < seq", "and False",
           tests="tests/engine/test_claim_races.py::test_a_run_that_was_begun_anew_goes_on_from_where_it_has_come_to"),
    Mutant("an answer that outlives its lease is believed", _WORKER, "Worker.follow", "run.updated_at < self._since", "False",
           tests="tests/engine/test_claim_races.py::test_an_answer_that_outlives_the_lease_begins_nothing"),
    Mutant("who was paused begins what is not his any more", _WORKER, "Worker.may_begin",
           "self._lease.shared and self._lease.is_over", "False", seed=40),
    Mutant("old news stops a step", _WORKER, "Worker.follow", "activation.run.seq > seq", "False",
           tests="tests/engine/test_claim_races.py::test_old_news_of_a_run_stops_no_step"),
    Mutant("a refused commit is taken for one that was applied", "aioflow.changes", "Result.left_by",
           "return run if own else None", "return move.run",
           tests="tests/engine/test_cancel_races.py::test_step_that_ends_after_a_cancel_from_afar_is_refused[memory]"),
    Mutant("a lease is never renewed", _WORKER, "Worker.run", "self.working and self._lease.is_due and", "False and", seed=2),
    Mutant("a lease is renewed too rarely", _LEASE, "Lease.renew", "started + self._length // 3", "started + self._length * 2 // 3",
           seed=57),
    Mutant("a lease counts from the answer", _LEASE, "Lease.renew",
           "self._renewed = started", "self._renewed = self._clock.monotonic()", seed=750),
    Mutant("who begins to work has what is left of a lease", _WORKER, "Worker.look",
           "if began and not self._store.exclusive:", "if False:", seed=296),
    Mutant("a lease that cannot be renewed is believed in", _WORKER, "Worker._check_lease",
           "self.working and self._lease.ends", "False", seed=30),
    Mutant("a refused renewal is believed in", _WORKER, "Worker.run", 'self._lose("its lease was over")', "pass", seed=176),
    Mutant("who loses its lease does not stop its steps", _WORKER, "Worker._lose",
           "        self.ended(activation)\n        activation.halt()\n", "        pass\n", seed=12),
    Mutant("lost claims are looked for only when others write", _WORKER, "Worker.look",
           "compare = foreign or self._clock.monotonic() >= self._next_compare", "compare = foreign", seed=9),
    Mutant("nobody looks for a minute", _WORKER, "Worker.look",
           "self._next_compare = self._clock.monotonic() + SECOND",
           "self._next_compare = self._clock.monotonic() + 60 * SECOND", seed=9),
    Mutant("resuming by a signal does not raise the fence", _OUTSIDE, "answer", "fence=run.fence + 1", "fence=run.fence", seed=423),
    Mutant("a sender does not look who waits", _DELIVERY, "Delivery.posted", "    self.notify(result.run_ids)\n", "", seed=419),
    Mutant("nobody scans the mailboxes", _DELIVERY, "Delivery.look",
           "if self._to_scan or self._scanned_to is not None:", "if False:",
           tests="tests/engine/test_signal_clients.py::test_client_that_does_not_know_the_code[memory-key]"),
    Mutant("a broadcast reaches one alone", _MAILBOX, "Mailbox.post",
           "            self._put((signal.id, run_id), _Kept(copy))\n",
           "            self._put((signal.id, run_id), _Kept(copy))\n            break\n", seed=413),
    # ---- time
    Mutant("fire early", _TIMERS, "Timers.pop", "heap[0].at <= now and", "heap[0].at <= now + 300_000 and",
           tests="tests/test_timers.py::test_pop_gives_what_is_due_in_order"),
    Mutant("fire early, and wake", _SCHEDULER, "Scheduler._is_to_wake", "run.wake_at > now:", "run.wake_at > now + 300_000:", seed=312),
    Mutant("fire early, and say that it was in time", _TIMERS, "Timers.pop", "heap[0].at <= now and",
           "heap[0].at <= now + 300_000 and", seed=2,
           more=(_SCHEDULER, "Scheduler._wake", "        if not self._is_to_wake(run, now):",
                 "        now = max(now, min(run.wake_at or now, now + 300_000))\n        if not self._is_to_wake(run, now):")),
    Mutant("issue a due timer twice", _SCHEDULER, "Scheduler._wake",
           "        waking.append(self._committer.submit(move, slots=self._slots, owner=owner))\n",
           "        waking.append(self._committer.submit(move, slots=self._slots, owner=owner))\n"
           "        again = wake(run, owner=owner, now=now, commit_id=next(self._commit_ids))\n"
           "        waking.append(self._committer.submit(again))\n", seed=322),
    Mutant("lose the timer at refill", _TIMERS, "Timers.refill", "self._heap.extend(entries)", "self._heap.extend(entries[1:])",
           tests="tests/test_timers.py::test_a_full_heap_is_refilled_when_half_is_gone[2-True]"),
    Mutant("read before the edge is raised", _LOOP, "DueLoop._refill",
           "    old, new = self._timers.raise_edge(now)\n    try:\n"
           "        self._timers.refill(await self._store.due(old, new, self._timers.limit, now, self._of))\n",
           "    old = self._timers.edge\n"
           "    found = await self._store.due(old, (now + 600_000_000, 1 << 62), self._timers.limit, now, self._of)\n"
           "    try:\n        self._timers.raise_edge(now)\n        self._timers.refill(found)\n",
           tests="tests/simulation/test_refill.py::test_what_parks_during_a_refill_is_woken_in_time"),
    Mutant("do not arm what parks", _WORKER, "Worker.follow", "self.scheduler.arm(run)", "pass", seed=301),
    Mutant("wake in memory before the commit", _COMMITTER, "Committer.offer",
           "    batch.pending.append(",
           "    if isinstance(change, Move):\n        self._on_commit([(change, Result('applied', change.run))])\n"
           "    batch.pending.append(", seed=322),
    Mutant("nobody scans for the overdue", _LOOP, "DueLoop.scan", "for deadline in new:", "for deadline in ():", seed=7),
    # ---- steps
    Mutant("keep a failed attempt's Context", _EXECUTOR, "Executor.run",
           "return Ran(Raised(_own_error(",
           "error.kept = definition.codec.encode(live)[0]\n            return Ran(Raised(_own_error(",
           more=(_DECIDING, "_raised", "commit_id, describe(error),\n            status=WAITING, owner=None, next_step",
                 "commit_id, describe(error),\n            data=getattr(error, 'kept', run.data), status=WAITING, owner=None, next_step"), seed=123),
    Mutant("do not count attempts", _DECIDING, "_raised", "failures = run.failures + 1", "failures = run.failures or 1", seed=123),
    Mutant("a retry is a new visit", _OUTSIDE, "wake", 'elif run.waiting_for == "retry":', 'elif run.waiting_for == "never":', seed=123),
    Mutant("send what a failed attempt ordered", _EXECUTOR, "Executor.run",
           "return Ran(Raised(_own_error(run, error, watch)), None, duration)",
           "return Ran(Raised(_own_error(run, error, watch)), None, duration,\n"
           "                (await self._changes(made, watch)) if (made := current.close()) else ())",
           more=(_ACTIVATION, "_has_failed", "return not meant", "return False and not meant"), seed=251),
    Mutant("on_fail for ever", _DECIDING, "failed", 'rescued = past.get("rescued", False)', "rescued = False", seed=431),
    # ---- signals
    Mutant("drop the mailbox check after a wait", _RUNTIME, "Engine._committed", "if mail:", "if False:", seed=128),
    Mutant("a timeout beats an earlier signal", _OUTSIDE, "wake",
           "unless_mail=run.arms is not None", "unless_mail=False", seed=410),
    Mutant("a signal beats an earlier timeout", _SIGNALS, "arm_for",
           "if run.wake_at is not None and min(signal.sent_at, now) > run.wake_at:", "if False:", seed=15),
    Mutant("a signal given straight overtakes the mailbox", _DELIVERY, "Delivery.straight",
           "takes=(), unless_mail=True", "takes=(), unless_mail=False", seed=108),
    Mutant("take the signal outside of the transition", _JUDGE, "Judge._judge_move",
           "    offered = self._offered(run.id, transition)\n",
           "    for taken in change.takes:\n        mailbox.take(run.id, (taken,), self._now, rejects=False)\n"
           "    change = change._replace(takes=())\n    offered = self._offered(run.id, transition)\n",
           tests="tests/stores/test_memory.py::TestMemoryStore::test_a_move_takes_what_is_there_for_it_or_nothing[takes0]"),
    Mutant("take it twice", _MAILBOX, "Mailbox.take", "taken_at=now, taken_by=run_id", "taken_by=run_id", seed=312),
    Mutant("take the newest first", _MAILBOX, "Mailbox.of", "key=lambda signal: (signal.sent_at, signal.id)",
           "key=lambda signal: (-signal.sent_at, -signal.id)", seed=312),
    Mutant("post it twice", _MAILBOX, "Mailbox.has", "id_ == signal.id", "id_ == -signal.id", seed=43),
    Mutant("forget its signal_id", _MAILBOX, "Mailbox.post", "signal.signal_id is not None and (before", "False and (before", seed=14),
    Mutant("a broadcast outlives its wait", _MAILBOX, "Mailbox.follow", "(ended or kept.signal.broadcast)", "ended", seed=186),
    Mutant("take what has expired", _MAILBOX, "_Kept.there", "expires_at is None or expires_at > now", "True", seed=422),
    Mutant("the signal is lost when it does not fit in time", _MAILBOX, "Mailbox.expire",
           "signal.expires_at <= now and", "signal.expires_at <= now + 1_000_000 and", seed=376),
    # ---- events
    Mutant("a plan outlives its start", _JUDGE, "Judge._judge_start", "self._rows.events.take(change.plan)", "pass", seed=191),
    Mutant("an event occurs twice", _EVENTS, "Events.occur", "self._put_plan(plan.id, None)", "pass", seed=132),
    Mutant("moving an event leaves its plans", _EVENTS, "Events.emit", "self._drop_plans(known.id)", "pass", seed=2),
    Mutant("a cancelled event still starts", _EVENTS, "Events.withdraw", "self._drop_plans(event.id)", "pass", seed=86),
    Mutant("fulfil a plan early", _PLANNER, "Planner._fire", "if plan.due > now:", "if False:", seed=103),
    Mutant("nobody is told of an event", _EVENTS, "Events._occur", "self._mailbox.tell(event)", "pass", seed=229),
    Mutant("take an occurrence twice", _MAILBOX, "Mailbox.copy", "if (run_id, event.mail_id) not in self._seen:", "if True:", seed=229),
    Mutant("a run hears of the event that started it", _JUDGE, "Judge._judge_start",
           "self._rows.mailbox.see(run.id, planned.event.mail_id)", "pass", seed=229),
    Mutant("what was missed is not told", _JUDGE, "Judge._catch_up", "if result.run is not None and", "if False and", seed=9),
    Mutant("told of what was before the run", _EVENTS, "Events.missed", "event.occurred_at >= run.created_at", "True", seed=0),
    Mutant("start outside of the plan's transaction", _PLANNER, "Planner._start", "run=run, plan=plan.id)",
           "run=run)", seed=191),
    Mutant("a start that fails is lost", _PLANNER, "Planner._put_off", "self._clock.micros() + backoff, text", "None", seed=415),
    Mutant("start in every namespace", _EVENTS, "Events.emit", 'listener.namespace in ("*", event.namespace)', "True", seed=303),
    Mutant("a workflow has one offset", _EVENTS, "Events.emit", "(listener.workflow, listener.offset): None", "(listener.workflow, 0): None", seed=191),
    Mutant("forget what was replaced", _EVENTS, "Events.recorded", "or event.mail_id in self._replaced", "",
           tests="tests/stores/test_memory.py::TestMemoryStore::test_an_emit_that_was_replaced_since_may_be_offered_again[False]"),
    Mutant("a timeout beats an event that is due", _JUDGE, "Judge._judge_move", "in_the_way(was, self._now)", "in_the_way(was, 0)",
           tests="tests/stores/test_memory.py::TestMemoryStore::test_a_wait_is_not_over_while_something_is_to_occur_by_then"),
    # ---- actions
    Mutant("calling does not raise the fence", _OUTSIDE, "call", "fence=run.fence + 1", "fence=run.fence", seed=453),
    Mutant("an action that raises loses its timeout", _DECIDING, "_raised", "**call.wait", "**{**call.wait, 'wake_at': None}", seed=282),
    Mutant("an action that raises is another visit", _DECIDING, "_raised", "**call.wait", "**{**call.wait, 'visit': run.visit}", seed=375),
    Mutant("keep what an action that raises has done", _EXECUTOR, "Executor.run",
           "return Ran(Raised(_own_error(",
           "error.kept = definition.codec.encode(live)[0]\n            return Ran(Raised(_own_error(",
           more=(_DECIDING, "_raised", "hops=0, input=None, **call.wait",
                 "hops=0, input=None, data=getattr(error, 'kept', run.data), **call.wait"), seed=375),
    Mutant("an action is retried", _DECIDING, "_raised", "(call := call_of(run)) is not None", "False", seed=375),
    Mutant("an action runs without being called", _OUTSIDE, "uncalled",
           "action is None or call_of(run) is not None", "True", seed=327),
    Mutant("an action is open when its time is over", _OPENINGS, "open_arms", "now > run.wake_at", "False", seed=143),
    Mutant("an action runs without its request", _EXECUTOR, "Executor._arguments", "if call.request and request is None:", "if False:", seed=44),
    Mutant("an action sleeps, and loses its request", _DECIDING, "_itself", "call.request", "False", seed=17),
    Mutant("a call that failed is told to have gone well", _ACTING, "Acting._outcome",
           "transition.kind in _RETURNED", 'transition.kind != "cancel"', seed=375),
    Mutant("a call whose reply was lost is made again", _COMMITTER, "Committer._offer",
           "            self._tell(error)\n",
           "            for p in pending:\n"
           "                if isinstance(p.change, Move) and p.change.transition.kind == 'action':\n"
           "                    p.change = p.change._replace(transition=p.change.transition._replace(commit_id=-p.change.transition.commit_id))\n"
           "            self._tell(error)\n", seed=142),
    # ---- SQLite
    Mutant("a plan outlives its start in a file", _EVENT_BATCH, "EventBatch.take", "self._gone.append(plan_id)", "pass",
           store="sqlite", seed=191),
    Mutant("an event in a file is told to nobody", _EVENT_BATCH, "EventBatch.write", "if self._occurred:", "if False:",
           store="sqlite", seed=229),
    Mutant("moving an event in a file leaves its plans", _EVENT_BATCH, "EventBatch.write", "if self._dropped:", "if False:",
           store="sqlite", seed=2),
    Mutant("commit rows and history apart", _BATCH, "_Batch._write_rows",
           "write(self._db, WRITE_HISTORY", "self._db.commit()\n        self._db.execute('BEGIN')\n        write(self._db, WRITE_HISTORY",
           store="sqlite", seed=340,
           more=("aioflow_sqlite.plain", "apply_plain", "if size > _LARGEST:", "if True:")),
    Mutant("acknowledge before the commit", _BATCH, "commit",
           "if (done := apply_plain(db, changes, begins)) is not None:\n"
           "            return done\n"
           "        return transaction(db, partial(apply, changes=changes, now=now)), ",
           "return (db.in_transaction and db.commit(), db.execute('BEGIN IMMEDIATE'), apply(db, changes, now))[2], ",
           store="sqlite", seed=301),
    Mutant("no guards in a batch", _BATCH, "_Batch.add",
           "self._guards.get(run.id) != (change.seq, change.fence)", "run.id not in self._guards", store="sqlite", seed=0),
    Mutant("no guards in a plain batch", "aioflow_sqlite.plain", "_update", "changes() <> 1", "changes() > 1",
           tests="tests/stores/test_sqlite.py::TestSQLiteStore::test_a_stale_offer_does_not_become_a_gap"),
    Mutant("no fence in a plain batch", "aioflow_sqlite.plain", "_update", "AND fence = NEW.fence ", "",
           tests="tests/stores/test_sqlite_plain.py::test_a_move_with_an_old_fence_is_stale"),
    Mutant("a taken signal stays", _BATCH, "_Batch._write_rows",
           "mailbox.take(self._db, self._taken, self._now)", "pass", store="sqlite", seed=302),
    Mutant("a broadcast does not see its batch", _BATCH, "_Batch._post", "if everybody or", "if", store="sqlite", seed=456),
    Mutant("the dead keep their runs", "aioflow_sqlite.ownership", "disown_dead", "transaction(db", "(lambda *_: None)(db", store="sqlite", seed=14),
]  # fmt: skip
