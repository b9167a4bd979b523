"""A cluster file: what a worker of a scheduler elsewhere is. How many there are says the run (`execution.workers`)."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from schemas.base import Frozen

Line = Annotated[str, StringConstraints(pattern=r"^[^\r\n]+$")]
"""One line of a job script."""
Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""What Kubernetes takes as a name."""
Absolute = Annotated[str, StringConstraints(pattern=r"^/[^:\x00-\x1f]*$")]
"""Where a volume is mounted."""
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class SlurmCluster(Frozen):
    """Each worker is one job of SLURM, through dask-jobqueue."""

    kind: Literal["slurm"] = "slurm"
    memory_bytes: int = Field(ge=1 << 28)
    """Of a job; its worker may use all of it."""
    walltime_minutes: int = Field(60, ge=2)
    """After which SLURM ends a job. Workers end by themselves a little earlier, and new jobs take their places."""
    queue: Line | None = None
    """The partition; None: the site's default."""
    account: Line | None = None
    gpus: int = Field(0, ge=0)
    """Of a worker (`--gres=gpu:N`)."""
    directives: tuple[Line, ...] = ()
    """Further lines of `#SBATCH`, such as `--constraint=icelake`."""
    prologue: tuple[Line, ...] = ()
    """Lines of the job script before the worker, such as `module load cuda`."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Variables of workers, no secrets: job scripts can be read by others."""
    python: Line | None = None
    """The interpreter on the nodes; None: the path of this one."""
    interface: Line | None = None
    """The network that scheduler and workers share, such as `ib0`; None: the one that leads outside."""
    shared_directory: str = Field(".", min_length=1)
    """A folder that this machine and the nodes share: certificates and logs of jobs lie there, for as long as the cluster lives."""
    wait_minutes: int = Field(60, ge=1)
    """How long the run waits for the first worker."""


class KubernetesCluster(Frozen):
    """Each worker is one pod, made by the Dask operator."""

    kind: Literal["kubernetes"] = "kubernetes"
    memory_bytes: int = Field(ge=1 << 28)
    """Asked for and the limit of a pod."""
    image: Line
    """With the versions that this process has; deploy/Dockerfile makes it."""
    namespace: Label = "default"
    gpus: int = Field(0, ge=0)
    """Of a worker (`nvidia.com/gpu`)."""
    environment: dict[Variable, str] = Field(default_factory=dict)
    """Variables of workers, no secrets."""
    secrets: tuple[Label, ...] = ()
    """Secrets of the namespace whose keys become variables of workers, such as credentials of an object store."""
    claims: dict[Label, Absolute] = Field(default_factory=dict)
    """Persistent volume claim to the path where workers see it, for a root or weights that lie on a volume."""
    user: int = Field(1000, ge=1)
    """Under whose number pods run, never root."""
    wait_minutes: int = Field(10, ge=1)
    """How long the run waits for the first worker."""


ClusterFile = Annotated[SlurmCluster | KubernetesCluster, Field(discriminator="kind")]
