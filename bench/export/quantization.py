"""What each 8-bit form of a model costs and gives up: ours beside those that a user could make with stock tools.

Every form of a bundle's fp32 graph runs in one single-threaded session, all forms in turns over the same batches, so
that what else the machine does hits all of them. Speed is CPU time for the same texts in batches of like length of at
most 256 tokens, and for each text alone; the ratio to fp32 is the median over rounds, with its range. Quality is the
cosine of the embedding with fp32's, each text alone, and how far any number moves when the text rides in a batch.

    python bench/export/quantization.py build/demo/bundle traffic.txt.gz --output bench/results/quantization.json

Forms: the bundle's variants; ``static``: onnxruntime's static quantization (QDQ, per channel, calibrated on other texts
of the file); ``weights``: onnxruntime's MatMulNBits, 8-bit weights in blocks of 32; ``fused``: fp32 after all of
onnxscript's fusions; with the package openvino, ``openvino-bf16`` and ``openvino-fp32``; with nncf as well,
``openvino-int8`` (static, SmoothQuant).
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import polyhead_bundle as bundle
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxscript.rewriter.ort_fusions import optimize_for_ort
from polyhead_training.tokenization import encode, load_tokenizer, pad
from tqdm import tqdm

from bench.harness.texts import read

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
Form = Callable[[Batch], NDArray[np.float32]]  # a batch to its embeddings

_TOKENS = 256
_CALIBRATION = 100
_COMPANY = 8


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path, help="JSON lines with a field `text`, or a text a line; .gz or not")
    parser.add_argument("--texts", type=int, default=200, help="texts to measure with (default: 200)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of every form (default: 7)")
    parser.add_argument("--only", nargs="+", help="names of the forms to measure besides fp32")
    parser.add_argument("--output", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    found = bundle.load(arguments.bundle)
    texts = [row["text"] for row in read(arguments.data)]
    chosen = np.random.default_rng(0).choice(len(texts), arguments.texts + _CALIBRATION, replace=False)
    tokenizer = load_tokenizer(found.file("tokenizer.json"))
    ids = list(encode(tokenizer, [texts[index] for index in chosen], found.manifest.max_tokens))
    with tempfile.TemporaryDirectory() as folder:
        forms = make_forms(found, Path(folder), ids[arguments.texts :], arguments.only)
        report = measure(forms, ids[: arguments.texts], found.manifest.pad_token_id, arguments.rounds)
    report = {"data": arguments.data.name, "texts": arguments.texts, **machine(), "forms": report}
    print(table(report["forms"]))
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def make_forms(
    found: bundle.Bundle, folder: Path, calibration: Sequence[list[int]], only: list[str] | None
) -> dict[str, Form]:
    """Every form that can be made here, by its name, fp32 first."""
    plain, output = found.file("model.onnx"), found.manifest.embedding.output
    makers: dict[str, Callable[[], Form]] = {
        name: partial(session, found.file(one.file), output)
        for name, one in found.manifest.variants.items()
        if name != "fp16"
    }
    makers |= {
        "fused": lambda: session(fuse(plain, folder / "fused.onnx"), output),
        "static": lambda: session(static(plain, folder / "static.onnx", calibration), output),
        "weights": lambda: session(weights_only(plain, folder / "weights.onnx"), output),
        "openvino-fp32": lambda: openvino(plain, output, "f32"),
        "openvino-bf16": lambda: openvino(plain, output, "bf16"),
        "openvino-int8": lambda: openvino(plain, output, "f32", calibration),
    }
    forms: dict[str, Form] = {"fp32": makers.pop("fp32")()}
    for name, make in makers.items():
        if only is not None and name not in only:
            continue
        try:
            forms[name] = make()
        except ImportError as error:
            print(f"{name}: left out, {error}")
    return forms


def session(path: Path, output: str) -> Form:
    """A session as the server opens it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    opened = onnxruntime.InferenceSession(
        str(path), options, ["CPUExecutionProvider"], disabled_optimizers=["SkipLayerNormFusion"]
    )

    def run(batch: Batch) -> NDArray[np.float32]:
        return np.asarray(opened.run([output], {"input_ids": batch[0], "attention_mask": batch[1]})[0])

    return run


def fuse(plain: Path, target: Path) -> Path:
    """fp32 with attention, residuals and GELU as contrib operators."""
    model, _ = optimize_for_ort(onnx_ir.load(plain), clear_metadata=True)
    onnx_ir.save(model, target)
    return target


