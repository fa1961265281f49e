"""One model of a server process with everything of its own: queue, limits, engine, loading, reloading and watching."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

from polyhead_server.candidate.bundle import load_candidate
from polyhead_server.candidate.parameters import CandidateBundle
from polyhead_server.drift.exchange import report_on
from polyhead_server.drift.monitor import DriftMonitor
from polyhead_server.drift.report import DriftReport
from polyhead_server.errors import StartupError
from polyhead_server.inference.compute_slots import ComputeSlots
from polyhead_server.inference.intake import Intake
from polyhead_server.inference.model import Loading, Model, load_model
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.drift_metrics import refresh
from polyhead_server.observability.metrics import Metrics
from polyhead_server.observability.tracing import Tracing
from polyhead_server.rpc.health import Health
from polyhead_server.rpc.inference_service import InferenceService
from polyhead_server.serving.backend import Backend
from polyhead_server.serving.models import Models
from polyhead_server.settings import Settings
from polyhead_server.threads import in_daemon_thread

from .bundle_watcher import BundleWatcher
from .candidate_manager import CandidateManager
from .candidate_operations import CandidateOperations, UnitProcesses
from .model_loader import ModelLoader
from .operations import Operations
from .pipeline_start import start_pipeline
from .reload import Reloader


class SharedCores:
    """What the models of a process take in turn: the cores, and the loading of a bundle.

    Loads one at a time: each measures the engine, and holds the memory of one more model.

    Attributes:
        loading: Held while a model is loaded.
    """

    def __init__(self, settings: Settings) -> None:
        self.loading = asyncio.Lock()
        self._settings = settings
        self._slots: dict[str, ComputeSlots] = {}

    def slots(self, device: str) -> ComputeSlots:
        """Returns the slots for the batches of all models on a device."""
        if device not in self._slots:
            self._slots[device] = ComputeSlots(self._settings.compute_threads(device))
        return self._slots[device]


class ModelUnit:
    """One model. Event loop only.

    Attributes:
        name: Its name, one of several; empty for the only one.
        metrics: Those of the model.
        service: Answers with the model.
        backend: The model behind the dialects.
        operations: What an operator may do with the model.
        candidates: The candidate beside the model.
    """

    def __init__(
        self,
        settings: Settings,
        health: Health,
        tracing: Tracing | None,
        *,
        beside: ModelUnit | None = None,
        cores: SharedCores | None = None,
    ) -> None:
        """Prepares the model; ``load`` and ``serve`` start it.

        Args:
            settings: The model's.
            health: Health of the process.
            tracing: Traces the messages; None for no traces.
            beside: Another model of the process.
            cores: Those that the models of the process share; None for its only model.
        """
        self.name = settings.served_name if cores else ""
        self.metrics: Metrics = Metrics(self.name, beside.metrics if beside else None)
        self.service: InferenceService = InferenceService(settings, self.metrics, beside.service if beside else None)
        self.backend = Backend(self.service, settings, lambda: health.serving)
        self._drift = DriftMonitor(settings)
        candidate = CandidateOperations(self.service, settings, tracing)
        self.operations = Operations(self.service, health, self._drift, candidate)
        processes = UnitProcesses(self.operations, self.service, candidate)
        self.candidates = CandidateManager(settings, processes, self.metrics.candidate)
        self._settings = settings
        self._tracing = tracing
        self._beside = beside
        self._cores = cores
        self._loader = ModelLoader(lambda loading: load_model(settings, loading), settings.start_timeout_s)
        self._watcher: BundleWatcher | None = None

    @property
    def pipeline(self) -> Intake | None:
        """The pipeline that answers now; None before the model is ready."""
        return self.service.pipeline

    async def load(self, bundle: Path | None = None) -> Model:
        """Loads the first model.

        Args:
            bundle: The bundle that the server has promoted to; None for that of the settings.

        Raises:
            StartupError: It cannot be served.
        """
        # Created before the bundle is loaded, so that a bundle put in place meanwhile counts as a change.
        self._watcher = await in_daemon_thread(lambda: BundleWatcher(self._settings.bundle), "bundle-watcher")
        try:
            return await (self._load_candidate(CandidateBundle(bundle)) if bundle else self._load())
        except StartupError as error:
            if not self.name:
                raise
            raise StartupError(f"{self.name}: {error}", transient=error.transient) from error

    def serve(self, model: Model) -> None:
        """Answers with the first model, and can replace it from now on."""
        self.service.serve(self._start_pipeline(model))
        self.operations.reloader = Reloader(
            self._load, self._start_pipeline, self.service, self.metrics.count_reload, name=self.name
        )
        self.operations.load_candidate = self._load_candidate

    async def watch(self) -> None:
        """Reloads the bundle whenever it changes, if the settings say so; never returns then."""
        if self._settings.reload_interval_s and self._watcher:
            await self._watcher.watch(self.operations.reload_and_log, self._settings.reload_interval_s)

    async def sample(self) -> None:
        """Samples the queue for the metrics, and with the first model of the process its event loop; never returns."""
        await (self.metrics.sample_queue if self._beside else self.metrics.sample)(lambda: self.pipeline)

    async def drift(self) -> DriftReport:
        """Compares the traffic of the model with its validation texts.

        Raises:
            DriftNotAvailableError: The traffic is not counted; states why.
        """
        # Its milliseconds would hold up the event loop.
        return await asyncio.to_thread(report_on, [await self.operations.drift()])

    async def report_drift(self) -> None:
        """Reports drift in the metrics again and again, if the settings say so; never returns then."""
        if self._settings.drift_window_s:
            await refresh(self.metrics.drift(), self.drift)

    async def _load(self, work: Callable[[Loading], Model] | None = None) -> Model:
        if self._cores is None:
            return await self._loader.load(work)
        async with self._cores.loading:
            return await self._loader.load(work)

    async def _load_candidate(self, candidate: CandidateBundle) -> Model:
        return await self._load(partial(load_candidate, self._settings, candidate))

    def _start_pipeline(self, model: Model) -> Pipeline:
        slots = self._cores.slots(model.engine.runtime.device) if self._cores else None
        return start_pipeline(model, self._settings, self.metrics, self._tracing, slots=slots, drift=self._drift)


def create_units(settings: Settings, health: Health, tracing: Tracing | None) -> tuple[list[ModelUnit], Models]:
    """Creates the units of all models of a process, the default first, and the registry of their names."""
    cores = SharedCores(settings) if settings.models else None
    units: list[ModelUnit] = []
    for own in settings.of_models():
        units.append(ModelUnit(own, health, tracing, beside=units[0] if units else None, cores=cores))
    models = Models([unit.backend for unit in units])
    for unit in units:
        unit.service.model_names = models.names
    return units, models
