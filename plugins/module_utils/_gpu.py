# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What ``nvidia-smi -q -x`` says, and what it means when it says something else: texts in, values out, no I/O.

Its exit code cannot be trusted alone: "No devices were found" comes with 6 and with 0, and a process that may not
open the device files gets the same words as a machine without a GPU.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import asdict, dataclass
from xml.etree import ElementTree

# Reasons that hold no clock back against the owner's will.
_HARMLESS = ("gpu_idle", "applications_clocks_setting", "display_clocks_setting", "sync_boost")
# A healthy GB10 runs at 2300 to 2500 MHz under load, a stuck one at about 660.
MINIMUM_CLOCK_MHZ = 1500
_NO_DEVICE = "No devices were found"
_BLOCKED = "GPU access blocked by the operating system"
_MISMATCH = "Driver/library version mismatch"
_UNKNOWN = "Unknown Error"


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses a GPU, as the driver sees it."""

    pid: int
    kind: str  # C compute, G graphics, C+G both
    name: str
    used_bytes: int | None


@dataclass(frozen=True)
class Gpu:
    """One GPU. None where the GPU or the driver does not tell, as a GB10 does with memory and power limit."""

    index: int
    bus_id: str
    uuid: str
    name: str
    persistence_mode: bool | None
    performance_state: str
    temperature_c: int | None
    utilization_percent: int | None
    sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    power_watts: float | None
    power_limit_watts: float | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    event_reasons: tuple[str, ...]  # every reason that is active
    throttle_reasons: tuple[str, ...]  # those that hold the clocks down
    throttle_counters_us: t.Mapping[str, int]
    processes: tuple[GpuProcess, ...]


@dataclass(frozen=True)
class Answer:
    """What the driver answered. Status: ok, no_gpu, no_driver, blocked, mismatch or error."""

    status: str
    sentence: str
    driver_version: str = ""
    cuda_version: str = ""
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One reading under load."""

    sm_clock_mhz: int
    power_watts: float | None
    temperature_c: int | None
    throttle_reasons: tuple[str, ...]


def _number(text: str | None) -> float | None:
    """The number at the beginning of *text*; None for N/A, "[N/A]", "Not Supported" and the like."""
    match = re.match(r"\s*(-?\d+(?:\.\d+)?)", text or "")
    return float(match.group(1)) if match else None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _bytes(text: str | None) -> int | None:
    """A size in the unit that the text names, MiB if it names none."""
    number = _number(text)
    if number is None:
        return None
    scale = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    unit = re.search(r"[KMG]iB", text or "")
    return int(number * scale[unit.group(0) if unit else "MiB"])


def _reasons(element: ElementTree.Element) -> tuple[str, ...]:
    """The active reasons; drivers before 535 call them clocks_throttle_reasons."""
    found = []
    for group in ("clocks_event_reasons", "clocks_throttle_reasons"):
        for reason in element.find(group) if element.find(group) is not None else ():  # type: ignore[union-attr]
            name = re.sub(r"^clocks_(event|throttle)_reasons?_", "", reason.tag)
            if (reason.text or "").strip() == "Active" and name not in found:
                found.append(name)
    return tuple(found)


def _counters(element: ElementTree.Element) -> dict[str, int]:
    counters = {}
    for counter in element.iter():
        match = re.fullmatch(r"clocks_event_reasons_counters_(.+)", counter.tag)
        value = _whole(counter.text)
        if match and value is not None:
            counters[match.group(1)] = value
    return counters


def _first(element: ElementTree.Element, *paths: str) -> float | None:
    """The number at the first of the paths that has one: the names changed from driver to driver."""
    for path in paths:
        number = _number(element.findtext(path))
        if number is not None:
            return number
    return None


def _processes(element: ElementTree.Element) -> tuple[GpuProcess, ...]:
    found = []
    for one in element.findall("processes/process_info"):
        pid = _whole(one.findtext("pid"))
        if pid is not None:
            name = (one.findtext("process_name") or "").strip()
            kind = (one.findtext("type") or "").strip()
            found.append(GpuProcess(pid, kind, name, _bytes(one.findtext("used_memory"))))
    return tuple(sorted(found, key=lambda process: process.pid))


