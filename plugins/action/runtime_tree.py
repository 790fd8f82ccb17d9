# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of the module runtime_tree: ship the archive to a node that turns out to lack the tree.

The copy action hashes what it ships five times over, which for a gigabyte and four nodes is most of the work; here
every file is checked against the manifest as it is unpacked, and that is enough.
"""

from __future__ import annotations

import os
import shlex
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

_MODULE = "sparkrig.serving.runtime_tree"


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = True
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Have the module make it so, and tell the runtime that is current beside what was done."""
        result = self._made(super().run(tmp, task_vars), task_vars)
        runtime = result.pop("runtime", {})
        return {**result, **runtime}

    def _made(self, result: dict[str, t.Any], task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        """Ask the module; when it lacks the tree, ship the archive and call it once more."""
        options = dict(self._task.args)
        source = options.pop("source", None)
        result.update(self._execute_module(module_name=_MODULE, module_args=options, task_vars=task_vars))
        if source is None or result.get("failed") or not result.get("missing"):
            return result
        path = os.path.expanduser(str(source))
        host = (task_vars or {}).get("inventory_hostname", "the node")
        if not os.path.isfile(path):
            raise AnsibleActionFail(f"The archive {path} for {host} is not on the controller: build it first.")
        self._display.display(f"{host}: shipping {os.path.getsize(path) / 1e9:.2f} GB")
        # In the connecting user's own folder, under a name that no other run has: the module of a run that was killed
        # may still read its archive there. Only the name of such a one is taken away.
        own: t.Any = self
        scratch = own._make_tmp_path()
        folder, unique = os.path.split(scratch.rstrip("/"))
        shell = own._connection._shell
        stem = os.path.splitext(os.path.basename(path))[0]
        remote = shell.join_path(folder, f"{stem}.{unique}.tar")
        own._low_level_execute_command(f"rm -f -- {shlex.quote(folder)}/{shlex.quote(stem)}.*.tar", sudoable=False)
        try:
            own._transfer_file(path, remote)
            options["archive"] = remote
            # Shipping takes a while: the run may be dead by then, and another one has the node.
            options["launcher"] = result["launcher"]
            result.update(self._execute_module(module_name=_MODULE, module_args=options, task_vars=task_vars))
        except AnsibleConnectionFailure:
            raise
        except AnsibleError as exc:
            raise AnsibleActionFail(
                f"The archive {path} could not be shipped to {host}:{remote}: {exc}. The runtime there is as it was."
            ) from exc
        finally:
            own._remove_tmp_path(scratch)
            if result.get("missing", True):
                own._low_level_execute_command(shell.remove(remote), sudoable=True)
        return result
