# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Any value at any place: an answer or one sentence that names the option, never a traceback."""

from __future__ import annotations

import copy
import json
import re
import typing as t

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import OPTION_NAMES
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_search import search
from tests.oracle import builds, cases, models
from tests.oracle.published import PUBLISHED

ENGINES = ("0.13.0", "0.20.0", "0.24.0", "0.26.0", "0.28.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0", "dark-devotion")
JUNK: list[t.Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    7,
    2**62,
    10**30,
    -(10**30),
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "auto",
    "128k",
    "4",
    "fp8",
    "\x00\u2028",
    b"8",
    [],
    [None],
    [0],
    ["a"],
    [[]],
    [1, 2, 3],
    (),
    {},
    {"a": 1},
    {None: None},
    {"type": "yarn", "factor": None},
    {"rope_type": ["linear"], "factor": -1},
    object(),
]
TOUCHED = (*OPTION_NAMES, "no_such_option")
CONFIG_KEYS = sorted(
    {key for config in PUBLISHED.values() for key in config} | set(models.LLAMA4) | set(models.MIMO_V2)
)
# How an error begins: the option, an entry of it, or the config.
SENTENCE = re.compile(r"^(?:{})[\w.\[\]]*: .".format("|".join((*OPTION_NAMES, "no_such_option", "options"))), re.DOTALL)


def question(seed: int) -> dict[str, t.Any]:
    """A generated question that can be answered."""
    if seed % 3 == 0:
        options = copy.deepcopy(cases.generate(seed))
    elif seed % 3 == 1:
        config, arguments, draft = builds.generate(seed)
        options = {**copy.deepcopy(arguments), "config": copy.deepcopy(config), "device": "cpu"}
        options.update({} if draft is None else {"draft_config": copy.deepcopy(draft)})
    else:
        name = sorted(PUBLISHED)[seed % len(PUBLISHED)]
        options = {"config": copy.deepcopy(PUBLISHED[name]), "kv_cache_memory_bytes": 10**9, "max_model_len": 4096}
    return {**options, "engine": ENGINES[seed % len(ENGINES)]}


def spoil(options: dict[str, t.Any], where: str, key: str, value: t.Any) -> None:
    """One value at one place."""
    place = options
    if where != "option":
        config = options.get("draft_config" if where == "draft" else "config")
        if not isinstance(config, dict):
            return
        place = config.setdefault("text_config", {}) if where == "text" else config
    if isinstance(place, dict):
        place[key] = value


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    changes=st.lists(
        st.tuples(
            st.sampled_from(["option", "option", "config", "config", "text", "draft"]),
            st.integers(0, 10**6),
            st.sampled_from(JUNK),
        ),
        min_size=1,
        max_size=3,
    ),
)
def test_any_value_at_any_place(seed: int, changes: list[tuple[str, int, t.Any]]) -> None:
    """An answer that JSON can hold, or one error that begins with the name of an option."""
    options = question(seed)
    for where, number, value in changes:
        keys = TOUCHED if where == "option" else CONFIG_KEYS
        spoil(options, where, keys[number % len(keys)], value)
    try:
        answer = fit(options)
    except ValueError as error:
        assert SENTENCE.match(str(error)), error
        return
    json.dumps(answer)
    assert answer["fits"] is (not answer["reasons"])
    assert answer["engine_error"] is None or answer["reasons"]


@pytest.mark.parametrize("key", ["options", "aim", "contexts", "sequences", "draft_tokens", "cache_dtypes", "other"])
def test_any_value_in_a_search(key: str) -> None:
    """The same for what is looked for."""
    options = {"config": models.LLAMA, "kv_cache_memory_bytes": 10**8}
    for value in JUNK:
        try:
            json.dumps(search({"options": options, "sequences": [1], "contexts": [512], key: value}))
        except ValueError as error:
            assert ": " in str(error), (key, value, error)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_no_key_is_guessed_in_silence(name: str) -> None:
    """A published config without one of its keys: the same answer, an error, or a sentence that says the assumption."""
    config = PUBLISHED[name]
    options = {"kv_cache_memory_bytes": 10**10, "max_model_len": 1024}
    whole = fit({**options, "config": config})
    for key in [key for key in config if key not in ("architectures", "torch_dtype")]:
        try:
            without = fit({**options, "config": {other: value for other, value in config.items() if other != key}})
        except ValueError as error:
            assert str(error).startswith("config: "), (key, error)
            continue
        same = all(without[figure] == whole[figure] for figure in ("num_blocks", "bytes_per_block", "max_concurrency"))
        assert same or any(f" {key} " in sentence for sentence in without["assumptions"]), (key, without["assumptions"])
