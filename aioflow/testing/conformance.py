"""The port as tests: whoever writes a store proves it with them."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "aioflow.testing.conformance_also",
    "aioflow.testing.conformance_apply",
    "aioflow.testing.conformance_concurrency",
    "aioflow.testing.conformance_events",
    "aioflow.testing.conformance_in_time",
    "aioflow.testing.conformance_lifecycle",
    "aioflow.testing.conformance_mail",
    "aioflow.testing.conformance_mailbox",
    "aioflow.testing.conformance_missed",
    "aioflow.testing.conformance_offers",
    "aioflow.testing.conformance_ownership",
    "aioflow.testing.conformance_plans",
    "aioflow.testing.conformance_plain",
    "aioflow.testing.conformance_questions",
    "aioflow.testing.conformance_samples",
    "aioflow.testing.conformance_select",
    "aioflow.testing.conformance_signals",
    "aioflow.testing.conformance_takeover",
)

# After the above, so that their asserts say what they found.
from aioflow.testing.conformance_also import AlsoConformance  # noqa: E402
from aioflow.testing.conformance_apply import ApplyConformance  # noqa: E402
from aioflow.testing.conformance_concurrency import ConcurrencyConformance  # noqa: E402
from aioflow.testing.conformance_events import EventsConformance  # noqa: E402
from aioflow.testing.conformance_in_time import InTimeConformance  # noqa: E402
from aioflow.testing.conformance_lifecycle import LifecycleConformance  # noqa: E402
from aioflow.testing.conformance_mail import MailConformance  # noqa: E402
from aioflow.testing.conformance_mailbox import MailboxConformance  # noqa: E402
from aioflow.testing.conformance_missed import MissedConformance  # noqa: E402
from aioflow.testing.conformance_offers import OffersConformance  # noqa: E402
from aioflow.testing.conformance_ownership import OwnershipConformance  # noqa: E402
from aioflow.testing.conformance_plain import PlainConformance  # noqa: E402
from aioflow.testing.conformance_plans import PlansConformance  # noqa: E402
from aioflow.testing.conformance_questions import QuestionsConformance  # noqa: E402
from aioflow.testing.conformance_select import SelectConformance  # noqa: E402
from aioflow.testing.conformance_signals import SignalsConformance  # noqa: E402
from aioflow.testing.conformance_takeover import TakeoverConformance  # noqa: E402


class StoreConformance(
    LifecycleConformance,
    ApplyConformance,
    PlainConformance,
    OffersConformance,
    ConcurrencyConformance,
    QuestionsConformance,
    SelectConformance,
    MailboxConformance,
    MailConformance,
    SignalsConformance,
    AlsoConformance,
    EventsConformance,
    InTimeConformance,
    MissedConformance,
    PlansConformance,
    OwnershipConformance,
    TakeoverConformance,
):
    """Every obligation of ``aioflow.store``, tested on one store.

    Subclass it under a name that pytest collects, with a fixture ``store`` that gives an open store without any data,
    and if the store can have several users, with ``again``::

        class TestMyStore(StoreConformance):
            @pytest.fixture
            async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
                self.url = f"mystore://{tmp_path}/data"
                store = MyStore(self.url)
                await store.open(now=0)
                yield store
                await store.close()

            async def again(self, store: Store) -> Store:
                other = MyStore(self.url)
                await other.open(now=0)
                return other

    The tests are coroutines for anyio's pytest plugin; a fixture ``anyio_backend`` that returns "asyncio" keeps them
    off trio. They never wait: ``now`` is given to each call, and moves only there. Some close and reopen ``store``,
    which has to keep its data.

    What no test here can bring about is left to the store's own: data of a newer schema, processes that migrate at once,
    connections that break, a clock of its own.
    """

    pytestmark = pytest.mark.anyio
