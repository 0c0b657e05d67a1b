"""A real Slurm on this machine: one node, Debian's packages, everything in a temporary folder."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from checkout import BIN, Copy

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")

# Memory is watched by sampling, which works where no cgroup may be made. MinJobAge keeps the ended jobs in view.
SLURM_CONF = """\
ClusterName=second-look
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthInfo=socket={folder}/munge/socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
MinJobAge=3600
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes={host} MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Why a cluster cannot be started here."""
    if os.geteuid() != 0:
        return "a cluster of its own needs root"
    if not Path("/etc/debian_version").exists():
        return "written for Debian and Ubuntu"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing: apt-get install --no-install-recommends slurm-wlm munge"
    if find_spec("snakemake_executor_plugin_slurm") is None:
        return "snakemake-executor-plugin-slurm missing: pip install -e '.[cluster]'"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    for item in items:
        if reason and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip(reason=reason))


def wait_for(condition: Callable[[], object], what: str, seconds: float = 60) -> object:
    """The first true answer; fails the test when none comes in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := condition():
            return answer
        time.sleep(0.2)
    pytest.fail(f"no {what} within {seconds} s")


class Cluster:
    """The running scheduler: orders to it, and what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.node = socket.gethostname()
        self.env = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join(map(str, (folder / "bin", BIN, os.environ["PATH"]))),
        }

    def ask(self, *command: str) -> str:
        return subprocess.run(
            command, env=os.environ | self.env, capture_output=True, text=True, check=True, timeout=30
        ).stdout

    def jobs(self) -> dict[int, dict[str, str]]:
        """Every job since the start, by id, with the fields of `scontrol show job`."""
        shown = (line.split(" ") for line in self.ask("scontrol", "--oneliner", "show", "job").splitlines())
        jobs = [dict(field.split("=", 1) for field in fields if "=" in field) for fields in shown]
        return {int(job["JobId"]): job for job in jobs if "JobId" in job}

    def is_idle(self) -> bool:
        shown = subprocess.run(
            ("sinfo", "--noheader", "--format=%T"),
            env=os.environ | self.env,
            capture_output=True,
            text=True,
            timeout=30,
        )
        return set(shown.stdout.split()) == {"idle"}

    def clear(self) -> None:
        """Cancel what still runs, and wait until it is gone."""
        self.ask("scancel", "--user=root", "--full")
        wait_for(lambda: not self.ask("squeue", "--noheader").strip(), "end of the cancelled jobs")

    def ids(self) -> set[int]:
        return set(self.jobs())

    def since(self, before: set[int], seed: int | None = None, **fields: str) -> list[dict[str, str]]:
        """Jobs submitted after `before` was taken, of one seed or all, that have these fields; oldest first."""
        return [
            job
            for number, job in sorted(self.jobs().items())
            if number not in before
            and (seed is None or job["Comment"].endswith(f".seed{seed}"))
            and all(job.get(name) == value for name, value in fields.items())
        ]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start munge, the controller and one node; stop them and remove every trace, whatever happens in between."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short name, for munge's socket
    daemons: list[subprocess.Popen] = []
    try:
        configure(folder)
        cluster = Cluster(folder)
        m = folder / "munge"
        files = {"key-file": "key", "socket": "socket", "seed-file": "seed", "pid-file": "pid", "log-file": "log"}
        options = [f"--{option}={m / name}" for option, name in files.items()]
        as_munge = ("--reuid=munge", "--regid=munge", "--clear-groups")
        daemons.append(spawn(folder, "munged", "--foreground", *options, privileges=as_munge))
        wait_for((m / "socket").exists, "munge socket")
        daemons += [spawn(folder, name, "-D") for name in ("slurmctld", "slurmd")]
        wait_for(cluster.is_idle, "idle node")
        yield cluster
        cluster.clear()
    except pytest.fail.Exception as failure:
        logs = "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in folder.glob("*.log"))
        pytest.fail(f"{failure}\n{logs}")
    finally:
        for daemon in reversed(daemons):
            stop(daemon)
        shutil.rmtree(folder, ignore_errors=True)


def configure(folder: Path) -> None:
    """Write what Slurm and munge read."""
    folder.chmod(0o711)  # munge's own user passes through
    for name in ("state", "spool", "munge", "bin"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    for path in (key.parent, key):
        shutil.chown(path, "munge", "munge")
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        ports = {"controller": one.getsockname()[1], "node": other.getsockname()[1]}
    (folder / "slurm.conf").write_text(SLURM_CONF.format(folder=folder, host=socket.gethostname(), **ports))
    (folder / "gres.conf").write_text(
        "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"
    )  # to count requests, not to compute
    # The executor's job step drops SLURM_CONF, which only matters where slurm.conf is not in the usual place.
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n')
    srun.chmod(0o755)


def spawn(folder: Path, *command: str, privileges: tuple[str, ...] = ()) -> subprocess.Popen:
    """Start a daemon that ends with this process at the latest."""
    with (folder / f"{command[0]}.log").open("w") as log:
        return subprocess.Popen(
            ("setpriv", "--pdeathsig=TERM", *privileges, *command),
            env=os.environ | {"SLURM_CONF": str(folder / "slurm.conf")},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches them by way of `stop`
        )


def stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


@pytest.fixture(scope="session")
def room(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """A checkout with a room of three seeds, each of which first does what stands in `tricks/seedN.py`, if anything."""
    copy = Copy(tmp_path_factory.mktemp("cluster"))
    copy.run("secondlook", "new", "demo", "--family", "solvers")
    demo = copy.folder / "src" / "secondlook" / "solvers" / "demo"
    edit(demo / "card.yaml", "smoke: {seeds: 2,", "smoke: {seeds: 3, mem_mb: 1500, runtime: 7,")
    edit(
        demo / "experiment.py",
        "        generator = ",
        "        for trick in __import__('pathlib').Path('tricks').glob(f'seed{seed}.py'):\n"
        "            exec(trick.read_text())\n"
        "        generator = ",
    )
    (copy.folder / "tricks").mkdir()
    return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(text.replace(old, new))
