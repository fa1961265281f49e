"""Units of work for the workers of a cluster: which fragments are missing, and how a worker makes some of them."""

from __future__ import annotations

import dataclasses

from .errors import BulkError
from .job import Job, Summary
from .parts import read_records
from .plan import Progress, Unit


def units_of(job: Job, workers: int) -> list[Unit]:
    """Returns the units that together make every missing part of a job.

    A fragment of a Parquet file is a unit, as its rows are found without reading those before it. A file of another
    format must be read from its beginning: each unit reads the whole file and answers its share of the fragments.

    Args:
        job: The job; ``progress`` states which parts exist.
        workers: Number of workers, among which a file is divided.
    """
    plan = job.plan
    sequential = sum(source.format != "parquet" for source in plan.sources)
    step = max(1, -(-workers // max(sequential, 1)))
    units = []
    for number, source in enumerate(plan.sources):
        want = job.progress.want(number)
        if want(0) is None:
            continue
        fragments = _fragments(job, number) if source.format == "parquet" else None
        if fragments is None:
            units += [Unit(number, first, step) for first in range(step)]
        else:
            units += [Unit(number, fragment) for fragment in range(fragments) if want(fragment)]
    return units


def make_unit(job: Job, unit: Unit) -> Summary:
    """Makes the missing parts of a unit of a job that another process has claimed; returns what was done.

    Args:
        job: The job; its plan, progress and summary become those of the unit.
        unit: The unit.

    Raises:
        BulkError: See ``Job.run``.
    """
    plan = job.plan = dataclasses.replace(job.plan, unit=unit)
    # A single fragment is made again if need be; of several, those that an earlier attempt has made are kept.
    records = read_records(plan.output, plan.output_format, unit.source) if unit.step else {}
    job.progress = Progress(plan, records)
    job.summary = Summary()
    job.make_parts()
    return job.summary


def _fragments(job: Job, number: int) -> int | None:
    """Returns the number of fragments of a Parquet file; None if it cannot be read, which its unit will report."""
    try:
        return job.reader(number).fragments
    except BulkError:
        return None
    finally:
        job.readers.pop(number, None)
