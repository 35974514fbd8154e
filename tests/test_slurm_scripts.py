"""The scripts of slurm/ without a SLURM: what they ask `srun` for, and what they refuse, in one line each."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

ROOT = Path(__file__).resolve().parents[1]
SLURM = ROOT / "slurm"
SCRIPTS = sorted(SLURM.glob("*.sbatch"))
SITES = sorted((SLURM / "sites").glob("*.env"))
SAYING = 'printf "%s\\n" "$@" >> srun.txt; echo "ranks at $MASTER_ADDR:$MASTER_PORT, $LOCAL_WORLD_SIZE of $WORLD_SIZE"'
"""What srun does here: it notes its words."""


class Job(Protocol):
    def __call__(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Runs a script as SLURM would on the first of its nodes, whose names have no address, in a folder of its own."""
    programs = tmp_path / "bin"
    programs.mkdir()
    shutil.copytree(SLURM, tmp_path / "slurm")

    def program(name: str, body: str) -> None:
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)

    program(
        "scontrol",
        'case "$2" in hostnames) echo node-1 ;; node) echo "NodeAddr=$NODE_ADDR NodeHostName=node-1" ;; esac',
    )
    program("getent", '[ "$2" = 10.0.0.1 ]')
    program("srun", SAYING)
    program("harmonize", "exit 1")  # an environment with headspark is active
    program("python", f'exec {sys.executable} "$@"')
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER_", "HEADSPARK_"))
    }

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        given = environment | {
            "PATH": f"{programs}:{os.environ['PATH']}", "NODE_ADDR": "node-1", "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node-[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "16",
        }  # fmt: skip
        return subprocess.run(
            ["bash", *words], cwd=tmp_path, env=given | more, capture_output=True, text=True, timeout=60
        )

    return run


def asked(folder: Path) -> list[str]:
    return (folder / "srun.txt").read_text().splitlines()


def test_one_rank_a_gpu_with_its_share_of_the_cores(job: Job, tmp_path: Path) -> None:
    done = job("slurm/pretrain.sbatch", "--out", "RUN", SLURM_GPUS_ON_NODE="2")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"ranks at 127.0.0.1:\d+, 2 of 2\n", done.stdout)
    assert {"--ntasks=2", "--ntasks-per-node=2", "--cpus-per-task=8", "--wait=600"} <= set(asked(tmp_path))
    assert asked(tmp_path)[-4:] == ["python", "ssl/pretrain.py", "--out", "RUN"]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("gpus", "ranks", "code", "said"),
    [
        ("2", "4", 2, "error: RANKS_PER_NODE=4: the job has 2 GPUs on a node, and each rank needs its own"),
        ("4", "2", 0, "note: RANKS_PER_NODE=2: of 4 GPUs on a node the others stay idle"),
        ("4", "4", 0, "note: 4 cores a GPU may not feed it; sbatch --cpus-per-task=32 gives each 8"),
        ("0", "4", 0, "note: no GPU was asked for, so that the ranks compute on CPUs; sbatch --gres=gpu:N"),
    ],
)
def test_what_does_not_fit_together_is_said_before_anything_runs(
    gpus: str, ranks: str, code: int, said: str, job: Job, tmp_path: Path
) -> None:
    done = job("slurm/pretrain.sbatch", SLURM_GPUS_ON_NODE=gpus, RANKS_PER_NODE=ranks)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "srun.txt").exists() == (code == 0)


def test_ranks_of_several_nodes_meet_at_the_address_by_which_slurm_reaches_the_first(job: Job, tmp_path: Path) -> None:
    done = job("slurm/pretrain.sbatch", SLURM_JOB_NUM_NODES="2", NODE_ADDR="10.0.0.1")
    assert done.returncode == 0, done.stderr
    trial, ranks = done.stdout.splitlines()
    assert re.fullmatch(r"ranks at 10.0.0.1:\d+, 1 of 2", ranks)
    assert trial == ranks, "the trial is at the same place"
    assert asked(tmp_path).index("meet") < asked(tmp_path).index("ssl/pretrain.py")


