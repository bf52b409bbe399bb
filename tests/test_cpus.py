"""The number of CPUs: the minimum of affinity, quotas at any depth, Slurm and OMP_NUM_THREADS."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from vivace import cpus
from vivace.cpus import num_cpus

NAMES = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE")


@pytest.fixture(autouse=True)
def _sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 processors."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def files(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "0::/user.slice/job.scope\n"
V1 = "12:cpuset:/\n5:cpuacct,cpu:/docker/abc\n1:name=systemd:/docker/abc\n"


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        ({}, 16),
        ({"sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        # below the root: the group's own quota, its parent's, the smaller of both
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/user.slice/job.scope/cpu.max": "300000 100000\n"}, 3),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/user.slice/cpu.max": "200000 100000\n"}, 2),
        (
            {
                "proc/self/cgroup": V2,
                "sys/fs/cgroup/user.slice/job.scope/cpu.max": "max 100000\n",
                "sys/fs/cgroup/user.slice/cpu.max": "500000 100000\n",
                "sys/fs/cgroup/cpu.max": "700000 100000\n",
            },
            5,
        ),
        # another group's quota is not this process's
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/system.slice/cpu.max": "100000 100000\n"}, 16),
        # seen from inside a container
        ({"proc/self/cgroup": "0::/../../job\n", "sys/fs/cgroup/job/cpu.max": "200000 100000\n"}, 2),
        # both versions at once
        ({"proc/self/cgroup": V1 + V2, "sys/fs/cgroup/unified/user.slice/cpu.max": "200000 100000\n"}, 2),
        # version 1, by the group's own folder and by a container's view of it
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "600000\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            6,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpuacct,cpu/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpuacct,cpu/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            16,
        ),
        # less than one processor, more than there are, and nonsense
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "many\n"}, 16),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "100 0\n"}, 16),
        ({"proc/self/cgroup": "nonsense\n\n"}, 16),
    ],
)
def test_every_quota_on_the_way_up_counts(tmp_path: Path, texts: dict[str, str], wanted: int) -> None:
    assert num_cpus(root=files(tmp_path, texts), environment={}) == wanted


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": " 3,2 "}, 3),
        ({"OMP_NUM_THREADS": "64"}, 16),
        ({"OMP_NUM_THREADS": "0"}, 16),
        ({"OMP_NUM_THREADS": "-2"}, 16),
        ({"OMP_NUM_THREADS": "all"}, 16),
        ({"OMP_NUM_THREADS": ""}, 16),
        ({"SLURM_CPUS_PER_TASK": "4", "SLURM_CPUS_ON_NODE": "8"}, 4),
        ({"SLURM_CPUS_ON_NODE": "8"}, 8),
        # srun has started four of us on this node
        ({"SLURM_CPUS_ON_NODE": "8", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 2),
        ({"SLURM_CPUS_ON_NODE": "2", "SLURM_STEP_TASKS_PER_NODE": "4"}, 1),
        ({"SLURM_CPUS_PER_TASK": "4", "OMP_NUM_THREADS": "2"}, 2),
        ({"SLURM_CPUS_PER_TASK": "9" * 5000}, 16),
    ],
)
def test_limits_in_the_environment_count(tmp_path: Path, environment: dict[str, str], wanted: int) -> None:
    assert num_cpus(root=tmp_path, environment=environment) == wanted


def test_the_smallest_limit_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = files(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"})
    assert num_cpus(root=root, environment={"SLURM_CPUS_PER_TASK": "6", "OMP_NUM_THREADS": "5"}) == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 9})
    assert num_cpus(root=root, environment={"SLURM_CPUS_PER_TASK": "6"}) == 2


def test_torch_is_limited_and_never_given_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for limit, wanted in ((8, 4), (3, 3), (4, 3)):
            monkeypatch.setattr(cpus, "num_cpus", lambda limit=limit: limit)
            cpus.limit_threads()
            assert torch.get_num_threads() == wanted
    finally:
        torch.set_num_threads(before)


PROGRAM = """
import os
os.sched_getaffinity = lambda _: set(range(8))
from vivace import cpus
cpus._quotas = lambda root: [2]
import numpy as np, torch
from vivace.prediction import Predictor
torch.set_num_threads(8)
Predictor(BUNDLE, device="cpu").probs(np.zeros((2, 32, 32, 1), np.uint8))
print(torch.get_num_threads())
"""


def test_prediction_uses_the_processors_of_its_quota(tmp_path: Path) -> None:
    import torch

    from vivace.bundle import Architecture, BundleInfo, save_bundle
    from vivace.data.preprocess import Preprocess
    from vivace.models.zoo import create_model

    info = BundleInfo(
        architecture=Architecture(name="simple_cnn", num_classes=2, in_channels=1),
        classes=("a", "b"),
        preprocess=Preprocess(size=32, store_size=32, channels=1, mean=(0.4,), std=(0.2,)),
    )
    torch.manual_seed(0)
    save_bundle(tmp_path / "bundle", create_model("simple_cnn", 2, in_channels=1, size=32), info)
    program = PROGRAM.replace("BUNDLE", repr(str(tmp_path / "bundle")))
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.split() == ["2"], done.stderr


def test_a_deployed_folder_counts_as_vivace_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from vivace.exporting import deployment

    template = Path(deployment.__file__).parent / "templates" / "classifier.py"
    # the decoder lies beside it only where it was deployed, and counts no processors
    for name in ("pixels", "manifest", "reliance", "image_decoder", "image_decoder.decode"):
        beside = types.ModuleType(name)
        beside.__getattr__ = lambda _: ValueError  # type: ignore[method-assign]
        monkeypatch.setitem(sys.modules, name, beside)
    spec = importlib.util.spec_from_file_location("classifier_template", template)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "classifier_template", module)
    spec.loader.exec_module(module)
    root = files(tmp_path, {"proc/self/cgroup": V2, "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n"})
    monkeypatch.setattr(module, "Path", lambda path: root / str(path).lstrip("/"))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert module.num_cpus() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert module.num_cpus() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert module.num_cpus() == 1
