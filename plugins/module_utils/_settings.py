# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files, kernel values and OOM scores of a node: how they are, how they should be, and how they come back. No I/O.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import asdict, dataclass

UNIT_FOLDER = "/etc/systemd/system/"
DROP_IN = "90-sparkrig.conf"
MANAGED = "# Managed by sparkrig.serving. Changes are overwritten.\n"
_SYSCTL = re.compile(r"[a-z0-9_]+(?:\.[a-zA-Z0-9_-]+)+")
_UNIT = re.compile(r"[A-Za-z0-9:_.@\\-]+\.(?:service|socket|slice|timer|target)")


@dataclass(frozen=True)
class File:
    """A file that should be there. With ``unit``: only where that unit is installed."""

    path: str
    content: str
    mode: int
    unit: str
    restart: str  # the unit that has to read the file again, restarted only if it runs


@dataclass(frozen=True)
class OldFile:
    """How a file was found; ``text`` None: it was not there. ``written`` is what we made of it."""

    text: str | None
    mode: int
    written: str
    restart: str  # the unit that reads it
    folders: tuple[str, ...]  # those that were made for it, the innermost first


@dataclass(frozen=True)
class Journal:
    """Everything that was changed, and how it was before."""

    files: t.Mapping[str, OldFile]
    sysctls: t.Mapping[str, str]
    scores: t.Mapping[str, int]
    default_target: str | None  # the link's target; "" where there was no link; None where we did not touch it


EMPTY = Journal({}, {}, {}, None)


def file_from(index: int, raw: t.Mapping[str, t.Any]) -> File:
    """A file of the module's option, or ValueError with its index."""
    path, mode = str(raw["path"]), str(raw.get("mode") or "0644")
    where = f"files[{index}] {path!r}"
    if not path.startswith("/etc/") or "/../" in path or path.endswith("/"):
        raise ValueError(f"{where} is not a file under /etc; only configuration is written here.")
    if not re.fullmatch(r"0?[0-7]{3}", mode):
        raise ValueError(f"{where} has the mode {mode!r}; it takes three or four octal digits, as in '0644'.")
    for key in ("unit", "restart"):
        name = raw.get(key) or ""
        if name and not _UNIT.fullmatch(str(name)):
            raise ValueError(f"{where} has {name!r} as its {key}; a unit is needed, as in 'ssh.service'.")
    return File(path, str(raw["content"]), int(mode, 8), str(raw.get("unit") or ""), str(raw.get("restart") or ""))


def check_sysctl(name: str, value: str) -> str:
    """The path of a kernel value under /proc/sys, or ValueError."""
    if not _SYSCTL.fullmatch(name):
        raise ValueError(f"sysctls has {name!r}; a name like 'vm.swappiness' is needed.")
    if not re.fullmatch(r"[\w .:/-]+", value):
        raise ValueError(f"sysctls has {value!r} for {name}; a plain value is needed, as in '1'.")
    return name.replace(".", "/")


def protection_files(units: t.Sequence[str], score: int, memory_min_bytes: int) -> tuple[File, ...]:
    """Drop-ins that keep units alive when memory runs out. ValueError for a unit or a score that cannot be."""
    for index, unit in enumerate(units):
        if not _UNIT.fullmatch(unit) or not unit.endswith(".service"):
            raise ValueError(f"oom_units[{index}] is {unit!r}; a service is needed, as in 'ssh.service'.")
    if not -1000 <= score <= 1000:
        raise ValueError(f"oom_score is {score}; it takes -1000 (never killed) to 1000 (killed first).")
    if memory_min_bytes < 0:
        raise ValueError(f"memory_min_bytes is {memory_min_bytes}; it takes 0 or more.")
    memory = f"MemoryMin={memory_min_bytes}\n" if memory_min_bytes else ""
    files = [
        File(
            f"{UNIT_FOLDER}{unit}.d/{DROP_IN}", f"{MANAGED}[Service]\nOOMScoreAdjust={score}\n{memory}", 0o644, unit, ""
        )
        for unit in units
    ]
    if units and memory_min_bytes:
        # A unit's protection is bounded by that of the slice around it.
        text = f"{MANAGED}[Slice]\nMemoryMin={memory_min_bytes * len(units)}\n"
        files.append(File(f"{UNIT_FOLDER}system.slice.d/{DROP_IN}", text, 0o644, "", ""))
    return tuple(files)


def sysctl_file(path: str, sysctls: t.Mapping[str, str]) -> File:
    """The file that carries kernel values over a reboot."""
    return File(
        path, MANAGED + "".join(f"{name} = {value}\n" for name, value in sorted(sysctls.items())), 0o644, "", ""
    )


def check_target(name: str) -> None:
    """ValueError for a default target that is none."""
    if name and not (_UNIT.fullmatch(name) and name.endswith(".target")):
        raise ValueError(f"default_target is {name!r}; a target is needed, as in 'multi-user.target'.")


@dataclass(frozen=True)
class UnitFact:
    """What systemd says of a unit that matters here."""

    loaded: bool
    active: bool
    main_pid: int


def parse_units(names: t.Sequence[str], text: str) -> dict[str, UnitFact]:
    """The units in the output of ``systemctl show``, one block a name, in the order of the names."""
    blocks = [block for block in text.strip().split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise ValueError(f"systemctl show answered for {len(blocks)} of {len(names)} units.")
    facts = {}
    for name, block in zip(names, blocks):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        facts[name] = UnitFact(
            fields.get("LoadState") == "loaded", fields.get("ActiveState") == "active", int(fields.get("MainPID") or 0)
        )
    return facts


def journal_from(content: t.Mapping[str, t.Any] | None) -> Journal:
    """A journal from what was stored; ValueError when it is not what we write."""
    if content is None:
        return EMPTY
    try:
        return Journal(
            {
                str(path): OldFile(
                    None if raw["text"] is None else str(raw["text"]),
                    int(raw["mode"]),
                    str(raw["written"]),
                    str(raw["restart"]),
                    tuple(str(folder) for folder in raw["folders"]),
                )
                for path, raw in content["files"].items()
            },
            {str(name): str(value) for name, value in content["sysctls"].items()},
            {str(name): int(value) for name, value in content["scores"].items()},
            None if content["default_target"] is None else str(content["default_target"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError("the journal's content is not what this module writes; nothing was changed.") from None


def journal_to(journal: Journal) -> dict[str, t.Any]:
    """A journal as it is stored."""
    return asdict(journal)


def file_sentence(wanted: File, text: str | None) -> str:
    """What happens to a file, in a sentence."""
    if text == wanted.content:
        return f"{wanted.path} is as it should be."
    return f"{wanted.path} is {'written' if text is None else 'replaced'}."
