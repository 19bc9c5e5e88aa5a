"""JSON Schemas of pydantic models, collected as the components of an OpenAPI document.

Every workflow has a class called Context: each owner's schemas have its name as a prefix, so that no two are mixed up,
and no module or class path shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from aioflow import telemetry
from aioflow.likeness import one_line

_PLACE: Final = "#/components/schemas/"


class Schemas:
    """The schemas collected so far.

    The mutable state: ``components``, by name.
    """

    def __init__(self) -> None:
        self.components: dict[str, Any] = {}

    def add_answers(self, models: Iterable[type[BaseModel]]) -> None:
        """Add the models of answers, under the names of their classes; ``reference`` refers to them."""
        _, whole = models_json_schema([(model, "serialization") for model in models], ref_template=f"{_PLACE}{{model}}")
        self.components.update(whole["$defs"])

    def of(self, model: type[BaseModel], owner: str = "", *, by_alias: bool = True) -> dict[str, Any]:
        """The schema of a model of input; the schemas that it refers to are added with the owner's prefix.

        If a model has no JSON Schema, it is shown as any object.
        """
        prefix = f"{word(owner)}." if owner else ""
        try:
            schema = model.model_json_schema(by_alias=by_alias, ref_template=f"{_PLACE}{prefix}{{model}}")
        except Exception as error:  # noqa: BLE001 - pydantic's error, or whatever a custom type's schema raises
            telemetry.debug("a model has no JSON Schema", model=model.__qualname__, error=one_line(error))
            return {"type": "object"}
        for name, part in schema.pop("$defs", {}).items():
            self.components[f"{prefix}{name}"] = part
        return schema


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A reference to a model that ``add_answers`` has added."""
    return {"$ref": f"{_PLACE}{model.__name__}"}


def word(name: str) -> str:
    """A name in the characters that a component's key and an operation's id may have, different for different names."""
    return re.sub(r"[^A-Za-z0-9_-]", lambda found: f"_{ord(found[0]):x}_", name)
