# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's command line, and how systemd gets it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.filter.vllm_argv import FilterModule
from ansible_collections.sparkrig.serving.plugins.module_utils._profile import KEYS
from ansible_collections.sparkrig.serving.plugins.module_utils._vllm_argv import (
    OPTIONS,
    RIG_KEYS,
    Place,
    canonical_json,
    systemd_command,
    systemd_word,
    vllm_argv,
    vllm_options,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL = {"base": "/b", "overlay": None, "path": "/srv/models/hybrid"}


def options(plan: dict[str, t.Any] | None = None, **keys: t.Any) -> list[str]:
    return vllm_options({"name": "p", "model": MODEL, **keys}, plan or {})


def test_a_profile_becomes_flags_sorted_by_name_after_the_model() -> None:
    words = options(
        tensor_parallel_size=4,
        enforce_eager=True,
        enable_prefix_caching=False,
        quantization=None,
        gpu_memory_utilization=0.9,
        served_model_name="lab-moe",
        environment={"A": "1"},
        fit={"device": "cpu"},
    )
    assert words == [
        *("--model", "/srv/models/hybrid"),
        "--no-enable-prefix-caching",
        "--enforce-eager",
        *("--gpu-memory-utilization", "0.9"),
        *("--served-model-name", "lab-moe"),
        *("--tensor-parallel-size", "4"),
    ]


def test_the_command_runs_the_api_server_of_the_tree() -> None:
    assert vllm_argv({"model": MODEL}, None, "/tree/bin/python") == [
        "/tree/bin/python",
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        "/srv/models/hybrid",
    ]


PARALLEL = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def test_every_rank_of_vllms_own_executor_gets_the_same_options_and_its_place() -> None:
    profile = {"model": MODEL, **PARALLEL}
    head, other = (vllm_argv(profile, None, "/tree/bin/python", Place(rank, 2, "10.98.1.11", 29501)) for rank in (0, 1))
    common = [*("--distributed-executor-backend", "mp"), *("--tensor-parallel-size", "2"), *("--nnodes", "2")]
    where = [*("--master-addr", "10.98.1.11"), *("--master-port", "29501")]
    module = ["/tree/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert head == [*module, *("--model", "/srv/models/hybrid"), *common, *("--node-rank", "0"), *where]
    assert other[:2] == ["/tree/bin/python", "-c"]
    assert "from vllm.entrypoints.cli.main import main" in other[2]
    assert other[3:] == ["serve", "/srv/models/hybrid", *common, *("--node-rank", "1"), *where, "--headless"]


FAKE_VLLM = {
    "entrypoints/cli/main.py": """
import sys
def main():
    from vllm.v1.executor.multiproc_executor import MultiprocExecutor
    MultiprocExecutor().start_worker_monitor(inline=True)
    print("as it is", sys.argv[1:2], flush=True)
""",
    "v1/executor/multiproc_executor.py": """
import os, subprocess, sys, types
class MultiprocExecutor:
    def __init__(self):
        alive, parent = os.pipe()
        code = f"import os; w = os.write; w(1, b'there\\\\n'); os.read({alive}, 1); w(1, b'parent is gone\\\\n')"
        child = subprocess.Popen([sys.executable, "-c", code], pass_fds=[alive])
        writer = types.SimpleNamespace(fileno=lambda: parent)
        self.workers = [types.SimpleNamespace(proc=child, DEATH=writer)]
    def start_worker_monitor(self, inline):
        print("monitored", flush=True)
""",
}


@pytest.mark.parametrize("slim", [True, False])
def test_a_rank_without_an_api_leaves_nothing_but_the_rank_in_memory(tmp_path: Path, slim: bool) -> None:
    for name, text in FAKE_VLLM.items():
        path = tmp_path / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("DEATH", "death_writer" if slim else "other"))
        (path.parent / "__init__.py").touch()
    argv = vllm_argv({"model": MODEL, **PARALLEL}, None, sys.executable, Place(1, 2, "10.98.1.11", 29501))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) as rank:
        assert rank.stdout is not None
        lines = sorted(rank.stdout.readline() for _ in range(2 if not slim else 1))
        if slim:
            assert lines == ["there\n"]
            deadline = time.monotonic() + 20
            while b"-I" not in Path(f"/proc/{rank.pid}/cmdline").read_bytes().split(b"\0"):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            # The rank lives on, and ends with the watcher.
            rank.terminate()
            assert rank.stdout.readline() == "parent is gone\n"
        else:
            seen = [line.split(":")[0].strip() for line in [*lines, *rank.stdout]]
            assert {"this vLLM cannot be made slimmer", "monitored", "as it is ['serve']"} <= set(seen)


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ((2, 2), "the rank is 2; of 2 nodes it must be 0 to 1"),
        (
            (0, 4),
            "tensor_parallel_size x pipeline_parallel_size is 2, and there are 4 nodes; with"
            " distributed_executor_backend mp each node has one rank, so the two must be the same",
        ),
    ],
)
def test_a_place_that_is_none_is_refused(place: tuple[int, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        vllm_argv({"model": MODEL, **PARALLEL}, place=Place(*place, "10.98.1.11", 29501))


@pytest.mark.parametrize(
    ("profile_bytes", "plan", "wanted"),
    [
        (None, {}, []),
        (5, {}, ["--kv-cache-memory-bytes", "5"]),
        (5, {"kv_cache_memory_bytes": 7}, ["--kv-cache-memory-bytes", "7"]),
        (5, {"kv_cache_memory_bytes": [7, 7, 7, 7]}, ["--kv-cache-memory-bytes", "7"]),
        (5, {"kv_cache_memory_bytes": None}, ["--kv-cache-memory-bytes", "5"]),
    ],
)
def test_the_plan_decides_the_bytes_of_the_kv_cache(profile_bytes: int | None, plan: t.Any, wanted: list[str]) -> None:
    assert options(plan, kv_cache_memory_bytes=profile_bytes)[2:] == wanted


OLD, NEW = "dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size"


@pytest.mark.parametrize("given", [{OLD: 16}, {NEW: 16}, {OLD: 16, NEW: 16}, {OLD: None, NEW: 16}])
@pytest.mark.parametrize(
    ("engine", "name"),
    [
        *[(f"0.{minor}.0", OLD) for minor in (13, 20, 24, 26, 28)],
        ("dark-devotion", OLD),
        *[(f"0.{minor}.0", NEW) for minor in (30, 31, 32, 33)],
    ],
)
def test_the_interleave_of_dcp_goes_by_the_name_that_the_engine_heeds(
    engine: str, name: str, given: dict[str, t.Any]
) -> None:
    """As the sources of these versions read it: vllm/config/vllm.py, and flashinfer.py up to 0.28."""
    words = options(fit={"engine": engine}, tensor_parallel_size=4, decode_context_parallel_size=2, **given)
    flag = "--" + name.replace("_", "-")
    assert [word for word in words if "interleave" in word] == [flag]
    assert words[words.index(flag) + 1] == "16"


def test_no_interleave_is_given_where_the_profile_has_none() -> None:
    assert not any("interleave" in word for word in options(dcp_kv_cache_interleave_size=None))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        (
            {OLD: 64, NEW: 16, "fit": {"engine": "0.32.0"}},
            f"'{NEW}' is 16 and '{OLD}' is 64; they are two names of one thing, leave one of them out",
        ),
        (
            {OLD: 16},
            "profile key 'fit.engine' is None; it must name the engine's version, on which the name of"
            f" '{OLD}' depends",
        ),
    ],
)
def test_an_interleave_that_the_engine_could_not_follow_is_refused(keys: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        options(**keys)


def test_options_in_json_are_canonical() -> None:
    one = options(speculative_config={"num_speculative_tokens": 1, "method": "mtp"})
    two = options(speculative_config={"method": "mtp", "num_speculative_tokens": 1})
    assert one == two
    assert one[-2:] == ["--speculative-config", '{"method":"mtp","num_speculative_tokens":1}']


def test_lists_flags_and_values_that_look_like_flags() -> None:
    assert options(cudagraph_capture_sizes=[1, 2, 4])[2:] == ["--cudagraph-capture-sizes", "1", "2", "4"]
    assert options(cudagraph_capture_sizes=[])[2:] == []
    assert options(disable_log_stats=True)[2:] == ["--disable-log-stats"]
    assert options(disable_log_stats=False)[2:] == []
    assert options(max_model_len=-1)[2:] == ["--max-model-len=-1"]


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"max_model_length": 5}, "'max_model_length' is no option of the engine (did you mean 'max_model_len'?)"),
        ({"zzz": 5}, "'zzz' is no option of the engine"),
        (
            {"api_key": "s"},
            "'api_key' is a secret and would be readable in the list of processes; leave it out here",
        ),
        ({"port": "18089"}, "engine option 'port' is '18089' (str); it must be of type int"),
        ({"port": True}, "engine option 'port' is True (bool); it must be of type int"),
        ({"enforce_eager": 1}, "engine option 'enforce_eager' is 1 (int); it must be of type bool"),
        ({"hf_overrides": "{}"}, "engine option 'hf_overrides' is '{}' (str); it must be of type json"),
        ({"dtype": "a\nb"}, "engine option 'dtype' is 'a\\nb'; it must be one line"),
        ({"model": {}}, "profile key 'model.path' is None; it must be the absolute path of the model's folder"),
        (
            {"model": {"path": "m"}},
            "profile key 'model.path' is 'm'; it must be the absolute path of the model's folder",
        ),
    ],
)
def test_what_the_engine_may_not_get_is_refused_by_name(keys: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        vllm_options({"model": MODEL, **keys}, {})


def test_a_plan_that_differs_by_rank_is_refused() -> None:
    sentence = "the plan's kv_cache_memory_bytes is [1, 2]; the engine takes one number for all ranks"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        options({"kv_cache_memory_bytes": [1, 2]})


def test_what_is_no_option_of_the_engine_describes_the_rig() -> None:
    assert set(KEYS) - set(OPTIONS) == RIG_KEYS


def test_every_option_is_one_of_the_engine_and_of_its_kind() -> None:
    """The fixture is what the argument parser of vLLM 0.32.0's API server has, by the way that it takes a value."""
    recorded = json.loads((FIXTURES / "vllm-0.32.0-options.json").read_text())
    for name, kind in OPTIONS.items():
        # More than one served name is possible there; a profile has one.
        taken = "value" if kind not in ("bool", "flag", "list") and name != "served_model_name" else kind
        assert name in recorded["list" if name == "served_model_name" else taken], name


def test_the_filters_say_what_is_wrong() -> None:
    filters = FilterModule().filters()
    bad = {"name": "p", "model": MODEL, "zzz": 1}
    assert filters["vllm_argv_problem"](bad) == "Profile p: 'zzz' is no option of the engine."
    assert filters["vllm_argv_problem"]({"name": "p", "model": MODEL}) == ""
    with pytest.raises(AnsibleFilterError, match="^vllm_argv: 'zzz' is no option of the engine$"):
        filters["vllm_argv"](bad)


def test_the_ports_of_ray_and_who_has_them() -> None:
    filters = FilterModule().filters()
    assert filters["ray_ports"]("10.98.1.12", 26479, False) == [f"10.98.1.12:{port}" for port in (26480, 26481, 26484)]
    hostvars = {"spark1": {"seen": {"ports_taken": []}}, "spark2": {"seen": {"ports_taken": ["port 5 is taken"]}}}
    assert filters["taken_ports"](["spark1", "spark2", "spark3"], {**hostvars, "spark3": {}}, "seen") == [
        "spark2: port 5 is taken"
    ]


def test_what_the_nodes_of_an_incomplete_cluster_see_is_said_once() -> None:
    filters = FilterModule().filters()
    seen = {"problems": ["Ray sees 1 of 2 nodes alive."]}
    hostvars = {
        "spark1": {"seen": seen},
        "spark2": {"seen": {"problems": ["the head refuses."]}},
        "spark3": {"seen": seen},
    }
    assert filters["node_problems"](list(hostvars), {**hostvars, "spark4": {}}, "seen") == [
        "Seen on spark1, spark3: Ray sees 1 of 2 nodes alive.",
        "Seen on spark2: the head refuses.",
    ]


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        ({"state": {"ready": True}}, ""),
        ({"state": {}, "skipped": True, "msg": "Check mode starts nothing"}, ""),
        (None, ""),
        ({"state": {"ready": False}, "msg": "Ray is not ready after 5 s."}, "Ray is not ready after 5 s."),
    ],
)
def test_a_wait_that_ended_badly_says_why(result: dict[str, t.Any] | None, problem: str) -> None:
    assert FilterModule().filters()["wait_problem"](result) == problem


