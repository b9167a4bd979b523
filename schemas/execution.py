"""How a run is executed. Nothing here changes a stored value."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import Frozen
from schemas.errors import SpecError


class Execution(Frozen):
    """Workers, devices and limits."""

    cluster: Literal["auto", "processes", "threads", "gpus", "address", "file"] = "auto"
    """`auto`: one process per GPU where there is one, else one per core; `processes` on this machine; `threads` of one process on
    its CPU, which share libraries and weights: the least memory; `gpus`; an existing Dask scheduler at an `address`; or jobs of
    SLURM or pods of Kubernetes, as a `file` says."""
    address: str | None = None
    """The scheduler, such as `tcp://10.0.0.1:8786`, for `cluster: address`; another cluster, named, does not use it."""
    file: str | None = None
    """A cluster file, such as `deploy/clusters/slurm.yaml`, for `cluster: file`; another cluster, named, does not use it."""
    workers: int | None = Field(None, ge=1)
    """Worker processes, or threads that run units; None: one per core and compute thread, or one per GPU."""
    least_workers: int | None = Field(None, ge=1)
    """Of `processes` and `file`: workers come and go with what is to be done, between this number and `workers`; None: always `workers`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the network runs; `auto` takes a GPU where the worker sees one."""
    window: int = Field(4, ge=1)
    """Units in flight per worker process."""
    worker_memory_bytes: int | None = Field(None, ge=1)
    """Memory a worker may use (of `threads`: all together); None: the machine's memory over the workers."""
    retries: int = Field(2, ge=0)
    """How often a unit is run again after its worker died."""
    mix_fingerprints: bool = False
    """Allow one capture from workers of different versions or devices; then only a tolerance is promised."""
    price_per_worker_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    """What an hour of one worker costs, in any currency; a run that knows it ends with what it cost."""
    take_over_lease: bool = False
    """Take a capture over from a process that holds its lease."""

    @model_validator(mode="after")
    def _check_address(self) -> "Execution":
        if self.cluster == "address" and not self.address:
            raise SpecError(
                "execution.cluster is 'address' and execution.address is empty: give the scheduler, such as tcp://host:8786"
            )
        if self.cluster == "auto" and self.address:
            raise SpecError(
                f"execution.address is {self.address} and execution.cluster is auto, which starts workers here: set cluster to address, "
                "or leave address out"
            )
        return self

    @model_validator(mode="after")
    def _check_file(self) -> "Execution":
        if self.cluster == "file" and not (self.file and self.workers):
            raise SpecError(
                f"execution.cluster is 'file', execution.file is {self.file} and execution.workers is {self.workers}: give both, such as "
                "file: deploy/clusters/slurm.yaml and workers: 8"
            )
        if self.cluster == "auto" and self.file:
            raise SpecError(
                f"execution.file is {self.file} and execution.cluster is auto, which starts workers here: set cluster to file, "
                "or leave file out"
            )
        return self

    @model_validator(mode="after")
    def _check_least(self) -> "Execution":
        if self.least_workers is None:
            return self
        if self.cluster not in ("processes", "file"):
            raise SpecError(
                f"execution.least_workers is {self.least_workers} and execution.cluster is {self.cluster}, "
                "whose workers do not come and go: set cluster to processes or file, or leave least_workers out"
            )
        if self.workers is None or self.workers < self.least_workers:
            raise SpecError(
                f"execution.least_workers is {self.least_workers} and execution.workers, the most, is {self.workers}: "
                "give workers, at least as many"
            )
        return self
