# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that keeps the rig up without a controller. It is put on every node and run by systemd.

Private to the collection, standard library only.

  prepare    before the engine starts: wait until every node is there with a free GPU and the memory is there
  ended      after the engine ended: write down why
  down       when systemd gave up: write down that and why
  watch      from a timer: a small real completion; a hang or a standstill is diagnosed and ended
  diagnose   what every process of the rig on this node waits for, as JSON
"""

from __future__ import annotations

import glob
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import typing as t
import urllib.error
import urllib.request

from ansible_collections.sparkrig.serving.plugins.module_utils._engine_log import phase, root_error
from ansible_collections.sparkrig.serving.plugins.module_utils._firewall import DRAIN_TABLE
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics
from ansible_collections.sparkrig.serving.plugins.module_utils._node import gib, memory
from ansible_collections.sparkrig.serving.plugins.module_utils._watchdog import (
    Cluster,
    LoadMark,
    Settings,
    cluster_wait,
    down_sentence,
    ending,
    fingerprint,
    hangs,
    load_verdict,
    recent,
)

SETTINGS = "/etc/sparkrig/watchdog.json"
SECRETS = "/etc/sparkrig/secrets.env"
STATE = "/var/lib/sparkrig/watch"
RUN = "/run/sparkrig"
ENGINE = "sparkrig-vllm.service"
RAY = "sparkrig-ray.service"
UNITS = (ENGINE, RAY)
NFT = "/usr/sbin/nft"
KEPT_FAILURES = 100
KEPT_DIAGNOSES = 5
# Where a process of the rig writes its stacks when it gets SIGUSR2 (see sitecustomize.py beside this program).
STACKS = "/run/sparkrig/stacks"
CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)

# Runs in the runtime's interpreter: by address the free GPUs of every living node, one JSON line each second.
_RAY_FREE = """\
import json, sys, time
from ray._raylet import GcsClientOptions, GlobalStateAccessor
from ray.core.generated import gcs_pb2
options = GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
accessor = GlobalStateAccessor(options)
if not accessor.connect():
    sys.exit("GCS at " + sys.argv[1] + " does not answer")
while True:
    free = {}
    for text in accessor.get_all_available_resources():
        node = gcs_pb2.AvailableResources.FromString(text)
        free[node.node_id.hex()] = dict(node.resources_available)
    nodes = [node for node in accessor.get_node_table() if node["alive"]]
    print(json.dumps({node["NodeManagerAddress"]: free.get(node["NodeID"], {}).get("GPU", 0.0) for node in nodes}))
    sys.stdout.flush()
    time.sleep(0.5)
"""


def read(path: str) -> str:
    """The text of *path*; empty when there is none or it may not be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def write(path: str, text: str, mode: int = 0o644) -> None:
    """Write *path* so that nobody ever sees half of it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}.new"
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(text)
        os.fchmod(handle.fileno(), mode)
    os.replace(temporary, path)


def stored(name: str) -> t.Any:
    """What an earlier call wrote down under *name*; None when there is nothing that can be read."""
    try:
        return json.loads(read(os.path.join(STATE, name)))
    except ValueError:
        return None


def store(name: str, value: t.Any) -> None:
    """Write *value* down under *name*. A full disk must not stop what is more important than a note."""
    try:
        write(os.path.join(STATE, name), json.dumps(value, sort_keys=True) + "\n")
    except OSError as error:
        say(f"{os.path.join(STATE, name)} cannot be written: {error.strerror or error}")


def say(sentence: str) -> None:
    """One line for the journal."""
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()


def systemctl(*words: str) -> str:
    """What systemctl says; empty when it fails."""
    done = subprocess.run(
        ["systemctl", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, timeout=60
    )
    return done.stdout.decode("utf-8", "replace")


def properties(unit: str, *names: str) -> dict[str, str]:
    """Some of systemd's properties of *unit*."""
    text = systemctl("show", f"--property={','.join(names)}", unit)
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def settings() -> Settings:
    """What this head was told."""
    return Settings.of(json.loads(read(SETTINGS)))


