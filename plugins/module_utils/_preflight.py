# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that would make a launch fail later: what all nodes are and what is to be served in, findings out.

Private to the collection. Nothing here reads a file: the facts are what module ``node_info`` returns as ``node``,
the ``details`` of it included where there are any.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.sparkrig.serving.plugins.module_utils._gpu import MINIMUM_CLOCK_MHZ
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import Holder, may_take
from ansible_collections.sparkrig.serving.plugins.module_utils._node import PYTHON_MINIMUM, gib
from ansible_collections.sparkrig.serving.plugins.module_utils._preflight_facts import SAME_PACKAGES

SEVERITIES = ("error", "warning", "info")

Facts = t.Mapping[str, t.Any]


@dataclass(frozen=True)
class Finding:
    """One thing that was found. *node* is empty for what concerns all of them."""

    id: str
    severity: str
    node: str
    seen: str
    needed: str
    fix: str

    @property
    def sentence(self) -> str:
        """All of it in one line."""
        needed = f" Needed: {self.needed.rstrip('.')}." if self.needed else ""
        return f"{self.node + ': ' if self.node else ''}{self.seen.rstrip('.')}.{needed} {self.fix} ({self.id})"


@dataclass(frozen=True)
class Rule:
    """A version that is known to work or not to. *pattern* matches from the beginning."""

    pattern: str
    allowed: bool
    why: str = ""


# The first rule that matches counts. What matches none has not been seen by anybody of us.
DRIVERS = (
    Rule(r"580\.", True),
    Rule(r"590\.", False, "it deadlocks while CUDA graphs are captured, and keeps about 80 GB of unified memory"),
)
KERNELS = (
    Rule(r"7\.0\.0-1019\b", False, "registering memory for RDMA fails on it (ibv_reg_mr)"),
    Rule(r"6\.17\.0-10\d\d-nvidia", True),
)
DGX_RELEASES = (Rule(r"7\.[2-5](\.|$)", True),)
SKEW_WARNING_S = 2.0
SKEW_ERROR_S = 60.0
# Services are still starting that long after the boot.
SETTLE_S = 120
LONG_S = 90 * 86400
# What earlyoom may be set to: at its defaults it killed healthy launches while CUDA graphs were captured.
EARLYOOM_TERM_PERCENT = 2.0
EARLYOOM_KILL_PERCENT = 1.0
PAGE_CACHE_BYTES = 2**30
SWAP_NEEDED_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Node:
    """One node; *unreachable* holds the reason when it was not reached, and *facts* what it is otherwise.

    *checkpoint* is what is wrong with the checkpoint there.
    """

    name: str
    address: str
    unreachable: str = ""
    facts: Facts = field(default_factory=dict)
    checkpoint: str = ""

    @property
    def details(self) -> Facts:
        """What only a full look tells."""
        return t.cast("Facts", self.facts.get("details") or {})


