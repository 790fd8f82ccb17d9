# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What of the rig may be removed from a node: names in, sentences and a plan out, no I/O.

Private to the collection.
"""

from __future__ import annotations

import os.path
import re
import typing as t
from dataclasses import dataclass

# Only units that bear our name: nobody else's is ever removed.
_UNIT = re.compile(r"sparkrig-[A-Za-z0-9:_.-]+\.(service|socket|path|timer|target)")
# Folders that a node needs, whatever somebody wrote into a variable.
_SYSTEM = re.compile(r"/(?:[^/]+|(?:etc|home|lib|opt|run|srv|tmp|usr|var)/[^/]+)?")
PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState")


@dataclass(frozen=True)
class Unit:
    """One unit of the rig, as it is on a node."""

    name: str
    load: str
    active: str
    paths: tuple[str, ...]  # its file, drop-ins and the links that enable it

    @property
    def runs(self) -> bool:
        """Whether something of it is up, or waits to be."""
        return self.active not in ("inactive", "failed")

    @property
    def there(self) -> bool:
        """Whether anything of it is left."""
        return self.runs or self.active == "failed" or bool(self.paths)

    @property
    def sentence(self) -> str:
        """What happens to it."""
        if not self.there:
            return f"{self.name}: not there"
        acts = ["stopped"] if self.runs else []
        acts += ["removed"] if self.paths else []
        acts = acts or ["its failure is forgotten"]
        return f"{self.name}: {' and '.join(acts)} (was {self.active})"


def check_units(names: t.Sequence[str]) -> tuple[str, ...]:
    """The names without repetitions. ValueError with the index of the first that is not ours."""
    for index, name in enumerate(names):
        if not _UNIT.fullmatch(name):
            raise ValueError(f"units[{index}] is {name!r}; only units named sparkrig-*.service or the like are removed")
    return tuple(dict.fromkeys(names))


def check_users(names: t.Sequence[str]) -> None:
    """ValueError with the index of the first user that is not ours."""
    for index, name in enumerate(names):
        if not re.fullmatch(r"sparkrig[a-z0-9_-]*", name):
            raise ValueError(f"users[{index}] is {name!r}; only users whose name begins with sparkrig are removed")


def check_path(option: str, index: int, path: str) -> str:
    """*path*, if it may be removed. ValueError otherwise."""
    where = f"{option}[{index}] is {path!r}"
    if not path.startswith("/") or path != os.path.normpath(path):
        raise ValueError(f"{where}; it has to be an absolute path without '..', '//' and a slash at its end")
    if _SYSTEM.fullmatch(path) and not os.path.basename(path).startswith("sparkrig"):
        raise ValueError(f"{where}, a folder of the system; it is never removed")
    return path


def parse_show(names: t.Sequence[str], text: str) -> dict[str, tuple[str, str]]:
    """Name to (LoadState, ActiveState), from the output of ``systemctl show`` for these names in this order."""
    blocks = [block for block in text.strip().split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise ValueError(f"systemctl show answered for {len(blocks)} of {len(names)} units")
    states = {}
    for name, block in zip(names, blocks):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        states[name] = (fields.get("LoadState", "not-found"), fields.get("ActiveState", "inactive"))
    return states


def kept_folder(path: str, names: t.Sequence[str]) -> str:
    """The sentence on a folder in which something is left."""
    shown = ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{path}: left, it holds {shown}"
