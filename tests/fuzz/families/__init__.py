"""Templates of steps, one module for each family. A template asks the builder for operands and returns text."""

from __future__ import annotations

import importlib

from fuzz.templates import TEMPLATES

for _name in (
    "arithmetic",
    "reductions",
    "views",
    "indexing",
    "writes",
    "algebra",
    "layers",
    "control",
    "functions",
    "randomness",
):
    importlib.import_module(f"fuzz.families.{_name}")

__all__ = ["TEMPLATES"]
