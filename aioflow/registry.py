"""The workflows that an engine knows, by name and version."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from aioflow.definition import WorkflowDefinition
from aioflow.errors import DefinitionError, WorkflowUnknown
from aioflow.inputs import ActionDefinition
from aioflow.model import check_name
from aioflow.plans import Listener

DEFINITION = "__aioflow_definition__"


class Registry:
    """The workflows that an engine knows, by name and version.

    The mutable state: ``_by_name`` (name -> version -> definition, in order of registration), ``generation``, which
    rises with every change, and ``_actions``, the actions as of a generation.
    """

    def __init__(self, definitions: Iterable[WorkflowDefinition] = ()) -> None:
        self._by_name: dict[str, dict[str, WorkflowDefinition]] = {}
        self.generation = 0
        self._actions: tuple[int, Mapping[str, ActionDefinition]] = (-1, {})
        for definition in definitions:
            self.add(definition)

    def add(self, definition: WorkflowDefinition) -> None:
        """Register a definition; it replaces one from the same place in the source.

        Raises:
            DefinitionError: another class has this name and version, or another workflow an action of the same name.
        """
        self._check_actions(definition)
        versions = self._by_name.setdefault(definition.name, {})
        other = versions.get(definition.version)
        if other is not None and other.source != definition.source:
            raise DefinitionError(
                definition.cls.__qualname__,
                [
                    (
                        f"workflow {definition.name!r} version {definition.version!r} is {other.source[1]} "
                        f"in {other.source[0]} already. Give one of them another name or version."
                    )
                ],
            )
        versions.pop(definition.version, None)
        versions[definition.version] = definition
        self.generation += 1

    def _check_actions(self, definition: WorkflowDefinition) -> None:
        """Raise DefinitionError if an action's name is taken: it is called by name alone, so no two may share one."""
        named: dict[str, str] = {}
        problems = [
            f"steps {before!r} and {action.step!r} are both the action {action.name!r}. Rename one."
            for action in definition.actions
            if (before := named.setdefault(action.name, action.step)) != action.step
        ]
        others = (each for name in self._by_name if name != definition.name for each in self._by_name[name].values())
        for other in others:
            if other.source == definition.source:
                continue  # the same class, registered again under another name
            problems += [
                f"action {action.name!r} is one of workflow {other.name!r} already, {other.source[1]} in "
                f"{other.source[0]}. An action is called by its name alone: say @action(name=...)."
                for action in other.actions
                if action.name in named
            ]
        if problems:
            raise DefinitionError(definition.cls.__qualname__, problems)

    @property
    def actions(self) -> Mapping[str, ActionDefinition]:
        """Every action by its name, in order of registration; of several versions of a workflow, the last one's."""
        generation, found = self._actions
        if generation != self.generation:
            found = {
                action.name: action
                for versions in self._by_name.values()
                for definition in versions.values()
                for action in definition.actions
            }
            self._actions = self.generation, found
        return found

    @contextmanager
    def scope(self) -> Generator[None]:
        """Forget on exit the workflows that were defined in functions meanwhile, as tests do; those of modules stay.

        A module is imported only once: if its workflows were forgotten, nothing would define them again.
        """
        before = {name: dict(versions) for name, versions in self._by_name.items()}
        try:
            yield
        finally:
            after, self._by_name = self._by_name, before
            for name, versions in after.items():
                for version, definition in versions.items():
                    if "<locals>" not in definition.source[1]:
                        before.setdefault(name, {})[version] = definition
            self.generation += 1

    def get(self, name: str, version: str) -> WorkflowDefinition | None:
        """The definition of this name and version, or None."""
        return self._by_name.get(name, {}).get(version)

    def find(self, workflow: object) -> WorkflowDefinition:
        """The definition of a workflow class, or of a name: then the version registered last.

        Raises:
            WorkflowUnknown: there is none.
            TypeError: neither a workflow class nor a name.
        """
        if isinstance(workflow, str):
            versions = self._by_name.get(workflow)
            if not versions:
                raise WorkflowUnknown(workflow, self._by_name)
            return next(reversed(versions.values()))
        definition = definition_of(workflow)
        known = self.get(definition.name, definition.version)
        if known is not None and known.cls is not workflow:
            successor = f"{known.cls.__module__}.{known.cls.__qualname__}"
            raise WorkflowUnknown(definition.name, version=definition.version, replaced_by=successor)
        if known is None:
            other = definition.version if definition.name in self._by_name else None
            raise WorkflowUnknown(definition.name, self._by_name, other)
        return known

    def knows(self, name: str) -> bool:
        """Whether there is a workflow of this name."""
        return bool(self._by_name.get(name))

    def known(self) -> list[tuple[str, str]]:
        """Every (name, version)."""
        return [(name, version) for name, versions in self._by_name.items() for version in versions]


#: Where ``@workflow`` registers.
registry = Registry()


def definition_of(cls: object) -> WorkflowDefinition:
    """The definition of a class that ``@workflow`` decorated.

    Raises:
        TypeError: it is no such class.
    """
    definition = vars(cls).get(DEFINITION) if isinstance(cls, type) else None
    if not isinstance(definition, WorkflowDefinition):
        what = cls.__qualname__ if isinstance(cls, type) else f"an instance of {type(cls).__qualname__}"
        raise TypeError(f"{what} is no workflow. Pass a class decorated with @workflow(...), or a workflow's name.")
    return definition


def listeners(known: Registry) -> tuple[tuple[str, ...], tuple[Listener, ...]]:
    """The names of all workflows of a registry, and the events that start the version of each registered last."""
    names = tuple(dict.fromkeys(name for name, _ in known.known()))
    found = [
        Listener(name, trigger.event_name, trigger.namespace, offset)
        for name in names
        if (trigger := known.find(name).event) is not None
        for offset in trigger.offsets
    ]
    return names, tuple(found)


def workflow_name(workflow: object) -> str:
    """The name of a workflow class, or the name itself.

    Raises:
        TypeError: neither of them.
        LimitExceeded: no store can hold such a name.
    """
    if not isinstance(workflow, str):
        return definition_of(workflow).name
    return check_name("A workflow's name", workflow) if workflow else workflow
