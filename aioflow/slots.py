"""How many more runs a worker may execute: asked before a run is committed as running."""

from __future__ import annotations

from typing import Protocol


class Slots(Protocol):
    """The slots of a worker for running runs."""

    @property
    def works(self) -> bool:
        """Whether this process executes runs now."""
        ...

    @property
    def room(self) -> int:
        """How many runs may be begun now."""
        ...

    def drives(self, run_id: int) -> bool:
        """Whether the run executes here, so that its next change will be committed by this process."""
        ...

    def promise(self) -> int | None:
        """The owner for a run that is about to be committed as running: this worker, if it has room, else None.

        With room, a slot is reserved until ``redeem``.
        """
        ...

    def redeem(self, owner: int | None) -> None:
        """The run was committed, or refused: end the reservation that ``promise`` made for ``owner``."""
        ...

    def notice(self) -> None:
        """Look at the store: something was written that is not known here."""
        ...
