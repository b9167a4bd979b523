"""`python -m tests.replay_dockerfile`: the RUN lines of deploy/Dockerfile, in a folder instead of an image, and then the image's command.

A machine without a Docker engine can so tell whether an image would build: the same files are copied, and no others (.dockerignore), the
same commands run, in an environment of their own, and what came out answers. It takes minutes.
"""

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PREFIX = "/opt/subspan"
"""Where the image has its environment."""
ANSWERS = (
    ("subspan", "--help"),
    ("dask", "scheduler", "--help"),
    ("dask", "worker", "--help"),
    ("prefect", "version"),
    ("python", "-c", "import pipelines.run, pipelines.kube, torch; print(torch.__version__)"),
)


def instructions(path: Path) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile with its arguments; lines that go on are joined."""
    text = re.sub(r"\\\n", " ", path.read_text())
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word and not word.startswith("#"):
            yield word.upper(), rest.strip()


def first_stage(path: Path) -> list[tuple[str, str]]:
    """The instructions of the stage that builds."""
    found = list(instructions(path))
    froms = [i for i, (word, _) in enumerate(found) if word == "FROM"]
    return found[froms[0] : froms[1]]


def allowed(name: str) -> bool:
    """Whether .dockerignore lets a file through: the last pattern that fits decides."""
    verdict = True
    for line in (TOP / ".dockerignore").read_text().splitlines():
        pattern = line.strip().removeprefix("!")
        if not pattern or pattern.startswith("#"):
            continue
        fits = fnmatch.fnmatch(name, pattern) or name.startswith(f"{pattern}/")
        if pattern.startswith("**/"):
            fits = f"/{pattern[3:]}/" in f"/{name}/"
        if fits:
            verdict = line.startswith("!")
    return verdict


def copy(source: str, build: Path) -> None:
    """COPY from the context: what git has and .dockerignore lets through.

    Raises:
        SystemExit: if there is no such file.
    """
    tracked = subprocess.run(
        ["git", "ls-files", "--", source], cwd=TOP, capture_output=True, text=True, check=True
    ).stdout.split()
    names = [name for name in tracked if allowed(name)]
    if not names:
        raise SystemExit(f"COPY {source}: found nothing that .dockerignore lets through")
    for name in names:
        target = build / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(TOP / name, target)


def replay(dockerfile: Path, folder: Path) -> None:
    """Run the build stage below a folder, and ask what came out.

    Raises:
        CalledProcessError: if a command fails.
    """
    build, prefix = folder / "build", folder / "opt"
    build.mkdir()
    environment = os.environ | {"PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    for word, rest in first_stage(dockerfile):
        if word == "COPY":
            *sources, _ = shlex.split(rest)
            for source in sources:
                copy(source, build)
        elif word == "RUN":
            command = rest.replace(PREFIX, str(prefix)).replace("python -m venv", f"{sys.executable} -m venv")
            sys.stdout.write(f"RUN {command}\n")
            sys.stdout.flush()
            subprocess.run(["sh", "-ec", command], cwd=build, env=environment, check=True)
    for answer in ANSWERS:
        command = [str(prefix / "bin" / answer[0]), *answer[1:]]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    sys.stdout.write("the image's commands answer\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="subspan-image-") as made:
        replay(TOP / "deploy" / "Dockerfile", Path(made))
