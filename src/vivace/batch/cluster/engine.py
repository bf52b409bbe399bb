"""The engine `ray`: `Ordered` over actors of a Ray cluster, one that is there or one of this machine alone."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from vivace.batch.cluster.ordered import Died, Ordered
from vivace.batch.cluster.worker import Answer, Facts, Job, Worker, version_of_vivace
from vivace.batch.pipeline import Batch
from vivace.errors import ConfigError, MissingExtra, VivaceError, first_line
from vivace.files import sha256_of
from vivace.hardware import num_cpus
from vivace.notices import warn
from vivace.predictor import Predictor
from vivace.sources.items import Item

__all__ = ["RayEngine", "check_ray"]

# processors of a worker, where the machines have so many
THREADS = 4
# of the shared memory of a cluster that is started here; what does not fit goes to disk
STORE_BYTES = 2**30
HOME = "127.0.0.1"
# of a cluster that is started here: it listens at HOME, as on Windows and macOS by default, and its workers are as
# urgent as this process
SETTINGS = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_worker_niceness": "0"}
# who does not know it is not obeyed; Ray reads it once in a process, when it is imported
_token: str | None = None


@dataclass
class RayEngine:
    """Classifies batches by workers of a Ray cluster, each a process with the bundle opened once.

        with RayEngine(workers=8, address="10.0.0.1:6379") as engine:
            predict_stream(predictor, paths, outputs=…, engine=engine)

    workers: how many; None: as many as the cluster has room for. threads: processors of each; None: four, or all of the
    smallest machine. address: HOST:PORT of a cluster that runs; None: that of the variable RAY_ADDRESS, or a cluster of
    this machine alone, started here and ended with the engine. Ray that the program has started itself is taken as it
    is. Raises MissingExtra without Ray, ConfigError for an address that can't be used.
    """

    workers: int | None = None
    threads: int | None = None
    address: str | None = None
    device: str | None = "auto"
    """None: with the options of the predictor that it stands for."""
    precision: str = "auto"

    def __post_init__(self) -> None:
        self._ordered: Ordered | None = None
        self._owns = False
        self._settings = contextlib.ExitStack()

    def begin(self, predictor: Predictor, *, topk: int, features: bool) -> Facts:
        """Start the workers; what they compute with. Raises what `Ordered.batches` raises."""
        ray = self._connected()
        if self.device is None:
            given = predictor.options
        else:
            given = {"device": self.device, "precision": self.precision, **predictor.rates}
            given |= {
                "batch_size": predictor.batch_size,
                "threads": self.threads,
                "decode": predictor.bundle.preprocess.decode,
            }
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        if not machines:
            raise ConfigError("the Ray cluster has no machine with a processor. Look at `ray status`.")
        self.threads = threads = given["threads"] or min([THREADS, *(int(machine["CPU"]) for machine in machines)])
        # by default Ray hides GPUs from those who do not ask for one
        device = given["device"]
        num_gpus = int(device.startswith("cuda") or (device == "auto" and _all_have_gpus(machines)))
        room = sum(_room(machine, threads, num_gpus) for machine in machines)
        self.workers = self.workers or max(1, room)
        folder = predictor.bundle.folder.absolute()
        job = Job(
            bundle=str(folder),
            bundle_sha256=sha256_of(folder / "bundle.json"),
            version=version_of_vivace(),
            options={**given, "threads": threads},
            topk=topk,
            features=features,
        )
        self._ordered = Ordered(_Actors(ray, job, threads, num_gpus), self.workers, predictor.batch_size)
        return self._ordered.begin()

    def batches(self, items: Iterable[Item], *, resumed: bool) -> Iterator[Batch]:
        """As `Ordered.batches`."""
        assert self._ordered is not None
        return self._ordered.batches(items, resumed=resumed)

    @property
    def num_restarts(self) -> int:
        """Workers that took the place of one that died."""
        return 0 if self._ordered is None else self._ordered.num_restarts

    @property
    def pids(self) -> frozenset[int]:
        """The processes of the workers that were ready, each on its machine."""
        return frozenset() if self._ordered is None else frozenset(self._ordered.pids)

    def close(self) -> None:
        """End the workers, and Ray where it was started or joined here."""
        if self._ordered is not None:
            self._ordered.close()
            self._ordered = None
        if self._owns:
            self._owns = False
            _imported().shutdown()
        self._settings.close()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connected(self) -> Any:
        check_ray()
        if "ray" in sys.modules and (ray := _imported()).is_initialized():
            if self.address is not None:
                raise ConfigError(
                    f"Ray runs in this program already: got `ray_address={self.address}`. Leave it out, or end that by "
                    "ray.shutdown()."
                )
            return ray
        address = self.address or os.environ.get("RAY_ADDRESS") or None
        options: dict[str, Any] = {"address": address}
        if address is None:
            asked = (self.workers or 1) * (self.threads or 1)
            options = {
                "address": "local",
                # nobody outside of this machine can reach it
                "_node_ip_address": HOME,
                "num_cpus": max(num_cpus(), asked),
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
            }
        elif "://" in address:
            raise ConfigError(
                f"Ray's client is not supported: got the address {address!r}. Run this on a machine of the cluster, "
                "and give HOST:PORT."
            )
        if address is None:
            self._settings.enter_context(_settings())
        ray = _imported()
        with _own_signals():
            try:
                ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise ConfigError(
                    f"Ray can't be started or joined: got the address {address or 'local'!r} ({first_line(error)}). "
                    "Give that of a cluster that runs, or none for one of this machine."
                ) from None
        self._owns = True
        self._settings.enter_context(_untold(ray))
        if address is None and any(node["NodeManagerAddress"] != HOME for node in ray.nodes()):
            warn(f"this Ray listens at other addresses than {HOME}: whoever reaches them can run code here")
        return ray


def check_ray() -> None:
    """Raises MissingExtra without Ray, which is not imported yet."""
    if "ray" not in sys.modules and importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", "ray", "the engine ray")


def _imported() -> Any:
    # it tells its makers about each cluster otherwise
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with _own_signals():
        import ray
    return ray


class _Actors:
    """Workers as actors; a ticket is a reference to what is to come."""

    def __init__(self, ray: Any, job: Job, threads: int, num_gpus: int) -> None:
        # what dies is started again by `Ordered`, which knows what it had
        self._ray, self._job = ray, job
        self._actor = ray.remote(Worker).options(
            num_cpus=threads,
            num_gpus=num_gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            scheduling_strategy="SPREAD",
        )

    def start(self) -> tuple[Any, Any]:
        worker = self._actor.remote(self._job)
        return worker, worker.open.remote()

    def classify(self, worker: Any, items: list[Item], *, small: bool) -> Any:
        return worker.classify.remote(items, small=small)

    def wait(self, tickets: list[Any], seconds: float) -> list[Any]:
        try:
            done: list[Any] = self._ray.wait(tickets, num_returns=1, timeout=seconds)[0]
        except SystemError as error:
            # what a handler of a signal raised meanwhile
            raise error.__cause__ or error from None
        return done

    def answer(self, ticket: Any) -> Answer:
        errors = self._ray.exceptions
        try:
            answer: Answer = self._ray.get(ticket)
        except (
            errors.RayActorError,
            errors.OutOfMemoryError,
            errors.WorkerCrashedError,
            errors.ObjectLostError,
        ) as lost:
            raise Died(first_line(lost)) from None
        except errors.RayTaskError as error:
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, MemoryError):
                raise MemoryError(first_line(cause)) from None
            raise VivaceError(f"a worker failed: {type(cause).__name__}: {first_line(cause)}") from error
        return answer

    def stop(self, worker: Any) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(worker, no_restart=True)


@contextlib.contextmanager
def _untold(ray: Any) -> Iterator[None]:
    """Within, Ray prints nothing of its workers on stdout, where rows may be: deaths are told at the end."""
    module = ray._private.worker
    before = module.print_worker_logs
    module.print_worker_logs = lambda *_, **__: None
    try:
        yield
    finally:
        module.print_worker_logs = before


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Within, `SETTINGS` and a token that nobody else has: for what Ray starts, and for Ray itself."""
    global _token
    if "ray" not in sys.modules:
        _token = secrets.token_hex(32)
    values = {**SETTINGS, **({} if _token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _token})}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    constants = _imported()._private.ray_constants
    # it may have been read before
    clustered, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = clustered
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _all_have_gpus(machines: list[dict[str, float]]) -> bool:
    return all(machine.get("GPU", 0) >= 1 for machine in machines)


def _room(machine: dict[str, float], threads: int, num_gpus: int) -> int:
    """How many workers a machine has room for."""
    room = int(machine["CPU"]) // threads
    return room if not num_gpus else min(room, int(machine.get("GPU", 0)) // num_gpus)


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Afterwards signals are handled as before: Ray sets a handler of its own for SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
