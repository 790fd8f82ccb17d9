# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""runtime_tree from end to end on a folder that stands for a node, and its action with a connection that copies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.testing import patch_module_args
from ansible.plugins.action import ActionBase

from ansible_collections.sparkrig.serving.plugins.action import runtime_tree as action_module
from ansible_collections.sparkrig.serving.plugins.module_utils import _runtime_nodes
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import Holder
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import Layout
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import NodeFacts, alone
from ansible_collections.sparkrig.serving.plugins.modules import runtime_tree
from tests.fixtures.runtimes import MINOR, TARGET, Made, make_archive

ONE, TWO, THREE = "1" * 16, "2" * 16, "3" * 16
ENVIRONMENT = {"HF_HUB_OFFLINE": "1"}


class Node:
    """A node's folders, and the module run on them."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.tmp_path, self.capsys = tmp_path, capsys
        self.root, self.record = tmp_path / "opt", tmp_path / "state" / "runtime.json"
        self.env = tmp_path / "etc" / "runtime.env"
        self.facts = NodeFacts(TARGET.machine, "2.36", f"{MINOR}.1", f"{MINOR}.1")
        monkeypatch.setattr(runtime_tree, "_node_facts", lambda _minor: self.facts)

    def run(self, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        arguments = {
            "root": str(self.root),
            "record": str(self.record),
            "environment_file": str(self.env),
            "_ansible_check_mode": check,
            **{key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        }
        with patch_module_args(arguments), pytest.raises(SystemExit):
            runtime_tree.main()
        result: dict[str, t.Any] = json.loads(self.capsys.readouterr().out)
        return result

    def shipped(self, made: Made) -> Path:
        """The archive as it arrives on the node: a copy, since the module removes it."""
        copy = self.tmp_path / "shipped.tar"
        shutil.copy(made.path, copy)
        return copy

    def install(self, made: Made, check: bool = False, **options: t.Any) -> dict[str, t.Any]:
        return self.run(check=check, archive=self.shipped(made), **made.options(), **options)

    def seen(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob("**/*") if path.is_file())

    def current(self) -> str | None:
        return os.readlink(self.root / "current") if (self.root / "current").is_symlink() else None


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Node:
    return Node(tmp_path, monkeypatch, capsys)


def test_installing_and_the_second_time(node: Node, tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    first = node.install(made, environment=ENVIRONMENT)
    assert first["changed"] is True
    assert first["missing"] is False
    assert first["actions"] == [
        f"unpacked the runtime {ONE}",
        f"wrote {node.env}",
        f"switched current from nothing to {ONE}",
    ]
    assert first["runtime"] == {
        "digest": ONE,
        "tree_sha256": made.tree_sha256,
        "path": f"{node.root}/runtime/{ONE}",
        "python": f"{node.root}/current/bin/python",
        "vllm_version": "0.32.0+cpu.sparkrig.11111111",
        "ray_version": "2.60.0",
    }
    assert node.env.read_text().endswith("\nHF_HUB_OFFLINE=1\n")
    assert not (tmp_path / "shipped.tar").exists()
    second = node.run(environment=ENVIRONMENT, **made.options())
    assert (second["changed"], second["missing"], second["actions"]) == (False, False, [])
    assert second["runtime"] == first["runtime"]


def test_check_mode_says_the_same_and_does_nothing(node: Node, tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    planned = node.run(check=True, environment=ENVIRONMENT, **made.options())
    assert planned["changed"] is True
    assert planned["actions"] == [
        f"would unpack the runtime {ONE}",
        f"would write {node.env}",
        f"would switch current from nothing to {ONE}",
    ]
    assert not node.root.exists()
    assert not node.env.exists()
    headers = {item["after_header"]: item["after"] for item in planned["diff"]}
    assert headers[f"{node.root}/current"] == f"{ONE}\n"
    node.install(made, environment=ENVIRONMENT)
    again = node.run(check=True, environment=ENVIRONMENT, **made.options())
    assert again["changed"] is False


def test_a_tree_that_is_missing_changes_nothing(node: Node, tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    result = node.run(environment=ENVIRONMENT, **made.options())
    assert (result["changed"], result["missing"], result["actions"]) == (False, True, [])
    assert "runtime" not in result
    assert not node.root.exists()
    assert not node.env.exists()


def test_only_the_environment_changes(node: Node, tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    node.install(made, environment=ENVIRONMENT)
    result = node.run(environment={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, **made.options())
    assert result["actions"] == [f"wrote {node.env}"]
    node.env.chmod(0o600)
    result = node.run(environment={**ENVIRONMENT, "OMP_NUM_THREADS": "1"}, **made.options())
    assert result["changed"] is True
    assert node.env.stat().st_mode & 0o777 == 0o644
    result = node.run(**made.options())
    assert result["changed"] is False


def test_the_previous_tree_stays_and_older_ones_go(node: Node, tmp_path: Path) -> None:
    for digest in (ONE, TWO):
        node.install(make_archive(tmp_path, digest))
    result = node.install(make_archive(tmp_path, THREE))
    assert f"removed the runtime {ONE}: only 2 are kept" in result["actions"]
    assert result["previous"] == TWO
    assert sorted(path.name for path in (node.root / "runtime").iterdir()) == [TWO, THREE]
    assert node.current() == f"runtime/{THREE}"


def test_going_back_and_forth(node: Node, tmp_path: Path) -> None:
    one, two = make_archive(tmp_path, ONE), make_archive(tmp_path, TWO)
    refused = node.run(state="previous")
    assert refused["failed"] is True
    assert "there is no runtime to go back to" in refused["msg"]
    node.install(one)
    node.install(two)
    planned = node.run(check=True, state="previous")
    assert planned["actions"] == [f"would switch current from {TWO} back to {ONE}"]
    assert node.current() == f"runtime/{TWO}"
    back = node.run(state="previous")
    assert back["actions"] == [f"switched current from {TWO} back to {ONE}"]
    assert back["runtime"]["digest"] == ONE
    assert node.current() == f"runtime/{ONE}"
    # The archive is still that of TWO, so the next ordinary run goes forward again, without shipping.
    forward = node.run(**two.options())
    assert forward["actions"] == [f"switched current from {ONE} to {TWO}"]


def test_a_previous_tree_that_is_damaged_is_not_gone_back_to(node: Node, tmp_path: Path) -> None:
    node.install(make_archive(tmp_path, ONE))
    node.install(make_archive(tmp_path, TWO))
    (node.root / "runtime" / ONE).chmod(0o755)
    (node.root / "runtime" / ONE / "new").write_text("")
    result = node.run(state="previous")
    assert result["failed"] is True
    assert "cannot be gone back to" in result["msg"]
    assert node.current() == f"runtime/{TWO}"


def test_removing_everything_twice(node: Node, tmp_path: Path) -> None:
    node.install(make_archive(tmp_path), environment=ENVIRONMENT)
    (node.root / "runtime" / f"{TWO}.partial").mkdir()
    (node.root / "mine").write_text("kept")
    planned = node.run(check=True, state="absent")
    assert planned["changed"] is True
    assert node.current() is not None
    result = node.run(state="absent")
    assert result["changed"] is True
    assert "runtime" not in result
    assert node.seen() == ["mine"]
    assert not node.env.exists()
    assert not node.record.exists()
    assert node.run(state="absent")["changed"] is False
    (node.root / "mine").unlink()
    node.run(state="absent")
    assert not node.root.exists()


@pytest.mark.parametrize(
    ("facts", "options", "words"),
    [
        (NodeFacts("riscv64", "2.36", "3.11.2", "3.11.2"), {}, "this node is riscv64: set runtime.machine"),
        (NodeFacts(TARGET.machine, "2.36", None, "3.99.0"), {}, "(its /usr/bin/python3 is 3.99.0)"),
        (NodeFacts(TARGET.machine, "2.1", f"{MINOR}.1", None), {}, "needs glibc 2.17 or newer and this node has 2.1"),
        (None, {"tree_bytes": 10**15}, "GB free and the runtime needs 1000000.2"),
        (None, {"environment": {"NCCL_IB_DISABLE": "1"}}, "it must stay '0': without RDMA"),
        (None, {"archive": "/nowhere.tar"}, "the archive /nowhere.tar is not there"),
        (None, {"digest": "latest"}, "'latest' is not the digest of a runtime"),
    ],
    ids=["machine", "python", "glibc", "disk", "environment", "archive", "digest"],
)
def test_what_cannot_be_is_refused_before_anything_changes(
    node: Node, tmp_path: Path, facts: NodeFacts | None, options: dict[str, t.Any], words: str
) -> None:
    first = make_archive(tmp_path, ONE)
    node.install(first, environment=ENVIRONMENT)
    before = node.seen(), node.current(), node.env.read_text(), node.record.read_text()
    node.facts = facts or node.facts
    second = make_archive(tmp_path, TWO)
    arguments = {**second.options(), "archive": node.shipped(second), **options}
    result = node.run(**arguments)
    assert result["failed"] is True
    assert result["msg"].startswith("The runtime is left as it was: ")
    assert words in result["msg"]
    assert (node.seen(), node.current(), node.env.read_text(), node.record.read_text()) == before


def test_a_current_of_somebody_else_is_left_alone(node: Node, tmp_path: Path) -> None:
    node.root.mkdir()
    (node.root / "current").symlink_to("somewhere")
    result = node.install(make_archive(tmp_path))
    assert result["failed"] is True
    assert "is not ours" in result["msg"]
    assert node.current() == "somewhere"


def test_a_damaged_archive_is_removed_so_that_it_is_shipped_anew(node: Node, tmp_path: Path) -> None:
    made = make_archive(tmp_path)
    archive = node.shipped(made)
    archive.write_bytes(archive.read_bytes()[:-3000])
    result = node.run(archive=archive, **made.options())
    assert result["failed"] is True
    assert "run again to ship it anew" in result["msg"]
    assert not archive.exists()
    assert node.install(made)["changed"] is True


class Connection:
    def __init__(self) -> None:
        self._shell = self

    def join_path(self, *parts: str) -> str:
        return os.path.join(*parts)

    def remove(self, path: str) -> str:
        return f"rm {path}"


class Task:
    def __init__(self, args: dict[str, t.Any]) -> None:
        self.args = args


class Screen:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def display(self, line: str) -> None:
        self.lines.append(line)


class Acting:
    """The action with what surrounds it replaced; everything that it does is in ``log``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[dict[str, t.Any]]) -> None:
        self.answers, self.log = answers, list[t.Any]()
        self.broken: Exception | None = None
        monkeypatch.setattr(ActionBase, "run", lambda *_args, **_more: {})

    def execute(self, module_name: str, module_args: dict[str, t.Any], **_more: t.Any) -> dict[str, t.Any]:
        self.log.append(("module", module_args.get("archive")))
        assert module_name == "sparkrig.serving.runtime_tree"
        assert "source" not in module_args
        # Who had the node when the first call looked is told to the one that unpacks.
        assert module_args.get("launcher") == ("ann" if "archive" in module_args else None)
        return self.answers.pop(0)

    def transfer(self, local: str, remote: str) -> None:
        self.log.append(("ship", local, remote))
        if self.broken is not None:
            raise self.broken

    def run(self, **options: t.Any) -> dict[str, t.Any]:
        action: t.Any = action_module.ActionModule.__new__(action_module.ActionModule)
        action._task, action._display, action._connection = Task(options), Screen(), Connection()
        action._execute_module = self.execute
        action._transfer_file = self.transfer
        action._make_tmp_path = lambda: "/home/spark/.ansible/tmp/ansible-tmp-1/"
        action._remove_tmp_path = lambda path: self.log.append(("forget", path))
        action._low_level_execute_command = lambda command, **_more: self.log.append(("run", command))
        result: dict[str, t.Any] = action.run(task_vars={"inventory_hostname": "spark1"})
        self.screen = action._display.lines
        return result