def _gpu(index: int, element: ElementTree.Element) -> Gpu:
    reasons = _reasons(element)
    clock, top = _first(element, "clocks/sm_clock"), _first(element, "max_clocks/sm_clock")
    persistence = (element.findtext("persistence_mode") or "").strip()
    return Gpu(
        index=index,
        bus_id=element.get("id", ""),
        uuid=(element.findtext("uuid") or "").strip(),
        name=(element.findtext("product_name") or "").strip(),
        persistence_mode={"Enabled": True, "Disabled": False}.get(persistence),
        performance_state=(element.findtext("performance_state") or "").strip(),
        temperature_c=_whole(element.findtext("temperature/gpu_temp")),
        utilization_percent=_whole(element.findtext("utilization/gpu_util")),
        sm_clock_mhz=None if clock is None else int(clock),
        max_sm_clock_mhz=None if top is None else int(top),
        power_watts=_first(
            element,
            "gpu_power_readings/instant_power_draw",
            "gpu_power_readings/average_power_draw",
            "gpu_power_readings/power_draw",
            "power_readings/power_draw",
        ),
        power_limit_watts=_first(
            element,
            "gpu_power_readings/current_power_limit",
            "gpu_power_readings/power_limit",
            "power_readings/power_limit",
        ),
        memory_total_bytes=_bytes(element.findtext("fb_memory_usage/total")),
        memory_used_bytes=_bytes(element.findtext("fb_memory_usage/used")),
        event_reasons=reasons,
        throttle_reasons=tuple(reason for reason in reasons if reason not in _HARMLESS),
        throttle_counters_us=_counters(element),
        processes=_processes(element),
    )


def missing_tool(pci_gpus: int) -> Answer:
    """The answer for a node without ``nvidia-smi``."""
    if not pci_gpus:
        return Answer("no_gpu", "no GPU: PCI has none of NVIDIA's and nvidia-smi is not installed.")
    return Answer(
        "no_driver",
        f"PCI has {pci_gpus} NVIDIA GPU{'s' if pci_gpus > 1 else ''}, but nvidia-smi is not installed. Install the "
        "NVIDIA driver and its utilities.",
    )


def _no_gpu(words: str, pci_gpus: int) -> Answer:
    if not pci_gpus:
        return Answer("no_gpu", f"no GPU: nvidia-smi says '{words}', and PCI has none of NVIDIA's.")
    return Answer(
        "blocked",
        f"nvidia-smi says '{words}', but PCI has {pci_gpus} NVIDIA GPU{'s' if pci_gpus > 1 else ''}: this process may "
        "not open /dev/nvidia* (a restricted control group of sshd does that), or the driver lost the GPU. Compare "
        "with `nvidia-smi` at the console, and see `dmesg | grep -i nvrm`.",
    )


def answer(rc: int, out: str, err: str, pci_gpus: int) -> Answer:
    """What ``nvidia-smi -q -x`` answered. *pci_gpus* is how many GPUs of NVIDIA's the PCI bus has."""
    words = " ".join((out.strip() + " " + err.strip()).split())
    is_xml = "<nvidia_smi_log" in out
    if _NO_DEVICE in words and not is_xml:
        # With rc 6, and with rc 0 as well.
        return _no_gpu(_NO_DEVICE, pci_gpus)
    if _BLOCKED in words:
        return _no_gpu(_BLOCKED, max(1, pci_gpus))
    if _MISMATCH in words:
        return Answer(
            "mismatch",
            f"nvidia-smi says '{_MISMATCH}': the driver was updated under the running one. Reboot this node.",
        )
    if rc == 0 and is_xml:
        try:
            root = ElementTree.fromstring(out[out.index("<nvidia_smi_log") :])
        except ElementTree.ParseError as error:
            return Answer("error", f"nvidia-smi -q -x wrote broken XML ({error}). Run it by hand to see it.")
        gpus = tuple(_gpu(index, element) for index, element in enumerate(root.findall("gpu")))
        if not gpus:
            return _no_gpu("0 attached GPUs", pci_gpus)
        driver = (root.findtext("driver_version") or "").strip()
        names = ", ".join(gpu.name for gpu in gpus)
        return Answer("ok", f"{names}, driver {driver}.", driver, (root.findtext("cuda_version") or "").strip(), gpus)
    if rc == 9 or "couldn't communicate with the NVIDIA driver" in words:
        return Answer(
            "no_driver",
            "nvidia-smi cannot reach the NVIDIA driver (exit 9): it is not loaded. See `modprobe nvidia` and `dmesg`; "
            "after a kernel update the driver may lack for the new kernel.",
        )
    if _UNKNOWN in words:
        return _no_gpu(words[:120], max(1, pci_gpus))
    return Answer(
        "error", f"nvidia-smi -q -x ended with {rc} and said '{words[:200] or 'nothing'}'. Run it by hand on the node."
    )


