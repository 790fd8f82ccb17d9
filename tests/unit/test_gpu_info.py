# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gpu_info on what nvidia-smi really wrote, odd answers included."""

from __future__ import annotations

import ctypes
import json
import re
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _gpu, _gpu_load, _gpu_probe
from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_load import Load, LoadError
from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_probe import Smi
from ansible_collections.sparkrig.serving.plugins.modules import gpu_info

RECORDED = Path(__file__).parents[1] / "fixtures/gpu"
IDLE = (RECORDED / "h100_idle.xml").read_text()
BUSY = (RECORDED / "h100_load.xml").read_text()
GB10 = (RECORDED / "gb10.xml").read_text()
NO_DEVICES = (RECORDED / "no_devices.txt").read_text()
BLOCKED = (RECORDED / "blocked.txt").read_text()


class Fake:
    """nvidia-smi with its answers in a row, the last of them for ever; a PCI bus and a /proc."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[tuple[int, str, str]] = [(0, IDLE, "")]
        self.commands: list[list[str]] = []
        self.installed = True
        self.pci = folder / "sys/bus/pci/devices"
        self.proc = folder / "proc"
        self.pci.mkdir(parents=True)

    def smi(self) -> Smi:
        return Smi(self.run_command, "/usr/bin/nvidia-smi" if self.installed else None, str(self.pci.parents[3]))

    def gpus(self, count: int) -> None:
        for index in range(count):
            folder = self.pci / f"000f:0{index}:00.0"
            folder.mkdir()
            (folder / "vendor").write_text("0x10de\n")
            (folder / "class").write_text("0x030200\n")

    def process(self, pid: int, cgroup: str) -> None:
        (self.proc / str(pid)).mkdir(parents=True)
        (self.proc / str(pid) / "cgroup").write_text(cgroup)

    def run_command(self, argv: t.Sequence[str]) -> tuple[int, str, str]:
        self.commands.append(list(argv))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


class FakeLoad:
    """A load that lasts two readings."""

    started: t.ClassVar[list[tuple[int, float]]] = []

    def __init__(self, index: int, seconds: float) -> None:
        self.started.append((index, seconds))
        self.left = 2

    def __enter__(self) -> FakeLoad:
        return self

    def __exit__(self, *_what: object) -> None:
        pass

    def running(self) -> bool:
        self.left -= 1
        return self.left >= 0


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    fake = Fake(tmp_path)
    monkeypatch.setattr(gpu_info, "smi_of", lambda _module: fake.smi())
    monkeypatch.setattr(_gpu_probe, "SETTLE_S", 0)
    monkeypatch.setattr(_gpu_probe, "Load", FakeLoad)
    FakeLoad.started.clear()
    return fake


def run(capsys: pytest.CaptureFixture[str], **arguments: t.Any) -> dict[str, t.Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        gpu_info.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


def test_an_idle_gpu(node: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(capsys)
    assert node.commands == [["/usr/bin/nvidia-smi", "-q", "-x"]]
    assert result["changed"] is False
    assert result["status"] == "ok"
    assert result["sentence"] == "NVIDIA H100 80GB HBM3, driver 580.159.04."
    assert (result["driver_version"], result["cuda_version"], result["problems"]) == ("580.159.04", "13.0", [])
    (gpu,) = result["gpus"]
    seen = {
        "bus_id": "00000000:00:06.0",
        "persistence_mode": True,
        "performance_state": "P0",
        "sm_clock_mhz": 345,
        "max_sm_clock_mhz": 1980,
        "power_watts": 71.81,
        "power_limit_watts": 700.0,
        "memory_total_bytes": 81559 * 2**20,
        "memory_used_bytes": 0,
        "unified_memory": False,
        "event_reasons": ["gpu_idle"],
        "throttle_reasons": [],
        "processes": [],
        "load": None,
        "load_skipped": "",
    }
    assert {key: gpu[key] for key in seen} == seen
    assert gpu["throttle_counters_us"]["sw_power_cap"] == 0


def test_a_spark_tells_no_memory_and_no_limit(node: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers = [(0, GB10, "")]
    node.process(114687, "0::/system.slice/sparkrig-vllm.service\n")
    result = run(capsys)
    (gpu,) = result["gpus"]
    assert gpu["unified_memory"] is True
    assert (gpu["memory_total_bytes"], gpu["power_limit_watts"]) == (None, None)
    assert (gpu["sm_clock_mhz"], gpu["power_watts"], gpu["throttle_reasons"]) == (660, 17.02, ["sw_power_cap"])
    assert gpu["throttle_counters_us"] == {"sw_power_cap": 123456}
    assert result["leftovers"] == []


@pytest.mark.parametrize(
    ("cgroup", "sentence"),
    [
        (
            None,
            "/usr/local/bin/python (pid 114687) uses the GPU and holds 18.69 GiB; it has no process here any more: it "
            "runs in a container, or it died and the driver kept its memory. Stop its container; if there is none, "
            "reboot this node.",
        ),
        (
            "0::/system.slice/comfyui.service\n",
            "/usr/local/bin/python (pid 114687) uses the GPU and holds 18.69 GiB; it runs in comfyui.service. Stop "
            "comfyui.service.",
        ),
        (
            "4:memory:/x\n1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n0::/\n",
            "/usr/local/bin/python (pid 114687) uses the GPU and holds 18.69 GiB; it runs in session-3.scope. End it "
            "as root: `kill 114687`.",
        ),
        (
            "0::/\n",
            "/usr/local/bin/python (pid 114687) uses the GPU and holds 18.69 GiB; it runs outside of any unit. End it "
            "as root: `kill 114687`.",
        ),
    ],
)
def test_left_over_processes(node: Fake, capsys: pytest.CaptureFixture[str], cgroup: str | None, sentence: str) -> None:
    node.answers = [(0, GB10, "")]
    if cgroup is not None:
        node.process(114687, cgroup)
    result = run(capsys)
    assert [leftover["pid"] for leftover in result["leftovers"]] == [114687]
    assert result["problems"] == [sentence]


def test_the_clock_under_load(node: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers = [(0, IDLE, ""), (0, BUSY, "")]
    result = run(capsys, load_s=5)
    assert FakeLoad.started == [(0, 5.0)]
    assert len(node.commands) == 3
    assert result["gpus"][0]["load"] == {
        "seconds": 5.0,
        "samples": 2,
        "sm_clock_mhz": {"min": 1980, "median": 1980, "max": 1980},
        "power_watts": 338.41,
        "temperature_c": 47,
        "throttle_reasons": [],
        "sentence": "1980 MHz at 338 W under 5.0 s of load.",
    }
    assert result["problems"] == []


def test_a_stuck_clock(node: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    alone = re.sub(r"<process_info>.*</process_info>", "", GB10, flags=re.DOTALL)
    node.answers = [(0, alone, "")]
    result = run(capsys, load_s=5)
    assert result["gpus"][0]["load"]["sentence"] == "660 MHz at 17 W under 5.0 s of load; held down by sw_power_cap."
    assert result["problems"] == [
        "The GPU runs at 660 MHz at 17 W under load; at least 1500 MHz are expected. On a GB10 that is stuck so, only "
        "a cold start helps: shut down, unplug the power for 30 s, start again."
    ]
    assert run(capsys, load_s=5, minimum_clock_mhz=600)["problems"] == []


def test_no_load_beside_somebody_else(node: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    node.answers = [(0, BUSY, "")]
    gpu = run(capsys, load_s=5)["gpus"][0]
    assert FakeLoad.started == []
    assert gpu["load"] is None
    assert gpu["load_skipped"] == "python3 (pid 503) computes on this GPU; a load would disturb it."


def test_a_load_that_cannot_be(node: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_gpu_probe, "Load", _gpu_load.Load)
    monkeypatch.setattr(_gpu_load, "LIBRARY", "libnosuch.so.1")
    problem = run(capsys, load_s=1)["problems"][0]
    assert problem.startswith("No load could be put on this GPU: libnosuch.so.1 cannot be loaded (libnosuch.so.1: ")


HINT = (
    "but PCI has 1 NVIDIA GPU: this process may not open /dev/nvidia* (a restricted control group of sshd does that), "
    "or the driver lost the GPU. Compare with `nvidia-smi` at the console, and see `dmesg | grep -i nvrm`."
)


@pytest.mark.parametrize(
    ("answer", "pci", "status", "sentence"),
    [
        (
            (6, NO_DEVICES, ""),
            0,
            "no_gpu",
            "no GPU: nvidia-smi says 'No devices were found', and PCI has none of NVIDIA's.",
        ),
        (
            (0, NO_DEVICES, ""),
            0,
            "no_gpu",
            "no GPU: nvidia-smi says 'No devices were found', and PCI has none of NVIDIA's.",
        ),
        ((6, NO_DEVICES, ""), 1, "blocked", f"nvidia-smi says 'No devices were found', {HINT}"),
        ((0, NO_DEVICES, ""), 1, "blocked", f"nvidia-smi says 'No devices were found', {HINT}"),
        ((17, BLOCKED, ""), 1, "blocked", f"nvidia-smi says 'GPU access blocked by the operating system', {HINT}"),
        (
            (255, "", "Failed to initialize NVML: Unknown Error\n"),
            1,
            "blocked",
            f"nvidia-smi says 'Failed to initialize NVML: Unknown Error', {HINT}",
        ),
        (
            (18, "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.159\n", ""),
            1,
            "mismatch",
            "nvidia-smi says 'Driver/library version mismatch': the driver was updated under the running one. Reboot "
            "this node.",
        ),
        (
            (
                9,
                "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the "
                "latest NVIDIA driver is installed and running.\n",
                "",
            ),
            1,
            "no_driver",
            "nvidia-smi cannot reach the NVIDIA driver (exit 9): it is not loaded. See `modprobe nvidia` and `dmesg`; "
            "after a kernel update the driver may lack for the new kernel.",
        ),
        (
            (0, "<nvidia_smi_log><gpu></nvidia_smi_log>", ""),
            1,
            "error",
            "nvidia-smi -q -x wrote broken XML (mismatched tag: line 1, column 23). Run it by hand to see it.",
        ),
        (
            (0, "<nvidia_smi_log><attached_gpus>0</attached_gpus></nvidia_smi_log>", ""),
            0,
            "no_gpu",
            "no GPU: nvidia-smi says '0 attached GPUs', and PCI has none of NVIDIA's.",
        ),
        (
            (15, "", "bus error"),
            1,
            "error",
            "nvidia-smi -q -x ended with 15 and said 'bus error'. Run it by hand on the node.",
        ),
        ((3, "", ""), 1, "error", "nvidia-smi -q -x ended with 3 and said 'nothing'. Run it by hand on the node."),
    ],
)
def test_odd_answers(
    node: Fake,
    capsys: pytest.CaptureFixture[str],
    answer: tuple[int, str, str],
    pci: int,
    status: str,
    sentence: str,
) -> None:
    node.answers = [answer]
    node.gpus(pci)
    result = run(capsys)
    assert (result["status"], result["sentence"]) == (status, sentence)
    assert result["gpus"] == []
    assert result["problems"] == ([] if status == "no_gpu" else [sentence])


@pytest.mark.parametrize(
    ("pci", "status", "sentence"),
    [
        (0, "no_gpu", "no GPU: PCI has none of NVIDIA's and nvidia-smi is not installed."),
        (
            2,
            "no_driver",
            "PCI has 2 NVIDIA GPUs, but nvidia-smi is not installed. Install the NVIDIA driver and its utilities.",
        ),
    ],
)
def test_without_nvidia_smi(
    node: Fake, capsys: pytest.CaptureFixture[str], pci: int, status: str, sentence: str
) -> None:
    node.installed = False
    node.gpus(pci)
    result = run(capsys)
    assert (result["status"], result["sentence"]) == (status, sentence)
    assert node.commands == []


@pytest.mark.parametrize("seconds", [-1, 31])
def test_a_load_of_no_length(node: Fake, capsys: pytest.CaptureFixture[str], seconds: float) -> None:
    assert run(capsys, load_s=seconds)["msg"] == f"load_s is {seconds}; it is a number of seconds from 0 to 30."
    assert node.commands == []


def test_drivers_before_535_call_the_reasons_otherwise() -> None:
    old = IDLE.replace("clocks_event_reason_", "clocks_throttle_reason_").replace(
        "clocks_event_reasons>", "clocks_throttle_reasons>"
    )
    assert _gpu.answer(0, old, "", 1).gpus[0].event_reasons == ("gpu_idle",)


def test_what_a_module_runs() -> None:
    class Module:
        def get_bin_path(self, name: str) -> str:
            return f"/opt/bin/{name}"

        def run_command(self, words: list[str]) -> tuple[int, str, str]:
            return (0, BUSY, "") if words == ["/opt/bin/nvidia-smi", "-q", "-x"] else (1, "", "")

    smi = _gpu_probe.smi_of(Module())
    # The process of the recording is none of this machine's.
    assert smi.strangers(smi.query(), ["x.service"]) == ["process 503 (python3) uses the GPU"]


def test_a_gpu_in_a_few_words() -> None:
    assert _gpu.cell(_gpu.answer(0, IDLE, "", 1).gpus) == "0% 34 C 71.81 W 345 MHz"
    assert _gpu.cell(_gpu.answer(0, NO_DEVICES, "", 0).gpus) == ""


def test_no_sample_is_no_clock() -> None:
    with pytest.raises(ValueError, match="^the GPU told no clock under load$"):
        _gpu.summarize([], 1.0)


class FakeCuda:
    """libcuda, as far as a load calls it; `fails` gets error 2, which is out of memory."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[str] = []
        self.rounds: list[int] = []
        self.images: list[bytes] = []

    def __getattr__(self, name: str) -> t.Callable[..., int]:
        def call(*arguments: t.Any) -> int:
            self.calls.append(name)
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = 48
            if name == "cuModuleLoadData":
                self.images.append(arguments[1].value)
            if name == "cuLaunchKernel":
                self.rounds.append(ctypes.cast(arguments[9][1], ctypes.POINTER(ctypes.c_uint)).contents.value)
                assert arguments[1:7] == (192, 1, 1, 256, 1, 1)
            return 2 if name == self.fails else 0

        return call


def test_the_calls_of_a_load() -> None:
    cuda = FakeCuda()
    with Load(0, 0.2, cuda) as load:
        assert load.running()
    assert cuda.calls[:3] == ["cuInit", "cuDeviceGet", "cuDeviceGetAttribute"]
    assert cuda.calls.count("cuLaunchKernel") == 2 + 4
    assert cuda.calls[-2:] == ["cuCtxSynchronize", "cuDevicePrimaryCtxRelease_v2"]
    assert cuda.images[0].startswith(b".version 6.0\n.target sm_50\n")
    assert len(set(cuda.rounds[2:])) == 1


def test_a_load_that_fails_leaves_nothing_behind() -> None:
    cuda = FakeCuda("cuMemAlloc_v2")
    with (
        pytest.raises(LoadError, match=r"^cuMemAlloc_v2 of libcuda\.so\.1 failed with CUDA error 2$"),
        Load(0, 1, cuda),
    ):
        pass
    assert cuda.calls[-1] == "cuDevicePrimaryCtxRelease_v2"
