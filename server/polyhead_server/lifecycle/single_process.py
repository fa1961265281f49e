"""The operations of a server without other workers, on one of its models or on all, for admin service and signals."""

from __future__ import annotations

from collections.abc import Sequence

from polyhead_server.drift.report import DriftReport
from polyhead_server.errors import ReloadError
from polyhead_server.process_reports import ReloadResult, WorkerStats
from polyhead_server.serving.models import Models

from .candidate_manager import CandidateManager
from .model_unit import ModelUnit


class SingleProcess:
    """See ``polyhead_server.rpc.admin_service.AdminBackend``."""

    def __init__(self, units: Sequence[ModelUnit], models: Models) -> None:
        """Connects the operations to the process.

        Args:
            units: Its models, the default first.
            models: The same by name.
        """
        self._units = units
        self._models = models

    async def reload(self, *, force: bool, model: str = "") -> list[ReloadResult]:
        """Reloads one model or, without a name, each in turn; one that is refused does not keep the others back.

        Raises:
            ModelNotFoundError: There is no model with this name.
            NotReadyError: The first model is still loading.
            ReloadError: A bundle was refused and its old model stays; of several models, names each.
        """
        results: list[ReloadResult] = []
        refused: list[str] = []
        units = self._selected(model)
        for unit in units:
            try:
                results.append(await unit.operations.reload(force=force))
            except ReloadError as error:
                if len(units) == 1:
                    raise
                refused.append(str(error))
        if refused:
            others = f" (reloaded: {', '.join(result.model_name for result in results)})" if results else ""
            raise ReloadError("; ".join(refused) + others)
        return results

    async def reload_and_log(self) -> None:
        """Reloads all models for a caller that reads the outcome in the log, such as a signal."""
        for unit in self._units:
            await unit.operations.reload_and_log()

    async def drain(self) -> None:
        """Reports NOT_SERVING for all models, which drain together."""
        await self._units[0].operations.drain()

    async def stats(self, model: str = "") -> list[WorkerStats]:
        """Returns the statistics of one model or, without a name, of each.

        Raises:
            ModelNotFoundError: There is no model with this name.
            NotReadyError: The first model is still loading.
        """
        return [await unit.operations.stats() for unit in self._selected(model)]

    async def drift(self, model: str = "") -> DriftReport:
        """Compares the traffic of one model, without a name the default one, with its validation texts.

        Raises:
            ModelNotFoundError: There is no model with this name.
            DriftNotAvailableError: Its traffic is not counted; states why.
        """
        return await self._selected(model)[0].drift()

    async def candidates(self, model: str = "") -> CandidateManager:
        """Returns what handles the candidate of one model, without a name of the default one.

        Raises:
            ModelNotFoundError: There is no model with this name.
            NotReadyError: The first model is still loading.
        """
        return self._selected(model)[0].candidates

    async def close(self) -> None:
        """Ends all candidates."""
        for unit in self._units:
            await unit.candidates.close()

    def _selected(self, model: str) -> Sequence[ModelUnit]:
        if not model:
            return self._units
        backend = self._models.named(model)
        return [unit for unit in self._units if unit.backend is backend]