def test_where_the_first_node_has_no_address_ranks_of_several_are_not_sent_to_wait_for_each_other(
    job: Job, tmp_path: Path
) -> None:
    done = job("slurm/pretrain.sbatch", SLURM_JOB_NUM_NODES="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: node-1: the first node's name has no address here" in done.stderr
    assert not (tmp_path / "srun.txt").exists()


def test_a_port_of_the_users_own_is_taken_if_it_is_free(job: Job) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        port = str(taken.getsockname()[1])
        taken.listen()
        done = job("slurm/pretrain.sbatch", MASTER_PORT=port, SLURM_GPUS_ON_NODE="1")
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: MASTER_PORT={port}: taken on ")
    assert f":{port}," in job("slurm/pretrain.sbatch", MASTER_PORT=port, SLURM_GPUS_ON_NODE="1").stdout
    assert "no port" in job("slurm/pretrain.sbatch", MASTER_PORT="many", SLURM_GPUS_ON_NODE="1").stderr


def test_the_site_names_modules_and_a_container(job: Job, tmp_path: Path) -> None:
    (tmp_path / "image.sif").touch()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "slurm/site.env").write_text(
        "module() { echo \"module $*$NOBODY_SET_THIS\" >&2; }\nHEADSPARK_MODULES='gcc cuda'\n"
        f"HEADSPARK_CONTAINER=image.sif\nHEADSPARK_SCRATCH={tmp_path}/scratch\n"
    )
    (tmp_path / "bin/apptainer").write_text(
        '#!/bin/bash\necho "safe path $PYTHONSAFEPATH" >&2\n'
        'while [ "$1" != image.sif ]; do shift; done\nshift\nexec "$@"\n'
    )
    (tmp_path / "bin/apptainer").chmod(0o755)
    done = job("slurm/finetune.sbatch", "--out", "FT", SLURM_GPUS_ON_NODE="1")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("module load gcc cuda\nsafe path 1\n")
    words = asked(tmp_path)
    begin = words.index("apptainer")
    bound = f"{tmp_path},{tmp_path},{tmp_path}/scratch"
    expected = ["apptainer", "exec", "--bind", bound, "--nv", "image.sif", "python", "-m", "finetune.train"]
    assert words[begin : begin + len(expected)] == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HEADSPARK_SITE": "nowhere.env"}, "error: HEADSPARK_SITE=nowhere.env: no such file in "),
        ({"HEADSPARK_CONTAINER": "none.sif"}, "error: HEADSPARK_CONTAINER=none.sif: no such file"),
        ({"HEADSPARK_MODULES": "gcc"}, "error: HEADSPARK_MODULES=gcc: this node has no command 'module'"),
        ({"PATH": "/usr/bin:/bin"}, "error: "),
    ],
)
def test_a_site_that_is_not_there_is_refused(environment: dict[str, str], said: str, job: Job, tmp_path: Path) -> None:
    if "PATH" in environment:
        said += f"{tmp_path}: no .venv there"
    done = job("slurm/pretrain.sbatch", **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert not (tmp_path / "srun.txt").exists()


@pytest.mark.parametrize("site", SITES, ids=lambda path: path.stem)
def test_a_ready_site_fits(site: Path, job: Job, tmp_path: Path) -> None:
    done = job("slurm/pretrain.sbatch", SLURM_GPUS_ON_NODE="2", HEADSPARK_SITE=f"slurm/sites/{site.name}")
    assert (done.returncode, done.stderr) == (0, "")
    words = ["bash", "-c", f". {site}; env"]
    read = subprocess.run(words, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout
    assert ("SBATCH_PARTITION" in read) == (site.stem != "generic")
    assert "HEADSPARK_SCRATCH=/tmp" in read


@pytest.fixture
def running_srun(job: Job, tmp_path: Path) -> Job:
    """As `job`; what srun is to start, it starts."""
    (tmp_path / "bin/srun").write_text('#!/bin/bash\nwhile [ "$1" != bash ]; do shift; done\nexec "$@"\n')
    (tmp_path / "bin/squeue").write_text('#!/bin/bash\n[ "${SQUEUE:-up}" = up ] && printf "6\\n7\\n"\n')
    (tmp_path / "bin/squeue").chmod(0o755)
    (tmp_path / "bin/python").write_text(
        f'#!/bin/bash\ncase "$*" in *meet.py*) exec {sys.executable} "$@" ;; esac\n'
        'echo "$@"; stat -c %a "${5%/*}"; ls "$5"; cat "$5/metadata.parquet"\n'
    )
    (tmp_path / "bin/python").chmod(0o755)
    corpus = tmp_path / "CORPUS"
    (corpus / "images").mkdir(parents=True)
    (corpus / "metadata.parquet").write_text("rows\n")
    return job


@pytest.mark.parametrize("words", [("--corpus", "CORPUS"), ("--corpus=CORPUS", "")])
def test_a_corpus_is_copied_to_the_nodes_own_disk_on_request_and_removed_again(
    words: tuple[str, str], running_srun: Job, tmp_path: Path
) -> None:
    scratch, own = tmp_path / "scratch", f"headspark-{os.getuid()}"
    for other in (f"{own}-5", f"{own}-6", "another"):  # of a job that has gone, of one that runs, of somebody
        (scratch / other).mkdir(parents=True)
    given = {"HEADSPARK_SCRATCH": str(scratch), "STAGE": "1", "SLURM_GPUS_ON_NODE": "1"}
    done = running_srun("slurm/pretrain.sbatch", "--out", "RUN", *filter(None, words), "--seed", "1", **given)
    copy = f"{scratch}/{own}-7/corpus"
    assert f"--corpus{' ' if words[1] else '='}{copy} --seed 1\n" in done.stdout, done.stderr
    assert f"CORPUS copied to {copy}" in done.stdout
    if words[1]:
        assert done.stdout.splitlines()[-4:] == ["700", "images", "metadata.parquet", "rows"]
    assert {path.name for path in scratch.iterdir()} == {f"{own}-6", "another"}


def test_what_other_jobs_copied_stays_where_slurm_does_not_say_which_jobs_there_are(
    running_srun: Job, tmp_path: Path
) -> None:
    other = tmp_path / f"scratch/headspark-{os.getuid()}-5"
    other.mkdir(parents=True)
    given = {"HEADSPARK_SCRATCH": str(other.parent), "STAGE": "1", "SLURM_GPUS_ON_NODE": "1", "SQUEUE": "down"}
    done = running_srun("slurm/pretrain.sbatch", "--out", "RUN", "--corpus", "CORPUS", **given)
    assert (done.returncode, list(other.parent.iterdir())) == (0, [other]), done.stderr


def test_folds_that_a_run_dealt_in_a_copy_go_back_into_the_corpus(running_srun: Job, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bin/python").write_text(
        f'#!/bin/bash\ncase "$*" in *meet.py*) exec {sys.executable} "$@" ;; esac\necho "$FOLDS" > "$4/folds.parquet"\n'
    )
    given = {"HEADSPARK_SCRATCH": str(tmp_path / "scratch"), "STAGE": "1", "SLURM_GPUS_ON_NODE": "1"}
    for folds in ("dealt", "dealt again"):
        done = running_srun("slurm/finetune.sbatch", "--corpus", "CORPUS", FOLDS=folds, **given)
        assert (done.returncode, list((tmp_path / "scratch").iterdir())) == (0, []), done.stderr
        assert {path.name for path in (tmp_path / "CORPUS").iterdir()} == {
            "images",
            "metadata.parquet",
            "folds.parquet",
        }
        assert (tmp_path / "CORPUS/folds.parquet").read_text() == "dealt\n", "what the corpus has, it keeps"


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        ((), {}, "error: STAGE=1: the command names no --corpus to be copied"),
        (
            ("--corpus", "CORPUS"),
            {"HEADSPARK_SCRATCH": ""},
            "error: STAGE=1: slurm/site.env names no HEADSPARK_SCRATCH",
        ),
        (("--corpus", "CORPUS"), {"FREE": "1048576"}, "scratch has 1 GiB free, CORPUS has 3: submit without STAGE"),
    ],
)
def test_a_corpus_that_cannot_be_copied_is_refused(
    words: tuple[str, ...], environment: dict[str, str], said: str, running_srun: Job, tmp_path: Path
) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "bin/df").write_text('#!/bin/bash\necho "disk 9 9 ${FREE:-999999999} 1% /"\n')
    (tmp_path / "bin/du").write_text('#!/bin/bash\nprintf "2097153\\tCORPUS\\n"\n')
    for name in ("df", "du"):
        (tmp_path / "bin" / name).chmod(0o755)
    given = {"HEADSPARK_SCRATCH": str(tmp_path / "scratch"), "STAGE": "1", "SLURM_GPUS_ON_NODE": "1"} | environment
    done = running_srun("slurm/pretrain.sbatch", *words, **given)
    assert done.returncode == 2
    assert said in done.stderr
    assert "ssl/pretrain.py" not in done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_script_that_is_no_job_asks_slurm_for_none(job: Job, tmp_path: Path) -> None:
    done = job("slurm/pretrain.sbatch", SLURM_JOB_NODELIST="", SLURM_GPUS_ON_NODE="1")
    assert done.returncode != 0
    assert "runs inside a job: sbatch slurm/pretrain.sbatch" in done.stderr
    assert not (tmp_path / "srun.txt").exists()