def sample(gpu: Gpu) -> Sample | None:
    """What counts of a reading under load; None when the GPU tells no clock."""
    if gpu.sm_clock_mhz is None:
        return None
    return Sample(gpu.sm_clock_mhz, gpu.power_watts, gpu.temperature_c, gpu.throttle_reasons)


def _median(numbers: t.Sequence[float]) -> float:
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def summarize(samples: t.Sequence[Sample], seconds: float) -> dict[str, t.Any]:
    """A load in numbers and one sentence. ValueError without a sample."""
    if not samples:
        raise ValueError("the GPU told no clock under load")
    clocks = [one.sm_clock_mhz for one in samples]
    watts = [one.power_watts for one in samples if one.power_watts is not None]
    degrees = [one.temperature_c for one in samples if one.temperature_c is not None]
    reasons = sorted({reason for one in samples for reason in one.throttle_reasons})
    median_watts = _median(watts) if watts else None
    power = "" if median_watts is None else f" at {median_watts:.0f} W"
    held = f"; held down by {', '.join(reasons)}" if reasons else ""
    return {
        "seconds": round(seconds, 2),
        "samples": len(samples),
        "sm_clock_mhz": {"min": min(clocks), "median": int(_median(clocks)), "max": max(clocks)},
        "power_watts": median_watts,
        "temperature_c": max(degrees) if degrees else None,
        "throttle_reasons": reasons,
        "sentence": f"{int(_median(clocks))} MHz{power} under {seconds:.1f} s of load{held}.",
    }


@dataclass(frozen=True)
class Leftover:
    """A compute process that is not the rig's: it holds memory that a rank needs."""

    pid: int
    name: str
    used_bytes: int | None
    unit: str
    sentence: str


def leftovers(
    gpus: t.Iterable[Gpu], rig_units: t.Sequence[str], owner: t.Callable[[int], str | None]
) -> tuple[Leftover, ...]:
    """The compute processes that do not belong to the rig's units.

    *owner* tells a process's unit ("" for none), or None when there is no such process here: then it runs in
    another container, or it has died and the driver still holds its memory.
    """
    found: dict[int, Leftover] = {}
    for gpu in gpus:
        for process in gpu.processes:
            if "C" not in process.kind or process.pid in found:
                continue
            unit = owner(process.pid)
            if unit is not None and unit in rig_units:
                continue
            size = "" if process.used_bytes is None else f" and holds {process.used_bytes / 2**30:.2f} GiB"
            if unit is None:
                where = (
                    "has no process here any more: it runs in a container, or it died and the driver kept its memory. "
                    "Stop its container; if there is none, reboot this node."
                )
            else:
                where = f"runs{' in ' + unit if unit else ' outside of any unit'}. " + (
                    f"Stop {unit}." if unit.endswith(".service") else f"End it as root: `kill {process.pid}`."
                )
            text = f"{process.name or 'a process'} (pid {process.pid}) uses the GPU{size}; it {where}"
            found[process.pid] = Leftover(process.pid, process.name, process.used_bytes, unit or "", text)
    return tuple(found[pid] for pid in sorted(found))


def stuck(load: t.Mapping[str, t.Any], minimum_mhz: int) -> str:
    """A sentence when the clocks under load are lower than a healthy GPU's, else an empty string."""
    median = int(load["sm_clock_mhz"]["median"])
    if median >= minimum_mhz:
        return ""
    power = "" if load["power_watts"] is None else f" at {load['power_watts']:.0f} W"
    return (
        f"The GPU runs at {median} MHz{power} under load; at least {minimum_mhz} MHz are expected. On a GB10 that is "
        "stuck so, only a cold start helps: shut down, unplug the power for 30 s, start again."
    )


def to_dict(gpu: Gpu) -> dict[str, t.Any]:
    """A GPU as a module returns it."""
    found = asdict(gpu)
    found["throttle_counters_us"] = dict(gpu.throttle_counters_us)
    for name in ("event_reasons", "throttle_reasons", "processes"):
        found[name] = list(found[name])
    found["unified_memory"] = gpu.memory_total_bytes is None
    return found


def cell(gpus: t.Sequence[Gpu]) -> str:
    """The first GPU's load, temperature, power and clock in a few words; what it cannot tell is left out."""
    for gpu in gpus:
        values = (gpu.utilization_percent, gpu.temperature_c, gpu.power_watts, gpu.sm_clock_mhz)
        units = ("%", " C", " W", " MHz")
        return " ".join(f"{value:g}{unit}" for value, unit in zip(values, units) if value is not None)
    return ""
