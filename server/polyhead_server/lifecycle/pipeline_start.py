"""Starts the pipeline of a model as every process that serves does: logged, measured and traced."""

from __future__ import annotations

import logging

from polyhead_server.drift.monitor import DriftMonitor
from polyhead_server.inference.compute_slots import ComputeSlots
from polyhead_server.inference.model import Model, describe
from polyhead_server.inference.pipeline import Pipeline
from polyhead_server.observability.metrics import Metrics
from polyhead_server.observability.tracing import Tracing
from polyhead_server.out_of_memory import exit_if_out_of_memory
from polyhead_server.settings import Settings

logger = logging.getLogger(__name__)


def start_pipeline(
    model: Model,
    settings: Settings,
    metrics: Metrics,
    tracing: Tracing | None,
    *,
    slots: ComputeSlots | None = None,
    drift: DriftMonitor | None = None,
) -> Pipeline:
    """Starts a pipeline on the running event loop.

    Args:
        model: Model that answers.
        settings: The server's.
        metrics: Receive the model's identity and every batch.
        tracing: Traces the messages; None for no traces.
        drift: Counts the texts; None to count none.
        slots: Those that the models of the process share; None for its only model.
    """
    threads = settings.compute_threads(model.engine.runtime.device)
    logger.info(describe(model, threads))
    metrics.set_runtime(model, threads)
    on_message = tracing.on_message if tracing else None
    pipeline = Pipeline(
        model,
        settings,
        metrics.observe_batches,
        on_message,
        on_exception=exit_if_out_of_memory,
        observe_lookups=metrics.count_cache_lookups,
        observe_outcomes=drift.watch(model) if drift else None,
        slots=slots,
    )
    pipeline.start()
    return pipeline
