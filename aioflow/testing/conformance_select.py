"""select() and count(): every filter, every order, and pages through ties."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, Literal

import pytest
from pydantic import JsonValue

from aioflow.clock import Micros
from aioflow.errors import StoreRefused
from aioflow.model import Run
from aioflow.store import RunQuery, Store
from aioflow.testing.conformance_samples import NOW, a_run, a_sleeper, an_ended, do, ids, moving, put

POPULATION: Final = (
    a_run(1),
    a_run(2, version="2", key="k-1", step="ship", event_id="e-1", parent_id=1),
    a_sleeper(3, NOW + 1, workflow="refund", key="k-1", step="check", event_id="e-2", parent_id=1),
    a_sleeper(4, NOW + 2, waiting_for="retry", key="k-2", step="ship", event_id="e-1"),
    an_ended(5, "failed", workflow="refund", version="2", key="K-1", parent_id=2),
    an_ended(6, "cancelled", workflow="report", key="k_1", step="%", event_id=""),
)

#: filters, ids that match
FILTERS: Final[list[tuple[dict[str, Any], list[int]]]] = [
    ({}, [1, 2, 3, 4, 5, 6]),
    ({"workflow": ("order",)}, [1, 2, 4]),
    ({"workflow": ("refund", "report")}, [3, 5, 6]),
    ({"workflow": ("Order",)}, []),
    ({"version": ("1",)}, [1, 3, 4, 6]),
    ({"version": ("2", "3")}, [2, 5]),
    ({"status": ("running",)}, [1, 2]),
    ({"status": ("waiting", "failed", "completed")}, [3, 4, 5]),
    ({"step": ("ship",)}, [2, 4]),
    ({"step": ("pay", "check")}, [1, 3, 5]),
    ({"step": ("%",)}, [6]),
    ({"waiting_for": ("sleep",)}, [3]),
    ({"waiting_for": ("sleep", "retry")}, [3, 4]),
    ({"key": ("k-1",)}, [2, 3]),
    ({"key": ("k-1", "k-2", "k-3")}, [2, 3, 4]),
    ({"key": ("k%",)}, []),
    ({"key": ("k_1",)}, [6]),
    ({"key": ("k-1' OR '1'='1",)}, []),
    ({"event_id": ("e-1",)}, [2, 4]),
    ({"event_id": ("e-1", "e-2")}, [2, 3, 4]),
    ({"event_id": ("",)}, [6]),
    ({"parent_id": (1,)}, [2, 3]),
    ({"parent_id": (1, 2)}, [2, 3, 5]),
    ({"parent_id": (2**53,)}, []),
    ({"workflow": ("refund",), "key": ("k-1",)}, [3]),
    ({"workflow": ("order", "refund"), "version": ("2",), "status": ("running", "failed")}, [2, 5]),
    ({"workflow": ("order",), "waiting_for": ("sleep",)}, []),
]

DATA: Final[dict[str, JsonValue]] = {
    "n": 1,
    "f": 1.5,
    "whole": 2.0,
    "big": 9_007_199_254_740_993,
    "yes": True,
    "no": False,
    "zero": 0,
    "nothing": None,
    "text": "1",
    "empty": "",
    "list": [1, "two", None, {"x": True}],
    "none": [],
    "deep": [[[1]], {"a": {"b": None}}, []],
    "object": {"a": {"b": 1, "c": [1, 2]}, "d": None},
    "hollow": {},
    "a.b": "dotted",
    "$.n": "dollar",
    'say "x"': "quoted",
    "it's": "apostrophe",
    "back\\slash": "backslash",
    "[0]": "bracket",
    "größe ✓ 🦀": "größe ✓ 🦀",
    "\n": "newline",
    "": "nameless",
}

#: filters that match DATA
MATCHING: Final[list[dict[str, JsonValue]]] = [
    {"n": 1},
    {"n": 1.0},
    {"f": 1.5},
    {"whole": 2},
    {"big": 9_007_199_254_740_993},
    {"yes": True},
    {"no": False},
    {"zero": 0},
    {"nothing": None},
    {"text": "1"},
    {"empty": ""},
    {"list": [1, "two", None, {"x": True}]},
    {"list": [1.0, "two", None, {"x": True}]},
    {"none": []},
    {"deep": [[[1.0]], {"a": {"b": None}}, []]},
    {"object": {}},
    {"object": {"a": {}}},
    {"object": {"a": {"b": 1}}},
    {"object": {"a": {"b": 1.0, "c": [1, 2]}}},
    {"object": {"d": None}},
    {"object": {"d": None, "a": {"c": [1, 2]}}},
    {"hollow": {}},
    {"a.b": "dotted"},
    {"$.n": "dollar"},
    {'say "x"': "quoted"},
    {"it's": "apostrophe"},
    {"back\\slash": "backslash"},
    {"[0]": "bracket"},
    {"größe ✓ 🦀": "größe ✓ 🦀"},
    {"\n": "newline"},
    {"": "nameless"},
    {"n": 1, "text": "1", "object": {"d": None}},
]

#: filters that do not match DATA
FAILING: Final[list[dict[str, JsonValue]]] = [
    {"n": 2},
    {"n": True},
    {"n": "1"},
    {"n": None},
    {"n": [1]},
    {"n": {}},
    {"big": 9_007_199_254_740_992},
    {"yes": 1},
    {"yes": "true"},
    {"yes": False},
    {"no": 0},
    {"no": None},
    {"zero": False},
    {"zero": None},
    {"nothing": 0},
    {"nothing": ""},
    {"nothing": "null"},
    {"nothing": False},
    {"nothing": {}},
    {"missing": None},
    {"missing": {}},
    {"text": 1},
    {"empty": None},
    {"list": [1, "two", None]},
    {"list": [1, "two", None, {"x": 1}]},
    {"list": [1, "two", None, {}]},
    {"list": ["two", 1, None, {"x": True}]},
    {"list": [True, "two", None, {"x": True}]},
    {"list": '[1,"two",null,{"x":true}]'},
    {"list": {}},
    {"list": {"0": 1}},
    {"none": {}},
    {"none": None},
    {"deep": [[[True]], {"a": {"b": None}}, []]},
    {"deep": [[[1]], {"a": {}}, []]},
    {"deep": [[[1]], {"a": {"c": None}}, []]},
    {"deep": [[[1]], {"a": {"b": None}}, {}]},
    {"deep": [[[]], {"a": {"b": None}}, []]},
    {"object": {"a": {"b": True}}},
    {"object": {"a": {"c": [1]}}},
    {"object": {"a": {"c": [2, 1]}}},
    {"object": {"a": None}},
    {"object": {"e": None}},
    {"object": []},
    {"hollow": []},
    {"hollow": {"a": None}},
    {"a": {"b": "dotted"}},
    {"object.a.b": 1},
    {"größe ✓ 🦀": "GRÖSSE ✓ 🦀"},
    {"N": 1},
    {"n": 1, "text": "2"},
    {"' OR 1=1 --": 1},
    {'"': 1},
]

Order = Literal["id", "created_at", "updated_at"]


class SelectConformance:
    """Which runs a query gives, and in which order."""

    # ---- filters

    @pytest.mark.parametrize(("filters", "expected"), FILTERS, ids=str)
    async def test_filters_by_column(self, store: Store, filters: dict[str, Any], expected: list[int]) -> None:
        """A filter takes one value or several, exactly; filters narrow each other; a None matches no value."""
        await put(store, *POPULATION)
        query = RunQuery(**filters, descending=False)

        assert await store.select(query, NOW) == [run for run in POPULATION if run.id in expected]
        assert await store.count(query, NOW) == len(expected)

    @pytest.mark.parametrize("column", ["created", "updated"])
    async def test_filters_by_time(self, store: Store, column: str) -> None:
        """After and before an instant, the instant itself being neither."""
        await put(store, *(a_run(number, **{f"{column}_at": NOW + 10 * number}) for number in range(1, 6)))

        async def found(**bounds: Micros) -> list[int]:
            query = RunQuery(**{f"{column}_{side}": bound for side, bound in bounds.items()}, descending=False)  # type: ignore[arg-type]
            runs = ids(await store.select(query, NOW))
            assert await store.count(query, NOW) == len(runs)
            return runs

        assert await found(after=NOW + 25) == [3, 4, 5]
        assert await found(after=NOW + 20) == [3, 4, 5]
        assert await found(before=NOW + 25) == [1, 2]
        assert await found(before=NOW + 30) == [1, 2]
        assert await found(after=NOW + 10, before=NOW + 40) == [2, 3]
        assert await found(after=NOW + 40, before=NOW + 10) == []
        assert await found(after=0, before=2**62) == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize("data", MATCHING, ids=ascii)
    async def test_filters_by_data_that_match(self, store: Store, data: dict[str, JsonValue]) -> None:
        """A mapping matches what holds its keys with matching values, and recursively; all else by JSON equality."""
        await put(store, self._with(1, DATA), self._with(2, {}))
        assert await self._found(store, data) == [1]

    @pytest.mark.parametrize("data", FAILING, ids=ascii)
    async def test_filters_by_data_that_do_not(self, store: Store, data: dict[str, JsonValue]) -> None:
        """No other key, type, order, length, spelling or depth is equal; a missing key is not null."""
        await put(store, self._with(1, DATA), self._with(2, {}))
        assert await self._found(store, data) == []

    async def test_data_filters_go_with_the_others(self, store: Store) -> None:
        """Data narrows what the columns' filters, order and limit are about."""
        await put(
            store,
            *(self._with(number, {"even": number % 2 == 0, "n": number}, step="ship") for number in range(1, 11)),
            self._with(11, {"even": True}),
        )
        query = RunQuery(step=("ship",), data={"even": True}, limit=2)
        assert ids(await store.select(query, NOW)) == [10, 8]
        assert ids(await store.select(replace(query, after=(8, 8)), NOW)) == [6, 4]
        assert await store.count(query, NOW) == 5

    async def test_data_filters_read_what_was_written_last(self, store: Store) -> None:
        """A run is found by its data as it now stands."""
        await put(store, self._with(1, {"n": 1}))
        await do(store, moving(self._with(1, {"n": 1}), data='{"n":2}'))
        assert await self._found(store, {"n": 1}) == []
        assert await self._found(store, {"n": 2}) == [1]

    @pytest.mark.parametrize("odd", ["a\0b", "a\ud800b"], ids=ascii)
    @pytest.mark.parametrize("where", ["key", "value", "name"])
    async def test_a_filter_that_nothing_can_match_matches_nothing(self, store: Store, where: str, odd: str) -> None:
        """A question with text that no run can have has an empty answer, or is refused as such; nothing else."""
        await put(store, a_run(1, key="a", data='{"a":"a"}'))
        queries = {"key": RunQuery(key=(odd,)), "value": RunQuery(data={"a": odd}), "name": RunQuery(data={odd: "a"})}
        with suppress(StoreRefused):
            assert await store.select(queries[where], NOW) == []
        with suppress(StoreRefused):
            assert await store.count(queries[where], NOW) == 0
        assert await store.count(RunQuery(), NOW) == 1

    def _with(self, number: int, data: JsonValue, **columns: Any) -> Run:
        return a_run(number, data=json.dumps(data, ensure_ascii=False, separators=(",", ":")), **columns)

    async def _found(self, store: Store, data: dict[str, JsonValue]) -> list[int]:
        query = RunQuery(data=data)
        runs = ids(await store.select(query, NOW))
        assert await store.count(query, NOW) == len(runs)
        return runs

    # ---- order and pages

    @pytest.mark.parametrize("order", ["id", "created_at", "updated_at"])
    @pytest.mark.parametrize("descending", [True, False])
    async def test_pages_through_ties(self, store: Store, order: Order, descending: bool) -> None:
        """Runs come in order, ties by id in the same direction, and pages, each after the last one's end, are all."""
        runs = [a_run(number, created_at=NOW + number % 3, updated_at=NOW - number % 4) for number in range(1, 21)]
        await put(store, *runs)
        expected = sorted(runs, key=lambda run: (getattr(run, order), run.id), reverse=descending)
        query = RunQuery(order=order, descending=descending, limit=3)

        assert await store.select(replace(query, limit=100), NOW) == expected
        paged: list[Run] = []
        while page := await store.select(query, NOW):
            assert len(page) <= 3
            paged += page
            assert len(paged) <= len(runs)
            query = replace(query, after=(getattr(page[-1], order), page[-1].id))
        assert paged == expected

    async def test_pages_go_on_from_anywhere(self, store: Store) -> None:
        """A page starts after a place in the order, whether a run is there or not."""
        await put(store, *(a_run(number, created_at=NOW + 10 * number) for number in (1, 2, 3)))
        query = RunQuery(order="created_at")
        assert ids(await store.select(replace(query, after=(NOW + 25, 0)), NOW)) == [2, 1]
        assert ids(await store.select(replace(query, after=(NOW + 20, 9)), NOW)) == [2, 1]
        assert ids(await store.select(replace(query, after=(NOW + 20, 1)), NOW)) == [1]
        ascending = replace(query, descending=False)
        assert ids(await store.select(replace(ascending, after=(NOW + 20, 1)), NOW)) == [2, 3]
        assert ids(await store.select(replace(ascending, after=(NOW + 20, 9)), NOW)) == [3]

    async def test_a_query_without_words_gives_the_newest_hundred(self, store: Store) -> None:
        """By default the order is by id, the last first, and the limit 100."""
        await put(store, *(a_run(number) for number in range(1, 121)))
        assert ids(await store.select(RunQuery(), NOW)) == list(range(120, 20, -1))

    async def test_count_minds_the_filters_alone(self, store: Store) -> None:
        """Order, limit and after are nothing to a count."""
        await put(store, *POPULATION)
        query = RunQuery(workflow=("order",), order="created_at", limit=1, after=(0, 0))
        assert await store.count(query, NOW) == 3
        assert await store.count(RunQuery(limit=1), NOW) == len(POPULATION)

    async def test_an_empty_store_has_no_runs(self, store: Store) -> None:
        """Where nothing is, nothing is found."""
        assert await store.select(RunQuery(), NOW) == []
        assert await store.count(RunQuery(), NOW) == 0
