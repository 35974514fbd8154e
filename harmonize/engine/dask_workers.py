"""Run scans on dask.distributed: workers on this machine, behind a scheduler's address, or in SLURM jobs.

A worker that dies takes only its own scan with it: no worker is ever given a second scan while it is at one, and the
scheduler gives up on a scan after `harmonize.pool.ATTEMPTS` dead workers.

Who may speak to a scheduler or a worker of dask runs code as its user, so those that are started here answer only over
TLS, to those who hold a key that is made for the one run.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from threadpoolctl import threadpool_limits

from harmonize.engine.dask_security import (
    ENCRYPTED,
    certificates,
    certificates_in,
    has_certificates,
    private_folder,
    temporary_files_in,
)
from harmonize.errors import UserError, WrongUse
from harmonize.pool import ATTEMPTS, WORKER_ENVIRONMENT, Died, signals_held
from harmonize.terminal import warn

if TYPE_CHECKING:
    from distributed import Client, Future

    from harmonize.engine import Executor

Task = TypeVar("Task")
Result = TypeVar("Result")

POLL_S = 1.0
"""How often to look for workers that came or went while no scan finishes."""

PATIENCE_S = 60.0
"""Without any worker for so long, say so."""

CONNECT_S = 30.0

HERE_ONLY = "127.0.0.1:0"
"""Where pages about the work are served: counts and addresses, nothing of a scan."""

LIFETIME_SHARE = 0.9
STAGGER_SHARE = 0.05
"""A worker retires by itself before SLURM's time limit, and not all of them at once, so that no scan is cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmJobs:
    """What to ask SLURM for; all else (interface, scratch, modules) comes from dask-jobqueue's own configuration.

    Attributes:
        count: Jobs, each one worker with one core: SLURM kills whole jobs, and so only one scan.
        logs: Folder of the jobs' logs, visible from every node.
        memory: Of a job, e.g. ``4GB``.
        minutes: Time limit of a job; ended jobs are replaced until the work is done.
        partition: Its name, or None for the cluster's default.
        account: Its name, or None.
    """

    count: int
    logs: Path
    memory: str = "4GB"
    minutes: int = 240
    partition: str | None = None
    account: str | None = None


@contextmanager
def local_workers(count: int) -> Iterator[Executor]:
    """Start `count` workers on this machine, one thread each, each with its share of the memory as its limit.

    Raises:
        UserError: dask, or what makes its certificates, is not installed.
    """
    _check_installed()
    from distributed import LocalCluster

    security = certificates()
    with _our_settings(), private_folder() as scratch:
        # The thread that starts the workers inherits that Ctrl-C is held, and so do they.
        with signals_held():
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                host="127.0.0.1",
                protocol=ENCRYPTED,
                security=security,
                local_directory=scratch,
                dashboard_address=HERE_ONLY,
                silence_logs=logging.CRITICAL,
            )
        with cluster, _client(cluster) as client:
            _point_to_dashboard(client)
            yield partial(_run_as_executor, client=client)


@contextmanager
def scheduler_at(address: str) -> Iterator[Executor]:
    """Use a scheduler that is running; how many dead workers a scan may cost is then its own setting.

    Args:
        address: E.g. ``tls://10.0.0.1:8786``; its workers must see the raw folder and the corpus under the same paths.
            The certificates are those of dask's own configuration.

    Raises:
        UserError: Nobody answers there, or it wants certificates that are not there.
    """
    _check_installed()
    if not address.startswith(ENCRYPTED):
        warn(
            f"warning: --dask-address {address}: not encrypted; whoever reaches that port runs code as its user: start "
            "the scheduler with certificates and give its tls:// address (docs/scale.md)"
        )
    try:
        client = _client(address)
    except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
        if address.startswith(ENCRYPTED) and not has_certificates():
            raise WrongUse(
                f"--dask-address {address}: no certificates; name them in dask's configuration, "
                "DASK_DISTRIBUTED__COMM__TLS__CA_FILE, ...TLS__CLIENT__CERT and ...TLS__CLIENT__KEY",
            ) from error
        raise WrongUse(f"--dask-address {address}: no dask scheduler answers there") from error
    with client:
        _point_to_dashboard(client)
        yield partial(_run_as_executor, client=client)


@contextmanager
def slurm_jobs(jobs: SlurmJobs) -> Iterator[Executor]:
    """Submit SLURM jobs that are workers of a scheduler in this process, and keep their number up until the end.

    Raises:
        UserError: SLURM refuses the jobs.
    """
    _check_installed()
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError as error:
        raise UserError("--executor slurm needs dask-jobqueue: pip install 'headspark[cluster]'") from error
    lifetime, stagger = jobs.minutes * LIFETIME_SHARE, jobs.minutes * STAGGER_SHARE
    jobs.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (
        _our_settings(),
        private_folder() as scratch,
        # dask-jobqueue writes the scripts of its jobs under names of the temporary folder that it gave up before.
        temporary_files_in(scratch),
        private_folder(_shared_folder() or jobs.logs) as shared,
        SLURMCluster(
            cores=1,
            processes=1,
            memory=jobs.memory,
            walltime=str(jobs.minutes),
            queue=jobs.partition,
            account=jobs.account,
            job_name="harmonize",
            log_directory=str(jobs.logs),
            silence_logs=logging.CRITICAL,
            python=sys.executable,
            security=certificates_in(shared),
            job_script_prologue=[
                *(f"export {name}={value}" for name, value in WORKER_ENVIRONMENT.items()),
                # What dask writes beside the work, it reads again as pickles.
                "DASK_TEMPORARY_DIRECTORY=$(mktemp -d) || exit 1",
                "export DASK_TEMPORARY_DIRECTORY",
                "trap 'rm -rf \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
            ],
            worker_extra_args=[
                *("--lifetime", f"{lifetime:g}m", "--lifetime-stagger", f"{stagger:g}m"),
                *("--dashboard-address", HERE_ONLY),
            ],
            scheduler_options={"dashboard_address": HERE_ONLY, **(_jobqueue("scheduler-options") or {})},
        ) as cluster,
        _client(cluster) as client,
    ):
        _try_submitting(cluster.job_script())
        _point_to_dashboard(client)
        # Asked for again and again, because jobs end at their time limit.
        yield partial(_run_as_executor, client=client, tend=partial(cluster.scale, jobs=jobs.count))


