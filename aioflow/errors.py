"""What can go wrong, in sentences.

A constructor takes data, the class writes the sentence: what happened, to which run and step, what to do.

    AioflowError
    ├── DefinitionError            a workflow class is wrong; raised at import
    ├── UsageError                 a call that cannot be right, whatever the state of the store
    │   ├── EngineClosed
    │   ├── OtherLoop
    │   ├── WorkflowUnknown        (also a LookupError)
    │   ├── TimeStandsStill        a test waits for what virtual time cannot bring about (also an AssertionError)
    │   ├── ContextInvalid         (also a ValueError)
    │   ├── SignalInvalid          (also a ValueError)
    │   ├── ActionInputInvalid     (also a ValueError)
    │   ├── EventInvalid           (also a ValueError)
    │   ├── EventNotFound          (also a LookupError)
    │   └── IdTaken                a signal_id or event_id that is used for something else (also a ValueError)
    ├── RunError                   about one run; has run_id
    │   ├── RunNotFound            (also a LookupError)
    │   ├── RunEnded
    │   ├── ActionNotOpen          the run does not wait for this call
    │   ├── ActionFailed           an action's step has failed, in another process or in a way that cannot be raised
    │   ├── RunFailed
    │   ├── RunCancelled
    │   ├── RunTimeout             the timeout of the whole run is over (also a TimeoutError)
    │   └── StepError              the step has an error that retrying cannot mend
    │       ├── NoCommand
    │       ├── CommandAwaited
    │       ├── TargetUnknown
    │       ├── NotAnAction
    │       ├── NoNextStep
    │       ├── RequestNotKept
    │       ├── ArgumentsMissing
    │       ├── ContextNotStorable
    │       └── UndeclaredField    (also an AttributeError)
    ├── StepTimeout                a step ran longer than its timeout (also a TimeoutError)
    ├── LimitExceeded              a name, key, Context or loop is beyond its limit (also a ValueError)
    ├── StoreError                 the store refused, or did not answer; the cause is kept
    │   ├── StoreUnavailable
    │   ├── StoreRefused           this change can never be stored
    │   └── BackendUnknown
    └── InternalError              a bug in aioflow
"""

from __future__ import annotations

from collections.abc import Iterable

from aioflow.run_errors import (
    ActionFailed,
    ActionNotOpen,
    AioflowError,
    ArgumentsMissing,
    CommandAwaited,
    ContextNotStorable,
    NoCommand,
    NoNextStep,
    NotAnAction,
    RequestNotKept,
    RunCancelled,
    RunEnded,
    RunError,
    RunFailed,
    RunNotFound,
    RunTimeout,
    StepError,
    TargetUnknown,
    UndeclaredField,
)

__all__ = [
    "ActionFailed",
    "ActionInputInvalid",
    "ActionNotOpen",
    "AioflowError",
    "ArgumentsMissing",
    "BackendUnknown",
    "CommandAwaited",
    "ContextInvalid",
    "ContextNotStorable",
    "DefinitionError",
    "EngineClosed",
    "EventInvalid",
    "EventNotFound",
    "IdTaken",
    "InternalError",
    "LimitExceeded",
    "NoCommand",
    "NoNextStep",
    "NotAnAction",
    "OtherLoop",
    "RequestNotKept",
    "RunCancelled",
    "RunEnded",
    "RunError",
    "RunFailed",
    "RunNotFound",
    "RunTimeout",
    "SignalInvalid",
    "StepError",
    "StepTimeout",
    "StoreError",
    "StoreRefused",
    "StoreUnavailable",
    "TargetUnknown",
    "TimeStandsStill",
    "UndeclaredField",
    "UsageError",
    "WorkflowUnknown",
]


class DefinitionError(AioflowError):
    """A workflow class cannot work as it is written. Raised when it is defined, with everything that is wrong.

    Args:
        where: the class, or class and step.
        problems: what is wrong and how to mend it, a sentence each.
    """

    def __init__(self, where: str, problems: Iterable[str]) -> None:
        self.where = where
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"Workflow class {where} cannot be used:{lines}")


class UsageError(AioflowError):
    """A call that cannot be right, whatever the state of the store."""


class EngineClosed(UsageError):
    """The engine is not open."""

    def __init__(self, call: str) -> None:
        self.call = call
        super().__init__(
            f"{call} needs an open engine. Write 'async with engine:' around it, use engine.lifespan in an ASGI app, "
            "or run the service with 'await engine.run_forever()'."
        )


#: Calls that return an async iterator rather than a coroutine.
_ITERATED = frozenset({"engine.watch()", "engine.iter_runs()"})


class OtherLoop(UsageError):
    """The engine is used in another event loop than the one that opened it."""

    def __init__(self, call: str) -> None:
        self.call = call
        written = f"{call.partition('(')[0]}(...)"
        if call in _ITERATED:
            advice = (
                f"'async for ... in {written}' has to run in the loop that opened it. From a thread: write it into a "
                "coroutine, and asyncio.run_coroutine_threadsafe(coroutine, loop).result()."
            )
        else:
            advice = f"From a thread: asyncio.run_coroutine_threadsafe({written}, loop).result(), with the loop that opened it."
        super().__init__(
            f"{call} was called in another event loop than the one that opened the engine, perhaps in another thread. "
            f"Nothing was done. {advice}"
        )


