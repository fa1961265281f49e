"""``--engine ray``: actors on the nodes of a Ray cluster make the parts of a job.

::

    RayJob -> units -> Ray Data: map_batches, a pool of actors -> PartMaker -> part, record
              (missing fragments)                                 (Job and Annotator, as in one process)

Files are the only state: an actor that dies leaves complete parts or none, and Ray Data gives its unit to another one.
Decision 17 says why Ray Data's own checkpoints are not used. Only this module imports Ray.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import platform
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.data
import ray.exceptions

from .annotator import Annotator
from .answers import Answers
from .errors import BulkError, EngineError, UsageError
from .files import remove_abandoned
from .job import Job
from .layout import Layout
from .model_source import ModelSource, archive_of, digest_of
from .plan import Plan, Unit
from .run_files import RunFiles
from .texts import Texts
from .units import make_unit, units_of

logger = logging.getLogger(__name__)

# With so many workers that died with it, a unit is taken for the cause. Ray's own limit on retries of a task also
# counts attempts to reach a worker whose node has just gone.
_MAX_ATTEMPTS = 5


class Cluster:
    """A connection to a Ray cluster, and the model that its nodes compute with.

    Attributes:
        layout: The columns of the answers.
        workers: Number of actors for which the cluster has room now, at least 1.
    """

    def __init__(
        self,
        bundle: Path,
        arguments: Mapping[str, Any],
        *,
        address: str | None = None,
        public_key: Path | None = None,
        send_bundle: bool = False,
    ) -> None:
        """Connects, and loads the model on one node to learn what it answers.

        Args:
            bundle: The bundle's folder: on every node, or only here with ``send_bundle``.
            arguments: Further arguments of ``Annotator``; ``threads`` is the number of cores of an actor.
            address: Address of the cluster; None for the environment's, or a new one on this machine.
            public_key: PEM file of the bundle's signer.
            send_bundle: Whether the nodes get the bundle through Ray's object store.

        Raises:
            UsageError: The address does not fit, or the model does not fit the options.
            EngineError: No cluster answers, or the model cannot be loaded.
        """
        _connect(address)
        self._resources = {"num_cpus": arguments["threads"], "num_gpus": int(arguments["device"] == "cuda")}
        source = ModelSource(
            bundle=str(bundle.absolute()),
            archive=ray.put(archive_of(bundle)) if send_bundle else None,
            digest=digest_of(bundle) if send_bundle else "",
            public_key=public_key.read_bytes() if public_key else b"",
            arguments=dict(arguments),
        )
        self.workers = max(1, self._room())
        self.layout: Layout = _unwrap(ray.get(ray.remote(_layout).options(**self._resources).remote(source)))
        self._source = dataclasses.replace(source, digest=self.layout.facts.digest)

    def stream(self, texts: Iterable[Texts]) -> Iterator[tuple[Texts, Answers]]:
        """Not supported: parts are made by actors and not in this process."""
        raise NotImplementedError

    def make(self, plan: Plan, token: str, units: list[Unit]) -> Iterator[dict[str, Any]]:
        """Makes the parts of units on the nodes; yields what was done for each, in any order.

        Args:
            plan: The job, with absolute paths.
            token: Name of the run, see ``RunFiles``.
            units: The units.

        Raises:
            EngineError: Actors die again and again.
        """
        ray.data.DataContext.get_current().enable_progress_bars = False
        pool = ray.data.ActorPoolStrategy(
            min_size=min(self.workers, len(units)), max_size=len(units), max_tasks_in_flight_per_actor=1
        )
        items = ray.data.from_items([vars(unit) for unit in units], override_num_blocks=len(units))
        results = items.map_batches(
            PartMaker,
            batch_size=1,
            compute=pool,
            fn_constructor_kwargs={"plan": plan, "token": token, "source": self._source, "layout": self.layout},
            **self._resources,
        )
        try:
            yield from results.iter_rows()
        except ray.exceptions.RayError as error:
            raise EngineError(f"Ray gave up: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """Disconnects; a cluster that was started here ends."""
        ray.shutdown()

    def _room(self) -> int:
        """Returns for how many actors the nodes have cores and GPUs."""
        cpus, gpus = self._resources["num_cpus"], self._resources["num_gpus"]
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = sum(int(min(one.get("CPU", 0) // cpus, one.get("GPU", 0) // gpus if gpus else 1e9)) for one in nodes)
        if not room:
            logger.warning("no node has %d cores and %d GPUs: waiting until one is added", cpus, gpus)
        return room


class RayJob(Job):
    """A job whose parts are made by the nodes of a cluster; this process reads metadata and compiles the manifest."""

    def __init__(self, plan: Plan, cluster: Cluster) -> None:
        """Opens the first input; see ``Job``.

        Raises:
            UsageError: The plan names something that only one process can do, or the columns do not fit.
            InputError: No input can be read.
        """
        if any(source.is_stdin for source in plan.sources):
            raise UsageError("standard input cannot be divided among nodes; write it to a file that all of them read")
        super().__init__(plan, cluster)
        self._cluster = cluster
        self._files = RunFiles(plan.output.absolute(), secrets.token_hex(8))

    def stop(self) -> None:
        """Ends the run after the parts that are being written."""
        super().stop()
        self._files.stop()

    def make_parts(self) -> None:
        """See ``Job``."""
        units = units_of(self, self._cluster.workers)
        failures: dict[str, None] = {}
        plan = _absolute(self.plan)
        with self._files:
            if self.is_stopping:
                # Nobody has seen a request to stop from before the run began.
                self._files.stop()
            for result in self._cluster.make(plan, self._files.token, units) if units else ():
                self._add(result, failures)
        self.summary.failures = list(failures)
        self.summary.is_stopped = self.is_stopping
        # Of actors that were killed.
        remove_abandoned(plan.output)

    def _add(self, result: Mapping[str, Any], failures: dict[str, None]) -> None:
        if result["error"] and not self.is_stopping:
            raise (UsageError if result["is_usage"] else BulkError)(result["error"])
        self.summary.rows += result["rows"]
        self.summary.errors += result["errors"]
        self.summary.parts += result["parts"]
        self.on_rows(result["rows"])
        for failure in json.loads(result["failures"]):
            if failure not in failures:
                logger.error("%s", failure)
                failures[failure] = None


class PartMaker:
    """An actor, which makes the parts of one unit after the other."""

    def __init__(self, plan: Plan, token: str, source: ModelSource, layout: Layout) -> None:
        """Args: the job, the name of the run, the model, and the columns that it must answer."""
        self._plan = plan
        self._source = source
        self._layout = layout
        self._files = RunFiles(plan.output, token)
        self._job: Job | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Makes the parts of the unit that is the only row; returns what was done as one row."""
        unit = Unit(**{name: int(batch[name][0]) for name in ("source", "first", "step")})
        try:
            if self._files.is_stopping():
                return _row()
            self._job = self._job or self._open()
            self._job.is_stopping = False
            if self._files.count_attempt(unit) > _MAX_ATTEMPTS:
                return _row(failures=json.dumps([self._poison(unit)]))
            done = make_unit(self._job, unit)
            self._files.forget(unit)
        except BulkError as error:
            return _row(error=str(error), is_usage=isinstance(error, UsageError))
        return _row(rows=done.rows, errors=done.errors, parts=done.parts, failures=json.dumps(done.failures))

    def _poison(self, unit: Unit) -> str:
        which = "parts from " if unit.step else "part "
        return (
            f"{self._plan.sources[unit.source].name}, {which}{unit.first}: {_MAX_ATTEMPTS} workers died with it; their "
            "logs are in the folder of Ray's session on their nodes"
        )

    def _open(self) -> Job:
        """Loads the model; in the first call, because an error of the constructor would make Ray try it again."""
        if not self._files.is_here():
            raise UsageError(
                f"node {platform.node()}: {self._plan.output} is not the folder that the command sees; it must be on a "
                "file system that all nodes share"
            )
        annotator = _load(self._source)
        here, there = annotator.layout.facts, self._layout.facts
        if (here.variant, here.fingerprints) != (there.variant, there.fingerprints):
            raise EngineError(
                f"node {platform.node()} computes on {here.runtime}, the first one on {there.runtime}; give --variant "
                "and --device"
            )
        job = Job(self._plan, annotator)
        job.on_rows = self._stop_if_asked
        return job

    def _stop_if_asked(self, _rows: int) -> None:
        if self._job is not None and self._files.is_stopping():
            self._job.stop()


