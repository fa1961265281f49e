"""The steps of a release check: what runs on the released commit, and which result files it writes."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = "bench/results"
PYTHONS = ("3.11", "3.12", "3.13")
_BUNDLE = "build/demo/bundle"
_GPU_BUNDLE = "build/gpu/bundle"
_GRPC_VERSIONS = (
    *("--python", *(f"python{version}" for version in PYTHONS)),
    *("--grpcio", "1.85.1", "1.74.0", "1.78.0", "1.84.2"),
    *("--variable", "GRPC_POLL_STRATEGY=poll", "--variable", "GRPC_EXPERIMENTS=-event_engine_listener"),
)
# Costs for simulations: Python per message and per text of one process as in fronts.json; those of batches such that a
# text takes a core as long as in latency_breakdown.json.
_PYTHON_US = ("--message-us", "294", "--item-us", "38")
_BATCH_US = ("--batch-us", "150", "--compute-us", "500", "--token-us", "48")
_IDEAS = ("recipe", "ema, layer decay")
# In commands that are only shown, where POLYHEAD_DATA is not set.
_DATA = "DATA"


@dataclass(frozen=True)
class Step:
    """A step.

    Attributes:
        name: Its name.
        commands: Run one after another, from the root of the repository.
        results: Files in ``bench/results`` that it writes, without ``.json``.
        needs: ``gpu`` and ``data``, for machines that have one or the folder ``POLYHEAD_DATA``.
        note: What to know before.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    results: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    note: str = ""

    def files(self) -> list[str]:
        """Returns the paths of the result files, relative to the root."""
        return [f"{RESULTS}/{name}.json" for name in self.results]

    def missing(self) -> str:
        """Returns what this machine lacks for it; empty if nothing."""
        lacks = {
            "gpu": not shutil.which("nvidia-smi"),
            "data": not os.environ.get("POLYHEAD_DATA"),
        }
        names = {"gpu": "an NVIDIA GPU", "data": "the folder with data sets, POLYHEAD_DATA"}
        return ", ".join(names[one] for one in self.needs if lacks[one])


def steps() -> list[Step]:
    """Returns all steps in the order in which they run: tests before measurements."""
    return [
        *(_check(version) for version in PYTHONS),
        _make("demo", f"{_BUNDLE}/bundle.json"),
        Step(
            "install_size",
            (("make", "package"), _measure("bench.server.install_size", "install_size", "build/server-only")),
            ("install_size",),
        ),
        _make("interoperability", "test-interoperability", results=("interoperability",)),
        Step(
            "reliability",
            (_program("tests.reliability.run", "--bundle", _BUNDLE, "--soak-minutes", "30"),),
            ("reliability",),
            note="with a soak of 30 minutes",
        ),
        *_server(),
        *_bulk(),
        _make("comparison", "compare", results=("comparison", "protocols")),
        _make("ray_serve", "bench-ray", results=("ray_serve",)),
        *_training(),
        *_export(),
        Step(
            "gpu",
            (
                _measure("bench.server.gpu", "gpu", "--bundle", _GPU_BUNDLE),
                _measure("bench.server.gpu", "gpu_onnx", "--bundle", _GPU_BUNDLE, "--engine", "onnx"),
            ),
            ("gpu", "gpu_onnx"),
            ("gpu",),
        ),
    ]


