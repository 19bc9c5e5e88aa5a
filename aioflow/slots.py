"""Who may run more runs: asked by whoever is about to commit a run as running."""

from __future__ import annotations

from typing import Protocol


class Slots(Protocol):
    """Who may run more runs."""

    @property
    def works(self) -> bool:
        """Whether this process executes runs now."""
        ...

    @property
    def room(self) -> int:
        """How many runs may be begun now."""
        ...

    def drives(self, run_id: int) -> bool:
        """Whether the run executes here, so that its next change will be heard of."""
        ...

    def promise(self) -> int | None:
        """The owner for a run that is about to be committed as running: this worker if it has room, else nobody."""
        ...

    def redeem(self, owner: int | None) -> None:
        """The promise is kept, or void."""
        ...

    def notice(self) -> None:
        """Something was written to the store that is not known here: look at it."""
        ...
