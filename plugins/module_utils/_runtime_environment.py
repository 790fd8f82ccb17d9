# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The variables of every process of the rig, as the file that systemd reads. Pure text in, text out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils._roce_rules import roce_problems

__all__ = ["VARIABLE", "environment_text"]

VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


def environment_text(variables: Mapping[str, Any]) -> str:
    """The content of an EnvironmentFile= with these variables; ValueError names the one that cannot be in it."""
    lines = ["# Managed by sparkrig.serving. Changes are overwritten."]
    for problem in roce_problems(variables, where="runtime_environment.", shared=True):
        raise ValueError(problem)
    for name in sorted(variables):
        value = variables[name]
        if not VARIABLE.match(name):
            raise ValueError(f"the environment has {name!r}, which is not a name for a variable")
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise ValueError(f"the environment has {name}: {value!r}, expected a text (write '1' for a switch)")
        text = str(value)
        if re.search(r"[\x00-\x1f\x7f]", text):
            raise ValueError(f"the environment has {name}: {text!r}; a value is one line of printable text")
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        plain = re.match(r"^[A-Za-z0-9_@%+=:,./-]*$", text)
        lines.append(f"{name}={text}" if plain else f'{name}="{escaped}"')
    return "\n".join(lines) + "\n"
