"""What `submit` hands to Slurm, seen without one."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
SUBMIT = HOME / "scripts" / "slurm" / "submit"
SBATCH = """#!/bin/sh
echo "$FOVEA_SETUP|$FOVEA_ADDRESS|$*" >> "$CALLS"
wc -l < "$CALLS"
"""


def submit(*arguments, folder=HOME, **environment):
    """Run the script for a data set that need not be there: exit code, what it said, and where."""
    line = [SUBMIT, "runs/x", "--data", "data", "--recipe", "scenes-small", *arguments]
    done = subprocess.run(
        line, capture_output=True, text=True, check=False, cwd=folder, env=os.environ | environment
    )
    return done.returncode, done.stdout, done.stderr


def dry(*arguments):
    """The command lines of a chain, in words."""
    code, out, error = submit("--dry-run", *arguments)
    assert code == 0, error
    return [shlex.split(line) for line in out.splitlines()]


def test_each_job_waits_for_the_one_before():
    lines = dry()
    names = [line[2].removeprefix("--job-name=x-").partition("-")[2] for line in lines]
    assert names[0] == "plan"
    assert names[-1] == "eval-finish"
    assert len(set(names)) == len(names) == 12
    for before, line in zip(names, lines[1:], strict=False):
        (waits,) = (word for word in line if word.startswith("--dependency="))
        assert f"afterok:<{before}>" in waits
        assert "--kill-on-invalid-dep=yes" in line
    arrays = [name for name, line in zip(names, lines, strict=True) if "--array=0-15" in line]
    assert arrays == ["positive", "proposals", "negative"]
    assert "--array=0-3" in lines[-2]


def test_settings_of_the_cluster_are_those_of_recipe_and_options():
    sets = ("partition=gpu", "nodes=4", "gpus=8", "cpus=6", "notice=90", 'options=["--qos=low"]')
    lines = dry(*(f"--set=cluster.{text}" for text in sets), "--set=cluster.at_once=3")
    train, rpn = ({*lines[n]} for n in (9, 4))
    assert {"--nodes=4", "--ntasks-per-node=8", "--gres=gpu:8", "--cpus-per-task=6"} <= train
    assert {"--nodes=1", "--ntasks-per-node=8", "--signal=B:USR1@90"} <= rpn
    assert all("--partition=gpu" in line and "--qos=low" in line for line in lines)
    assert "--processes=32" in lines[1]  # nodes x GPUs
    assert "--array=0-15%3" in lines[2]
    assert not any("gpu:" in word for word in lines[2])  # cutting chips needs none
    lines = dry("--set=cluster.gpus=0")
    assert not any("gpu" in word for line in lines for word in line[:-1] if "--gres" in word)


def test_one_part_of_one_step_is_submitted_alone():
    lines = dry("--only", "proposals", "--part", "3")
    assert len(lines) == 1
    assert "--array=3" in lines[0]
    assert lines[0][-1] == "16"  # of so many parts
    assert not any("dependency" in word for word in lines[0])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--only", "training"), "not one of plan, check"),
        (("--part", "3"), "--part 3: goes with --only"),
        (("--only", "eval", "--part", "4"), "must be one of 0 to 3"),
        (("--set", "cluster.node=3"), "did you mean 'nodes'"),
        (("--set", "cluster.parts=0"), "parts = 0 must be at least 1"),
    ],
)
def test_what_can_not_be_submitted_is_told_in_one_line(arguments, told):
    code, out, error = submit(*arguments, "--dry-run")
    assert code == 1
    assert not out
    assert told in error
    assert error.count("\n") == 1


def test_numbers_of_jobs_are_handed_on_and_printed(tmp_path):
    fake = tmp_path / "bin" / "sbatch"
    fake.parent.mkdir()
    fake.write_text(SBATCH)
    fake.chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    code, out, _ = submit(
        "--set=cluster.setup=module load cuda", "--set=cluster.address=10.0.0.7",
        folder=tmp_path, PATH=f"{fake.parent}:{os.environ['PATH']}", CALLS=str(calls),
    )  # fmt: skip
    assert code == 0
    lines = calls.read_text().splitlines()
    assert len(lines) == 12
    assert all(line.startswith("module load cuda|10.0.0.7|--parsable") for line in lines)
    assert all(f"afterok:{n}" in line for n, line in enumerate(lines[1:], 1))
    assert [line.split()[1] for line in out.splitlines()[:3]] == ["plan", "check", "positive,"]


JOBS = {
    "plan": ("chips.sbatch", "plan", "RUN"),
    "check": ("eval.sbatch", "check", "RUN"),
    "positive": ("chips.sbatch", "write", "RUN", "positive", "4"),
    "proposals": ("proposals.sbatch", "finish", "RUN"),
    "eval": ("eval.sbatch", "look", "4", "RUN"),
    "eval-finish": ("eval.sbatch", "finish", "RUN"),
    "train": ("train.sbatch", "detector", "RUN"),
}


@pytest.fixture
def project(tmp_path):
    """A project whose python ends with $CODE, on a machine whose Slurm notes what it is asked."""
    (tmp_path / "scripts").symlink_to(HOME / "scripts")
    fakes = {
        ".venv/bin/python": "exit $CODE",
        "bin/srun": "exit $CODE",
        "bin/scontrol": '[ $1 = requeue ] && echo "$2" >> calls || echo n1',
    }
    for name, text in fakes.items():
        fake = tmp_path / name
        fake.parent.mkdir(parents=True, exist_ok=True)
        fake.write_text(f"#!/bin/sh\n{text}\n")
        fake.chmod(0o755)
    return tmp_path


def queued_again(project, job, code, task="", restarts=0, **environment):
    """Run a job whose work ends with an exit code: what is to be queued again, if anything."""
    script, *arguments = JOBS[job]
    arguments = [str(project / "my run") if word == "RUN" else word for word in arguments]
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": task} if task else {}
    more = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_RESTART_COUNT": str(restarts)}
    (project / "calls").write_text("")
    done = subprocess.run(
        ["bash", f"scripts/slurm/{script}", *arguments], capture_output=True, text=True,
        check=False, cwd=project,
        env=os.environ | array | more | environment
        | {"CODE": str(code), "PATH": f"{project / 'bin'}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert not done.stderr
    return (project / "calls").read_text().split()


@pytest.mark.parametrize("killed", [137, 124])  # or gave up waiting
@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_is_killed_is_queued_again_five_times(project, job, killed):
    task = "3" if job in ("positive", "eval") else ""
    name = "7_3" if task else "7"
    assert queued_again(project, job, 0, task) == []
    assert queued_again(project, job, 1, task) == []
    for _ in range(5):
        assert queued_again(project, job, killed, task, restarts=9) == [name]
    assert queued_again(project, job, killed, task) == []
    kills = project / "my run" / "logs" / f"killed-{name}"
    assert kills.read_text() == f"exit code {killed}\n" * 6


@pytest.mark.parametrize("job", JOBS)
def test_what_sites_run_first_may_ask_for_variables_that_are_not_set(project, job):
    task = "3" if job in ("positive", "eval") else ""
    assert queued_again(project, job, 0, task, FOVEA_SETUP='x="$NIX$PS1"; [ -z "$x" ]') == []


def test_the_kills_of_one_task_do_not_count_for_another(project):
    for _ in range(6):
        queued_again(project, "positive", 137, "3")
    assert queued_again(project, "positive", 137, "4") == ["7_4"]


def test_a_training_that_has_stopped_with_a_checkpoint_is_queued_again_however_often(project):
    for restarts in (0, 4, 5, 50):
        assert queued_again(project, "train", 75, restarts=restarts) == ["7"]
    assert queued_again(project, "train", 137, restarts=51) == ["7"]


def test_a_machine_without_slurm_is_told(tmp_path):
    (tmp_path / "dirname").symlink_to(shutil.which("dirname"))
    code, _, error = submit(folder=tmp_path, PATH=str(tmp_path))
    assert code == 1
    assert "sbatch: no such command" in error
