"""The examples in the docstrings of headspark; those of the other packages are collected by pytest itself."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import headspark

MODULES = [found.name for found in pkgutil.walk_packages(headspark.__path__, "headspark.")]


def test_modules_were_found() -> None:
    assert len(MODULES) > 60


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_give_what_they_say(name: str) -> None:
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert found.failed == 0