def static(plain: Path, target: Path, calibration: Sequence[list[int]]) -> Path:
    """Static quantization of all MatMuls by onnxruntime."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def __init__(self) -> None:
            self.rest = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.int64]] | None:
            ids = next(self.rest, None)
            return None if ids is None else dict(zip(("input_ids", "attention_mask"), pad([ids], 0), strict=True))

    quantize_static(
        plain,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return target


def weights_only(plain: Path, target: Path) -> Path:
    """8-bit weights in blocks of 32, activations on 8 bits inside the kernel."""
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(plain)), bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))
    return target


def openvino(plain: Path, output: str, precision: str, calibration: Sequence[list[int]] | None = None) -> Form:
    """OpenVINO's own runtime on one thread."""
    import openvino as ov

    model = ov.Core().read_model(str(plain))
    if calibration is not None:
        import nncf

        inputs = [dict(zip(("input_ids", "attention_mask"), pad([ids], 0), strict=True)) for ids in calibration]
        model = nncf.quantize(model, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER)
    settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(model, "CPU", settings)

    def run(batch: Batch) -> NDArray[np.float32]:
        return np.array(compiled({"input_ids": batch[0], "attention_mask": batch[1]})[output])

    return run


def measure(forms: dict[str, Form], ids: Sequence[list[int]], pad_token_id: int, rounds: int) -> dict[str, Any]:
    """Speed and quality of every form."""
    batches = [pad(batch, pad_token_id) for batch in of_like_length(ids)]
    alone = [pad([one], pad_token_id) for one in ids]
    embeddings = {name: np.stack([form(batch)[0] for batch in alone]) for name, form in forms.items()}
    seconds = {kind: times(forms, work, rounds) for kind, work in (("batched", batches), ("alone", alone))}
    report = {}
    for name, form in forms.items():
        cosines = (scaled(embeddings[name]) * scaled(embeddings["fp32"])).sum(axis=1)
        report[name] = {
            "cosine_mean": float(cosines.mean()),
            "cosine_worst": float(cosines.min()),
            "alone_or_batched": moved(form, ids, embeddings[name], pad_token_id),
            **{kind: ratios(taken["fp32"], taken[name]) for kind, taken in seconds.items()},
        }
    return report


def scaled(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


def of_like_length(ids: Sequence[list[int]]) -> list[list[list[int]]]:
    """The texts in batches of at most 256 padded tokens."""
    batches: list[list[list[int]]] = [[]]
    for one in sorted(ids, key=len):
        if batches[-1] and (len(batches[-1]) + 1) * len(one) > _TOKENS:
            batches.append([])
        batches[-1].append(one)
    return batches


def times(forms: dict[str, Form], work: Sequence[Batch], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each form in each round; the order turns around from round to round."""
    taken: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        for batch in work:
            form(batch)
    for number in tqdm(range(rounds), "rounds"):
        for name in list(forms)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            for batch in work:
                forms[name](batch)
            taken[name].append(time.process_time() - start)
    return taken


def ratios(base: Sequence[float], own: Sequence[float]) -> list[float]:
    """How many times as fast as fp32: median, lowest and highest of the rounds."""
    found = [one / other for one, other in zip(base, own, strict=True)]
    return [statistics.median(found), min(found), max(found)]


def moved(form: Form, ids: Sequence[list[int]], alone: NDArray[np.float32], pad_token_id: int) -> float:
    """How far any number of an embedding moves when its text is in a batch of eight."""
    worst = 0.0
    for start in range(0, len(ids), _COMPANY):
        together = form(pad(ids[start : start + _COMPANY], pad_token_id))
        worst = max(worst, float(np.abs(together - alone[start : start + _COMPANY]).max()))
    return worst


def machine() -> dict[str, Any]:
    """When and on what."""
    packages = {}
    for name in ("onnxruntime", "onnx", "onnxscript", "openvino", "nncf"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", "bench/export/quantization.py", *map(_name, sys.argv[1:])]),
        # As the processor itself says, so that an emulated one is seen as such.
        "cpu": np.show_config("dicts")["SIMD Extensions"]["found"],
        "machine": platform.machine(),
        "packages": packages,
    }


def _name(argument: str) -> str:
    """An argument without the folders of this machine."""
    return Path(argument).name if argument.startswith("/") else argument


def table(forms: dict[str, Any]) -> str:
    """The figures for a terminal."""
    head = f"{'form':<16}{'batched':>22}{'alone':>22}{'cosine':>9}{'worst':>9}{'moves':>9}"
    lines = [head]
    for name, one in forms.items():
        speeds = "".join("{:>22}".format("{:.2f} [{:.2f}, {:.2f}]".format(*one[kind])) for kind in ("batched", "alone"))
        quality = f"{one['cosine_mean']:>9.5f}{one['cosine_worst']:>9.5f}{one['alone_or_batched']:>9.1e}"
        lines.append(f"{name:<16}{speeds}{quality}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