def _row(
    *, rows: int = 0, errors: int = 0, parts: int = 0, failures: str = "[]", error: str = "", is_usage: bool = False
) -> dict[str, list[Any]]:
    return {name: [value] for name, value in locals().items()}


def _load(source: ModelSource) -> Annotator:
    """Loads the model on this node.

    Raises:
        BulkError: The model cannot be loaded; the message names the node.
    """
    try:
        return source.load(None if source.archive is None else ray.get(source.archive))
    except EngineError as error:
        raise EngineError(f"node {platform.node()}: {error}") from error


def _layout(source: ModelSource) -> Layout | BulkError:
    """Returns the columns of the model's answers, or why it cannot be loaded."""
    try:
        return _load(source).layout
    except UsageError as error:
        return UsageError(str(error))
    except BulkError as error:
        return EngineError(str(error))


def _unwrap(layout: Layout | BulkError) -> Layout:
    if isinstance(layout, BulkError):
        raise layout
    return layout


def _connect(address: str | None) -> None:
    if address is not None and address.startswith("ray://"):
        raise UsageError(
            f"--ray-address {address}: the command must run on a node of the cluster: "
            "ray job submit --address http://HEAD:8265 -- polyhead bulk ..."
        )
    # A default of a later version, which Ray otherwise announces.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with warnings.catch_warnings(action="ignore"):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        _no_cluster(address, error)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _no_cluster(address: str | None, error: Exception) -> NoReturn:
    where = f" at {address}" if address else ""
    # `ray start` protects a cluster with a token by default; other programs send it only in this mode.
    token = "" if "RAY_AUTH_MODE" in os.environ else "; if it requires a token, set RAY_AUTH_MODE=token"
    raise EngineError(f"no Ray cluster{where}: {str(error).strip().splitlines()[0]}{token}") from error


def _absolute(plan: Plan) -> Plan:
    return dataclasses.replace(plan, output=plan.output.absolute())
