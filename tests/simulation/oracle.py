"""What must hold whatever happens, checked at each commit and at the end.

The oracle stands beside the one store and sees each request and its answer, in the order in which they are carried out.
It keeps models of its own of the runs, the mailbox, the events and the leases, and compares every answer with them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from aioflow.changes import Amend, Change, Emit, Mark, Move, Post, Result, Start
from aioflow.model import Run, Transition
from aioflow.plans import EventRecord
from aioflow.store import Claim, Stats
from tests.simulation.events import Events
from tests.simulation.mailbox import LIVE, Mailbox, is_bad, token_of
from tests.simulation.model import DEATHS, State, begun, follow, is_without_request
from tests.simulation.program import Script

#: Microseconds by which something may be late when there are no faults: less than a scan would need to make up for it.
PROMPT = 200_000
#: The same where requests take long.
PROMPT_AT_A_DISTANCE = 900_000


#: The kinds of transitions by which an action's step may return.
RETURNED = ("goto", "sleep", "wait", "complete", "fail")


class Client(Protocol):
    """An engine, as the store knows it."""

    title: str


class Oracle:
    """The models, and the problems that were found.

    The mutable state: the rows and their histories as they were committed, the model's state of each run, the mailbox,
    the events, the leases, what each process has been told, the problems, and the figures: how often each situation
    came up.
    """

    def __init__(self, scripts: Mapping[int, Script]) -> None:
        self.scripts = scripts
        self.problems: list[str] = []
        self.figures: Counter[str] = Counter()
        self.rows: dict[int, Run] = {}
        self.committed: dict[tuple[int, int], Run] = {}
        self.history: defaultdict[int, list[Transition]] = defaultdict(list)
        self.states: dict[int, State] = {}
        self.mailbox = Mailbox(self.figures)
        self.events = Events(self.figures, self.mailbox)
        self.leases: dict[int, int] = {}
        self.workers: dict[Client, int] = {}
        self.told: dict[tuple[Client, int], int] = {}
        #: The engine's clock when it last read a run's mail.
        self.looked: dict[tuple[Client, int], int] = {}
        self.cancelled: set[int] = set()
        #: token -> when it was sent, by the clocks of the senders
        self.called: defaultdict[str, list[int]] = defaultdict(list)
        #: token -> (run, seq) of each call that has claimed a run; and the calls that were refused.
        self.claims: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self.refused: set[str] = set()
        #: Of the calls whose caller has got no answer, the tokens.
        self.gave_up: set[str] = set()
        #: Run -> the process in which an action was called on it last.
        self._callers: dict[int, Client] = {}
        #: How late something may be, if there are no faults.
        self.prompt: int | None = None
        self._waking: dict[tuple[Client, int, int], int] = {}

    def wrong(self, problems: Collection[str] | Any) -> None:
        """Record problems."""
        self.problems.extend(problems)

    def runs_of(self, number: int) -> int | None:
        """The first run of a script, if there is one."""
        return min((id_ for id_, state in self.states.items() if state.script.number == number), default=None)

    # ---- commits

    def offered(self, client: Client, changes: Sequence[Change]) -> None:
        """Check a batch that a process has sent."""
        ids = [run_id for change in changes if (run_id := _run_id(change)) is not None]
        if len(set(ids)) != len(ids):
            self.problems.append(f"{client.title}: two changes to one run in a batch: {sorted(ids)}")
        for change in changes:
            if isinstance(change, Move) and change.transition.kind in ("wake", "timeout"):
                place, commit_id = (client, change.run.id, change.seq), change.transition.commit_id
                if self._waking.setdefault(place, commit_id) != commit_id:
                    self.problems.append(f"{client.title}: run {change.run.id} is woken twice at seq {change.seq}")

    def answered(self, client: Client, changes: Sequence[Change], results: Sequence[Result]) -> None:
        """Record that a process has got the results of its batch."""
        for change, result in zip(changes, results, strict=True):
            if isinstance(change, Move):
                if result.outcome == "stale":
                    self._waking.pop((client, change.run.id, change.seq), None)
                if result.outcome == "applied":
                    self._tell(client, change.run.id, change.run.seq)
            if isinstance(change, Amend) and result.outcome == "applied" and result.transition is not None:
                self._tell(client, change.run_id, result.transition.seq)

    def _tell(self, client: Client, run_id: int, seq: int) -> None:
        self.told[client, run_id] = max(seq, self.told.get((client, run_id), 0))

    def applied(self, client: Client, changes: Sequence[Change], results: Sequence[Result], now: int) -> None:
        """Check a batch that the store has applied."""
        ids = {run_id for change in changes for run_id in _runs_of(change)}
        before = {id_: self.rows[id_] for id_ in ids if id_ in self.rows}
        for change, result in zip(changes, results, strict=True):
            self._applied(client, change, result, now)
        was = {id_: before.get(id_, self.rows[id_]._replace(arms=None)) for id_ in sorted(ids) if id_ in self.rows}
        changed = {id_: row for id_, row in was.items() if self.rows[id_].seq != row.seq or id_ not in before}
        self.wrong(self.events.batch_over(changed, self.rows))

    def _applied(self, client: Client, change: Change, result: Result, now: int, by: int = 0) -> None:
        match change:
            case Start():
                self._started(client, change, result, now)
            case Post(signal):
                self.wrong(self.mailbox.post(signal, result, self.rows, now))
            case Move():
                self._moved(client, change, result, now)
            case Mark(run_id, seq, fence):
                row = self.rows[run_id]
                right = (row.seq, row.fence) == (seq, fence)
                if right != (result.outcome == "applied"):
                    self.problems.append(f"run {run_id} was marked under ({seq}, {fence}), it is at {row}")
                if right:
                    self.rows[run_id] = row._replace(marked=1)
            case Amend():
                self._amended(change, result)
            case _:
                self.wrong(self.events.applied(client, change, result, now, by))

    def _started(self, client: Client, change: Start, result: Result, now: int) -> None:
        run = change.run
        if change.plan and result.outcome == "stale" and run.id not in self.rows:
            self.wrong(self.events.refused(change))
            return
        holders = [row for row in self.rows.values() if run.key and (row.workflow, row.key) == (run.workflow, run.key)]
        if result.outcome == "exists":
            self.figures["race: started twice under one key"] += 1
            if not holders or result.run not in holders:
                self.problems.append(f"run {run.id} is said to exist as {result.run}")
            return
        if result.outcome != "applied":
            self.problems.append(f"start of run {run.id} is {result.outcome}")
            return
        if run.id in self.rows:
            self.figures["race: a start offered twice"] += 1
            self._again(run.id, change.transition)
            return
        if holders:
            self.problems.append(f"two runs under one key: {run.id} and {holders}")
        if change.plan:
            plan = self.events.plans.get(change.plan)
            if plan is not None and not plan.attempts and not json.loads(plan.event.entity or "{}")["takes"]:
                planned = max(plan.first, plan.event.recorded_at if plan.event.occurrence == 1 else now)
                self._in_time(f"run {run.id} was started", planned, now)
            self.wrong(self.events.start(client, change))
        elif run.event_id is not None:
            self.problems.append(f"run {run.id} is said to be started by {run.event_id}")
        script = self.scripts[json.loads(run.data)["number"]]
        self.states[run.id], problems = begun(script, run)
        self.wrong(problems)
        self._write(None, run, change.transition)

    def _moved(self, client: Client, change: Move, result: Result, now: int) -> None:
        run, transition, was = change.run, change.transition, self.rows.get(change.run.id)
        if was is None:
            self.problems.append(f"run {run.id} moved before it was there")
            return
        if result.outcome == "stale":
            self._stale(change, result, was, now)
            return
        if transition.seq <= was.seq:
            self.figures["race: a move offered twice"] += 1
            self._again(run.id, transition)
            return
        if (was.seq, was.fence) != (change.seq, change.fence):
            self.problems.append(f"run {run.id} at {was.seq, was.fence} moved under {change.seq, change.fence}")
        if was.status == "running" and was.owner != self.workers.get(client):
            self.problems.append(f"run {run.id} of worker {was.owner} was moved by {client.title}")
        taken = self._take(client, change, was, now)
        if transition.kind == "timeout" and was.wake_at is not None:
            earlier = [letter for letter in self.mailbox.fitting(was, now) if letter.signal.sent_at <= was.wake_at]
            if earlier:
                self.problems.append(f"run {run.id} timed out in spite of {token_of(earlier[0].signal)}")
            self.wrong(self.events.timed_out(was, now))
        self.figures["a step put itself off"] += transition.kind == "retry" and transition.error is None
        if transition.kind in ("wake", "timeout") and was.wake_at is not None:
            if self.prompt is not None and now < was.wake_at:
                self.problems.append(f"run {run.id} was woken {(was.wake_at - now) / 1000} ms early")
            # A wait that a failed action has restored may already be past its deadline.
            self._in_time(f"run {run.id} was woken", max(was.wake_at, was.updated_at), now)
        self.figures["taken for what they died of"] += was.crashes >= DEATHS
        self._called(client, was, transition)
        self.wrong(follow(self.states[run.id], was, run, transition, taken))
        self._write(was, run, transition)
        self._sent(change)
        for part, told in zip(change.also, result.also, strict=True):
            self._applied(client, part, told, now, by=run.id)

    def _sent(self, change: Move) -> None:
        for part in change.also:
            token = token_of(part.signal) if isinstance(part, Post) else None
            if isinstance(part, Emit):
                token = json.loads(part.event.entity or "{}")["token"]
            if token is not None:
                if token.startswith("never") or not token.endswith(f"@{change.run.id}.{self._visit_before(change)}"):
                    self.problems.append(f"run {change.run.id} seq {change.run.seq} sent {token}")

    def _called(self, client: Client, was: Run, transition: Transition) -> None:
        """Check whether an action got the request that is in the memory of its caller's process."""
        if transition.kind == "action":
            self._callers[was.id] = client
        elif was.id in self._callers:
            # A process may become a worker, and get its number, only after the call.
            self.states[was.id].caller = self.workers.get(self._callers[was.id])
        if is_without_request(transition):
            self.figures["call: without its request"] += 1
            state = self.states[was.id]
            if was.owner == state.caller and state.told not in self.gave_up:
                self.problems.append(f"call {state.told} of worker {was.owner} did not get its request there")

    def _visit_before(self, change: Move) -> int:
        return self.committed[change.run.id, change.seq].visit

    def _stale(self, change: Move, result: Result, was: Run, now: int) -> None:
        if result.plans:
            self.wrong(self.events.in_the_way(was, result.plans, now))
        elif (was.seq, was.fence) == (change.seq, change.fence) and not change.takes and not result.mail:
            self.problems.append(f"run {was.id} at {was.seq, was.fence} was not moved: {result}")
        if change.seq == was.seq and change.fence < was.fence:
            self.figures["race: refused under an old fence"] += 1
        elif change.seq < was.seq:
            self.figures[f"race: {change.transition.kind} came too late"] += 1
        elif result.plans:
            self.figures["race: an event was due before the timeout"] += 1
        elif result.mail:
            self.figures["race: a signal was there before the timeout"] += 1
        else:
            self.figures["race: somebody else took the signal"] += 1

    def _take(self, client: Client, change: Move, was: Run, now: int) -> tuple[str, Any] | None:
        """Check what a move has taken out of the mailbox, or was given directly, and return it for the model."""
        kind, looked = change.transition.kind, self.looked.get((client, was.id), now)
        if kind == "reject":
            self.figures["signal rejected"] += 1
            self.wrong(self.mailbox.take(was, change.takes, now, looked=looked, rejects=True))
            return None
        if kind == "action" and not change.takes:
            token = json.loads(change.run.input or "null")[2]["input"]["token"]
            self.claims[token].append((was.id, change.transition.seq))
            return "", token
        if kind not in ("signal", "event"):
            if change.takes:
                self.problems.append(f"run {was.id} took signals by {kind}")
            return None
        _, name, payload = json.loads(change.run.input or "[null, null, null]")
        if kind == "event" and len(change.takes) != 1:
            self.problems.append(f"run {was.id} took {name} by nothing")
            return None
        token = f"event {change.takes[0]}" if kind == "event" else str(payload["token"])
        if change.takes:
            letter = self.mailbox.letters.get((change.takes[0], was.id)) or self.mailbox.letters.get(
                (change.takes[0], 0)
            )
            if letter is None:
                self.problems.append(f"run {was.id} took {token}, which was never there")
                return None
            signal = letter.signal
            late = was.wake_at is not None and min(signal.sent_at, change.transition.at_micros) > was.wake_at
            self.wrong(self.mailbox.take(was, change.takes, now, looked=looked, rejects=False))
            if (signal.name, token_of(signal)) != (name, token):
                self.problems.append(f"run {was.id} took {signal}, and goes on with {token}")
            if kind == "event" and json.loads(signal.payload) != payload:
                self.problems.append(f"run {was.id} was told {payload}, and it was {signal.payload}")
            self.figures[f"{kind} taken from the mailbox"] += 1
            there = signal.sent_at if signal.event is None else self.events.occurrences[signal.id].occurred_at or now
            self._in_time(f"run {was.id} took {token}", max(was.updated_at, there), now)
        else:
            # When it was sent is what the caller noted, before it looked for the run.
            sent = min(self.called.get(token, (0,)))
            late = was.wake_at is not None and min(sent, change.transition.at_micros) > was.wake_at
            before = [letter for letter in self.mailbox.fitting(was, now) if letter.signal.run_id == was.id]
            before = [letter for letter in before if was.wake_at is None or letter.signal.sent_at <= was.wake_at]
            if before:
                self.problems.append(f"run {was.id} took {token} before {token_of(before[0].signal)}")
            self.figures["signal given past the mailbox"] += 1
        if late:
            self.problems.append(f"run {was.id} took {token}, which came after its time")
        self.mailbox.takers[token].append(was.id)
        return name, payload if kind == "event" else token

    def _amended(self, change: Amend, result: Result) -> None:
        if result.outcome != "applied":
            return
        assert result.transition is not None
        assert result.run is not None
        transition, was = result.transition, self.rows[change.run_id]
        if transition.seq <= was.seq:
            self.figures["race: a cancellation offered twice"] += 1
            self._again(was.id, transition)
            return
        self.figures[f"cancelled while {was.status}"] += 1
        if was.id not in self.cancelled and was.event_id not in self.events.cancelled:
            self.problems.append(f"run {was.id} was cancelled, and nobody asked for it")
        if result.run.fence <= was.fence:
            self.problems.append(f"run {was.id} was cancelled without a new fence")
        self.wrong(follow(self.states[was.id], was, result.run, transition, None))
        self._write(was, result.run, transition)

    def _again(self, run_id: int, transition: Transition) -> None:
        if self.history[run_id][transition.seq - 1] != transition:
            self.problems.append(
                f"run {run_id}: seq {transition.seq} is {self.history[run_id][transition.seq - 1]}, "
                f"and {transition} was said to be applied"
            )

    def _write(self, was: Run | None, run: Run, transition: Transition) -> None:
        if transition.seq != len(self.history[run.id]) + 1 or run.seq != transition.seq:
            self.problems.append(f"history of run {run.id} has a gap before {transition}")
        if was is not None and (run.fence < was.fence or was.status not in LIVE):
            self.problems.append(f"run {run.id} went from {was} to {run}")
        if was is not None and was.status == "waiting" and run.status == "running" and run.fence <= was.fence:
            self.problems.append(f"run {run.id} was resumed without a new fence")
        self.history[run.id].append(transition)
        self.rows[run.id] = self.committed[run.id, run.seq] = run
        self.mailbox.follow(was, run)
        self.figures[f"transition: {transition.kind}"] += 1

    # ---- owners

    def alive(self, worker: int | None, now: int) -> bool:
        """Whether a worker's lease is still running."""
        return worker is not None and self.leases.get(worker, now) > now

    def claimed(self, client: Client, worker: int, claim: Claim, now: int, *, lease: int, held: Any) -> None:
        """Check the runs that a worker has got."""
        self.workers[client] = worker
        if not self.alive(worker, now):
            self.leases[worker] = now + lease
        for run in claim.runs:
            was = self.rows[run.id]
            if was.owner == worker:
                self.figures["race: a claim's reply was lost, and made good"] += 1
                if run != was:
                    self.problems.append(f"{client.title} was given its own {run}, which is {was}")
                continue
            crashed = was.owner is not None and (was.crashes < 2 or was.marked == 1)
            right = was._replace(owner=worker, fence=run.fence, marked=0, crashes=was.crashes + crashed)
            if was.status != "running" or self.alive(was.owner, now) or run != right or run.fence <= was.fence:
                self.problems.append(f"{client.title} was given {run}, which was {was}")
            self.figures["taken from the dead" if was.owner is not None else "taken without owner"] += 1
            self.rows[run.id] = run
        mine = {id_ for id_, row in self.rows.items() if row.status == "running" and row.owner == worker}
        if held is not None and set(claim.gone) != set(held) - mine:
            self.problems.append(f"{client.title} holds {held}, owns {mine}, and was told that {claim.gone} are gone")
        if held is not None and mine - set(held) - {run.id for run in claim.runs}:
            self.problems.append(f"{client.title} holds {held}, owns {mine}, and was given {claim.runs}")

    def renewed(self, worker: int, lease: int, now: int, *, well: bool) -> None:
        """Check that a lease was renewed if and only if it was still running."""
        if well != self.alive(worker, now):
            self.problems.append(f"worker {worker} renewed a lease until {self.leases.get(worker)} at {now}: {well}")
        if well:
            self.leases[worker] = now + lease
        else:
            self.figures["a lease was over before it was renewed"] += 1

    def released(self, worker: int) -> None:
        """Record that a worker has given its runs back."""
        self.leases.pop(worker, None)
        for id_, row in self.rows.items():
            if row.status == "running" and row.owner == worker:
                self.rows[id_] = row._replace(owner=None, fence=row.fence + 1, marked=0)

    def step_started(self, client: Client, run: Run, now: int) -> None:
        """Check a step that begins."""
        self._in_time(f"step {run.step} of run {run.id} began", run.updated_at, now)
        row = self.committed.get((run.id, run.seq))
        if row is None:
            self.problems.append(f"{client.title}: a step of run {run.id} began before seq {run.seq} was committed")
        elif (row.step, row.data, row.input, row.visit, row.failures) != (
            run.step, run.data, run.input, run.visit, run.failures,
        ):  # fmt: skip
            self.problems.append(f"{client.title}: a step began as {run}, and was committed as {row}")
        if self.told.get((client, run.id), 0) > run.seq:
            self.problems.append(f"{client.title}: run {run.id} began at {run.seq}, and was known to be further")
        if run.owner != self.workers.get(client):
            self.problems.append(f"{client.title}: a step began of run {run.id}, which is {run.owner}'s")
        stands = self.rows[run.id]
        self.figures["a step of a stale owner"] += (stands.seq, stands.fence) != (run.seq, run.fence)

    def _in_time(self, what: str, due: int, now: int) -> None:
        if self.prompt is not None:
            self.figures["looked whether it was in time"] += 1
            if now - due > self.prompt:
                self.problems.append(f"{what} {(now - due) / 1000} ms late, and nothing was wrong")

    # ---- what users were told

    def told_of_signal(self, token: str, state: str, delivered: Collection[int], *, bad: bool) -> None:
        """Check the receipt that a sender got."""
        posted = [signal for signal in self.mailbox.posted.values() if token_of(signal) == token]
        takers = self.mailbox.takers.get(token, [])
        self.figures[f"receipt: {state}"] += 1
        if not set(delivered) <= set(takers):
            self.problems.append(f"{token} is said to be delivered to {delivered}, and was taken by {takers}")
        if state == "buffered" and not posted:
            self.problems.append(f"{token} is said to be buffered, and is not there")
        # A known gap: if the reply to a broadcast is lost, the repeated one does not name the runs that had taken it by
        # then.
        lost = state == "none" and any(signal.id in self.mailbox.again for signal in posted)
        if state in ("none", "rejected") and takers and not lost:
            self.problems.append(f"{token} is said to be {state}, and was taken by {takers}")
        if state == "rejected" and not bad:
            self.problems.append(f"{token} was rejected, and is valid")

    def told_of_call(self, token: str, what: str) -> None:
        """Check what the caller of an action was told: "served", "refused" or "failed"."""
        self.figures[f"call: {what}"] += 1
        claims = self.claims[token]
        if what == "refused":
            self.refused.add(token)
            return
        after = [self.history[run_id][seq].kind if len(self.history[run_id]) > seq else "-" for run_id, seq in claims]
        well = [kind in RETURNED for kind in after]
        if well != [what == "served"] or (what == "failed" and after == ["-"]):
            self.problems.append(f"call {token} is said to be {what}, and led to {after}")

    # ---- the end

    def busy(self, now: int) -> list[Any]:
        """The plans that are left, and the runs that still have something to do."""
        return [*self.events.plans.values()] + [
            row
            for row in self.rows.values()
            if row.status == "running"
            or (row.status == "waiting" and (row.wake_at is not None or self.mailbox.fitting(row, now)))
        ]

    def check_end(
        self, rows: list[Run], histories: Mapping[int, list[Transition]], events: list[EventRecord], stats: Stats
    ) -> None:
        """Check that the store holds what was committed, and nothing else."""
        self.wrong(self.events.check_end(events, stats))
        if sorted(rows) != sorted(self.rows.values()):
            self.problems.append(f"the store holds {sorted(rows)}, not {sorted(self.rows.values())}")
        for run_id, history in histories.items():
            if history != self.history[run_id]:
                self.problems.append(f"history of run {run_id} is {history}, not {self.history[run_id]}")
            if len({row.commit_id for row in history}) != len(history):
                self.problems.append(f"history of run {run_id} has one commit twice: {history}")
        for token, takers in self.mailbox.takers.items():
            signals = [signal for signal in self.mailbox.posted.values() if token_of(signal) == token]
            everybody = token.startswith("event ") or any(
                not signal.run_id and signal.key is None for signal in signals
            )
            if len(takers) > 1 and not (everybody and len(set(takers)) == len(takers)):
                self.problems.append(f"{token} was taken by {takers}")
            if any(is_bad(signal) for signal in signals):
                self.problems.append(f"{token} was taken by {takers}, and is not valid")
        for token, claims in self.claims.items():
            if len(claims) > 1 or (claims and token in self.refused):
                self.problems.append(
                    f"call {token} has claimed {claims}{', and was refused' * (token in self.refused)}"
                )
        there = [letter for letter in self.mailbox.letters.values() if letter.end in (None, "over", "ended")]
        left = len(self.mailbox.left())
        if not left <= stats.mailbox <= len(there):
            self.problems.append(f"{stats.mailbox} signals in the mailbox, and the model has {left} to {len(there)}")


def _runs_of(change: Change) -> list[int]:
    """The runs whose waits a change may begin or end."""
    match change:
        case Move(run=run, also=also):
            return [run.id, *(part.run.id for part in also if isinstance(part, Start))]
        case Start(run=run):
            return [run.id]
        case Amend(run_id=run_id):
            return [run_id]
        case _:
            return []


def _run_id(change: Change) -> int | None:
    match change:
        case Move(run=run) | Start(run=run):
            return run.id
        case Mark(run_id=run_id) | Amend(run_id=run_id):
            return run_id
        case _:
            return None
