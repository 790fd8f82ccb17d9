# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Load a serving profile on the controller, lay overrides over it and check it; no node is asked.

Every playbook begins with this action, and Ansible imports an action before it forks the processes that run tasks. So
the filters of the collection are imported here: each of those processes, one for each task and node, would import all
of them anew otherwise, which takes longer than most tasks.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.sparkrig.serving.plugins import filter as filters
from ansible_collections.sparkrig.serving.plugins.module_utils._profile import load_profile, merged

for _found in pkgutil.iter_modules(filters.__path__):
    importlib.import_module(f"{filters.__name__}.{_found.name}")


def known(folder: str) -> list[str]:
    """The names of the profiles in *folder*."""
    return sorted(os.path.splitext(name)[0] for name in os.listdir(folder) if name.endswith(".yml"))


def find(name: str, folder: str) -> tuple[str, str]:
    """The name and the file of a profile: one of *folder*, or a file of the user's own. ValueError when neither."""
    if name.endswith((".yml", ".yaml")):
        path = os.path.abspath(os.path.expanduser(name))
        if not os.path.isfile(path):
            raise ValueError(f"serving_profile is '{name}', and there is no file {path}. Name one that is there.")
        return os.path.splitext(os.path.basename(path))[0], path
    names = known(folder)
    if name not in names:
        raise ValueError(
            f"serving_profile is '{name}', which is no profile of this collection; there are {', '.join(names)}. "
            "Set serving_profile to one of these, or to the path of a .yml file of your own."
        )
    return name, os.path.join(folder, f"{name}.yml")


def content(path: str, read: t.Callable[[str], t.Any]) -> tuple[dict[str, t.Any], str | None]:
    """What the file of a profile says, and the name of the profile that it is based on."""
    loaded = read(path)
    if not isinstance(loaded, dict) or not isinstance(loaded.get("profile_content"), dict):
        raise ValueError(f"{path} is no profile: expected a dictionary profile_content in it")
    return loaded["profile_content"], loaded.get("profile_based_on")


def load(name: str, folder: str, overrides: t.Any, read: t.Callable[[str], t.Any]) -> dict[str, t.Any]:
    """The profile *name* of *folder*, or of the user's own file, with *overrides*.

    ValueError when there is none, or it breaks a rule.
    """
    name, path = find(name, folder)
    own, based_on = content(path, read)
    base = content(find(based_on, folder)[1], read)[0] if based_on else {}
    try:
        return load_profile(name, merged(base, own), overrides)
    except ValueError as error:
        raise ValueError(f"Profile {name}: {error}.") from None


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset({"name", "folder", "overrides"})

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Load it; anything wrong is one sentence."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        given = self._task.args
        try:
            profile = load(
                str(given["name"]), given["folder"], given.get("overrides") or {}, self._loader.load_from_file
            )
        except ValueError as error:
            raise AnsibleActionFail(str(error)) from None
        return {**result, "changed": False, "profile": profile}
