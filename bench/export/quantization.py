"""Speed and accuracy of 8-bit quantization methods: the variants of a bundle and what other tools produce.

    python -m bench.export.quantization build/demo/bundle texts.txt.gz --output bench/results/quantization.json
    python -m bench.export.quantization build/demo/bundle texts.txt.gz --only int8 static --rounds 2   # a quick look

Candidates, all made from the bundle's fp32 graph
  int8, int8-dynamic  the variants of the bundle
  static              onnxruntime's static quantization (QDQ, per channel, calibrated on other texts of the file)
  weights             onnxruntime's MatMulNBits: 8-bit weights in blocks of 32
  fused               fp32 after all fusions of onnxscript
  openvino-*          OpenVINO in fp32 and bf16 (package openvino), and static int8 with SmoothQuant (package nncf)

Each candidate runs in one session with one thread; rounds are interleaved over the same batches. Speed is relative to
fp32, in CPU time, as [median, lowest, highest]: for batches of similar length of at most 256 tokens, and for each text
alone. Accuracy is the cosine between the embedding and that of fp32, each text alone, and batch_difference, the
largest change of any number of an embedding when its text is in a batch of eight.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
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
from polyhead_training.runs.run_directory import installed_versions
from polyhead_training.tokenization import encode, load_tokenizer, pad
from tqdm import tqdm

from bench.harness import results
from bench.harness.arguments import add_output_flag, make_parser
from bench.harness.texts import FORMAT_HELP, read_texts
from bench.harness.upper_bound import batches_of_similar_length

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]
Candidate = Callable[[Batch], NDArray[np.float32]]  # a batch to its embeddings

_MAX_BATCH_TOKENS = 256
_CALIBRATION_TEXTS = 100
_BATCH_SIZE = 8
# Those that are not installed are left out of the provenance.
_PACKAGES = ("onnxruntime", "onnx", "onnxscript", "openvino", "nncf")


def main() -> None:
    """Runs the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("bundle", type=Path, help="bundle with the variant fp32")
    parser.add_argument("data", type=Path, help=FORMAT_HELP)
    parser.add_argument("--texts", type=int, default=200, help="texts to measure (default: 200)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of every candidate (default: 7)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="candidates to measure besides fp32")
    add_output_flag(parser)
    arguments = parser.parse_args()
    found = bundle.load(arguments.bundle)
    texts = read_texts(arguments.data)
    chosen = np.random.default_rng(0).choice(len(texts), arguments.texts + _CALIBRATION_TEXTS, replace=False)
    tokenizer = load_tokenizer(found.file("tokenizer.json"))
    ids = list(encode(tokenizer, [texts[index] for index in chosen], found.manifest.max_tokens))
    with tempfile.TemporaryDirectory() as folder:
        candidates = make_candidates(found, Path(folder), ids[arguments.texts :], arguments.only)
        figures = measure(candidates, ids[: arguments.texts], found.manifest.pad_token_id, arguments.rounds)
    print(table(figures))
    provenance = results.provenance(installed_versions(_PACKAGES))
    settings = {"data": arguments.data.name, "texts": arguments.texts, "rounds": arguments.rounds}
    results.write(arguments.output, {**provenance, **settings, "candidates": figures})


def make_candidates(
    found: bundle.Bundle, folder: Path, calibration: Sequence[list[int]], only: list[str] | None
) -> dict[str, Candidate]:
    """Returns every candidate whose packages are installed by name, fp32 first."""
    plain, output = found.file("model.onnx"), found.manifest.embedding.output
    makers: dict[str, Callable[[], Candidate]] = {
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
    candidates: dict[str, Candidate] = {"fp32": makers.pop("fp32")()}
    for name, make in makers.items():
        if only is not None and name not in only:
            continue
        try:
            candidates[name] = make()
        except ImportError as error:
            print(f"{name}: skipped, {error}")
    return candidates


def session(path: Path, output: str) -> Candidate:
    """Opens a session with the server's options."""
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
    """Writes fp32 with attention, residuals and GELU fused into contrib operators."""
    model, _ = optimize_for_ort(onnx_ir.load(plain), clear_metadata=True)
    onnx_ir.save(model, target)
    return target


def static(plain: Path, target: Path, calibration: Sequence[list[int]]) -> Path:
    """Writes onnxruntime's static quantization of all MatMul operators."""

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not typed
        def __init__(self) -> None:
            self.remaining = iter(calibration)

        def get_next(self) -> dict[str, NDArray[np.int64]] | None:
            ids = next(self.remaining, None)
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
    """Writes 8-bit weights in blocks of 32; the kernel quantizes activations to 8 bits."""
    logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
    quantizer = MatMulNBitsQuantizer(onnx.load(str(plain)), bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))
    return target


def openvino(plain: Path, output: str, precision: str, calibration: Sequence[list[int]] | None = None) -> Candidate:
    """Opens a session of OpenVINO's runtime with one thread."""
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


def measure(
    candidates: dict[str, Candidate], ids: Sequence[list[int]], pad_token_id: int, rounds: int
) -> dict[str, Any]:
    """Returns speed and accuracy of every candidate."""
    batches = [pad(batch, pad_token_id) for batch in batches_of_similar_length(ids, _MAX_BATCH_TOKENS)]
    singles = [pad([one], pad_token_id) for one in ids]
    embeddings = {name: np.stack([run(batch)[0] for batch in singles]) for name, run in candidates.items()}
    seconds = {kind: cpu_times(candidates, work, rounds) for kind, work in (("batched", batches), ("single", singles))}
    report = {}
    for name, run in candidates.items():
        cosines = (normalized(embeddings[name]) * normalized(embeddings["fp32"])).sum(axis=1)
        report[name] = {
            "cosine_mean": float(cosines.mean()),
            "cosine_worst": float(cosines.min()),
            "batch_difference": batch_difference(run, ids, embeddings[name], pad_token_id),
            **{kind: speedups(taken["fp32"], taken[name]) for kind, taken in seconds.items()},
        }
    return report


def normalized(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales each row to length 1."""
    return np.asarray(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))


def cpu_times(candidates: dict[str, Candidate], work: Sequence[Batch], rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of each candidate in each round; the order reverses from round to round."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        for batch in work:
            run(batch)
    for number in tqdm(range(rounds), "rounds"):
        for name in list(candidates)[:: 1 if number % 2 else -1]:
            start = time.process_time()
            for batch in work:
                candidates[name](batch)
            taken[name].append(time.process_time() - start)
    return taken


def speedups(base: Sequence[float], own: Sequence[float]) -> list[float]:
    """Returns the median, lowest and highest speed relative to fp32."""
    return results.spread([one / other for one, other in zip(base, own, strict=True)])


def batch_difference(run: Candidate, ids: Sequence[list[int]], single: NDArray[np.float32], pad_token_id: int) -> float:
    """Returns the largest change of any number of an embedding when its text is in a batch of eight."""
    worst = 0.0
    for start in range(0, len(ids), _BATCH_SIZE):
        batched = run(pad(ids[start : start + _BATCH_SIZE], pad_token_id))
        worst = max(worst, float(np.abs(batched - single[start : start + _BATCH_SIZE]).max()))
    return worst


def table(figures: dict[str, Any]) -> str:
    """Formats the figures for a terminal."""
    head = f"{'candidate':<16}{'batched':>22}{'single':>22}{'cosine':>9}{'worst':>9}{'batch':>9}"
    lines = [head]
    for name, one in figures.items():
        speeds = "".join(
            "{:>22}".format("{:.2f} [{:.2f}, {:.2f}]".format(*one[kind])) for kind in ("batched", "single")
        )
        quality = f"{one['cosine_mean']:>9.5f}{one['cosine_worst']:>9.5f}{one['batch_difference']:>9.1e}"
        lines.append(f"{name:<16}{speeds}{quality}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
