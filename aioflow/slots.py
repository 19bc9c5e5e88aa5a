"""How many more runs a worker may execute: asked before a run is committed as running."""

from __future__ import annotations

from typing import Protocol


class Promises(Protocol):
    """Slots that were promised to runs, see ``Slots.promise``."""

    def redeem(self, owner: int | None) -> None:
        """The run was committed, or refused: end the reservation that was made for ``owner``."""
        ...


class Slots(Promises, Protocol):
    """The slots of a worker for running runs."""

    @property
    def room(self) -> int:
        """How many runs may be begun now."""
        ...

    def drives(self, run_id: int) -> bool:
        """Whether the run executes here, so that its next change will be committed by this process."""
        ...

    def promise(self, *, here: bool = False) -> int | None:
        """The owner for a run that is about to be committed as running: this worker, if it has room, else None.

        A slot is reserved until ``redeem``. ``here``: this worker also without room, unless it does not work; the run
        then waits here for a slot.
        """
        ...

    def notice(self) -> None:
        """Look at the store: something was written that is not known here."""
        ...
