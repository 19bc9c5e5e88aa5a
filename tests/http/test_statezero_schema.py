"""The schema for StateZero's code generators: its shape, its order, its checksum, and who may read it."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypeVar

import httpx
import pytest
from pydantic import (
    AwareDatetime,
    BaseModel,
    EmailStr,
    Field,
    FutureDate,
    FutureDatetime,
    NaiveDatetime,
    PastDate,
    PastDatetime,
)
from pydantic.fields import FieldInfo
from structlog.typing import EventDict
from typing_extensions import TypeAliasType

from aioflow import Engine, action, complete, step, workflow
from aioflow.commands import Command
from aioflow.http import api, statezero
from aioflow.http.described import _field
from tests.http.acting import ACTING, Described, Expense
from tests.http.conftest import Connect, bare

PATHS = ["/actions-schema/", "/models/"]
T = TypeVar("T")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """An open engine with the workflows of these tests."""
    async with Engine("memory://", workflows=ACTING) as engine:
        yield engine


@pytest.fixture
def client(engine: Engine, connect: Connect) -> httpx.AsyncClient:
    """A client on this machine."""
    return connect(statezero(engine))


def prop(type_: str, title: str, **more: Any) -> dict[str, Any]:
    """A required property as clients expect it, with everything else unset."""
    return {
        "type": type_, "title": title, "required": True, "description": None, "nullable": False, "format": None,
        "max_length": None, "choices": None, "default": None, "validators": [], "max_digits": None,
        "decimal_places": None, "read_only": False, "ref": None, **more,
    }  # fmt: skip


async def test_an_action_is_described(client: httpx.AsyncClient) -> None:
    """An action is described with all keys in StateZero's terms, and the run's id comes first."""
    answer = await client.get("/actions-schema/")
    schema = answer.json()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    names = ["described_act", "expense_file_review", "expense_pay", "guarded_act", "other_decide", "other_slow"]
    names += ["pickier_act", "picky_act"]
    assert (list(schema), list(schema["actions"]), schema["count"]) == (["actions", "count"], names, 8)
    assert schema["actions"]["expense_file_review"] == {
        "action_name": "expense_file_review",
        "app": "workflows",
        "title": "Expense File Review",
        "docstring": "Step callable as StateZero action.",
        "class_name": "ExpenseFileReview",
        "input_properties": {
            "workflow_run_id": prop("integer", "Workflow run id"),
            "reviewer_notes": prop("string", "Reviewer notes", max_length=500),
            "priority": prop("string", "Priority", choices={"low": "low", "medium": "medium", "high": "high"}),
            "note": prop("string", "Note"),
        },
        "response_properties": {
            "status": prop("string", "Status"),
            "message": prop("string", "Message"),
            "workflow_status": prop("string", "Workflow status"),
            "current_step": prop("string", "Current step"),
        },
        "relationships": {},
        "permissions": [],
        "display": None,
    }


async def test_an_inferred_input_is_described_without_the_request(client: httpx.AsyncClient) -> None:
    """Input that is inferred from a signature is described like a model, without the ``request`` parameter."""
    actions = (await client.get("/actions-schema")).json()["actions"]
    decide = actions["other_decide"]
    assert decide["input_properties"] == {
        "workflow_run_id": prop("integer", "Workflow run id"),
        "yes": prop("boolean", "Yes", required=False, default=True),
    }
    assert decide["docstring"] is None
    assert actions["guarded_act"]["permissions"] == ["MayAct", "MayActOn"]


async def test_every_type_is_described(client: httpx.AsyncClient) -> None:
    """Each kind of field is described with its type, format, choices, bounds and default."""
    found = (await client.get("/actions-schema/")).json()["actions"]["described_act"]["input_properties"]
    ab, colours = {"a": "a", "b": "b"}, {"red": "red", "blue": "blue"}
    expected = {
        "workflow_run_id": prop("integer", "Workflow run id"),
        "a_bool": prop("boolean", "A bool"),
        "an_int": prop("integer", "An int", min_value=1, max_value=9),
        "a_float": prop("number", "The float", description="How much"),
        "a_text": prop("string", "A text", min_length=1, max_length=9),
        "a_choice": prop("string", "A choice", choices=ab, nullable=True),
        "optional_first": prop("string", "Optional first", required=False, default="x"),
        "a_level": prop("integer", "A level", required=False, choices={"1": "1", "2": "2"}, default=1),
        "a_colour": prop("string", "A colour", required=False, choices=colours, default="blue"),
        "a_decimal": prop(
            "string", "A decimal", required=False, default="1.50", max_digits=6, decimal_places=2, min_value=0.5
        ),
        "a_datetime": prop("string", "A datetime", required=False, format="date-time", default="2030-01-01T02:00:00Z"),
        "a_date": prop("string", "A date", required=False, format="date", default="2030-01-01"),
        "a_time": prop("string", "A time", required=False, nullable=True, format="time"),
        "a_url": prop("string", "A url", required=False, nullable=True, format="uri"),
        "a_uuid": prop("string", "A uuid", required=False, nullable=True, format="uuid"),
        "a_list": prop("array", "A list", required=False, default=[]),
        "a_dict": prop("object", "A dict", required=False),
        "anything": prop("object", "Anything", required=False),
        "a_line": prop("object", "A line", required=False, nullable=True),
        "a_number": prop("number", "A number", required=False, default=1),
        "either": prop("object", "Either", required=False, default=1),
        "above": prop("integer", "Above", required=False, default=3, min_value=2, max_value=8),
    }
    assert found == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize(("level", "fits"), [(1, True), ("1", False)])
async def test_integer_choices_are_accepted_as_described(client: httpx.AsyncClient, level: object, fits: bool) -> None:
    """A choice of integers accepts an integer and no string, as the schema says."""
    answer = await client.post("/actions/described_act/", json={"workflow_run_id": 1, "a_level": level})
    assert ("a_level" not in answer.json()["detail"]) == fits


async def test_what_is_required_comes_first(client: httpx.AsyncClient) -> None:
    """Required properties come first, as generated clients take them as positional arguments."""
    for described in (await client.get("/actions-schema/")).json()["actions"].values():
        names = list(described["input_properties"])
        required = [described["input_properties"][name]["required"] for name in names]
        assert names[0] == "workflow_run_id"
        assert required == sorted(required, reverse=True)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (EmailStr, ("string", "email")),
        (Path, ("string", None)),
        (bytes, ("string", None)),
        (Literal["a", 1], ("string", None)),
        (Literal[1, 2], ("integer", None)),
        (set[int], ("array", None)),
        (tuple[int, ...], ("array", None)),
        (dict, ("object", None)),
        (Path | bytes, ("string", None)),
        (list[Any] | set[int], ("array", None)),
        (AwareDatetime, ("string", "date-time")),
        (NaiveDatetime, ("string", "date-time")),
        (PastDatetime, ("string", "date-time")),
        (FutureDatetime, ("string", "date-time")),
        (PastDate, ("string", "date")),
        (FutureDate | None, ("string", "date")),
        (TypeAliasType("Level", Literal["low", "high"]), ("string", None)),
        (TypeAliasType("Maybe", TypeAliasType("Number", int) | None), ("integer", None)),
        (TypeAliasType("Many", list[T], type_params=(T,))[int], ("array", None)),
        (NewType("UserId", int), ("integer", None)),
        (NewType("Owner", NewType("UserId", int)) | None, ("integer", None)),
        (object, ("object", None)),
        ("whatever", ("object", None)),
    ],
)
def test_other_types_have_their_names(kind: Any, told: Any) -> None:
    """Types that are strings in JSON are strings, and types that cannot be described are objects."""
    described = _field("field", FieldInfo.from_annotation(kind))
    assert (described["type"], described["format"]) == told


def test_an_alias_has_the_choices_and_bounds_of_its_type() -> None:
    """A type alias is described with the choices and bounds of the type that it stands for."""

    class Input(BaseModel):
        level: TypeAliasType("Level", Literal["low", "high"]) | None  # type: ignore[valid-type]
        text: TypeAliasType("Text", Annotated[str, Field(max_length=9)])  # type: ignore[valid-type]
        maybe: Annotated[str, Field(max_length=9)] | None

    level, text, maybe = (_field(name, field) for name, field in Input.model_fields.items())
    assert (level["choices"], level["nullable"]) == ({"low": "low", "high": "high"}, True)
    assert (text["type"], text["max_length"], text["nullable"]) == ("string", 9, False)
    assert (maybe["type"], maybe["max_length"], maybe["nullable"]) == ("string", 9, True)


TWO_HOURS = timezone(timedelta(hours=2))


@pytest.mark.parametrize(
    ("default", "told"),
    [
        (math.inf, None),
        (-math.inf, None),
        (math.nan, None),
        ([1.0, math.inf], [1.0, None]),
        (datetime(2030, 1, 1), None),  # noqa: DTZ001 - a naive datetime is what this tests
        ([datetime(2030, 1, 1)], None),  # noqa: DTZ001
        (datetime(2030, 1, 1, 2, tzinfo=TWO_HOURS), "2030-01-01T00:00:00Z"),
        ((datetime(2030, 1, 1, 2, tzinfo=TWO_HOURS),), ["2030-01-01T00:00:00Z"]),
        ({"a": {"b": [datetime(2030, 1, 1, 2, tzinfo=TWO_HOURS)]}}, {"a": {"b": ["2030-01-01T00:00:00Z"]}}),
        ({"a": 1}, {"a": 1}),
        (frozenset({Decimal("1.50")}), ["1.50"]),
        (Decimal("1.50"), "1.50"),
        (object(), None),
    ],
)
def test_a_default_is_one_that_clients_can_read(default: Any, told: Any) -> None:
    """Default datetimes are in UTC and end in Z, and defaults that JSON or clients cannot represent are None."""
    field = Field(default)
    assert isinstance(field, FieldInfo)
    assert _field("field", field)["default"] == told


async def test_the_schema_is_json_whatever_a_bound_is(connect: Connect) -> None:
    """A bound that is not finite is left out, and the checksum is that of the body as sent."""

    @workflow("sz-endless")
    class Endless:
        class Context(BaseModel):
            pass

        @action("endless_act")
        @step(start=True)
        def act(self, most: float = Field(default=math.inf, ge=1, le=math.inf)) -> Command:
            return complete()

    async with Engine("memory://", workflows=[Endless]) as engine:
        answer = await connect(statezero(engine)).get("/actions-schema/")
        document = await connect(api(engine)).get("/openapi.json")
    told = json.loads(answer.text, parse_constant=pytest.fail)["actions"]["endless_act"]["input_properties"]["most"]
    assert told == prop("number", "Most", required=False, min_value=1)
    assert answer.headers["X-StateZero-Schema-Checksum"] == hashlib.sha256(answer.content).hexdigest()
    json.loads(document.text, parse_constant=pytest.fail)


@pytest.mark.parametrize("path", [*PATHS, *(path.rstrip("/") for path in PATHS)])
async def test_the_checksum_is_that_of_the_body(client: httpx.AsyncClient, path: str) -> None:
    """The checksum header is the hash of the body, and the body is the same each time."""
    answer = await client.get(path)
    assert answer.headers["X-StateZero-Schema-Checksum"] == hashlib.sha256(answer.content).hexdigest()
    assert answer.headers["X-StateZero-Schema-Checksum-Alg"] == "sha256"
    again = await client.get(path)
    assert again.content == answer.content


async def test_models_are_none(client: httpx.AsyncClient) -> None:
    """The list of models, which generators fetch first, is empty."""
    answer = await client.get("/models/")
    assert (answer.status_code, answer.content) == (200, b"[]")


async def test_the_schema_is_that_of_the_engine(connect: Connect) -> None:
    """The schema has the actions of the engine's workflows, also of those that are defined later."""
    async with Engine("memory://", workflows=[Expense]) as engine:
        actions = (await connect(statezero(engine)).get("/actions-schema/")).json()["actions"]
        assert list(actions) == ["expense_file_review", "expense_pay"]

    @workflow("sz-later")
    class Later:
        class Context(BaseModel):
            pass

        @action("later_act")
        @step(start=True)
        def act(self) -> Command:
            return complete()

    async with Engine("memory://") as engine:
        actions = (await connect(statezero(engine)).get("/actions-schema/")).json()["actions"]
        assert {"later_act", "described_act"} <= set(actions)
        assert Described.act


