"""The one place for tracing: the log and the instruments are told what was committed, and which steps run.

The log is written through structlog: one debug event a transition, info when a run starts and ends, warnings for
failures. Until structlog is configured only warnings are printed. No values of a Context are ever logged.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import Any, Protocol

import structlog
from structlog.contextvars import bind_contextvars

from aioflow.causes import chosen_in, traceback_of
from aioflow.errors import AioflowError, StoreError
from aioflow.model import Run, Transition
from aioflow.retry import GiveUp, is_a

_log = structlog.get_logger("aioflow")
_INFO = {"start": "run started", "complete": "run completed", "cancel": "run cancelled"}
_WARN = {
    "retry": "step failed, will be retried",
    "fail": "run failed",
    "block": "run blocked",
    "reject": "signal rejected",
    "on_fail": "step failed, goes on with on_fail",
}


class Instrument(Protocol):
    """What an instrument is told. The calls are made on the event loop and must not block; an error is logged once."""

    def committed(self, run: Run, transition: Transition) -> None:
        """A transition was committed; ``run`` is the row after it."""
        ...

    def step_started(self, run: Run) -> None:
        """The step ``run.step`` is about to run."""
        ...

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        """It has returned (``error`` None) or raised; its transition is not committed yet."""
        ...


class Telemetry:
    """Writes the log, and calls every instrument; one that raises never breaks a run.

    The mutable state: ``instruments``, which of them have been reported as broken, and what was raised by steps whose
    transitions are being committed, by commit id.
    """

    def __init__(self) -> None:
        self.instruments: list[Instrument] = []
        self._broken: list[Instrument] = []
        self._raised: dict[int, BaseException] = {}

    def raised(self, transition: Transition, error: BaseException) -> None:
        """Keep the error behind a transition that is about to be committed, to log its traceback with that."""
        if not is_a(error, (AioflowError, GiveUp)):  # these need no traceback: their message says it all
            self._raised[transition.commit_id] = error

    def forget(self, transition: Transition) -> None:
        """Forget the error behind a transition, which was committed or refused."""
        self._raised.pop(transition.commit_id, None)

    @property
    def is_told_all(self) -> bool:
        """Whether the log or an instrument is to be told of every transition, not only of errors."""
        return structlog.is_configured() or bool(self.instruments)

    def committed(self, run: Run, transition: Transition) -> None:
        """Log a committed transition, and tell every instrument of it."""
        if structlog.is_configured() or transition.error is not None:
            _log_transition(run, transition, self._raised.get(transition.commit_id))
        for instrument in self.instruments:
            try:
                instrument.committed(run, transition)
            except BaseException as error:  # noqa: BLE001 - even a CancelledError is the instrument's own
                self._report(instrument, "committed", error)

    def step_started(self, run: Run) -> None:
        """Tell every instrument that a step is about to run."""
        for instrument in self.instruments:
            try:
                instrument.step_started(run)
            except BaseException as error:  # noqa: BLE001 - even a CancelledError is the instrument's own
                self._report(instrument, "step_started", error)

    def step_ended(self, run: Run, error: BaseException | None) -> None:
        """Tell every instrument that a step has ended."""
        for instrument in self.instruments:
            try:
                instrument.step_ended(run, error)
            except BaseException as raised:  # noqa: BLE001 - even a CancelledError is the instrument's own
                self._report(instrument, "step_ended", raised)

    def _report(self, instrument: Instrument, method: str, error: BaseException) -> None:
        if any(instrument is broken for broken in self._broken):
            return
        self._broken.append(instrument)
        warn(
            "instrument raised; its later errors are not logged",
            instrument=type(instrument).__name__,
            method=method,
            exception=plain_traceback(error),
        )


def _log_transition(run: Run, transition: Transition, raised: BaseException | None) -> None:
    kind = transition.kind
    fields: dict[str, Any] = {
        "run_id": run.id,
        "workflow": run.workflow,
        "step": transition.step,
        "attempt": transition.attempt,
        "seq": transition.seq,
        "kind": kind,
    }
    if run.key is not None:
        fields["key"] = run.key
    if transition.duration_micros:
        fields["duration_ms"] = transition.duration_micros / 1000
    if transition.error is not None:
        fields["error"] = transition.error
    if kind in _WARN:
        if transition.error is not None:  # a step that raised RetryLater has not failed
            told = "event rejected" if kind == "reject" and transition.error.startswith("Event ") else _WARN[kind]
            trace = {} if raised is None else {"exception": plain_traceback(raised)}
            warn(told, **fields, **trace)
    elif kind in _INFO:
        info(_INFO[kind], **fields)
    debug("transition", status=run.status, next_step=run.next_step or run.step, **fields)


def reopened(run: Run, transition: Transition, raised: BaseException | None) -> None:
    """Log that an action's step raised: its caller may not wait any more. A chosen HTTP answer needs no traceback."""
    names = {"run_id": run.id, "workflow": run.workflow, "step": run.step}
    if raised is None:
        warn("action failed, is open again", **names, error=transition.error)
    elif chosen_in(transition.error or "") is not None:
        info("action answered, is open again", **names, error=transition.error)
    else:
        warn("action failed, is open again", **names, exception=plain_traceback(raised))


#: structlog's own context variables of these names, looked up once: binding by keywords costs several times as much.
_RUN_ID, _WORKFLOW, _STEP, _ATTEMPT = (
    token.var for token in copy_context().run(bind_contextvars, run_id=0, workflow="", step="", attempt=0).values()
)


def bind_step(run: Run) -> None:
    """Bind run_id, workflow, step and attempt to the log lines of this context."""
    run_id, workflow, step = run.id, run.workflow, run.step
    if _RUN_ID.get() is not run_id:
        _RUN_ID.set(run_id)
    if _WORKFLOW.get() is not workflow:
        _WORKFLOW.set(workflow)
    if _STEP.get() is not step:
        _STEP.set(step)
    attempt = run.failures + 1
    if _ATTEMPT.get() != attempt:
        _ATTEMPT.set(attempt)


def _say(level: str, event: str, fields: dict[str, Any]) -> None:
    if "exception" in fields and not structlog.is_configured():
        # Before structlog 26.1 its default renderer warns about a traceback given as text, but not about a stack.
        fields["stack"] = fields.pop("exception")
    try:
        getattr(_log, level)(event, **fields)
    except BaseException:  # noqa: BLE001, S110 - logging itself failed: nowhere to report that
        pass


def debug(event: str, **fields: Any) -> None:
    """Log a detail at debug level; silent until structlog is configured."""
    if structlog.is_configured():
        _say("debug", event, fields)


def info(event: str, **fields: Any) -> None:
    """Log what is worth knowing at info level; silent until structlog is configured."""
    if structlog.is_configured():
        _say("info", event, fields)


def plain_traceback(error: BaseException) -> str:
    """The traceback as text: structlog's own may show local variables, and with them the Contexts of runs."""
    return traceback_of(error)


def trouble(event: str, error: Exception) -> None:
    """Log an error in a background loop: a store that is not available (a warning), or a bug."""
    if isinstance(error, StoreError):
        warn(event, error=str(error))
    else:
        fault(f"a bug: {event}", exception=plain_traceback(error))


def warn(event: str, **fields: Any) -> None:
    """Log at warning level what an operator should look at."""
    _say("warning", event, fields)


def fault(event: str, **fields: Any) -> None:
    """Log at error level what is broken."""
    _say("error", event, fields)
