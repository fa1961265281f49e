"""The server's settings: one frozen object, built once at the edge from flags and environment."""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import StartupError

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

# One prepares a batch and reads the answers of the last one while the GPU computes that of the other.
_CUDA_THREADS = 2
_LEAST = {
    "threads": 0,
    "max_batch_tokens": 0,
    "workers": 1,
    "max_padding": 0,
    "max_queue_s": 0,
    "max_queue_tokens": 1,
    "max_windows": 1,
    "reload_interval_s": 0,
    "max_items_per_message": 1,
    "max_message_bytes": 1024,
    "max_characters_per_token": 1,
    "stream_window": 1,
    "batch_timeout_s": 1,
    "drain_timeout_s": 0,
    "drain_delay_s": 0,
    "start_timeout_s": 1,
    "max_worker_age_s": 0,
}


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the server was told. Each field's ``help`` is the text that ``polyhead-serve --help`` shows."""

    bundle: Path
    listen: str = _option(
        "127.0.0.1:50051",
        "HOST:PORT or unix:PATH to listen on. Beyond loopback it wants --tls-cert, or --allow-plaintext.",
    )
    tls_cert: str = _option(
        "", "File with the server's certificate and those up to its authority, PEM; empty for none."
    )
    tls_key: str = _option("", "File with the private key of --tls-cert, PEM. Both are read again when they change.")
    tls_client_ca: str = _option("", "File with the authorities that clients' certificates must come from, PEM.")
    api_keys: str = _option("", "File with the keys that callers may show and their rights; see docs/security.md.")
    allow_plaintext: bool = _option(False, "Listen beyond loopback without TLS, behind something that has it.")
    allow_plaintext_keys: bool = _option(False, "Take keys beyond loopback without TLS, where others could read them.")
    no_reflection: bool = _option(False, "Do not describe the services to callers, as grpcurl wants it.")
    engine: str = _option("auto", "auto takes onnx, and torch where onnx cannot be used.", ("auto", "onnx", "torch"))
    device: str = _option(
        "auto", "auto takes cuda where the engine can use it, otherwise cpu.", ("auto", "cpu", "cuda")
    )
    variant: str = _option(
        "auto", "Variant of the bundle's graph; auto takes int8 on a CPU where the bundle has it, else fp32."
    )
    workers: int = _option(1, "Processes that share the port and the cores; see docs/performance.md for when it pays.")
    threads: int = _option(
        0, "Threads of each worker that compute; 0 takes one for each of its cores, or two on a GPU."
    )
    max_batch_tokens: int = _option(
        0, "Tokens in one pass, padding included; a longer item goes alone. 0 measures at start what fills the engine."
    )
    max_padding: float = _option(0.12, "Padding that a pass may add, as a share of its real tokens.")
    max_queue_s: float = _option(
        30.0, "Seconds of expected wait from which on unary items are refused; streams wait from half of it on."
    )
    max_queue_tokens: int = _option(
        1_000_000, "Tokens that may wait; unary items beyond are refused, streams wait from half of it on."
    )
    max_items_per_message: int = _option(1024, "Items that one message may carry.")
    max_message_bytes: int = _option(16 * 2**20, "Bytes of one request message.")
    max_characters_per_token: int = _option(
        250, "Times the model's token limit: the code points of a text that are read."
    )
    max_windows: int = _option(32, "Windows in which a long text is read, where its client asks for windows.")
    stream_window: int = _option(512, "Items of one stream that may be in the server before it stops reading.")
    batch_timeout_s: float = _option(
        120.0, "Seconds that a pass may take; when one takes longer, the engine hangs, and the server ends."
    )
    drain_timeout_s: float = _option(30.0, "Seconds from SIGTERM on that accepted work is given to finish.")
    drain_delay_s: float = _option(
        0.5, "Seconds of them in which everything is still served, and the health service says NOT_SERVING."
    )
    start_timeout_s: float = _option(
        300.0, "Seconds that one of several workers has to load its model; then it is killed. Not with --workers 1."
    )
    max_worker_age_s: float = _option(
        0.0,
        "Seconds after which one of several workers hands over to a new one; up to a fifth less, by chance. 0 is "
        "never. Not with --workers 1.",
    )
    admin_listen: str = _option("", "HOST:PORT on loopback, or unix:PATH, of the admin service; empty for none.")
    reload_interval_s: float = _option(
        0.0, "Seconds between looks at whether the bundle was replaced, to reload it; 0 for none."
    )
    metrics_listen: str = _option("", "HOST:PORT for Prometheus metrics over HTTP; empty for none.")
    otlp_endpoint: str = _option(
        "", "URL that traces are sent to by OTLP over gRPC, such as http://127.0.0.1:4317; empty for none."
    )
    log_level: str = _option("info", "Least important messages to log.", ("debug", "info", "warning", "error"))
    log_format: str = _option("text", "Of log lines: text, or a JSON object each.", ("text", "json"))
    access_log: str = _option("debug", "Level of the line that tells of each call.", ("debug", "info"))

    # Cores of this process where its affinity does not say it: one of several workers under a quota. 0 asks the system.
    cores: int = 0

    def __post_init__(self) -> None:
        """Refuses what could not work, and secrets where everybody could read them.

        Raises:
            StartupError: Names the setting.
        """
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise StartupError(f"--{flag} {getattr(self, name)} is less than {least}, the least that makes sense")
        if self.workers > 1 and self.listen.startswith("unix:"):
            raise StartupError(
                f"--workers {self.workers} cannot share --listen {self.listen}: a Unix socket has one process; "
                "leave one of the two out"
            )
        self._require_encryption()

    def _require_encryption(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise StartupError("--tls-cert and --tls-key want each other")
        if self.tls_client_ca and not self.tls_cert:
            raise StartupError("--tls-client-ca wants --tls-cert and --tls-key")
        if self.tls_cert or is_local(self.listen):
            return
        if not self.allow_plaintext:
            raise StartupError(
                f"--listen {self.listen} is beyond loopback and has no TLS: give --tls-cert and --tls-key, or "
                "--allow-plaintext where something else encrypts, such as a proxy or a service mesh"
            )
        if self.api_keys and not self.allow_plaintext_keys:
            raise StartupError(
                f"with --api-keys and without TLS, keys would come to --listen {self.listen} in plain text: give "
                "--tls-cert and --tls-key, or --allow-plaintext-keys where something else encrypts"
            )

    def compute_threads(self, device: str) -> int:
        """The number of threads that compute on a device, resolved."""
        return self.threads or (_CUDA_THREADS if device == "cuda" else self.cores or usable_cores())


def usable_cores() -> int:
    """Cores that this process may use: its affinity, bounded by the cgroup's CPU quota. At least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))


def is_local(address: str) -> bool:
    """Whether only this machine reaches an address: loopback, or a Unix socket."""
    if address.startswith("unix:"):
        return True
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Any other name is what a resolver makes of it.
        return host == "localhost"


def split_address(address: str) -> tuple[str, int]:
    """``HOST:PORT`` as its two parts.

    Raises:
        StartupError: It has not that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65_535:
        raise StartupError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)