async def test_an_action_whose_types_are_unknown_hides_no_other(connect: Connect, log: list[EventDict]) -> None:
    """An action whose types cannot be resolved is described by the run's id alone and logged, and hides no other."""

    @workflow("sz-unknown")
    class Unknown:
        class Context(BaseModel):
            pass

        @action("unknown_act")
        @step(start=True)
        def act(self, thing: "Nowhere") -> Command:  # type: ignore[name-defined] # noqa: F821, UP037
            return complete()

        @action("known_act")
        def other(self, far: bool) -> Command:
            return complete()

    async with Engine("memory://", workflows=[Unknown]) as engine:
        actions = (await connect(statezero(engine)).get("/actions-schema/")).json()["actions"]
    assert list(actions["unknown_act"]["input_properties"]) == ["workflow_run_id"]
    assert list(actions["known_act"]["input_properties"]) == ["workflow_run_id", "far"]
    (said,) = [entry for entry in log if entry["event"] == "the input of an action cannot be described"]
    assert said["action"] == "unknown_act"
    assert "Nowhere" in said["error"]


@pytest.mark.parametrize("path", PATHS)
async def test_a_sync_token_reads_the_schema(engine: Engine, connect: Connect, path: str) -> None:
    """With ``sync_token`` the schema is a 403 without a token, a 409 with a wrong one, and a 200 with the right one."""

    def nobody(request: Any) -> None:
        return None

    client = connect(statezero(engine, nobody, sync_token="sésame"), "203.0.113.5")
    none = await client.get(path)
    bare(none, 403, "Schema sync requires the header X-Sync-Token.")
    for header in ("X-Sync-Token", "X-StateZero-Sync-Token"):
        wrong = await client.get(path, headers={header: "sesame"})
        bare(wrong, 409, "Sync token mismatch: it is not the one that this server has.")
        right = await client.get(path, headers={header: "sésame".encode()})
        assert right.status_code == 200
    action_ = await client.post("/actions/expense_pay/", json={}, headers={"X-Sync-Token": "sésame".encode()})
    bare(action_, 401, "Authentication credentials were not provided.")


