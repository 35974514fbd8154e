"""Recipes: typed from YAML and the command line, checked key by key, and written back."""

from headspark.config.command import FULL_DISK, run_command
from headspark.config.keys import recipe_keys
from headspark.config.kinds import one_of, some_of
from headspark.config.parse import from_plain, parse_recipe, part_from_plain, read_recipe, recipe_parser
from headspark.config.plain import to_plain, to_yaml

__all__ = [
    "FULL_DISK",
    "from_plain",
    "one_of",
    "parse_recipe",
    "part_from_plain",
    "read_recipe",
    "recipe_keys",
    "recipe_parser",
    "run_command",
    "some_of",
    "to_plain",
    "to_yaml",
]
