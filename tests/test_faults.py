"""The fault campaign in small, and that it would notice."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
KINDS = (
    "sigkill", "sigterm", "sigint", "file-limit", "read-error", "write-error", "full-moment",
    "plan-json", "plan-table", "finished-set", "group", "half-shard", "second-run", "clock-back",
)  # fmt: skip


def campaign(tmp_path, *arguments, before=""):
    """Run a campaign on the stages that need no torch; gives its end and its faults."""
    out = tmp_path / "faults.json"
    line = [*arguments, "--jobs", "2", "--out", str(out), "--work", str(tmp_path / "work")]
    code = f"import sys\nsys.path.insert(0, {str(SCRIPTS)!r})\nimport faults\n{before}\n"
    code += f"sys.exit(faults.main({line!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300
    )
    assert out.exists(), done.stdout + done.stderr
    return done, json.loads(out.read_text())["faults"]


def test_faults_of_many_kinds_lose_nothing(tmp_path):
    only = ["--only", ",".join(KINDS), "--stages", "plan,positive"]
    done, faults = campaign(tmp_path, "--faults", str(len(KINDS)), *only)
    assert done.returncode == 0, done.stdout
    assert [fault["kind"] for fault in faults] == list(KINDS)
    assert {fault["outcome"] for fault in faults} == {"at once", "recovered"}
    assert all(fault["said"] for fault in faults if fault["outcome"] == "recovered")


BROKEN = {
    "wrong": (
        "half-shard",
        "from chipgen import pipeline\npipeline._is_intact = lambda *_: True",
    ),
    "lost": (
        "half-shard",
        "from chipgen import pipeline\n"
        "inner = pipeline._is_intact\n"
        "def refuse(job, group):\n"
        "    if not inner(job, group):\n"
        "        raise pipeline.Refusal(f'{job.recipe}: positive-000000, positive-000001')\n"
        "    return True\n"
        "pipeline._is_intact = refuse",
    ),
    "unnamed": (
        "read-only",
        "from chipgen import storage\n"
        "from fault import strikes\n"
        "strikes.may_mount = lambda: False\n"
        "storage._explained = lambda error, _: storage.Refusal('no')",
    ),
    "hung": (
        "clock-back",
        "import time\n"
        "from chipgen import commands\n"
        "from fault import forks\n"
        "forks.BOUND, inner = 5.0, commands.run_folder.save_plan\n"
        "def wait(*given):\n"
        "    while time.time() < begin:\n"
        "        pass\n"
        "    return inner(*given)\n"
        "begin, commands.run_folder.save_plan = time.time(), wait",
    ),
}


@pytest.mark.parametrize("outcome", BROKEN)
def test_a_command_that_is_broken_is_noticed(tmp_path, outcome):
    kind, code = BROKEN[outcome]
    stage = "plan" if outcome in ("hung", "unnamed") else "positive"
    one = ["--faults", "1", "--only", kind, "--stages", stage]
    done, (fault,) = campaign(tmp_path, *one, before=code)
    assert fault["outcome"] == outcome, done.stdout
    assert fault["why"]
    assert done.returncode == 1