def test_a_rank_that_was_killed_and_a_job_that_may_not_be_requeued_say_what_to_do(job: Job, tmp_path: Path) -> None:
    (tmp_path / "bin/srun").write_text("#!/bin/bash\nexit ${ENDS}\n")
    done = job("slurm/pretrain.sbatch", SLURM_GPUS_ON_NODE="1", ENDS="137")
    assert done.returncode == 137
    assert done.stderr.startswith(
        "error: a rank was killed (signal 9), most often for its memory: ask for more by sbatch --mem="
    )
    done = job("slurm/pretrain.sbatch", SLURM_GPUS_ON_NODE="1", ENDS="75")
    assert (done.returncode, done.stdout) == (0, "stopped with status 75; requeueing job 7\n")
    (tmp_path / "bin/scontrol").write_text('#!/bin/bash\ncase "$1" in requeue) exit 1 ;; *) echo node-1 ;; esac\n')
    done = job("slurm/pretrain.sbatch", SLURM_GPUS_ON_NODE="1", ENDS="75")
    assert done.returncode == 75
    assert done.stderr.startswith("error: SLURM did not requeue job 7; submit the same command again")


ARRAY = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "4"}


def test_shards_are_the_tasks_of_a_whole_array(job: Job, tmp_path: Path) -> None:
    (tmp_path / "bin/harmonize").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "bin/harmonize").chmod(0o755)
    words = ("slurm/harmonize.sbatch", "openmind", "RAW", "CORPUS", "--spacing", "2")
    done = job(*words, **ARRAY, SLURM_ARRAY_TASK_COUNT="4")
    assert done.stdout == "openmind RAW --out CORPUS --shard 2/4 --workers 16 --spacing 2\n"
    for with_out in (("--out", "CORPUS", "--spacing", "2"), ("--spacing", "2", "--out=CORPUS")):
        again = job(*words[:3], *with_out, **ARRAY, SLURM_ARRAY_TASK_COUNT="4")
        assert again.stdout == done.stdout
    done = job(*words, **ARRAY, SLURM_ARRAY_TASK_COUNT="2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "give the whole array again" in done.stderr
    assert "submit this as an array" in job(*words).stderr
    for few in (words[:3], (*words[:3], "--spacing", "2"), (*words[:2], "--out", "CORPUS")):
        done = job(*few, **ARRAY, SLURM_ARRAY_TASK_COUNT="4")
        assert (done.returncode, done.stdout) == (2, "")
        assert "give a source, its raw folder and the corpus" in done.stderr


def test_ranks_that_predict_a_part_each_do_not_end_one_another(job: Job, tmp_path: Path) -> None:
    done = job("slurm/predict.sbatch", "FT", "FOLDER", "--out", "predictions.csv", SLURM_GPUS_ON_NODE="2")
    assert done.returncode == 0, done.stderr
    assert "--wait=0" in asked(tmp_path)


def test_a_task_embeds_with_its_encoder_and_the_job_behind_probes_all(job: Job, tmp_path: Path) -> None:
    (tmp_path / "ENCODERS.txt").write_text("RUNS/large\r\n\nuser/small \nRUNS/tiny\n")
    words = ("slurm/probe.sbatch", "ENCODERS.txt", "PROBES", "--corpus", "CORPUS")
    given = {"SLURM_GPUS_ON_NODE": "1"}
    done = job(*words, "--batch", "4", **given, SLURM_ARRAY_TASK_ID="2")
    assert done.returncode == 0, done.stderr
    expected = ["-m", "headspark.cli", "embed", "CORPUS", "--encoder", "user/small", "--out", "PROBES/2/small.parquet"]
    assert asked(tmp_path)[-10:] == [*expected, "--batch", "4"]
    done = job(*words, **given, SLURM_ARRAY_TASK_ID="4")
    assert "submit the array without it" in job(*words, **given, SLURM_ARRAY_TASK_ID="1", STAGE="1").stderr
    assert (done.returncode, done.stderr) == (2, "error: task 4: the list has 3 encoders; sbatch --array=1-3\n")
    for name in ("1/large", "2/small"):
        (tmp_path / f"PROBES/{name}.parquet").parent.mkdir(exist_ok=True)
        (tmp_path / f"PROBES/{name}.parquet").touch()
    done = job(*words, **given)
    assert "PROBES/3/tiny.parquet: not there; task 3 of the array, with RUNS/tiny, has to end first" in done.stderr
    (tmp_path / "PROBES/3").mkdir()
    (tmp_path / "PROBES/3/tiny.parquet").touch()
    done = job(*words, "--labels", "labels.csv", **given)
    tables = [f"PROBES/{name}.parquet" for name in ("1/large", "2/small", "3/tiny")]
    begin = asked(tmp_path).index("finetune.cli")
    assert asked(tmp_path)[begin:] == [
        "finetune.cli", "probe", "--encoder", *tables, "--embeddings", "PROBES", "--json", "PROBES/probe.json",
        "--corpus", "CORPUS", "--labels", "labels.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_asks_slurm_in_its_first_lines_and_what_trains_is_requeued(script: Path) -> None:
    lines = script.read_text().splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    assert all(line.startswith("#SBATCH --") or not line.startswith("#SBATCH") for line in lines)
    assert [line for line in lines[end:] if line.startswith("#SBATCH")] == [], "SLURM reads none behind a command"
    options = {line.removeprefix("#SBATCH --").split("=")[0] for line in lines if line.startswith("#SBATCH")}
    assert {"job-name", "cpus-per-task", "time", "output", "open-mode"} <= options
    assert ("signal" in options) == ("ranks.sh" in script.read_text())
    if "signal" in options:
        assert "requeue" in options


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("no shellcheck here: apt-get install shellcheck")
    files = [*SLURM.glob("*.sh"), *SCRIPTS, *SITES, ROOT / ".ci/run"]
    done = subprocess.run([program, "--external-sources", *map(str, files)], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""