def test_the_filter_takes_the_place_of_a_rank() -> None:
    place = {"rank": 1, "ranks": 2, "address": "10.98.1.11", "port": 29501}
    profile = {"model": MODEL, **PARALLEL}
    argv = FilterModule().filters()["vllm_argv"]
    assert argv(profile, {}, "/python", place)[-1] == "--headless"
    assert argv(profile, {}, "/python", {}) == argv(profile, {}, "/python")


# --- systemd ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("--port", '"--port"'),
        ("", '""'),
        ("a b", '"a b"'),
        ('{"a":"b c"}', r'"{\"a\":\"b c\"}"'),
        ("50% $HOME ${X}", '"50%% $$HOME $${X}"'),
        ("back\\slash", r'"back\\slash"'),
        ("tab\tline\n", r'"tab\tline\n"'),
        (";", '";"'),
    ],
)
def test_systemd_gets_each_word_quoted(word: str, written: str) -> None:
    assert systemd_word(word) == written


def unquoted(text: str) -> list[str]:
    """What systemd makes of ExecStart= (continuation lines, quotes, C escapes, %% and $$), as systemd.syntax says."""
    words, current, inside, position = [], "", False, 0
    text = text.replace("\\\n", " ")
    while position < len(text):
        sign = text[position]
        if sign == "\\" and inside:
            position += 1
            current += {"n": "\n", "t": "\t", "r": "\r"}.get(text[position], text[position])
        elif sign == '"':
            inside = not inside
            if not inside:
                words.append(current.replace("%%", "%").replace("$$", "$"))
                current = ""
        elif inside:
            current += sign
        position += 1
    return words


@given(st.lists(st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8")), max_size=5))
def test_systemd_hands_on_what_was_given(words: list[str]) -> None:
    argv = ["/bin/true", *words]
    assert unquoted(systemd_command(argv)) == argv


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8)
)
def test_json_survives_systemd(value: t.Any) -> None:
    [_program, text] = unquoted(systemd_command(["/bin/true", canonical_json(value)]))
    assert json.loads(text) == value


@pytest.mark.parametrize("argv", [[], ["python"]])
def test_a_command_needs_an_absolute_program(argv: list[str]) -> None:
    with pytest.raises(ValueError, match="its first word must be an absolute path"):
        systemd_command(argv)


def test_a_nul_byte_is_refused() -> None:
    with pytest.raises(ValueError, match="holds a NUL byte"):
        systemd_word("a\0b")