def test_a_node_that_has_the_tree_gets_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    acting = Acting(monkeypatch, [{"changed": False, "missing": False, "runtime": {"digest": ONE, "path": "/x"}}])
    told = acting.run(digest=ONE, source="/x.tar")
    assert told == {"changed": False, "missing": False, "digest": ONE, "path": "/x"}
    assert acting.log == [("module", None)]


def test_a_node_that_lacks_it_gets_the_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"x" * 2_000_000)
    acting = Acting(monkeypatch, [{"missing": True, "launcher": "ann"}, {"changed": True, "missing": False}])
    assert acting.run(digest=ONE, source=str(tmp_path / "x.tar"))["changed"] is True
    remote = "/home/spark/.ansible/tmp/x.ansible-tmp-1.tar"
    assert acting.log == [
        ("module", None),
        # What a killed run left, by name only: its module may still read it.
        ("run", "rm -f -- /home/spark/.ansible/tmp/x.*.tar"),
        ("ship", str(tmp_path / "x.tar"), remote),
        ("module", remote),
        ("forget", "/home/spark/.ansible/tmp/ansible-tmp-1/"),
    ]
    assert acting.screen == ["spark1: shipping 0.00 GB"]


@pytest.mark.parametrize("answer", [{"failed": True, "msg": "no"}, {"changed": False, "missing": True}])
def test_nothing_is_shipped_without_need_or_source(monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any]) -> None:
    acting = Acting(monkeypatch, [answer])
    options = {"source": "/x.tar"} if "failed" in answer else {}
    assert acting.run(digest=ONE, **options) == answer
    assert acting.log == [("module", None)]


