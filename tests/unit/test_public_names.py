"""The public names stay what they are, whatever of the package is imported besides."""

from __future__ import annotations

import subprocess
import sys

import pytest

import armlet


@pytest.mark.parametrize("name", ["check", "export", "plan"])
def test_a_verb_is_not_hidden_by_the_module_of_the_same_name(name):
    script = (
        f"import importlib, armlet\nfirst = armlet.{name}\nassert callable(first)\n"
        f"importlib.import_module('armlet.{name}')\nassert armlet.{name} is first\n"
        f"from armlet import {name}\nassert {name} is first\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    assert all(hasattr(armlet, name) for name in armlet.__all__)


def test_public_names_are_listed_before_they_are_imported():
    listed = subprocess.run(
        [sys.executable, "-c", "import armlet; print(*dir(armlet))"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert set(armlet.__all__) <= set(listed.stdout.split())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = armlet.nonsense
