"""The root of all errors, and the errors about one run. Import them from ``errors.py``, which has all errors."""

from __future__ import annotations

from collections.abc import Iterable


class AioflowError(Exception):
    """The root of all errors that aioflow raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process boundaries with their sentence and attributes, whatever their constructors take."""
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(kind: type[AioflowError], args: tuple[object, ...], attributes: dict[str, object]) -> AioflowError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error


class RunError(AioflowError):
    """An error about one run."""

    def __init__(self, run_id: int, sentence: str) -> None:
        self.run_id = run_id
        super().__init__(sentence)


class RunNotFound(RunError, LookupError):
    """The store holds no such run."""

    def __init__(self, run_id: int = 0, *, workflow: str | None = None, key: str | None = None) -> None:
        self.workflow = workflow
        self.key = key
        if workflow is None:
            sentence = f"There is no run {run_id} in this store. Is it the store in which the run was started?"
        else:
            sentence = f"There is no run of workflow {workflow!r} with key {key!r} in this store."
        super().__init__(run_id, sentence)


class RunEnded(RunError):
    """The run has ended: nothing can be sent to it any more."""

    def __init__(self, run_id: int, workflow: str, status: str) -> None:
        self.workflow = workflow
        self.status = status
        super().__init__(run_id, f"Run {run_id} of workflow {workflow!r} has ended ({status}): it takes no signals.")


class ActionNotOpen(RunError):
    """The run does not wait for a call of this action: it is at another step, or another caller was first."""

    def __init__(self, run_id: int, workflow: str, action: str, status: str, step: str, open_: Iterable[str]) -> None:
        self.workflow = workflow
        self.action = action
        self.status = status
        names = ", ".join(map(repr, open_)) or "none"
        super().__init__(
            run_id,
            f"Action {action!r} is not open on run {run_id} of workflow {workflow!r}, which is {status} at step {step!r} "
            f"(open actions: {names}). It can be called once a 'goto' leads to it, or a wait has it as an arm.",
        )


class ActionFailed(RunError):
    """The step of a called action could not run, raised, or was stopped with its run; ``error`` says why.

    If the step runs in the calling process, what it raises is raised to the caller as it is.
    """

    def __init__(self, run_id: int, workflow: str, action: str, error: str) -> None:
        self.workflow = workflow
        self.action = action
        self.error = error
        super().__init__(run_id, f"Action {action!r} of workflow {workflow!r} failed on run {run_id}: {error}")


class RunTimeout(RunError, TimeoutError):
    """A run has timed out (``@workflow(timeout=...)``), and its workflow names no ``on_timeout``."""

    def __init__(self, run_id: int, workflow: str, step: str) -> None:
        self.workflow = workflow
        self.step = step
        super().__init__(run_id, f"Run {run_id} of workflow {workflow!r} was out of time at step {step!r}.")


class RunFailed(RunError):
    """The run whose result was asked for failed. ``error`` is its recorded reason."""

    def __init__(self, run_id: int, workflow: str, step: str, error: str | None) -> None:
        self.workflow = workflow
        self.step = step
        self.error = error
        super().__init__(run_id, f"Run {run_id} of workflow {workflow!r} failed in step {step!r}: {error}")


class RunCancelled(RunError):
    """The run whose result was asked for was cancelled. ``reason`` is what ``cancel`` was given."""

    def __init__(self, run_id: int, workflow: str, step: str, reason: str | None) -> None:
        self.workflow = workflow
        self.step = step
        self.reason = reason
        said = f": {reason}" if reason else "."
        super().__init__(run_id, f"Run {run_id} of workflow {workflow!r} was cancelled at step {step!r}{said}")


class StepError(RunError):
    """A mistake in a step that running it again cannot mend: it is not retried."""

    def __init__(self, run_id: int, workflow: str, step: str, problem: str) -> None:
        self.workflow = workflow
        self.step = step
        super().__init__(run_id, f"Step {step!r} of workflow {workflow!r} (run {run_id}) {problem}")


class NoCommand(StepError):
    """A step returned something that is not a command."""

    def __init__(self, run_id: int, workflow: str, step: str, returned: str) -> None:
        self.returned = returned
        advice = (
            "'return goto(self.next_step)', 'return sleep(...)', 'return wait.for_signal(...)', 'return complete()' or "
            "'return fail(reason)'."
        )
        problem = f"returned {returned}, not a command. Return what happens next: {advice}"
        super().__init__(run_id, workflow, step, problem)


class CommandAwaited(StepError):
    """A step awaited a command instead of returning it."""

    def __init__(self, run_id: int, workflow: str, step: str, command: str) -> None:
        advice = f"A command takes effect when the step returns it: write 'return {command}(...)'."
        super().__init__(run_id, workflow, step, f"awaited {command}(...). {advice}")


class TargetUnknown(StepError):
    """A command names a step that the workflow does not have."""

    def __init__(self, run_id: int, workflow: str, step: str, target: str, command: str, steps: Iterable[str]) -> None:
        self.target = target
        super().__init__(
            run_id,
            workflow,
            step,
            f"returned {command} with the target {target}, which is no step of it (steps: {', '.join(steps)}). "
            f"{command}() takes a step of the same workflow.",
        )


class NotAnAction(StepError):
    """An arm of a wait names a step that is not an action."""

    def __init__(self, run_id: int, workflow: str, step: str, target: str) -> None:
        self.target = target
        problem = (
            f"returned a wait with on({target}), which is no action, so that nobody could call it. Add @action() to it."
        )
        super().__init__(run_id, workflow, step, problem)


class NoNextStep(StepError):
    """A wait does not say where the run goes on, and no step is declared after it."""

    def __init__(self, run_id: int, workflow: str, step: str) -> None:
        problem = "returned a wait, and no step is declared after it for the run to go on with. Say then=."
        super().__init__(run_id, workflow, step, problem)


class RequestNotKept(StepError):
    """An action that was called with a request wants to run again after a sleep, which has no request."""

    def __init__(self, run_id: int, workflow: str, step: str) -> None:
        problem = (
            "returned sleep() without then=: it would run again without the request that called it, which is not stored. "
            "Say then=, and keep in the Context what that step needs."
        )
        super().__init__(run_id, workflow, step, problem)


class ArgumentsMissing(StepError):
    """A step has parameters that what resumed the run does not provide."""

    def __init__(self, run_id: int, workflow: str, step: str, problem: str) -> None:
        super().__init__(run_id, workflow, step, f"cannot be called: {problem}")


class ContextNotStorable(StepError):
    """The Context would not be the same when it is read back from the store."""

    def __init__(self, run_id: int, workflow: str, step: str, problem: str) -> None:
        super().__init__(run_id, workflow, step, f"left a Context that cannot be stored: {problem}")


class UndeclaredField(StepError, AttributeError):
    """A step assigned a name that the Context neither declares nor holds."""

    def __init__(
        self, run_id: int, workflow: str, step: str, context: str, field: str, declared: Iterable[str]
    ) -> None:
        self.field = field
        problem = f"assigned {field!r}, which {context} does not declare (fields: {', '.join(declared) or 'none'})."
        super().__init__(run_id, workflow, step, f"{problem} Declare the field, or mend the spelling.")
