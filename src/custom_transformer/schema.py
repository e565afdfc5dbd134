"""The JSON Schema of params.yaml, by which editors complete, explain and check its keys while one types.

It says of each key what config.py says. Conditions between two keys (d_model is a multiple of n_heads, …) are beyond
it; those show when the file is loaded.
"""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from custom_transformer.config import Params


class _WithoutTitles(GenerateJsonSchema):
    """pydantic's titles are the names of our keys and classes again."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def model_schema(self, schema: Any) -> dict[str, Any]:
        described = super().model_schema(schema)
        described.pop("title")
        return described


def params_schema() -> dict[str, Any]:
    """The schema as plain data, in pydantic's draft (2020-12)."""
    schema = Params.model_json_schema(schema_generator=_WithoutTitles)
    return {"$schema": GenerateJsonSchema.schema_dialect} | schema