def stamp(when: float) -> str:
    """*when* as a person reads it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


def journal(unit: str, invocation: str) -> list[str]:
    """What *unit* wrote in that start."""
    command = ["journalctl", "--unit", unit, "--output=cat", "--no-pager", "--lines=4000"]
    if invocation:
        command.append(f"_SYSTEMD_INVOCATION_ID={invocation}")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode("utf-8", "replace").splitlines()


def tail(path: str, size: int = 65536) -> list[str]:
    """The last lines of a file."""
    try:
        with open(path, "rb") as handle:
            handle.seek(max(0, os.path.getsize(path) - size))
            return handle.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


# --- Before the engine starts ------------------------------------------------------------------------------------


def memory_available_bytes() -> int:
    """The memory that a process could get on this node now."""
    texts: list[str | None] = [None, None, None]
    for paths in CGROUP_FILES:
        if os.path.isfile(paths[0]):
            texts = [read(path) for path in paths]
            break
    return memory(read("/proc/meminfo"), *texts).available_bytes


class RayFree:
    """Follows which nodes live and which GPUs are free, from a thread, so that a silent GCS blocks nobody."""

    def __init__(self, python: str, address: str) -> None:
        self.python, self.address = python, address
        self.cluster: Cluster | None = None
        self.problem = f"waiting for Ray's GCS at {address}"
        self.child: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self) -> None:
        """Ask for ever."""
        host, _colon, port = self.address.rpartition(":")
        proxies = {name: "" for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")}
        while True:
            try:
                # Ray itself would try for 15 seconds where nothing listens.
                socket.create_connection((host, int(port)), timeout=3).close()
            except OSError:
                self.cluster = None
                time.sleep(0.3)
                continue
            with subprocess.Popen(
                [self.python, "-c", _RAY_FREE, self.address],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **proxies},
            ) as self.child:
                for line in self.child.stdout or ():
                    try:
                        self.cluster = Cluster(json.loads(line))
                    except ValueError:
                        continue
            self.cluster = None
            time.sleep(0.3)

    def end(self) -> None:
        """Leave nothing behind: what comes next in this unit is the engine."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()


def prepare() -> int:
    """Wait until the engine can start; 1 with a reason when it cannot."""
    begin = time.monotonic()
    store("starts.json", recent([*(stored("starts.json") or []), time.time()], time.time()))
    told = settings()
    # What `drain` closed is open again with a new engine.
    if os.path.exists(NFT):
        subprocess.run([NFT, "delete", "table", "inet", DRAIN_TABLE], stderr=subprocess.DEVNULL, check=False)
    follower = RayFree(told.python, told.ray_address) if told.nodes else None
    try:
        return await_cluster(told, follower, begin) or await_memory(told, begin)
    finally:
        if follower is not None:
            follower.end()


def await_cluster(told: Settings, follower: RayFree | None, begin: float) -> int:
    """Wait until every node is there with a free GPU; 1 when that does not come."""
    shown = ""
    taken_since: float | None = None
    while follower is not None:
        waiting, only_gpus = cluster_wait(follower.cluster, told.nodes, follower.problem)
        now = time.monotonic()
        if not waiting:
            break
        if waiting != shown:
            say(waiting)
            store("waiting.json", {"since": time.time(), "sentence": waiting})
            shown = waiting
        taken_since = (taken_since or now) if only_gpus else None
        if taken_since is not None and now - taken_since > told.gpu_s:
            sentence = f"{waiting} {now - taken_since:.0f} s after the engine before this one ended; Ray starts anew"
            say(sentence)
            note(sentence)
            # This unit stands on that one: systemd ends this start and begins another after Ray's.
            systemctl("restart", "--no-block", RAY)
            time.sleep(60)
            return 1
        if now - begin > told.nodes_s:
            note(f"The engine cannot start: {waiting}, for {now - begin:.0f} s (at most {told.nodes_s:.0f} s)")
            return 1
        time.sleep(0.2)
    return 0


