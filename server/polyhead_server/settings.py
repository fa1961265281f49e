"""The server's settings: one frozen object, built once from flags and environment variables."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .addresses import is_local
from .errors import StartupError
from .served_models import ServedBundle, parse_model_settings

CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")

# One thread prepares a batch and reads the results of its last one while the GPU computes the other thread's batch.
_CUDA_THREADS = 2
# Default age of a connection to one of several workers.
_WORKERS_CONNECTION_AGE_S = 300.0
# Age at which a stream ends, as a part of the grace period of its connection.
STREAM_SHARE = 0.9
# Smallest valid value of each numeric setting.
MIN_VALUES = {
    "http_max_connections": 1,
    "threads": 0,
    "max_batch_tokens": 0,
    "workers": 1,
    "fronts": 0,
    "max_padding": 0,
    "max_queue_s": 0,
    "max_queue_tokens": 1,
    "max_windows": 1,
    "answer_cache_mb": 0,
    "collect_mb": 1,
    "reload_interval_s": 0,
    "max_items_per_message": 1,
    "max_message_bytes": 1024,
    "max_held_bytes": 2**20,
    "max_connections": 1,
    "max_calls_per_connection": 1,
    "max_connection_age_s": 0,
    "max_connection_age_grace_s": 1,
    "request_timeout_s": 1,
    "max_characters_per_token": 1,
    "stream_window": 1,
    "batch_timeout_s": 1,
    "drain_timeout_s": 0,
    "drain_delay_s": 0,
    "start_timeout_s": 1,
    "max_worker_age_s": 0,
    "drift_window_s": 0,
    "drift_bucket_s": 1,
    "drift_min_distance": 0,
}
# Buckets of the window of drift: at least two to compare, and at most those whose memory is small.
MIN_DRIFT_BUCKETS, MAX_DRIFT_BUCKETS = 2, 1000


# Largest message that a front can pass on to the engine process.
MAX_FRONT_ITEMS = 1_000_000

# Protocols of --dialects.
DIALECTS = ("polyhead", "oip", "tei")


def _option(default: Any, text: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": text, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's configuration. Each field's ``help`` is the text that ``polyhead-serve --help`` shows."""

    bundle: Path
    listen: str = _option(
        "127.0.0.1:50051",
        "Address to listen on: HOST:PORT or unix:PATH. An address beyond loopback requires --tls-cert or "
        "--allow-plaintext.",
    )
    tls_cert: str = _option(
        "", "PEM file with the server's certificate chain. Reloaded when it changes. Empty disables TLS."
    )
    tls_key: str = _option("", "PEM file with the private key of --tls-cert. Reloaded when it changes.")
    tls_client_ca: str = _option(
        "", "PEM file with the CA certificates that client certificates must chain to (mutual TLS). Empty for none."
    )
    api_keys: str = _option(
        "", "TOML file with API keys and their scopes; see docs/guides/security.md. Empty disables authentication."
    )
    allow_plaintext: bool = _option(
        False, "Allow listening beyond loopback without TLS, for example behind a proxy that terminates TLS."
    )
    allow_plaintext_keys: bool = _option(
        False, "Allow API keys beyond loopback without TLS, where the network can read them."
    )
    served_name: str = _option(
        "", "Name of the model in requests of other protocols than polyhead's own. Empty uses the bundle's name."
    )
    model_settings: str = _option(
        "",
        "Settings of single models, if there are several, separated by commas: NAME.FLAG=VALUE, such as "
        "reviews.max-queue-s=5. Flags without an entry apply to each model.",
    )
    dialects: str = _option(
        "polyhead,oip,tei",
        "gRPC protocols to serve, separated by commas: polyhead; oip, the Open Inference Protocol; tei, that of "
        "text-embeddings-inference.",
    )
    http_listen: str = _option(
        "",
        "Address to listen on for HTTP: HOST:PORT or unix:PATH; requires polyhead[http]. An address beyond loopback "
        "requires --tls-cert or --allow-plaintext. Empty disables HTTP.",
    )
    http_max_connections: int = _option(
        1000, "Maximum number of HTTP connections; further calls are answered with status 503."
    )
    no_playground: bool = _option(False, "Do not serve the page at / of --http-listen.")
    no_reflection: bool = _option(False, "Disable gRPC server reflection, which tools such as grpcurl use.")
    public_key: str = _option(
        "",
        "PEM file with the public key of the bundle's signer. The bundle's signature is verified before it is loaded, "
        "at startup and at each reload. Empty accepts unsigned bundles.",
    )
    signature: str = _option("", "Signature file. Requires --public-key. Empty reads BUNDLE.sig.")
    engine: str = _option("auto", "Inference engine. auto tries onnx, then torch.", ("auto", "onnx", "torch"))
    device: str = _option(
        "auto",
        "Device to run the model on. auto tries cuda if the engine supports it, then cpu.",
        ("auto", "cpu", "cuda"),
    )
    variant: str = _option(
        "auto",
        "Model variant of the bundle, such as fp32 or int8. auto selects int8 on a CPU if the bundle contains it, "
        "otherwise fp32.",
    )
    workers: int = _option(
        1, "Number of worker processes, which share the port and divide the cores; see docs/performance.md."
    )
    fronts: int = _option(
        0,
        "Number of front processes, which receive calls and tokenize, beside one engine process, which computes for "
        "all of them; see docs/performance.md. 0 does everything in one process. Cannot be combined with --workers.",
    )
    threads: int = _option(
        0,
        "Number of compute threads of each worker, or of the engine process. 0 uses one for each of its cores, or two "
        "on a GPU.",
    )
    max_batch_tokens: int = _option(
        0,
        "Batch size limit in tokens, including padding. An item beyond the limit forms a batch of its own. 0 measures "
        "the most efficient limit at startup.",
    )
    max_padding: float = _option(0.12, "Padding limit of a batch, as a fraction of its tokens without padding.")
    max_queue_s: float = _option(
        30.0,
        "Queue limit in seconds of expected wait. Beyond it unary items are rejected; streams pause reading at half "
        "of it.",
    )
    max_queue_tokens: int = _option(
        1_000_000,
        "Queue limit in tokens. Beyond it unary items are rejected; streams pause reading at half of it.",
    )
    answer_cache_mb: int = _option(
        0,
        "Size limit in MiB of each worker's cache of answers to texts that were computed before. A reload empties it. "
        "0 disables it. A faster answer reveals that somebody sent the same text before: with mutually untrusted "
        "clients, leave it disabled.",
    )
    max_items_per_message: int = _option(1024, "Maximum number of items in a request message.")
    max_message_bytes: int = _option(16 * 2**20, "Maximum size of a request message in bytes.")
    max_held_bytes: int = _option(
        512 * 2**20,
        "Limit in bytes of unread responses and incomplete requests. One connection may hold a quarter of it.",
    )
    max_connections: int = _option(
        4096, "Maximum number of connections of each worker or front. The limit on open files may reduce it."
    )
    max_calls_per_connection: int = _option(
        256, "Maximum number of concurrent calls on a connection. Clients hold further calls back until others end."
    )
    max_connection_age_s: float = _option(
        0.0,
        "Age in seconds, varied by 10 %, at which a connection is asked to close (GOAWAY), so that clients spread over "
        "all workers or fronts again. 0 uses 300 with 2 or more of them, and no limit otherwise.",
    )
    max_connection_age_grace_s: float = _option(
        300.0, "Seconds after --max-connection-age-s within which calls must end. Streams end gracefully before."
    )
    request_timeout_s: float = _option(60.0, "Seconds in which the request message of a unary call must arrive.")
    max_characters_per_token: int = _option(
        250, "Truncate each text to N x max_tokens characters before tokenizing, where max_tokens is the model's limit."
    )
    max_windows: int = _option(32, "Maximum number of windows of a long text, for clients that request windows.")
    stream_window: int = _option(
        512, "Maximum number of unanswered items of a stream; beyond it the server pauses reading the stream."
    )
    batch_timeout_s: float = _option(
        120.0, "Seconds after which a running batch counts as a hung engine, and the server exits."
    )
    drain_timeout_s: float = _option(30.0, "Seconds from SIGTERM within which accepted items are answered.")
    drain_delay_s: float = _option(
        0.5,
        "Seconds of --drain-timeout-s during which new calls are still accepted while health reports NOT_SERVING.",
    )
    start_timeout_s: float = _option(
        300.0,
        "Seconds within which a bundle must load. A reload that takes longer is refused and the old model stays; a "
        "server that does not serve by then exits, and a worker is killed and restarted.",
    )
    max_worker_age_s: float = _option(
        0.0,
        "Age in seconds at which a worker or front is replaced, shortened by a random 0 to 20 %. 0 disables "
        "replacement. Requires --workers 2 or more, or --fronts.",
    )
    admin_listen: str = _option(
        "", "Address of the admin service: HOST:PORT on loopback, or unix:PATH. Empty disables it."
    )
    reload_interval_s: float = _option(
        0.0, "Interval in seconds at which to check for a new bundle and reload it. 0 disables the check."
    )
    metrics_listen: str = _option("", "HOST:PORT at which to serve Prometheus metrics. Empty disables them.")
    drift_window_s: float = _option(
        86_400.0,
        "Seconds of recent traffic that are compared with the validation texts of the bundle; see "
        "docs/guides/monitor.md. Counts are kept, no texts. 0 disables the comparison.",
    )
    drift_bucket_s: float = _option(
        3600.0,
        "Seconds of traffic that are counted together. The differences between these buckets tell how much the "
        "traffic varies without drift.",
    )
    drift_min_distance: float = _option(
        0.1, "Smallest distance from the validation texts that is reported as drift, 0 to 1."
    )
    otlp_endpoint: str = _option(
        "", "OTLP/gRPC endpoint to export traces to, such as http://127.0.0.1:4317. Empty disables tracing."
    )
    collect: str = _option(
        "",
        "Folder to collect a sample of the clients' texts in, for labelling and training. The files contain what "
        "clients send, personal data included: read docs/guides/collect.md first. Empty collects nothing.",
    )
    collect_share: float = _option(
        0.01,
        "Share of the texts to collect, 0 to 1: a third at random, a third with low confidence, a third of high "
        "novelty. Requires --collect.",
    )
    collect_mb: int = _option(
        100, "Size limit in MiB of all files in the folder of --collect; the oldest are deleted beyond it."
    )
    collect_redact: str = _option(
        "",
        "TOML file with regular expressions, by name; what they match is replaced before a text is collected. Requires "
        "--collect. Empty collects texts as they are.",
    )
    log_level: str = _option("info", "Minimum log level.", ("debug", "info", "warning", "error"))
    log_format: str = _option("text", "Log output format.", ("text", "json"))
    access_log: str = _option("debug", "Log level of per-request access lines.", ("debug", "info"))

    # The models of a server with several; empty for one, which is ``bundle``.
    models: tuple[ServedBundle, ...] = ()
    # Number of cores of this process if its CPU affinity does not show it: a worker under a CPU quota. 0 asks the
    # system.
    cores: int = 0

    @property
    def enabled_dialects(self) -> list[str]:
        """The gRPC protocols to serve, in the order of ``DIALECTS``."""
        wanted = {name.strip() for name in self.dialects.split(",")}
        return [name for name in DIALECTS if name in wanted]

    def __post_init__(self) -> None:
        """Rejects values that cannot work, and plaintext where other machines could read it.

        Raises:
            StartupError: Names the flags.
        """
        for name, minimum in MIN_VALUES.items():
            if getattr(self, name) < minimum:
                flag = name.replace("_", "-")
                raise StartupError(f"--{flag} {getattr(self, name)} is less than the minimum of {minimum}")
        if not 0 < self.collect_share <= 1:
            raise StartupError(f"--collect-share {self.collect_share:g} must be above 0 and at most 1")
        if self.collect_redact and not self.collect:
            raise StartupError("--collect-redact requires --collect")
        if self.signature and not self.public_key:
            raise StartupError("--signature requires --public-key")
        buckets = self.drift_window_s / self.drift_bucket_s
        if self.drift_window_s and not MIN_DRIFT_BUCKETS <= buckets <= MAX_DRIFT_BUCKETS:
            raise StartupError(
                f"--drift-window-s {self.drift_window_s:g} is not {MIN_DRIFT_BUCKETS} to {MAX_DRIFT_BUCKETS} times "
                f"--drift-bucket-s {self.drift_bucket_s:g}"
            )
        unknown = {name.strip() for name in self.dialects.split(",")} - {*DIALECTS, ""}
        if unknown or not self.enabled_dialects:
            raise StartupError(f"--dialects {self.dialects}: name at least one of {', '.join(DIALECTS)}, and no other")
        self._require_shareable()
        self._require_encryption()
        if self.models or self.model_settings:
            self._require_valid_models()

    def _require_valid_models(self) -> None:
        if not self.models:
            raise StartupError("--model-settings requires several models, each given as NAME=DIR")
        if self.served_name:
            raise StartupError(f"--served-name {self.served_name} names one model; several are given as NAME=DIR")
        if self.signature:
            raise StartupError(
                "--signature is that of one bundle; several have BUNDLE.sig, or --model-settings NAME.signature=FILE"
            )
        name, count = ("fronts", self.fronts) if self.fronts else ("workers", self.workers)
        if self.fronts or self.workers > 1:
            raise StartupError(
                f"--{name} {count} serves one model, and {len(self.models)} are given: start a server for each, or "
                "omit the flag"
            )
        self.of_models()

    def of_models(self) -> list[Settings]:
        """Returns the settings of each model, each with one bundle and one name; of one model, these.

        Raises:
            StartupError: ``--model-settings`` has an invalid entry.
        """
        if not self.models:
            return [self]
        known = {one.name: one for one in dataclasses.fields(self)}
        given = parse_model_settings(self.model_settings, [model.name for model in self.models], known, MIN_VALUES)
        return [
            dataclasses.replace(
                self,
                bundle=model.path,
                served_name=model.name,
                models=(),
                model_settings="",
                **given[model.name],
            )
            for model in self.models
        ]

    def _require_shareable(self) -> None:
        if self.fronts and self.workers > 1:
            raise StartupError(
                f"--fronts {self.fronts} and --workers {self.workers} exclude each other: fronts share the model of "
                "one engine process, and each worker has its own"
            )
        if self.fronts and self.max_items_per_message > MAX_FRONT_ITEMS:
            raise StartupError(
                f"--fronts {self.fronts} accepts messages of at most {MAX_FRONT_ITEMS} items; lower "
                f"--max-items-per-message {self.max_items_per_message}"
            )
        name, count = ("fronts", self.fronts) if self.fronts else ("workers", self.workers)
        for flag, address in (("--listen", self.listen), ("--http-listen", self.http_listen)):
            if count > 1 and address.startswith("unix:"):
                raise StartupError(
                    f"--{name} {count} cannot share {flag} {address}: only one process can listen on a Unix socket; "
                    f"use --{name} 1, or HOST:PORT"
                )

    def _require_encryption(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise StartupError("--tls-cert and --tls-key require each other")
        if self.tls_client_ca and not self.tls_cert:
            raise StartupError("--tls-client-ca requires --tls-cert and --tls-key")
        if self.tls_cert:
            return
        self._require_local("--listen", self.listen)
        if self.http_listen:
            self._require_local("--http-listen", self.http_listen)

    def _require_local(self, flag: str, address: str) -> None:
        if is_local(address):
            return
        if not self.allow_plaintext:
            raise StartupError(
                f"{flag} {address} is beyond loopback and has no TLS: add --tls-cert and --tls-key, or "
                "--allow-plaintext if something else encrypts, such as a proxy or a service mesh"
            )
        if self.api_keys and not self.allow_plaintext_keys:
            raise StartupError(
                f"--api-keys without TLS would send API keys to {flag} {address} in plaintext: add --tls-cert "
                "and --tls-key, or --allow-plaintext-keys if something else encrypts"
            )

    def compute_threads(self, device: str) -> int:
        """Returns the number of compute threads on a device, with 0 resolved."""
        return self.threads or (_CUDA_THREADS if device == "cuda" else self.cores or usable_cores())

    def connection_age_s(self) -> float | None:
        """Returns the age at which a connection is asked to close, with 0 resolved; None for no limit."""
        shares_port = max(self.workers, self.fronts) > 1
        return self.max_connection_age_s or (_WORKERS_CONNECTION_AGE_S if shares_port else None)

    def stream_age_s(self) -> float | None:
        """Returns the age at which a stream ends; None for no limit.

        A stream that begins just before its connection is asked to close has the grace period.
        """
        return STREAM_SHARE * self.max_connection_age_grace_s if self.connection_age_s() else None


def usable_cores() -> int:
    """Returns the number of cores of this process: its CPU affinity, limited by the cgroup's CPU quota; at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = CGROUP_CPU_MAX.read_text().split()
    except (OSError, ValueError):
        return cores
    if quota == "max":
        return cores
    return max(1, min(cores, math.ceil(int(quota) / int(period))))