def test_an_archive_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    acting = Acting(monkeypatch, [{"missing": True}])
    with pytest.raises(AnsibleActionFail, match=r"The archive /no/x\.tar for spark1 is not on the controller"):
        acting.run(digest=ONE, source="/no/x.tar")


def test_what_half_arrived_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"x")
    acting = Acting(monkeypatch, [{"missing": True}])
    acting.broken = AnsibleError("no space left")
    with pytest.raises(AnsibleActionFail, match=r"could not be shipped to spark1:.*no space left"):
        acting.run(digest=ONE, source=str(tmp_path / "x.tar"))
    assert acting.log[-1] == ("run", "rm /home/spark/.ansible/tmp/x.ansible-tmp-1.tar")


def test_the_facts_of_this_machine() -> None:
    facts = runtime_tree._node_facts("0.0")
    assert facts.python is None
    assert facts.machine == TARGET.machine


def holder(process: str) -> str:
    return Holder("ann@laptop", "laptop boot", process, "sparkrig.serving.site").text()


def test_a_process_of_a_run_that_was_killed_brings_nothing_to_a_node_that_another_run_has(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / "launch.lock"
    monkeypatch.setattr(runtime_tree, "LOCK", str(lock))
    made = make_archive(tmp_path, ONE)
    lock.write_text(holder("4711:1"))
    launcher = node.run(**made.options())["launcher"]
    assert launcher
    # reset has been here and is done.
    lock.unlink()
    late = node.install(made, launcher=launcher)
    assert late["failed"]
    assert "another run has this node by now, or has brought it back as it was, so this one ends here" in late["msg"]
    assert not node.root.exists()
    lock.write_text(holder("4712:1"))
    assert node.install(made, launcher=launcher)["failed"]
    lock.write_text(holder("4711:1"))
    assert node.install(made, launcher=launcher)["changed"]


def test_a_run_that_loses_the_node_while_it_unpacks_switches_nothing(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launchers = iter(["a", "a", "b"])
    monkeypatch.setattr(runtime_tree, "_launcher", lambda: next(launchers))
    assert node.install(make_archive(tmp_path, ONE))["failed"]
    assert node.current() is None
    assert not node.env.exists()


def test_removal_waits_for_who_unpacks(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node.install(make_archive(tmp_path, ONE))
    monkeypatch.setattr(runtime_tree, "_ABSENT_WAIT_S", 0.0)
    layout = Layout(node.root, node.record)
    with alone(layout):
        assert "another process still unpacks to" in node.run(state="absent")["msg"]
        assert node.run(check=True, state="absent")["changed"]
    assert node.run(state="absent")["changed"]
    assert not node.root.exists()


def put(path: Path, content: str | None = None, mode: int = 0o444, link: str | None = None) -> None:
    """Something else at *path* of a read-only tree."""
    path.parent.chmod(0o755)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
        path.chmod(mode)
    if link is not None:
        path.symlink_to(link)


DAMAGES: dict[str, t.Callable[[Path], object]] = {
    "a file is gone": lambda tree: put(tree / "lib/empty.py"),
    "a file is new": lambda tree: put(tree / "lib/new.py", ""),
    "a file is longer": lambda tree: put(tree / "lib/empty.py", "x"),
    "a file has another mode": lambda tree: (tree / "bin/run").chmod(0o444),
    "a file is a symlink": lambda tree: put(tree / "lib/empty.py", link="other.py"),
    "a symlink leads elsewhere": lambda tree: put(tree / "bin/python", link="/usr/bin/python2"),
    "a symlink is a file": lambda tree: put(tree / "bin/python", "", 0o000),
    "a symlink is gone": lambda tree: put(tree / "bin/python"),
    "the manifest is gone": lambda tree: put(tree / "manifest.json"),
    "the manifest is damaged": lambda tree: put(tree / "manifest.json", "{}"),
    "the manifest is another tree's": lambda tree: put(
        tree / "manifest.json", (tree / "manifest.json").read_text().replace("lib/empty.py", "lib/other.py")
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_one_look_sees_what_a_comparison_with_the_manifest_sees(node: Node, tmp_path: Path, what: str) -> None:
    made = make_archive(tmp_path)
    node.install(made)
    DAMAGES[what](node.root / "runtime" / ONE)
    compared = node.run(check=True, **made.options())
    assert compared["actions"][0].endswith(": it is replaced")
    looked = node.run(check=True, **made.options(), look_sha256=made.look_sha256)
    assert looked == {**compared, "invocation": looked["invocation"]}
    repaired = node.install(made, look_sha256=made.look_sha256)
    assert repaired["actions"][1] == f"unpacked the runtime {ONE}"
    assert node.run(**made.options(), look_sha256=made.look_sha256)["changed"] is False


def test_a_tree_that_looks_right_is_not_compared(node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make_archive(tmp_path)
    first = node.install(made, environment=ENVIRONMENT)
    compared: list[Path] = []

    def check(tree: Path, *_more: object) -> None:
        compared.append(tree)

    monkeypatch.setattr(_runtime_nodes, "check_tree", check)
    again = node.run(environment=ENVIRONMENT, look_sha256=made.look_sha256, **made.options())
    assert (again["changed"], again["runtime"]) == (False, first["runtime"])
    assert not compared
    # Who asks for every byte, says nothing of a look, or another thing, gets the comparison.
    for options in ({"verify_full": True, "look_sha256": made.look_sha256}, {}, {"look_sha256": "0" * 64}):
        assert node.run(**made.options(), **options)["changed"] is False
    assert len(compared) == 3
    # A look that is right, but at another tree than is meant.
    node.run(**{**made.options(), "tree_sha256": "0" * 64}, look_sha256=made.look_sha256, check=True)
    assert len(compared) == 4


def test_what_a_run_without_work_imports_is_little() -> None:
    """A node compiles it anew each time."""
    code = (
        "import sys; import ansible_collections.sparkrig.serving.plugins.modules.runtime_tree\n"
        "names = [name.rpartition('.')[2] for name in sys.modules if 'serving.plugins.module_utils._' in name]\n"
        "print(*sorted(names))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["_launch_lock", "_roce_rules", "_runtime_environment", "_runtime_layout"]