@dataclass(frozen=True)
class Plan:
    """What is to be served, as far as the nodes are concerned. Sizes in bytes.

    *needed_bytes* holds what each rank needs, in the order of the nodes; empty when nobody has planned yet.
    """

    node_count: int
    memory_total_bytes: int
    disk_free_bytes: int
    device: str = "cpu"
    architecture: str = ""
    needed_bytes: tuple[int, ...] = ()
    refusal: str = ""
    holder: Holder | None = None
    alive: tuple[str, ...] | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether GPUs are needed."""
        return self.device == "cuda"


def _verdict(text: str, rules: t.Sequence[Rule]) -> Rule | None:
    return next((rule for rule in rules if re.match(rule.pattern, text)), None)


def _odd_ones(
    nodes: t.Sequence[Node], name: str, what: str, values: t.Sequence[str], fix: str, severity: str = "error"
) -> list[Finding]:
    """A finding for each node whose value (*values* has one per node) is not the most common one."""
    if len(set(values)) <= 1:
        return []
    common = max(set(values), key=lambda value: (values.count(value), value))
    return [
        Finding(name, severity, node.name, f"{what} {value or 'none'}", f"{common or 'none'}, as on the others", fix)
        for node, value in zip(nodes, values)
        if value != common
    ]


def inventory_findings(nodes: t.Sequence[Node], plan: Plan, rails: t.Sequence[str] = ()) -> list[Finding]:
    """What is wrong with the inventory itself; *rails* are sentences on its rails."""
    found = []
    if len(nodes) != plan.node_count:
        found.append(
            Finding(
                "inventory.count",
                "error",
                "",
                f"The inventory has {len(nodes)} nodes ({', '.join(node.name for node in nodes)})",
                f"{plan.node_count}, because the profile has {plan.node_count} ranks, one GPU each",
                f"Correct the inventory's group, or choose a profile for {len(nodes)} nodes.",
            )
        )
    seen: dict[str, str] = {}
    for node in nodes:
        if node.address in seen:
            both = f"{seen[node.address]} and {node.name} have the same ansible_host {node.address}"
            found.append(
                Finding("inventory.address", "error", "", both, "one address for each node", "Correct the inventory.")
            )
        seen.setdefault(node.address, node.name)
    return found + [Finding("inventory.rails", "error", "", rail, "", "Correct the inventory.") for rail in rails]


def _unreachable(node: Node, count: int) -> Finding:
    return Finding(
        "node.unreachable",
        "error",
        node.name,
        f"{node.name} ({node.address}) was not reached: {node.unreachable.rstrip('.')}",
        f"all {count} nodes, because each holds a part of the model",
        f"Check its power, its cable and `ssh {node.address}`.",
    )


def _basics(node: Node, plan: Plan) -> list[Finding]:
    """Platform, memory and disk of one node."""
    found = []
    name, facts = node.name, node.facts
    python = tuple(int(part) for part in re.findall(r"\d+", str(facts["python_version"]))[:2])
    if python < PYTHON_MINIMUM:
        needed = ".".join(str(part) for part in PYTHON_MINIMUM) + " or newer"
        found.append(
            Finding(
                "node.python",
                "error",
                name,
                f"Python {facts['python_version']}",
                needed,
                "Install a newer python3 there.",
            )
        )
    if plan.architecture and facts["architecture"] != plan.architecture:
        found.append(
            Finding(
                "node.architecture",
                "error",
                name,
                f"The processor is {facts['architecture']}",
                f"{plan.architecture}, for which the profile's runtime is built",
                "Choose a profile for these nodes.",
            )
        )
    if facts["memory_total_bytes"] < plan.memory_total_bytes:
        found.append(
            Finding(
                "memory.total",
                "error",
                name,
                f"{gib(facts['memory_total_bytes'])} of memory",
                f"{gib(plan.memory_total_bytes)} on every node",
                "Choose a smaller profile, or another node.",
            )
        )
    if facts["disk_free_bytes"] < plan.disk_free_bytes:
        found.append(
            Finding(
                "disk.free",
                "error",
                name,
                f"{gib(facts['disk_free_bytes'])} free for /opt/sparkrig and /var/lib/sparkrig",
                gib(plan.disk_free_bytes),
                "Free some disk there.",
            )
        )
    if node.checkpoint:
        found.append(Finding("checkpoint", "error", name, node.checkpoint, "", "Nothing can be loaded until then."))
    return found


def _versions(node: Node, plan: Plan) -> list[Finding]:
    """Operating system, kernel and driver of one node against what is known."""
    found = []
    details = node.details
    kernel = str(details.get("kernel", ""))
    checks: list[tuple[str, str, t.Sequence[Rule], str]] = []
    checks.append(("kernel", kernel, KERNELS, "Boot another kernel, and hold its package."))
    driver = str(details.get("gpu", {}).get("driver_version", ""))
    if driver:
        checks.append(("driver", driver, DRIVERS, "Install driver 580, and hold its packages."))
    dgx = str(details.get("dgx_os", ""))
    if plan.on_gpu or dgx:
        system = dgx or str(node.facts["distribution"])
        checks.append(("os", system, DGX_RELEASES, "Update to DGX OS 7.2 to 7.5, or accept it: preflight_accept."))
    for kind, version, rules, fix in checks:
        rule = _verdict(version, rules)
        allowed = next(rule for rule in rules if rule.allowed)
        title = {"kernel": "Kernel", "driver": "Driver", "os": "Operating system"}[kind]
        if rule is not None and not rule.allowed:
            found.append(
                Finding(f"{kind}.denied", "error", node.name, f"{title} {version}: {rule.why}", "another one", fix)
            )
        elif rule is None and plan.on_gpu:
            known = allowed.pattern.replace("\\", "").replace("(.|$)", "").replace("dd", "xx")
            found.append(
                Finding(
                    f"{kind}.unknown",
                    "warning",
                    node.name,
                    f"{title} {version or 'that tells no version'}, with which nobody has reported success",
                    f"one like {known}",
                    fix,
                )
            )
    next_kernel = details.get("next_kernel") or {}
    if next_kernel and not next_kernel["has_driver"]:
        found.append(
            Finding(
                "kernel.next_without_driver",
                "warning",
                node.name,
                f"The next boot takes kernel {next_kernel['release']}, which has no module nvidia",
                "the driver for that kernel",
                f"Install its driver modules before any reboot; `modinfo -k {next_kernel['release']} nvidia` tells.",
            )
        )
    return found


def _gpu(node: Node, plan: Plan) -> list[Finding]:
    """The GPU of one node, and who uses it."""
    found = []
    gpu = node.details.get("gpu")
    if not gpu:
        return []
    if plan.on_gpu and gpu["status"] != "ok":
        found.append(
            Finding("gpu.missing", "error", node.name, gpu["sentence"], "a GPU that answers", "See nvidia-smi there.")
        )
    for one in gpu["gpus"]:
        load = one.get("load")
        stuck = one.get("stuck", "")
        if stuck:
            found.append(
                Finding(
                    "gpu.clock",
                    "error",
                    node.name,
                    stuck,
                    f"{MINIMUM_CLOCK_MHZ} MHz under load",
                    "Shut down, unplug the power for 30 s, start again.",
                )
            )
        elif load and load["throttle_reasons"]:
            found.append(
                Finding(
                    "gpu.throttled",
                    "warning",
                    node.name,
                    load["sentence"],
                    "clocks that nothing holds down",
                    "See its power supply and cooling.",
                )
            )
        elif one.get("load_skipped"):
            found.append(
                Finding(
                    "gpu.clock_unknown",
                    "info",
                    node.name,
                    f"The clocks were not tried: {one['load_skipped']}",
                    "",
                    "An idle clock proves nothing.",
                )
            )
    for left in gpu["leftovers"]:
        found.append(
            Finding(
                "gpu.leftover",
                "error",
                node.name,
                left["sentence"],
                "a GPU that nobody uses",
                "End it; a launch beside it would run out of memory.",
            )
        )
    return found


def _tenants(node: Node, plan: Plan, now: float) -> list[Finding]:
    """Who else is on the node: processes of an earlier launch, containers, another launch."""
    found = []
    left = node.details.get("leftovers") or []
    if left:
        found.append(
            Finding(
                "process.leftover",
                "warning",
                node.name,
                f"{len(left)} processes of an earlier launch run outside of every unit: {', '.join(left[:5])}",
                "none",
                "`site` ends them before it starts anything; so does `kill` as root.",
            )
        )
    containers = node.details.get("containers") or []
    if containers:
        names = [f"{one['name'] or one['id'][:12]} ({one['engine']}, {gib(one['held_bytes'])})" for one in containers]
        found.append(
            Finding(
                "container.running",
                "warning",
                node.name,
                f"{len(names)} containers run: {', '.join(names[:5])}",
                "none beside the model, which fills the memory",
                "Stop them if they are left over.",
            )
        )
    lock = node.details.get("lock")
    if lock:
        try:
            present: Holder | None = Holder(**lock)
        except TypeError:
            present = None
        wanted = plan.holder or Holder("", "", "", "")
        taken, why = may_take(present, wanted, plan.alive, now)
        if not taken:
            found.append(
                Finding(
                    "launch.locked",
                    "error",
                    node.name,
                    why,
                    "one launch at a time",
                    "Wait until it is done, or end it.",
                )
            )
    return found


def _memory(node: Node, plan: Plan, rank: int) -> list[Finding]:
    """Memory, swap, page cache and earlyoom of one node."""
    found = []
    details, name = node.details, node.name
    held = details.get("memory")
    if not held:
        return []
    prunable = int(details.get("prunable_bytes", 0))
    have = int(node.facts["memory_for_launch_bytes"]) + prunable
    served = bool(node.facts.get("serving_plan_sha256"))
    if rank < len(plan.needed_bytes) and not served and have < plan.needed_bytes[rank]:
        found.append(
            Finding(
                "memory.fit",
                "error",
                name,
                f"A launch could have {gib(have)}, the {gib(prunable)} counted that pruning gives back",
                f"{gib(plan.needed_bytes[rank])} for rank {rank}: weights, KV cache, overhead and reserve",
                "End what else holds memory there, or plan a smaller KV cache (kv_cache_memory_bytes, max_model_len).",
            )
        )
    swap_total, swap_used = int(held["swap_total_bytes"]), int(held["swap_used_bytes"])
    if plan.on_gpu and swap_total < SWAP_NEEDED_BYTES:
        found.append(
            Finding(
                "swap.small",
                "warning",
                name,
                f"{gib(swap_total)} of swap",
                f"{gib(SWAP_NEEDED_BYTES)} or more: a rank that serves has a gigabyte or two of itself swapped out",
                "Make a swap file.",
            )
        )
    if swap_used >= 64 * 2**20:
        found.append(
            Finding("swap.used", "info", name, f"{gib(swap_used)} are swapped out", "", "Drained before a launch.")
        )
    if int(held["page_cache_bytes"]) >= PAGE_CACHE_BYTES:
        counts = ", which CUDA counts as used on unified memory" if held["gpu_memory"] == "unified" else ""
        cache = f"{gib(held['page_cache_bytes'])} of page cache{counts}"
        found.append(Finding("page_cache", "info", name, cache, "", "Dropped right before a launch."))
    guard = details.get("earlyoom") or {}
    too_high = guard and (
        guard["term_percent"] > EARLYOOM_TERM_PERCENT or guard["kill_percent"] > EARLYOOM_KILL_PERCENT
    )
    if too_high:
        found.append(
            Finding(
                "earlyoom.thresholds",
                "warning",
                name,
                f"earlyoom ends processes below {guard['term_percent']:g} % of memory"
                f" and kills them below {guard['kill_percent']:g} %",
                f"at most {EARLYOOM_TERM_PERCENT:g} % and {EARLYOOM_KILL_PERCENT:g} %; its defaults end a launch",
                "Role os_prune sets it; or set it in /etc/default/earlyoom.",
            )
        )
    return found


def _running(node: Node) -> list[Finding]:
    """Boot, clock, peers, rights and the units that would be pruned."""
    found = []
    details, name = node.details, node.name
    if not details:
        return []
    uptime_s = float(details["uptime_s"])
    if uptime_s < SETTLE_S:
        found.append(
            Finding(
                "boot.recent",
                "warning",
                name,
                f"It booted {uptime_s:.0f} s ago",
                f"{SETTLE_S} s, by when services have settled",
                "Wait a little; after a warm reboot see that both ports of the network card are there.",
            )
        )
    elif uptime_s > LONG_S:
        found.append(Finding("boot.long", "info", name, f"It booted {uptime_s / 86400:.0f} days ago", "", "No need."))
    reboot = details.get("reboot") or {}
    if reboot.get("required"):
        why = f" for {', '.join(reboot['packages'][:5])}" if reboot["packages"] else ""
        found.append(
            Finding(
                "reboot.pending",
                "warning",
                name,
                f"A reboot is pending{why}",
                "none, or a running kernel and driver may not fit what is installed",
                "Reboot at a time of your own choice, one node at a time.",
            )
        )
    if details.get("clock_synchronized") is False:
        found.append(
            Finding("clock.free", "info", name, "No time service keeps the clock", "", "Skew is looked at by itself.")
        )
    silent = {peer: why for peer, why in (details.get("peers") or {}).items() if why}
    if silent:
        reasons = ", ".join(f"{peer} ({why})" for peer, why in sorted(silent.items()))
        found.append(
            Finding(
                "ssh.peers",
                "warning",
                name,
                f"The SSH server of {reasons} does not answer from here",
                "every node reaches every other, to copy runtime and weights between them",
                "See its address and its firewall.",
            )
        )
    units = details.get("prunable_units") or []
    if units:
        freed = f", which hold {gib(details.get('prunable_bytes', 0))}" if details.get("prunable_bytes") else ""
        more = f" and {len(units) - 6} more" if len(units) > 6 else ""
        listed = f"{len(units)} units would be pruned{freed}: {', '.join(units[:6])}{more}"
        found.append(Finding("units.prunable", "info", name, listed, "", "Role os_prune does it, and can undo it."))
    if not details.get("privileged", True):
        found.append(
            Finding(
                "node.unprivileged",
                "info",
                name,
                "Looked at without root: memory of other users' processes and names of containers were not seen",
                "",
                "Set ansible_become for the whole picture.",
            )
        )
    return found


def skew_findings(nodes: t.Sequence[Node]) -> list[Finding]:
    """Clocks that are provably apart. Each node has the bounds between which its clock is off the controller's."""
    bounds = {
        node.name: (float(node.facts["clock"]["least_s"]), float(node.facts["clock"]["most_s"]))
        for node in nodes
        if node.facts.get("clock")
    }
    if not bounds:
        return []
    # The smallest interval that most nodes agree with: the median of the middles is in it.
    middles = sorted((least + most) / 2 for least, most in bounds.values())
    centre = middles[len(middles) // 2]
    found = []
    for name, (least, most) in bounds.items():
        apart = max(least - centre, centre - most, 0.0)
        if apart < SKEW_WARNING_S:
            continue
        side = "ahead of" if least > centre else "behind"
        found.append(
            Finding(
                "clock.skew",
                "error" if apart >= SKEW_ERROR_S else "warning",
                name,
                f"Its clock is at least {apart:.1f} s {side} that of the others",
                f"less than {SKEW_WARNING_S:g} s",
                "See `timedatectl` there: let systemd-timesyncd or chrony keep it.",
            )
        )
    return found


def _same_everywhere(nodes: t.Sequence[Node], plan: Plan) -> list[Finding]:
    """What all nodes must have in common."""
    fix = "One runtime is built for all of them: bring them to the same state first."
    found = []
    if not plan.architecture:
        processors = [str(node.facts["architecture"]) for node in nodes]
        found += _odd_ones(nodes, "node.architecture", "The processor is", processors, fix)
    systems = [str(node.facts["distribution"]) for node in nodes]
    found += _odd_ones(nodes, "os.mixed", "The operating system is", systems, fix)
    minors = [".".join(str(node.facts["python_version"]).split(".")[:2]) for node in nodes]
    found += _odd_ones(nodes, "python.mixed", "Python is", minors, fix)
    full = [node for node in nodes if node.details]
    same = "Ranks of one model must run the same: install the same version everywhere."
    values: dict[tuple[str, str], list[str]] = {
        ("kernel.mixed", "The kernel is"): [str(node.details["kernel"]) for node in full],
        ("driver.mixed", "The driver is"): [str(node.details["gpu"]["driver_version"]) for node in full],
        ("cuda.mixed", "The driver's CUDA is"): [str(node.details["gpu"]["cuda_version"]) for node in full],
    }
    for package, title in SAME_PACKAGES.items():
        values["toolkit.mixed", f"The {title} is"] = [str(node.details["packages"].get(package, "")) for node in full]
    for (name, what), seen in values.items():
        found += _odd_ones(full, name, what, seen, same)
    hostnames = [str(node.facts["hostname"]) for node in nodes]
    for hostname in sorted(name for name in set(hostnames) if hostnames.count(name) > 1):
        twins = " and ".join(node.name for node in nodes if node.facts["hostname"] == hostname)
        found.append(
            Finding(
                "node.hostname",
                "error",
                "",
                f"{twins} have the same host name '{hostname}'",
                "one for each, because the ranks tell nodes apart by it",
                "Give each its own with `hostnamectl hostname`.",
            )
        )
    return found


def judge(nodes: t.Sequence[Node], plan: Plan, rails: t.Sequence[str] = (), now: float = 0.0) -> tuple[Finding, ...]:
    """Everything that was found, errors first, in the order of the nodes."""
    found = inventory_findings(nodes, plan, rails)
    found += [_unreachable(node, len(nodes)) for node in nodes if node.unreachable]
    reached = [node for node in nodes if not node.unreachable]
    for rank, node in enumerate(nodes):
        if node.unreachable:
            continue
        found += _basics(node, plan)
        found += _versions(node, plan)
        found += _gpu(node, plan)
        found += _tenants(node, plan, now)
        found += _memory(node, plan, rank)
        found += _running(node)
    found += _same_everywhere(reached, plan)
    found += skew_findings(reached)
    if plan.refusal:
        fix = "Change the profile, or the nodes; `sparkrig.serving.fit` lists what fits."
        found.append(Finding("plan.refused", "error", "", plan.refusal, "", fix))
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def accept(found: t.Sequence[Finding], accepted: t.Collection[str]) -> tuple[Finding, ...]:
    """The findings with those that the owner accepts as nothing but information.

    ValueError for an id that no finding ever has.
    """
    unknown = sorted(set(accepted) - set(IDS))
    if unknown:
        raise ValueError(f"preflight_accept names {', '.join(unknown)}; the ids are {', '.join(IDS)}")
    softened = (
        replace(finding, severity="info", fix=f"Accepted by preflight_accept. {finding.fix}")
        if finding.id in accepted and finding.severity != "info"
        else finding
        for finding in found
    )
    return tuple(sorted(softened, key=lambda finding: SEVERITIES.index(finding.severity)))


# Every id that a finding can have. They are stable: automation may rely on them.
IDS = (
    "boot.long",
    "boot.recent",
    "checkpoint",
    "clock.free",
    "clock.skew",
    "container.running",
    "cuda.mixed",
    "disk.free",
    "driver.denied",
    "driver.mixed",
    "driver.unknown",
    "earlyoom.thresholds",
    "gpu.clock",
    "gpu.clock_unknown",
    "gpu.leftover",
    "gpu.missing",
    "gpu.throttled",
    "inventory.address",
    "inventory.count",
    "inventory.rails",
    "kernel.denied",
    "kernel.mixed",
    "kernel.next_without_driver",
    "kernel.unknown",
    "launch.locked",
    "memory.fit",
    "memory.total",
    "node.architecture",
    "node.hostname",
    "node.python",
    "node.unprivileged",
    "node.unreachable",
    "os.denied",
    "os.mixed",
    "os.unknown",
    "page_cache",
    "plan.refused",
    "process.leftover",
    "python.mixed",
    "reboot.pending",
    "ssh.peers",
    "swap.small",
    "swap.used",
    "toolkit.mixed",
    "units.prunable",
)


def status(found: t.Sequence[Finding]) -> str:
    """ok, warnings or errors."""
    worst = {finding.severity for finding in found}
    return "errors" if "error" in worst else "warnings" if "warning" in worst else "ok"


def merged(found: t.Sequence[Finding]) -> tuple[Finding, ...]:
    """What is the same on several nodes, once, with all their names."""
    nodes: dict[Finding, list[str]] = {}
    for finding in found:
        nodes.setdefault(replace(finding, node=""), []).append(finding.node)
    return tuple(replace(finding, node=", ".join(name for name in names if name)) for finding, names in nodes.items())


def table(found: t.Sequence[Finding]) -> list[str]:
    """The lines that a person reads."""
    rows = merged(found)
    if not rows:
        return ["ok: nothing was found that would make a launch fail"]
    widths = [max(len(getattr(row, name)) for row in rows) for name in ("severity", "id", "node")]
    lines = []
    for row in rows:
        needed = f" (needed: {row.needed.rstrip('.')})" if row.needed else ""
        head = "  ".join(
            text.ljust(width) for text, width in zip((row.severity.upper(), row.id, row.node or "-"), widths)
        )
        lines.append(f"{head}  {row.seen.rstrip('.')}{needed}. {row.fix}".rstrip())
    counts = [sum(finding.severity == severity for finding in found) for severity in SEVERITIES]
    words = [f"{count} {word}" for count, word in zip(counts, ("errors", "warnings", "remarks"))]
    return [*lines, f"{status(found)}: {', '.join(words)}"]
