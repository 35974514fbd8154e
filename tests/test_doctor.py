"""`headspark doctor`: what it says of a machine is so, names nobody, and ends with 0 unless headspark cannot run."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import standin_hub
import torch

from harmonize import control_groups, pool
from headspark.cli import main
from headspark.data import memory
from headspark.data.config import DataConfig
from headspark.doctor import disk, machine, plan, software
from headspark.doctor.section import nameless
from headspark.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
GIB = 2**30


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(disk, "MOST", disk.CHUNK)


def examined(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["doctor", "--json", *map(str, words)]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_report_holds_what_a_fault_is_judged_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = examined(capsys, "--folder", tmp_path)
    assert found["can_run"] is True
    assert found["versions"]["libraries"]["torch"] == torch.__version__.partition("+")[0]
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["imports"]["works"] is True
    assert found["ssl"]["shadowed"] is False
    assert found["cores"]["job"] == pool.cores()
    assert 0 < found["memory"]["free"] <= psutil.virtual_memory().total
    assert found["disk"]["writes"] > 0
    assert found["disk"]["reads"] > 0
    assert found["disk"]["locks"] is True
    assert found["disk"]["free"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert found["run"]["batch"] == 2
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_a_gpu_and_a_network_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "note: no GPU: " in shown
    assert "note: http://127.0.0.1:9 does not answer (ConnectError)" in shown
    assert shown.endswith("headspark can run here\n")


def test_the_hub_that_answers_is_told_with_whether_there_is_a_token_and_not_with_the_token(
    hub: standin_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert main(["doctor", "--json", "--folder", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert standin_hub.TOKEN not in shown
    found = json.loads(shown)["hub"]
    assert (found["answers"], found["token"], found["address"]) == (True, True, hub.url)


def test_nothing_of_it_names_the_user_or_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home" / "zaphod"))
    monkeypatch.setattr(getpass, "getuser", lambda: "zaphod")
    monkeypatch.setattr(socket, "gethostname", lambda: "heart-of-gold")
    scratch = tmp_path / "home" / "zaphod" / "runs"
    scratch.mkdir(parents=True)
    found = examined(capsys, "--folder", scratch)
    assert found["disk"]["folder"] == "~/runs"
    assert "zaphod" not in json.dumps(found)
    assert "heart-of-gold" not in json.dumps(found)
    assert nameless("/scratch/zaphod/a, /scratch/zaphodia") == "/scratch/USER/a, /scratch/zaphodia"
    assert nameless(f"{tmp_path}/home/zaphodia/a") == f"{tmp_path}/home/zaphodia/a"


def test_what_a_recipe_would_take_is_said(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "recipes" / "resenc_l.yaml"
    found = examined(capsys, "--folder", tmp_path, "--config", recipe, "--corpus", tiny_corpus)
    assert found["run"]["recipe"] == "resenc_l.yaml"
    assert found["run"]["cache"].startswith("cache ram: 0.0 GiB decoded, ")
    assert any(line.startswith(f"data.workers {found['run']['workers']} on ") for line in found["findings"]) == (
        found["run"]["workers"] > pool.cores()
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--folder", "nowhere"], "--folder nowhere: no such folder"),
        (["--corpus", "nowhere"], "--corpus nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--jsn"], "--jsn"),
    ],
)
def test_wrong_use_is_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", *words]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert says in shown
    assert len(shown.splitlines()) == 1


# ------------------------------------------------------------------------------------------------------ what is amiss


def test_a_broken_library_is_named_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "ssl")))}
    done = subprocess.run(
        [sys.executable, "-m", "headspark.cli", "doctor"], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "note: headspark.train cannot be imported: ImportError: libcudart.so.13: cannot open" in done.stdout
    assert "install headspark again" in done.stdout
    assert done.stdout.endswith("headspark cannot run here: see the notes\n")
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(psutil, "RLIMIT_AS"), reason="Linux alone limits addresses")
def test_too_few_addresses_are_no_broken_installation() -> None:
    code = (
        "import psutil, sys; psutil.Process().rlimit(psutil.RLIMIT_AS, (10**9, 10**9));"
        "from headspark.cli import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "`ulimit -v` leaves a process 0.9 GiB of addresses" in done.stdout
    assert "install headspark again" not in done.stdout


def test_a_gpu_that_another_process_has_alone_is_said_beside_all_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with another switch")

    monkeypatch.setattr(plan, "_batch", refuse)
    found = examined(capsys, "--folder", tmp_path)
    assert found["disk"]["writes"] > 0
    assert "CUDA error: all CUDA-capable devices are busy or unavailable" in found["findings"]


def test_a_cache_that_the_recipe_names_is_told_as_it_says() -> None:
    assert plan._cache(Recipe(data=DataConfig(cache="disk")), None) == "cache disk: as the recipe says"
    assert plan._cache(Recipe(), None).startswith("cache ram for up to ")


def test_a_file_that_shadows_ssl_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssl").mkdir()
    monkeypatch.chdir(tmp_path)
    assert software.examine_ssl().facts["shadowed"] is False  # a folder alone hides nothing, as that of the repository
    (tmp_path / "ssl" / "__init__.py").touch()
    found = software.examine_ssl()
    assert found.facts["shadowed"] is True
    (line,) = found.findings
    assert line.startswith(f"`import ssl` in the current folder finds {tmp_path / 'ssl' / '__init__.py'}, not Python's")


def test_a_requirement_that_is_not_met_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=9000", "no-such-thing>=1", "dask; extra == 'cluster'", "torch>=2"]
    monkeypatch.setattr(software.metadata, "requires", lambda name: wanted)
    numpy, missing = software._unmet()
    assert numpy.endswith("is installed, >=9000 is needed")
    assert missing.startswith("no-such-thing is not installed")


def test_a_newer_python_than_known_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software.sys, "version_info", (3, 99, 0))
    assert "is newer than 3.13" in software.examine_software().findings[0]


def test_memory_is_what_slurm_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=500 * GIB, total=512 * GIB))
    monkeypatch.setattr(memory, "control_groups", lambda *_: ())
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "16384")
    found = machine.examine_memory()
    own = psutil.Process().memory_info().rss
    assert found.facts["free"] == pytest.approx(16 * GIB - own, abs=64 * 2**20)
    assert found.facts["limited_by_job"] is True
    assert "SLURM granted 16.0 GiB" in found.text[0]
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "0")  # all of the node
    assert machine.examine_memory().facts["free"] == 500 * GIB
    monkeypatch.delenv("SLURM_MEM_PER_NODE")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "2048")
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")
    assert machine.examine_memory().facts["slurm"] == 8 * GIB


@pytest.mark.parametrize(
    ("version", "files", "limit"),
    [
        (2, {"cpu.max": "150000 100000"}, 1.5),
        (2, {"cpu.max": "max 100000"}, None),
        (1, {"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4.0),
        (1, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_cores_are_what_the_quota_of_a_container_is_worth(
    version: int, files: dict[str, str], limit: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proc").mkdir()
    mount = "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw" if version == 2 else (
        "30 23 0:27 / /sys/fs/cgroup rw - cgroup cgroup rw,cpu,cpuacct"
    )  # fmt: skip
    (tmp_path / "proc" / "mountinfo").write_text(f"{mount}\n")
    (tmp_path / "proc" / "cgroup").write_text("0::/box\n" if version == 2 else "4:cpu,cpuacct:/box\n")
    group = tmp_path / "sys" / "fs" / "cgroup" / "box"
    group.mkdir(parents=True)
    for name, content in files.items():
        (group / name).write_text(f"{content}\n")
    assert control_groups.core_limit(tmp_path / "proc", tmp_path) == limit
    monkeypatch.setattr(pool, "core_limit", lambda: limit)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert pool.cores() == (64 if limit is None else {1.5: 2, 4.0: 4}[limit])


def test_a_folder_that_cannot_be_written_is_a_finding(guarded: Path) -> None:
    closed = guarded / "closed"
    closed.mkdir(mode=0o555)
    found = disk.examine_folder(closed)
    assert found.facts["writes"] is None
    assert "cannot be written (Permission denied)" in found.findings[0]


def test_little_or_no_shared_memory_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "SHARED_MEMORY", tmp_path / "none")
    assert "data.cache shared cannot be used" in disk.examine_shared_memory().findings[0]
    monkeypatch.setattr(disk, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=64 * 2**20, free=64 * 2**20))
    assert "64 MiB are free" in disk.examine_shared_memory().findings[0]