def await_memory(told: Settings, begin: float) -> int:
    """Wait until the memory of the plan is there; 1 when it does not come."""
    shown = ""
    while memory_available_bytes() < told.memory_bytes:
        now = time.monotonic()
        seen = memory_available_bytes()
        waiting = f"waiting for memory: {gib(seen)} available, {gib(told.memory_bytes)} needed"
        if not shown:
            say(waiting)
            store("waiting.json", {"since": time.time(), "sentence": waiting})
            shown = waiting
        if now - begin > told.memory_s + told.nodes_s:
            note(
                f"The engine cannot start: {gib(seen)} of memory are available on this node, the plan needs"
                f" {gib(told.memory_bytes)}"
            )
            return 1
        time.sleep(1)
    store("waiting.json", None)
    say(f"every node is there after {time.monotonic() - begin:.1f} s")
    return 0


# --- After it ended ----------------------------------------------------------------------------------------------


def note(reason: str) -> None:
    """Leave the reason for the end that comes now to `ended`."""
    say(reason)
    store("reason.json", {"when": time.time(), "sentence": reason})


def job() -> str:
    """What systemd is about to do with the engine (start, stop, restart, ...); empty when nothing."""
    for line in systemctl("list-jobs", "--no-legend", "--no-pager").splitlines():
        words = line.split()
        if len(words) >= 3 and words[1] == ENGINE:
            return words[2]
    return ""


def ended() -> int:
    """Write down why the engine ended."""
    now = time.time()
    left = stored("reason.json") or {}
    reason = str(left.get("sentence", "")) if now - float(left.get("when", 0)) < 300 else ""
    store("reason.json", None)
    lines = journal(ENGINE, os.environ.get("INVOCATION_ID", ""))
    error = root_error(lines)
    sentence = ending(
        os.environ.get("SERVICE_RESULT", ""),
        os.environ.get("EXIT_CODE", ""),
        os.environ.get("EXIT_STATUS", ""),
        # It is somebody's wish that it ends.
        job() in ("stop", "restart"),
        reason,
        error,
        phase(lines),
    )
    if sentence:
        record(sentence, error)
    return 0


def record(sentence: str, error: str, down: bool = False) -> None:
    """The one place that says why: last_failure.json, and the ones before in failures.json."""
    now = time.time()
    starts = recent(stored("starts.json") or [], now)
    failure = {
        "when": stamp(now),
        "sentence": sentence,
        "error": error,
        "starts_last_hour": len(starts),
        "down": down,
    }
    say(sentence)
    store("last_failure.json", failure)
    store("failures.json", [*(stored("failures.json") or []), failure][-KEPT_FAILURES:])


def down() -> int:
    """systemd gave up: unless the engine only failed to stop in time, on the way to a start that is under way."""
    if job() or properties(ENGINE, "ActiveState").get("ActiveState") != "failed":
        return 0
    last = stored("last_failure.json") or {}
    starts = recent(stored("starts.json") or [], time.time())
    record(down_sentence(str(last.get("sentence", "")), len(starts)), str(last.get("error", "")), down=True)
    return 0


# --- What everybody waits for ------------------------------------------------------------------------------------


