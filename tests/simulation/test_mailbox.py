"""The oracle's mailbox: the order of signals where clocks disagree on which have expired."""

from __future__ import annotations

from collections import Counter

import pytest

from aioflow.changes import Result
from aioflow.model import Signal
from aioflow.testing.conformance_samples import a_waiter, arms
from tests.simulation.mailbox import Mailbox


def a_letter(id_: int, expires_at: int | None) -> Signal:
    """A signal to run 1, sent at the instant of its id."""
    return Signal(id_, 1, "paid", None, f'{{"token":"{id_}"}}', 0, 0, None, id_, expires_at)


@pytest.mark.parametrize(("looked", "wrong"), [(99, ["run 1 took 2 before 1"]), (100, [])])
def test_a_signal_may_be_skipped_only_if_it_had_expired_when_the_mail_was_read(looked: int, wrong: list[str]) -> None:
    """A run may skip an earlier signal only if that had expired by the engine's clock when its mail was read."""
    mailbox = Mailbox(Counter())
    row = a_waiter(1, arms=arms("paid"))
    for signal in (a_letter(1, 100), a_letter(2, None)):
        assert not list(mailbox.post(signal, Result("applied"), {1: row}, 50))
    assert list(mailbox.take(row, (2,), 60, looked=looked, rejects=False)) == wrong