def run(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    *,
    client: Client,
    tend: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Task, Result | Died]]:
    """Yield every task with its result, in the order in which they finish; as `harmonize.pool.run` does.

    Args:
        function: Picklable, importable on the workers.
        tasks: Picklable.
        client: Of the scheduler.
        tend: Called about once every `POLL_S` seconds.

    Raises:
        Exception: Whatever `function` raises ends the whole run.
        UserError: The scheduler is gone, or its workers cannot run the function.
    """
    waiting = deque(tasks)
    under_way: dict[Future, Task] = {}
    watch = _Watch()
    try:
        while waiting or under_way:
            tend()
            # One scan a worker thread and no queue on the workers: a dying worker would be blamed on its whole queue.
            # The first is handed in without any worker, so that a scheduler that scales itself sees demand.
            slots = sum(client.nthreads().values())
            watch.see(slots)
            for _ in range(min(max(1, slots) - len(under_way), len(waiting))):
                task = waiting.popleft()
                under_way[client.submit(_answer, function, task, pure=False)] = task
            for future in _finished(under_way):
                yield under_way.pop(future), _result(future)
    finally:
        if client.status == "running":
            client.cancel(list(under_way))


def _run_as_executor(
    function: Callable[[Task], Result], tasks: Iterable[Task], **options: Any
) -> Iterator[tuple[Task, Result | Died]]:
    return run(function, tasks, **options)


class _Watch:
    """Tells a person who waits for workers that they have not come."""

    def __init__(self) -> None:
        self._seen = time.monotonic()

    def see(self, slots: int) -> None:
        if slots == 0 and time.monotonic() - self._seen > PATIENCE_S:
            warn("no dask worker yet; waiting for one")
            self._seen = time.monotonic()
        elif slots:
            self._seen = time.monotonic()


def _answer(function: Callable[[Task], Result], task: Task) -> tuple[Exception | None, Result | None]:
    """What a worker does. Errors are returned, because dask would log the arguments, which hold raw names."""
    try:
        # Sums of floats may depend on how many threads share them.
        with threadpool_limits(limits=1):
            return None, function(task)
    except Exception as error:
        # Not swallowed: the other side raises it.
        return error, None


def _finished(under_way: Iterable[Future]) -> list[Future]:
    from distributed import wait

    futures = list(under_way)
    try:
        return list(wait(futures, timeout=POLL_S, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        return []
    except asyncio.CancelledError:
        return [future for future in futures if future.cancelled()]


def _result(future: Future) -> Any:
    from distributed import KilledWorker

    if future.status == "cancelled":
        raise UserError("the dask scheduler is gone; start it and run the same command again, it goes on from here")
    fault = future.exception()
    if isinstance(fault, KilledWorker):
        return Died(None)
    if fault is not None:
        kind = f"{type(fault).__name__}: {fault}".splitlines()[0]
        raise UserError(f"the dask workers cannot run harmonize ({kind}); give them this environment") from fault
    error, result = future.result()
    if error is not None:
        raise error
    return result


def _client(where: Any) -> Client:
    from distributed import Client

    return Client(where, timeout=CONNECT_S)


def _check_installed() -> None:
    try:
        import distributed
    except ImportError as error:
        raise WrongUse("--executor dask and slurm need dask: pip install 'headspark[cluster]'") from error
    # Workers that die and are started again are part of the plan; the record of their scan says it.
    logging.getLogger(distributed.__name__).setLevel(logging.CRITICAL)


def _jobqueue(option: str) -> Any:
    import dask

    return dask.config.get(f"jobqueue.slurm.{option}")


def _shared_folder() -> Path | None:
    named = _jobqueue("shared-temp-directory")
    return None if named is None else Path(os.path.expandvars(named)).expanduser()


@contextmanager
def _our_settings() -> Iterator[None]:
    import dask

    environment = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in WORKER_ENVIRONMENT.items()}
    # The pages are served on this machine alone, wherever the scheduler listens.
    link = dask.config.get("distributed.dashboard.link").replace("{host}", "127.0.0.1")
    ours = {"distributed.scheduler.allowed-failures": ATTEMPTS - 1, "distributed.dashboard.link": link}
    with dask.config.set({**ours, **environment}):
        yield


def _try_submitting(script: str) -> None:
    try:
        tried = subprocess.run(["sbatch", "--test-only"], input=script, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise WrongUse("--executor slurm: no sbatch on this machine; run on a login node") from error
    if tried.returncode != 0:
        raise WrongUse(f"--executor slurm: {' '.join(tried.stderr.split())}")


def _point_to_dashboard(client: Client) -> None:
    warn(f"dask dashboard: {client.dashboard_link}")