def processes() -> dict[int, str]:
    """The processes of the rig's units on this node, with the unit of each."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            groups = read(f"/proc/{entry}/cgroup")
            for unit in UNITS:
                if f"/{unit}" in groups:
                    found[int(entry)] = unit
    return found


def stacks(pids: t.Iterable[int], py_spy: str) -> dict[int, str]:
    """The Python stacks of every process that can give them: with py-spy where there is one, else by SIGUSR2."""
    wanted = list(pids)
    found = {}
    if os.path.exists(py_spy):
        for pid in wanted:
            done = subprocess.run(
                [py_spy, "dump", "--nonblocking", "--pid", str(pid)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode == 0:
                found[pid] = done.stdout.decode("utf-8", "replace")
        return found
    asked = []
    for pid in wanted:
        caught = re.search(r"^SigCgt:\s+([0-9a-f]+)$", read(f"/proc/{pid}/status"), re.MULTILINE)
        path = os.path.join(STACKS, f"{pid}.txt")
        # Only a process that said it would answer: for any other the signal is the end.
        if caught and int(caught.group(1), 16) >> (signal.SIGUSR2 - 1) & 1 and os.path.exists(path):
            size = os.path.getsize(path)
            os.kill(pid, signal.SIGUSR2)
            asked.append((pid, path, size))
    time.sleep(1.0 if asked else 0.0)
    for pid, path, size in asked:
        found[pid] = read(path)[size:]
    return found


def diagnosis(python: str) -> dict[str, t.Any]:
    """What every process of the rig on this node does, and how much memory is left."""
    pids = processes()
    spied = stacks(pids, os.path.join(os.path.dirname(python), "py-spy"))
    listed = []
    for pid, unit in sorted(pids.items()):
        status = read(f"/proc/{pid}/status")
        fields = dict(re.findall(r"^(Name|State|VmRSS|VmSwap):\s+(.+)$", status, re.MULTILINE))
        io = dict(re.findall(r"^(read_bytes|rchar): (\d+)$", read(f"/proc/{pid}/io"), re.MULTILINE))
        listed.append(
            {
                "pid": pid,
                "unit": unit,
                "name": fields.get("Name", ""),
                "state": fields.get("State", ""),
                "rss": fields.get("VmRSS", ""),
                "swap": fields.get("VmSwap", ""),
                "waits_in": read(f"/proc/{pid}/wchan"),
                "read_bytes": int(io.get("read_bytes", 0)),
                "stack": spied.get(pid, ""),
            }
        )
    connections = [line.split() for line in read("/proc/net/tcp").splitlines()[1:]]
    return {
        "when": stamp(time.time()),
        "memory_available_bytes": memory_available_bytes(),
        "processes": listed,
        "tcp_established": sum(1 for words in connections if len(words) > 3 and words[3] == "01"),
        "tcp_unacknowledged": sum(1 for words in connections if len(words) > 4 and words[4][:8] != "00000000"),
        "rdma": os.path.isdir("/sys/class/infiniband") and bool(os.listdir("/sys/class/infiniband")),
        "engine_log": journal(ENGINE, "")[-40:],
        "ray_log": journal(RAY, "")[-20:],
    }


def diagnose() -> int:
    """The diagnosis on stdout."""
    python = settings().python if os.path.exists(SETTINGS) else Settings("", "").python
    sys.stdout.write(json.dumps(diagnosis(python), sort_keys=True) + "\n")
    return 0


def keep_diagnosis(told: Settings) -> str:
    """Write the diagnosis down and return its path; the oldest ones go."""
    folder = os.path.join(STATE, "diagnoses")
    path = os.path.join(folder, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + ".json")
    try:
        write(path, json.dumps(diagnosis(told.python), indent=1, sort_keys=True) + "\n", 0o600)
        for old in sorted(glob.glob(os.path.join(folder, "*.json")))[:-KEPT_DIAGNOSES]:
            os.unlink(old)
    except OSError as error:
        return f"(it cannot be written: {error.strerror or error})"
    return path


# --- The timer ---------------------------------------------------------------------------------------------------


class Api:
    """The engine, never through a proxy."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.headers = {"Content-Type": "application/json"}
        key = re.search(r"^VLLM_API_KEY=(.+)$", read(SECRETS), re.MULTILINE)
        if key:
            self.headers["Authorization"] = f"Bearer {key.group(1)}"

    def get(self, path: str, timeout_s: float, body: dict[str, t.Any] | None = None) -> str:
        """The body of the answer; OSError when there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self.headers)
        with self.opener.open(request, timeout=timeout_s) as answer:
            return str(answer.read().decode("utf-8", "replace"))


class Probe(threading.Thread):
    """One small completion, beside whatever else the engine does."""

    def __init__(self, api: Api, model: str, timeout_s: float) -> None:
        super().__init__(daemon=True)
        self.api, self.timeout_s = api, timeout_s
        self.body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello"}],
            "temperature": 0,
            "max_tokens": 1,
        }
        self.problem = ""
        self.done = False

    def run(self) -> None:
        """Ask."""
        try:
            answer = json.loads(self.api.get("/v1/chat/completions", self.timeout_s, self.body))
            if int(answer["usage"]["completion_tokens"]) < 1:
                self.problem = "the completion has no token"
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problem = f"{type(error).__name__}: {error}"
        self.done = True


def read_bytes_of_engine() -> int:
    """What the processes of the rig on this node have read so far, from disk or through the page cache."""
    return sum(
        int(number)
        for pid in processes()
        for number in re.findall(r"^(?:read_bytes|rchar): (\d+)$", read(f"/proc/{pid}/io"), re.MULTILINE)
    )


def restart(told: Settings, reason: str) -> int:
    """Diagnose, say why, and let systemd start the set anew within its bounds."""
    note(f"{reason}. Diagnosis: {keep_diagnosis(told)}")
    # Ray is renewed with it: what a hanging rank holds, Ray would go on counting as taken.
    systemctl("restart", "--no-block", RAY if told.ray_address else ENGINE)
    return 0


def watch_loading(told: Settings, invocation: str, age_s: float) -> int:
    """The engine is not up yet: is it alive?"""
    lines = journal(ENGINE, invocation)
    begun = time.time() - age_s
    found = [path for pattern in told.log_globs for path in glob.glob(pattern)]
    logs = [path for path in found if os.path.exists(path) and os.path.getmtime(path) >= begun]
    size = sum(map(os.path.getsize, logs)) + sum(len(line) for line in lines)
    mark = LoadMark(invocation, time.time(), read_bytes_of_engine(), size, phase(lines + sum(map(tail, logs), [])))
    before = stored("loading.json")
    last = LoadMark(**before) if before else None
    verdict = load_verdict(mark, last, age_s, told.stall_s, told.serve_s)
    if last is None or mark.moved_on(last):
        store("loading.json", mark.__dict__)
    if verdict:
        return restart(told, verdict)
    say(f"loading for {age_s:.0f} s: {mark.phase or 'no phase yet'}")
    return 0


def watch() -> int:
    """One look at the engine."""
    told = settings()
    state = properties(ENGINE, "ActiveState", "SubState", "InvocationID", "ExecMainStartTimestampMonotonic")
    if state.get("ActiveState") != "active":
        say(f"{ENGINE} is {state.get('ActiveState')} ({state.get('SubState')}); nothing to watch")
        return 0
    began = state.get("ExecMainStartTimestampMonotonic", "0")
    age_s = time.monotonic() - (int(began) / 1e6 if began.isdigit() else 0.0)
    invocation = state.get("InvocationID", "")
    api = Api(told.url)
    try:
        api.get("/health", 5)
        store("served.json", {"invocation": invocation, "when": time.time()})
    except OSError:
        # One that answered once in this start is not loading any more.
        if (stored("served.json") or {}).get("invocation") != invocation:
            return watch_loading(told, invocation, age_s)
    probe = Probe(api, told.model, max(told.completion_s, told.hang_s) * 20)
    begin = time.monotonic()
    probe.start()
    seen: list[tuple[float, tuple[float | None, ...] | None]] = []
    while True:
        probe.join(0.2 if time.monotonic() - begin < 5 else 2.0)
        now = time.monotonic()
        if probe.done:
            break
        try:
            marks = fingerprint(parse_metrics(api.get("/metrics", 5)))
        except (OSError, ValueError):
            marks = None
        seen.append((now, marks))
        if hangs(seen, told.hang_s):
            return restart(
                told,
                f"The engine hangs: a completion of one token was asked for {now - begin:.0f} s ago, and for"
                f" {told.hang_s:.0f} s no counter of the engine moved",
            )
    seconds = time.monotonic() - begin
    if properties(ENGINE, "InvocationID").get("InvocationID") != invocation:
        say("the engine was started anew meanwhile")
        return 0
    bad = int((stored("watch.json") or {}).get("bad", 0)) + 1 if probe.problem else 0
    store("watch.json", {"when": time.time(), "seconds": round(seconds, 2), "problem": probe.problem, "bad": bad})
    say(f"a completion took {seconds:.2f} s" if not probe.problem else f"a completion failed: {probe.problem}")
    # Once may be chance, as a request that was refused while the engine drained.
    if bad >= 2:
        store("watch.json", {"when": time.time(), "seconds": round(seconds, 2), "problem": probe.problem, "bad": 0})
        return restart(told, f"Two completions in a row failed, the last with {probe.problem}")
    return 0


COMMANDS = {"prepare": prepare, "ended": ended, "down": down, "watch": watch, "diagnose": diagnose}


def main(arguments: t.Sequence[str]) -> int:
    """Entry point."""
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        sys.stderr.write(f"usage: sparkrig-watch {'|'.join(COMMANDS)}\n")
        return 2
    return COMMANDS[arguments[0]]()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