def _program(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _measure(module: str, result: str, *arguments: str) -> tuple[str, ...]:
    return _program(module, *arguments, "--output", f"{RESULTS}/{result}.json")


def _make(name: str, target: str, results: Sequence[str] = ()) -> Step:
    return Step(name, (("make", target),), tuple(results))


def _check(version: str) -> Step:
    """``make check`` with one version of Python, in an environment of its own."""
    settings = (f"PYTHON=python{version}", f"VENV=build/release/venv-{version}")
    return Step(f"check-{version}", (("make", "check", *settings),))


def _data() -> str:
    return os.environ.get("POLYHEAD_DATA", _DATA)


def _server() -> list[Step]:
    throughput = {
        "throughput-int8": ("--variant", "int8"),
        "throughput-fp32": ("--variant", "fp32"),
        "throughput-long": ("--long",),
    }
    modules = (
        "startup",
        "latency_breakdown",
        "scaling",
        "front_cost",
        "tracing_cost",
        "fronts",
        "answer_cache",
        "shadow",
    )
    drift = ("--arm", "counting=", "--arm", "not counting=--drift-window-s 0")
    others = {
        "workers": ("workers", *_PYTHON_US, *_BATCH_US),
        "fronts_limited": ("fronts", "--front-cores", "0.1", "--in-flight", "1024", "--seconds", "10"),
        "drift_throughput": ("flags", *drift),
        "grpc_versions": ("grpc_versions", *_GRPC_VERSIONS),
    }
    simulation = _measure("bench.server.fronts_simulation", "fronts_simulation", f"{RESULTS}/fronts.json", *_BATCH_US)
    return [
        *(
            Step(name, (_measure("bench.server.throughput", name, "--bundle", _BUNDLE, *arguments),), (name,))
            for name, arguments in throughput.items()
        ),
        *(Step(name, (_measure(f"bench.server.{name}", name, "--bundle", _BUNDLE),), (name,)) for name in modules),
        *(
            Step(name, (_measure(f"bench.server.{module}", name, "--bundle", _BUNDLE, *flags),), (name,))
            for name, (module, *flags) in others.items()
        ),
        Step("fronts_simulation", (simulation,), ("fronts_simulation",)),
    ]


def _bulk() -> list[Step]:
    modules = {"bulk": "throughput", "bulk_memory": "memory", "bulk_kills": "kills"}
    twin = "build/demo/twin-sentence-transformers"
    return [
        *(
            Step(name, (_measure(f"bench.bulk.{module}", name, "--bundle", _BUNDLE),), (name,))
            for name, module in modules.items()
        ),
        Step(
            "bulk_ray",
            (
                ("make", "build/ray/.installed"),
                ("build/ray/bin/python", *_measure("bench.bulk.ray_scaling", "bulk_ray", "--bundle", _BUNDLE)[1:]),
            ),
            ("bulk_ray",),
        ),
        Step(
            "bulk_libraries",
            (
                _program("bench.bulk.install"),
                _measure("bench.bulk.library_comparison", "bulk_libraries", "--bundle", _BUNDLE, "--model", twin),
            ),
            ("bulk_libraries",),
        ),
    ]


def _export() -> list[Step]:
    """Figures of exports, from the runs of the step model_quality."""
    exporter = str(Path(sys.executable).with_name("polyhead-export"))
    run, bundle, data = "build/model_quality/blitzer-both-heads-0", "build/release/blitzer", Path(_data())
    labelled, traffic = data / "blitzer_joint_dev.jsonl.gz", data / "traffic.txt.gz"
    agreement = {
        "blitzer": (bundle, labelled, "--label", "label", "--sentiment", "sentiment"),
        "traffic": (bundle, traffic),
        "demo": (_BUNDLE, data / "sst2_dev.jsonl.gz", "--engines", "onnx", "--sentiment", "sentiment"),
    }
    measured = {
        "export": ("export", run, "--eval-data", labelled, "--pairs", data / "stsb_dev.jsonl.gz"),
        "quantization": ("quantization", bundle, traffic, "--texts", "80", "--rounds", "5"),
        **{f"numerical_agreement-{name}": ("numerical_agreement", *more) for name, more in agreement.items()},
    }
    return [
        Step(
            "export",
            (
                # Only where the step model_quality has not trained it on this machine.
                ("make", f"{run}/run.json", "CONFIG=training/configs/blitzer.toml", f"RUN={run}"),
                (exporter, run, bundle, "--variant=int8", "--variant=int8-dynamic"),
                *(
                    _measure(f"bench.export.{module}", name, *map(str, more))
                    for name, (module, *more) in measured.items()
                ),
            ),
            tuple(measured),
            ("data",),
            note="with openvino and nncf if they are installed",
        )
    ]


def _training() -> list[Step]:
    configs = "training/configs"
    data = _data()
    on_data = {
        "model_quality": ("--seeds", "3"),
        "heads": ("--sets", "finscore"),
        "domains": ("--seeds", "1"),
        "selective_accuracy": ("--bundle", _BUNDLE),
        "novelty": ("--bundle", _BUNDLE),
        "drift": ("--bundle", _BUNDLE),
    }
    on_config = {
        "resume": ("training/demo/config.toml", "--tiny", "--max-steps", "120"),
        "resume_losses": (),
        "families": (),
        "frozen_epochs": ("training/demo/config.toml",),
    }
    large = ("--sets", "tos_unfair", "reuters90", "clothing_stars", "goemotions", "--seeds", "1")
    libraries = _program("bench.training.install_libraries")
    few_shot = ("bench.training.few_shot", "few_shot", data)
    few = ("--draws", "3", "--test-rows", "1000", "--setfit-python", "build/training-libraries/setfit/bin/python")
    return [
        *(Step(name, (_measure(f"bench.training.{name}", name, *more),), (name,)) for name, more in on_config.items()),
        *(
            Step(name, (_measure(f"bench.training.{name}", name, data, *more),), (name,), ("data",))
            for name, more in on_data.items()
        ),
        Step(
            "few_shot",
            (
                libraries,
                _measure(
                    "bench.training.few_shot", "few_shot", data, "--sets", "agnews,trec,sst2", "--rows", "8", *few
                ),
                _measure(*few_shot, "--sets", "hwu64", "--rows", "5", *few),
            ),
            ("few_shot",),
            ("data",),
        ),
        Step(
            "heads_large",
            (_measure("bench.training.heads", "heads_large", data, *large),),
            ("heads_large",),
            ("data",),
            note="one seed, because a run takes up to an hour",
        ),
        Step(
            "optimization",
            (_measure("bench.training.optimization", "optimization", data, "--ideas", *_IDEAS, "--seeds", "1"),),
            ("optimization",),
            ("data",),
            note="the recipe and the best of its changes; all ideas with three seeds take days on two cores",
        ),
        Step(
            "embedding_quality",
            (
                libraries,
                _measure(
                    "bench.training.embedding_quality",
                    "embedding_quality",
                    f"{configs}/embedding_multitask.toml",
                    *("--data-dir", data, "--rows", "5000", "--pairs", "4000"),
                ),
            ),
            ("embedding_quality",),
            ("data",),
        ),
        Step(
            "training_throughput",
            (_measure("bench.training.throughput", "training_throughput", f"{configs}/clothing.toml"),),
            ("training_throughput",),
            ("data",),
        ),
        Step(
            "unfreezing",
            (_measure("bench.training.unfreezing", "unfreezing", f"{configs}/unfreezing.toml"),),
            ("unfreezing",),
            ("data",),
        ),
    ]


def root() -> Path:
    """Returns the root of the repository."""
    return Path(__file__).parents[2]
