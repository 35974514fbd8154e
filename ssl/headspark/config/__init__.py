"""Recipes: typed from YAML and the command line, checked key by key, and written back."""

from headspark.config.command import FULL_DISK, run_command
from headspark.config.keys import recipe_keys
from headspark.config.parse import from_plain, parse_recipe, read_recipe, recipe_parser
from headspark.config.plain import to_plain, to_yaml

__all__ = [
    "FULL_DISK",
    "from_plain",
    "parse_recipe",
    "read_recipe",
    "recipe_keys",
    "recipe_parser",
    "run_command",
    "to_plain",
    "to_yaml",
]