class WorkflowUnknown(UsageError, LookupError):
    """No workflow of this name is known to the engine."""

    def __init__(
        self,
        workflow: str,
        known: Iterable[str] | None = None,
        version: str | None = None,
        *,
        replaced_by: str | None = None,
    ) -> None:
        self.workflow = workflow
        self.version = version
        if replaced_by is not None:
            super().__init__(
                f"This class is no longer workflow {workflow!r} version {version!r}: {replaced_by} has replaced it. "
                "It was defined again, as by a script that is also imported. Define it in a module, and import that."
            )
            return
        names = "" if known is None else f" (known: {', '.join(sorted(set(known))) or 'none'})"
        shown = repr(workflow) if len(workflow) <= 200 else f"{workflow[:200]!r}..."
        which = shown if version is None else f"{shown} version {version!r}"
        super().__init__(
            f"No workflow {which} is known to this engine{names}. "
            "Import the module that defines it, or add the class to Engine(workflows=[...])."
        )


class TimeStandsStill(UsageError, AssertionError):
    """A test waits for what no virtual time can bring about. ``stuck`` says why, in a clause for each run."""

    def __init__(self, stuck: Iterable[str]) -> None:
        self.stuck = tuple(stuck)
        lines = "".join(f"\n  - {clause}" for clause in self.stuck)
        super().__init__(
            f"This wait cannot end: nothing goes on, and no timer is set that could bring it about.{lines}\n"
            "Do what it waits for before you wait, or in another task meanwhile, or give the wait a timeout."
        )


class ContextInvalid(UsageError, ValueError):
    """The arguments, or what a run has stored, do not make a valid Context; nothing was started or changed.

    The cause is pydantic's ValidationError. Other exceptions of ``create_context`` are raised unchanged. ``run_id``:
    the run whose stored Context is invalid, if it is a stored one.
    """

    def __init__(self, workflow: str, problem: str, run_id: int | None = None) -> None:
        self.workflow = workflow
        what = "These arguments do not" if run_id is None else f"What run {run_id} has stored does not"
        super().__init__(f"{what} make a Context of workflow {workflow!r}: {problem}")


class SignalInvalid(UsageError, ValueError):
    """A signal's payload or message cannot be stored, or does not read back. Nothing was sent."""

    def __init__(self, signal: str, problem: str) -> None:
        self.signal = signal
        super().__init__(f"Signal {signal!r} cannot be sent: {problem}")


class ActionInputInvalid(UsageError, ValueError):
    """The input of an action's call does not validate, or cannot be stored; the run waits as before.

    The cause is pydantic's ValidationError, if validation failed.
    """

    def __init__(self, action: str, problem: str) -> None:
        self.action = action
        super().__init__(f"Action {action!r} cannot be called with this input: {problem}")


class EventInvalid(UsageError, ValueError):
    """An event's entity cannot be stored, and nothing was emitted; or its class no longer accepts what is stored."""

    def __init__(self, event: str, problem: str) -> None:
        self.event = event
        super().__init__(f"Event {event!r} is not usable: {problem}")


class IdTaken(UsageError, ValueError):
    """The ``signal_id`` or ``event_id`` is already used for something else; nothing was sent or emitted."""

    def __init__(self, name: str, id: str, holder: str) -> None:  # noqa: A002 - it is one
        self.name = name
        self.id = id
        super().__init__(
            f"{name} {id!r} is already used for {holder}. It must be unique in the whole store: derive it from its purpose, "
            'as in f"paid-{order_id}".'
        )


class EventNotFound(UsageError, LookupError):
    """The store holds no such event."""

    def __init__(self, event_id: str) -> None:
        self.event_id = event_id
        super().__init__(f"There is no event {event_id!r} in this store. It was never emitted here.")


class StepTimeout(AioflowError, TimeoutError):
    """A step ran longer than its timeout. It counts as a failed attempt."""

    def __init__(self, workflow: str, step: str, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"Step {step!r} of workflow {workflow!r} ran longer than its timeout of {seconds:g} s.")


class LimitExceeded(AioflowError, ValueError):
    """Something is larger than aioflow stores. ``limit`` names the limit."""

    def __init__(self, what: str, limit: str, found: str) -> None:
        self.limit = limit
        super().__init__(f"{what} is beyond the limit of {limit}: {found}.")


class StoreError(AioflowError):
    """The store refused, or did not answer. The driver's error is the cause."""


class StoreUnavailable(StoreError):
    """The store could not be reached, or could not write, for as long as the call was willing to wait."""

    def __init__(self, store: str, problem: str, advice: str = "") -> None:
        self.store = store
        super().__init__(f"The store {store} is not available: {problem}.{' ' + advice if advice else ''}")


class StoreRefused(StoreError):
    """The store can never take this change, whatever its state: the data does not fit."""

    def __init__(self, store: str, problem: str) -> None:
        self.store = store
        super().__init__(f"The store {store} cannot hold this data: {problem}.")


class BackendUnknown(StoreError):
    """No installed backend serves the URL's scheme."""

    def __init__(self, scheme: str, known: Iterable[str], hint: str = "") -> None:
        self.scheme = scheme
        super().__init__(
            f"No backend is installed for {scheme}:// URLs (installed: {', '.join(sorted(known)) or 'none'}).{hint}"
        )


class InternalError(AioflowError):
    """A bug in aioflow. Please report it with its traceback."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} This is a bug in aioflow: please report it.")


# Wherever they are shown, they have the name by which users import them.
for _name in __all__:
    globals()[_name].__module__ = __name__
