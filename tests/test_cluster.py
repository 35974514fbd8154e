"""dask workers: the same bytes as local processes, and a scan that kills its worker takes nobody with it."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from harmonize import cli, engine, pool
from harmonize.engine import Executor, dask_security, dask_workers
from harmonize.errors import UserError
from harmonize.settings import Settings

pytest.importorskip("distributed", reason="needs headspark[cluster]")

DIE = "__import__('os').kill(__import__('os').getpid(), 9)"
SETTINGS = Settings(spacing=(4.0, 4.0, 4.0), mri_norm="nyul")


@pytest.fixture(scope="module")
def workers() -> Iterator[Executor]:
    with dask_workers.local_workers(2) as executor:
        yield executor


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four scans of an OpenMind tree."""
    random = np.random.default_rng(0)
    for index in range(4):
        path = tmp_path / f"raw/OpenMind/ds000001/sub-{index:02d}/anat/sub-{index:02d}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        voxels = random.normal(10, 4, (16, 16, 12))
        voxels[4:12, 4:12, 3:9] += 200 + 10 * index + 80 * random.random((8, 8, 6))
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.diag([-4.0, 4, 5, 1])), path)
    return tmp_path / "raw"


def content(corpus: Path) -> dict[str, str]:
    return {
        path.relative_to(corpus).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(corpus.rglob("*"))
        if path.is_file()
    }


def test_a_task_that_kills_its_worker_is_tried_twice_and_takes_nobody_with_it(
    workers: Executor, tmp_path: Path
) -> None:
    mark = f"open({str(tmp_path / 'tries')!r}, 'a').write('x'), "
    tasks = ["1 + 1", f"({mark} {DIE})", "2 + 2", "3 + 3", "4 + 4"]
    found = dict(workers(eval, tasks))  # type: ignore[arg-type]
    assert found.pop(tasks[1]) == pool.Died(None)
    assert found == {"1 + 1": 2, "2 + 2": 4, "3 + 3": 6, "4 + 4": 8}
    assert len((tmp_path / "tries").read_text()) <= pool.ATTEMPTS


def test_an_error_that_ends_the_run_reaches_the_caller(workers: Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        list(workers(eval, ["1 / 0"]))  # type: ignore[arg-type]


def test_dask_workers_write_the_bytes_that_local_processes_write(workers: Executor, root: Path, tmp_path: Path) -> None:
    engine.run("openmind", root, tmp_path / "dask", SETTINGS, executor=workers)
    engine.run("openmind", root, tmp_path / "local", SETTINGS, workers=0)
    assert content(tmp_path / "dask") == content(tmp_path / "local")


def test_a_scan_that_hangs_is_given_up_at_the_time_limit(workers: Executor, root: Path, tmp_path: Path) -> None:
    poisoned = root / "OpenMind/ds000001/sub-00/anat/sub-00_T1w.nii.gz"
    whole = poisoned.read_bytes()
    settings = Settings(spacing=(4.0, 4.0, 4.0))
    for name, executor in (("dask", workers), ("local", partial(pool.run, workers=1))):

        def hanging(function, references, *, executor=executor):
            # Opening a pipe that nobody writes to never returns; discovery would have left it out.
            poisoned.unlink()
            os.mkfifo(poisoned)
            yield from executor(function, references)

        summary = engine.run("openmind", root, tmp_path / name, settings, limit=2, executor=hanging, time_limit_s=4.0)
        poisoned.unlink()
        poisoned.write_bytes(whole)
        assert (summary.accepted, dict(summary.rejected)) == (1, {"worker_died": 1})
        assert "time limit" in (tmp_path / name / "records/openmind.jsonl").read_text()


def test_a_silent_address_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    with pytest.raises(UserError, match="no dask scheduler answers"), dask_workers.scheduler_at("tcp://127.0.0.1:9"):
        pass


STRANGER = """
import os, ssl, sys
from distributed import Client, Security
class Trusting(Security):
    def get_connection_args(self, role):
        given = super().get_connection_args(role)
        given["ssl_context"].verify_mode = ssl.CERT_NONE
        return given
own = Trusting.temporary()
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for scheme, security in (("tcp", None), ("tls", own)):
    try:
        with Client(sys.argv[1].replace("tls:", scheme + ":"), security=security, timeout=2) as client:
            print("in", client.submit(os.getpid).result(timeout=5))
    except OSError:
        print("out")
os._exit(0)
"""


def test_a_stranger_who_finds_the_scheduler_runs_no_code(workers: Executor) -> None:
    address = workers.keywords["client"].scheduler.address  # type: ignore[attr-defined]
    done = subprocess.run([sys.executable, "-c", STRANGER, address], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["out", "out"], done.stderr
    assert dict(workers(eval, ["1 + 1"])) == {"1 + 1": 2}  # type: ignore[arg-type]


def test_a_cluster_listens_on_this_machine_alone_and_writes_where_nobody_else_may(workers: Executor) -> None:
    own = psutil.Process()
    found = {
        connection.laddr.ip
        for process in (own, *own.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert found == {"127.0.0.1"}
    known = workers.keywords["client"].scheduler_info(n_workers=-1)["workers"].values()  # type: ignore[attr-defined]
    for folder in [Path(worker["local_directory"]) for worker in known]:
        assert any(stat.S_IMODE(parent.stat().st_mode) == 0o700 for parent in folder.parents)


def test_certificates_for_other_nodes_lie_in_files_of_this_user_alone(tmp_path: Path) -> None:
    found = dask_security.certificates_in(str(tmp_path))
    for role in ("client", "scheduler", "worker"):
        named = found.get_tls_config_for_role(role)
        assert "PRIVATE KEY" in Path(named["key"]).read_text()
        assert "CERTIFICATE" in Path(named["cert"]).read_text() == Path(named["ca_file"]).read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_an_address_without_encryption_is_warned_of_and_one_with_it_wants_certificates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dask_workers, "CONNECT_S", 0.5)
    for address, message in (("tcp://127.0.0.1:9", "no dask scheduler"), ("tls://127.0.0.1:9", "no certificates")):
        with pytest.raises(UserError, match=message) as error, dask_workers.scheduler_at(address):
            pass
        assert error.value.exit_code == 2
        warned = capsys.readouterr().err
        assert (warned.count("\n"), "not encrypted" in warned) == ((1, True) if address[:3] == "tcp" else (0, False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dask-address", "tcp://127.0.0.1:9"], "without --executor dask"),
        (["--executor", "dask", "--slurm-partition", "gpu"], "without --executor slurm"),
        (["--executor", "dask", "--workers", "0"], "at least one"),
    ],
)
def test_options_of_another_executor_are_wrong_use(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["openmind", str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
