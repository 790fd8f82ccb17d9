# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo``: the lab, ``site.yml`` on it, and one summary.

The node image and the runtime are built side by side, since each keeps one core busy. The playbook is driven
by ansible-runner, whose event stream gives the seconds per role and the line that shows what is waited for.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import typing as t
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ansible_runner.interface import run as run_playbook

from lab.build import BIN, HEARTBEAT_S, Job, playbook, runtime_job
from lab.common import LabError, cache_dir, main_guard
from lab.nodes import INVENTORY, PROJECT


@dataclass
class Progress:
    """What the event stream of one playbook run has told so far."""

    started: float = field(default_factory=time.monotonic)
    task: str = ""
    task_started: float = field(default_factory=time.monotonic)
    role: str = ""
    role_since: datetime | None = None
    seconds_by_role: dict[str, float] = field(default_factory=dict)
    facts: dict[str, dict[str, t.Any]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    changed_by_host: dict[str, int] = field(default_factory=dict)
    ok_by_host: dict[str, int] = field(default_factory=dict)
    last_spoken: float = field(default_factory=time.monotonic)

    def speak(self, words: str) -> None:
        """One line with the seconds since the start."""
        self.last_spoken = time.monotonic()
        print(f"[{self.last_spoken - self.started:4.0f} s] {words}", flush=True)

    def heartbeat(self) -> None:
        """Say what is waited for when nothing was said for a while."""
        now = time.monotonic()
        if self.task and now - self.last_spoken >= HEARTBEAT_S:
            self.speak(f"{self.task}: still at it, {now - self.task_started:.0f} s")

    def close_role(self, at: datetime) -> None:
        """Book the time since the last task started to its role."""
        if self.role_since is not None:
            spent = (at - self.role_since).total_seconds()
            self.seconds_by_role[self.role] = self.seconds_by_role.get(self.role, 0.0) + spent
        self.role_since = at

    def take(self, event: dict[str, t.Any]) -> bool:
        """Digest one event of ansible-runner; true keeps the event in the run's artifacts."""
        kind, data = event["event"], event.get("event_data", {})
        at = datetime.fromisoformat(event["created"])
        if kind == "playbook_on_task_start":
            self.close_role(at)
            role = (data.get("role") or "").rpartition(".")[2]
            if role != self.role:
                self.speak(role or "play")
            self.role = role
            self.task = f"{role}: {data.get('name', '').rpartition(' : ')[2]}"
            self.task_started = time.monotonic()
        elif kind in ("runner_on_ok", "runner_on_changed"):
            facts = data.get("res", {}).get("ansible_facts", {})
            self.facts.setdefault(data.get("host", ""), {}).update(facts)
        elif kind in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            self.failures.append(f"{data.get('host')}: {data.get('res', {}).get('msg', 'no reason was given')}")
        elif kind == "playbook_on_stats":
            self.close_role(at)
            self.changed_by_host = data.get("changed", {})
            self.ok_by_host = data.get("ok", {})
        elif kind == "verbose" and event.get("stdout", "").strip():
            self.speak(event["stdout"].strip())
        return True


def drive(name: str) -> Progress:
    """Run the playbook *name* against the lab and return what its events told.

    Raises :class:`LabError` with the first failure's own sentence when the run does not succeed.
    """
    private = cache_dir() / "runner"
    private.mkdir(exist_ok=True)
    progress = Progress()
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(1.0):
            progress.heartbeat()

    ticker = threading.Thread(target=beat, daemon=True)
    ticker.start()
    try:
        result = run_playbook(
            private_data_dir=str(private),
            project_dir=str(PROJECT),
            playbook=name,
            inventory=str(INVENTORY),
            envvars={"ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"},
            event_handler=progress.take,
            quiet=True,
            rotate_artifacts=10,
            suppress_env_files=True,
        )
    finally:
        stop.set()
        ticker.join()
    if result.status != "successful":
        log = Path(result.config.artifact_dir) / "stdout"
        words = progress.failures[0] if progress.failures else f"{name} ended as '{result.status}' without a reason"
        raise LabError(f"{words}\nThe whole log: {log}")
    return progress


def build() -> None:
    """Bring up the nodes with their checkpoints, and build the runtime beside them."""
    runtime = runtime_job()
    try:
        Job("nodes", [sys.executable, "-m", "lab.nodes", "up"]).wait()
        Job("checkpoints", playbook(str(PROJECT / "molecule" / "default" / "prepare.yml"))).wait()
        runtime.wait()
    finally:
        runtime.end()


def summary(progress: Progress, seconds: float) -> str:
    """The lines that close the demo, from what role verify handed on."""
    verified = next(facts["verify_result"] for facts in progress.facts.values() if "verify_result" in facts)
    kv_tokens = next(check for check in verified["checks"] if check["name"] == "kv_cache_tokens")
    spent = ", ".join(f"{role} {seconds:.0f}" for role, seconds in progress.seconds_by_role.items() if role)
    lines = [
        "",
        f"endpoint    {verified['endpoint']}",
        f"key         {api_key(verified['head'])}",
        f"model       {verified['model']}",
        f"profile     {verified['profile']}",
        f"ranks       {verified['ranks']}, one on each node",
        f"KV tokens   {kv_tokens['predicted']} predicted, {kv_tokens['seen']} reported by the engine",
        f"completion  {verified['completion']!r}",
        f"seconds     {spent}; {seconds:.0f} with building and making the nodes",
        f"changed     {sum(progress.changed_by_host.values())} tasks on {len(progress.ok_by_host)} nodes",
    ]
    return "\n".join(lines)


def api_key(head: str) -> str:
    """The key that the head's API wants, read from the head."""
    argv = [str(BIN / "ansible"), head, "-i", str(INVENTORY), "-m", "ansible.builtin.command"]
    argv += ["-a", "cat /etc/sparkrig/secrets.env"]
    result = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    marker = "VLLM_API_KEY="
    if marker not in result.stdout:
        raise LabError(f"{head} has no API key in /etc/sparkrig/secrets.env: {result.stdout or result.stderr}")
    return result.stdout.split(marker, 1)[1].split()[0].strip("'\"")


def main() -> None:
    """Run the demo from end to end."""
    started = time.monotonic()
    build()
    progress = drive("site.yml")
    print(summary(progress, time.monotonic() - started))
    print("\nThe cluster stays up; `make down` removes it.")


if __name__ == "__main__":
    main_guard(main)
