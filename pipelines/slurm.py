"""Workers as jobs of SLURM. The scheduler lives in this process; what goes between it and the workers is encrypted, with certificates
of this run alone: its port is open to everybody on the network of the nodes, and who may talk to it may run code.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import psutil
from distributed.core import Status
from distributed.security import Security
from tornado.ioloop import PeriodicCallback

from pipelines.workers_here import ADAPTIVE, worker_environment
from schemas.cluster import SlurmCluster
from schemas.errors import ResourceError

LIFE = 0.9
"""Of its walltime, after which a worker ends by itself: what it was computing begins anew elsewhere at once."""
STAGGER = 0.05
KEEP_SECONDS = 10
LOGS = "subspan-jobs"
NO_PAUSE = {f"DASK_DISTRIBUTED__WORKER__MEMORY__{name}": "False" for name in ("TARGET", "SPILL", "PAUSE")}
"""Units hold no results that could be spilled; a worker near its limit goes on, and is ended by its nanny beyond it."""


@contextmanager
def slurm_cluster(
    found: SlurmCluster, name: str, threads: int, least: int | None, most: int
) -> Iterator[Any]:
    """Jobs of SLURM, cancelled on the way out. Those that end (walltime, a lost node) are replaced.

    Raises:
        ResourceError: if there is no `sbatch` here, or it refuses a job, with what it said; or no such interface or shared folder.
    """
    if shutil.which("sbatch") is None:
        raise ResourceError("found no sbatch on the PATH: run this where jobs of SLURM are submitted")
    if found.interface is not None and found.interface not in psutil.net_if_addrs():
        raise ResourceError(
            f"this machine has no network interface {found.interface}, only {', '.join(psutil.net_if_addrs())}: set interface in the "
            "cluster file, or leave it out"
        )
    with certificates(found) as security, make_slurm(found, name, threads, security) as cluster:
        _try_job(cluster.job_script())
        cluster.scale(least or most)
        if least is not None:
            cluster.adapt(minimum=least, maximum=most, **ADAPTIVE)
        with _kept(cluster):
            yield cluster


@contextmanager
def certificates(found: SlurmCluster) -> Iterator[Security]:
    """Certificates of one run, in files that the nodes see and only this user can read."""
    made, shared = Security.temporary(), _shared(found)
    with TemporaryDirectory(prefix=".subspan-tls-", dir=shared) as folder:
        paths = {name: os.path.join(folder, name) for name in ("ca_file", "key", "cert")}
        texts = {"ca_file": made.tls_ca_file, "key": made.tls_worker_key, "cert": made.tls_worker_cert}
        for name, path in paths.items():
            Path(path).write_text(texts[name])
        roles = ("client", "scheduler", "worker")
        own = {f"tls_{role}_{name}": paths[name] for role in roles for name in ("key", "cert")}
        yield Security(require_encryption=True, tls_ca_file=paths["ca_file"], **own)


def _shared(found: SlurmCluster) -> str:
    shared = os.path.abspath(found.shared_directory)
    try:
        os.makedirs(os.path.join(shared, LOGS), exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"nothing can be written below shared_directory {shared} ({error.strerror}): give one that this machine and the nodes share"
        ) from error
    return shared


def make_slurm(found: SlurmCluster, name: str, threads: int, security: Security) -> Any:
    """The cluster without a job yet; `job_script()` tells what a job will be."""
    from dask_jobqueue import SLURMCluster
    from dask_jobqueue.slurm import SLURMJob

    class Job(SLURMJob):  # type: ignore[misc,unused-ignore]
        """Tells how it ended: Dask refuses to close a cluster of which it remembers a job that seems to run."""

        async def start(self) -> None:
            try:
                await super().start()
            except Exception:
                self.status = Status.failed
                raise

        async def close(self) -> None:
            await super().close()
            self.status = Status.closed

    seconds = int(found.walltime_minutes * 60 * LIFE)
    gres = (f"--gres=gpu:{found.gpus}",) if found.gpus else ()
    return SLURMCluster(
        job_cls=Job,
        name=name,
        job_name=name,
        cores=1,
        job_cpu=threads,
        processes=1,
        memory=f"{found.memory_bytes}B",
        nanny=True,
        walltime=_walltime(found.walltime_minutes),
        queue=found.queue,
        account=found.account,
        job_extra_directives=[*gres, *found.directives],
        job_script_prologue=[
            *found.prologue,
            *_exports(worker_environment(threads) | NO_PAUSE | found.environment),
        ],
        worker_extra_args=[
            "--no-dashboard",
            "--lifetime",
            f"{seconds}s",
            "--lifetime-stagger",
            f"{int(seconds * STAGGER)}s",
        ],
        python=found.python,
        interface=found.interface,
        security=security,
        log_directory=os.path.join(_shared(found), LOGS),
        scheduler_options={"dashboard": False, "dashboard_address": "127.0.0.1:0"},
    )


def _exports(environment: dict[str, str]) -> list[str]:
    return [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]


def _walltime(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}:00"


def _try_job(script: str) -> None:
    """Ask SLURM whether it would take a job: Dask submits in the background, where a refusal is only logged."""
    with NamedTemporaryFile("w", suffix=".sh") as file:
        file.write(script)
        file.flush()
        tried = subprocess.run(
            ["sbatch", "--test-only", file.name], capture_output=True, text=True, check=False
        )
    if tried.returncode:
        raise ResourceError(f"SLURM takes no such job: {tried.stderr.strip()}; its script was:\n{script}")


@contextmanager
def _kept(cluster: Any) -> Iterator[None]:
    """Put new jobs in the places of lost ones: dask-jobqueue does so only when it is asked to scale, and never for one that SLURM did not
    take.
    """

    def fill() -> None:
        for name, job in list(cluster.workers.items()):
            if job.status is Status.failed:
                del cluster.workers[name]
        cluster.scale(len(cluster.worker_spec))

    again = PeriodicCallback(fill, KEEP_SECONDS * 1000)
    cluster.loop.add_callback(again.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(again.stop)
