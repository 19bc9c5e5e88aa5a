"""Checks how a class's steps lead to each other, as far as their source tells: sentences for DefinitionError."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from aioflow.arguments import note_model
from aioflow.definition import StepDefinition
from aioflow.targets import FallThrough, Named, NoWayOut, Reading, named_targets

Steps = Mapping[str, StepDefinition]
#: The commands that wait for an event.
_EVENTS = ("on.event", "wait_for_event")


def edge_problems(steps: Steps, options: Mapping[str, Any]) -> Iterable[str]:
    """What is wrong with the ``on_fail`` and ``on_timeout`` of a workflow and its steps."""
    edges: list[tuple[str, str | None, bool, str]] = [
        ("@workflow(on_timeout=)", options["on_timeout"], False, ""),
        ("@workflow(on_fail=)", options["on_fail"], True, ""),
    ]
    edges += [(f"@step(on_fail=) of step {s.name!r}", s.options.on_fail, True, s.name) for s in steps.values()]
    for written, target, with_failure, owner in edges:
        if target is None:
            continue
        step = steps.get(target)
        if owner == target:
            yield f"{written} names the step itself, which has just failed. Name another, or raise max_attempts."
        elif step is None:
            yield f"{written} names {target!r}, which is no step of this class (steps: {', '.join(steps)})."
        elif step.action is not None:
            continue  # the run waits there for a call
        elif with_failure and not step.parameters.failure_only():
            yield f"{written} names {target!r}, which needs more than a 'failure: Failure'. Give the rest defaults."
        elif not with_failure and step.parameters.needed:
            yield _needs(written, step)


def target_problems(cls: type, steps: Steps) -> Iterator[str]:
    """What is wrong with the targets that the steps' commands name."""
    read = [
        (step, found)
        for step in steps.values()
        if not isinstance(step.function, staticmethod | classmethod)
        for found in named_targets(step.function)
    ]
    _note_messages(steps, read)
    for step, found in read:
        if isinstance(found, Named):
            yield from _named_problems(cls, step.name, found, steps)
        elif isinstance(found, FallThrough):
            yield from _fall_problems(step, found, steps, read)
        else:
            yield (
                f"step {step.name!r}: {found.command}() has timeout= and no on_timeout=. Name the step that goes on when "
                "the time is over."
            )


def _note_messages(steps: Steps, read: list[tuple[StepDefinition, Reading]]) -> None:
    """Note the models that name waits: for all steps, and for the step to which each wait leads."""
    for step, found in read:
        if isinstance(found, NoWayOut) or found.model is None:
            continue
        note_model(found.model)
        after = steps.get(found.step) if isinstance(found, Named) else _declared_after(step, found, steps)
        if after is not None:
            after.parameters.expect(found.model)


def _declared_after(step: StepDefinition, wait: FallThrough, steps: Steps) -> StepDefinition | None:
    """The step with which a wait without ``then=`` goes on."""
    names = list(steps)
    after = next((n for n in names[names.index(step.name) + 1 :] if n != wait.on_timeout), None)
    return None if after is None else steps[after]


def _needs(written: str, step: StepDefinition) -> str:
    names = ", ".join(step.parameters.needed)
    advice = ""
    if step.parameters.failure_only():
        advice = f" Where not only an on_fail leads there, write {step.parameters.needed[0]}: Failure | None = None."
    return f"{written} names {step.name!r}, which needs the arguments {names}. Only what resumes a wait gives arguments.{advice}"


def _named_problems(cls: type, name: str, found: Named, steps: Steps) -> Iterator[str]:
    target, is_attribute = found.step, found.is_attribute
    step = steps.get(target)
    if step is not None:
        if found.role == "action":
            if step.action is None:
                yield f"step {name!r}: on(self.{target}) names a step that is no action. Add @action() to {target!r}."
        elif found.role != "then" or found.command == "sleep":
            if step.parameters.needed and step.action is None:
                yield _needs(f"step {name!r}: {found.written}", step)
        elif found.model is not None:
            yield from _message_problems(f"step {name!r}: {found.written} names", found.model, step)
        elif found.command in _EVENTS:
            yield from _event_problems(f"step {name!r}: {found.written} names", step)
        return
    member = inspect.getattr_static(cls, target, None) if is_attribute else None
    if is_attribute and hasattr(cls, "__getattr__"):
        return
    if member is not None and not inspect.isfunction(member):
        return  # a property or the like may give a step: decided when the step returns
    if is_attribute and member is None and target in _attributes_set(cls):
        return  # an attribute of the instance, of whatever value: decided when the step returns
    known = ", ".join(steps)
    written = f"step {name!r}: {found.written} names {target!r}"
    if member is not None:
        yield f"{written}, which is a method but no step (steps: {known}). Add @step."
    else:
        yield f"{written}, which is no step of this class (steps: {known})."


def _fall_problems(
    step: StepDefinition, wait: FallThrough, steps: Steps, read: list[tuple[StepDefinition, Reading]]
) -> Iterator[str]:
    after = _declared_after(step, wait, steps)
    if after is None:
        yield f"step {step.name!r} waits, and no step is declared after it to go on with. Say then=."
        return
    for other, found in read:
        if not isinstance(found, Named) or found.step != after.name:
            continue
        if found.command == "goto" or found.role == "on_timeout":
            yield (
                f"step {step.name!r} waits and would go on with {after.name!r}, the next one declared, but {found.written} in "
                f"step {other.name!r} leads there, too: whether it was meant is unclear. Say then=."
            )
            return
    if wait.model is not None:
        yield from _message_problems(f"step {step.name!r} waits and goes on with", wait.model, after)
    elif wait.command in _EVENTS:
        yield from _event_problems(f"step {step.name!r} waits and goes on with", after)


def _message_problems(written: str, model: type[BaseModel], step: StepDefinition) -> Iterator[str]:
    if step.action is not None:
        yield f"{written} {step.name!r}, an action, which is given what its caller gives: the {model.__name__} would be lost."
    elif not step.parameters.takes_model(model):
        needed = ", ".join(step.parameters.needed)
        yield f"{written} {step.name!r}, which needs the arguments {needed}; a {model.__name__} is all it will get."


def _event_problems(written: str, step: StepDefinition) -> Iterator[str]:
    if step.action is None and (needed := step.parameters.needed_beside_event(after=True)):
        yield (
            f"{written} {step.name!r}, which needs the arguments {', '.join(needed)}. All that it gets of an event is "
            "event: Event. Give the rest defaults, or read the Context."
        )


def _attributes_set(cls: type) -> set[str]:
    """The names of attributes that the class's own functions set, on self or on any other object."""
    return {
        str(instruction.argval)
        for klass in cls.__mro__
        for member in vars(klass).values()
        if inspect.isfunction(member)
        for instruction in dis.get_instructions(inspect.unwrap(member))
        if instruction.opname == "STORE_ATTR"
    }