async def test_a_sync_token_is_compared_in_constant_time(
    engine: Engine, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sync tokens are compared by ``hmac.compare_digest``, in constant time."""
    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return hmac_compare(one, other)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    client = connect(statezero(engine, sync_token="right"))
    for sent, status in (("wrong", 409), ("right", 200), ("righ", 409)):
        assert (await client.get("/models/", headers={"x-sync-token": sent})).status_code == status
    assert compared == [(b"wrong", b"right"), (b"right", b"right"), (b"righ", b"right")]


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_sync_token_the_schema_needs_authentication(
    engine: Engine, connect: Connect, path: str
) -> None:
    """Without ``sync_token`` the schema is for authenticated callers."""
    client = connect(statezero(engine, lambda request: request.headers.get("authorization")), "203.0.113.5")
    assert (await client.get(path, headers={"x-sync-token": "x"})).status_code == 401
    assert (await client.get(path, headers={"authorization": "Token x"})).status_code == 200


@pytest.mark.parametrize("path", PATHS)
async def test_the_schema_is_only_read(client: httpx.AsyncClient, path: str) -> None:
    """Methods other than GET and HEAD are a 405."""
    answer = await client.post(path)
    bare(answer, 405, 'Method "POST" not allowed.')
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
    assert (await client.head(path)).status_code == 200


async def test_no_datetime_has_an_offset(client: httpx.AsyncClient) -> None:
    """Every datetime in the schema ends in Z, as clients refuse ``+00:00``."""
    assert "+00:00" not in json.dumps((await client.get("/actions-schema/")).json())
