import { Code, ConnectError } from "@connectrpc/connect";

import { detail } from "./answers.js";
import { type RetryInfo, RetryInfoSchema, type Status } from "./v1.js";

const INITIAL_DELAY_MS = 50;
const MULTIPLIER = 3;
const MAX_DELAY_MS = 1000;
// Longest delay as a share of the time left: an attempt right before the deadline only takes capacity from others.
const MAX_DELAY_SHARE = 0.5;
// Delays are extended by up to a third at random, so that clients do not return in lockstep.
const MAX_JITTER = 1 / 3;
const MAX_TIMEOUT_MS = 99_999_999;

/** A failed call or item: the code, and the delay in milliseconds that the server requests, if it requests one. */
export interface Failure {
  readonly code: Code;
  readonly requestedDelayMs: number | undefined;
}

/** Describes the error of a call. */
export function callFailure(error: unknown): Failure {
  const failed = ConnectError.from(error);
  return { code: failed.code, requestedDelayMs: delayMs(failed.findDetails(RetryInfoSchema)[0]) };
}

/** Describes the error of an item. */
export function itemFailure(status: Status): Failure {
  return { code: status.code as Code, requestedDelayMs: delayMs(detail(status, RetryInfoSchema)) };
}

/**
 * Whether a retry can succeed: nothing was computed, and the request itself is not at fault.
 *
 * A server that stops gracefully answers CANCELLED to calls that it has not started. RESOURCE_EXHAUSTED without a delay
 * means that the message is too large, and it would be too large again.
 */
export function isRetryable({ code, requestedDelayMs }: Failure): boolean {
  return (
    code === Code.Unavailable ||
    code === Code.Canceled ||
    (code === Code.ResourceExhausted && requestedDelayMs !== undefined)
  );
}

/** The retry decisions of one call and its items. */
export class RetryPolicy {
  readonly #end: number;

  constructor(
    readonly maxAttempts: number,
    timeoutMs: number | undefined,
    readonly signal: AbortSignal | undefined,
  ) {
    this.#end = timeoutMs === undefined ? Infinity : performance.now() + timeoutMs;
  }

  /** Time left in milliseconds, in the form of the header grpc-timeout: 1 to 8 digits. Undefined without a deadline. */
  timeLeftMs(): number | undefined {
    if (this.#end === Infinity) return undefined;
    return Math.min(MAX_TIMEOUT_MS, Math.max(1, Math.ceil(this.#end - performance.now())));
  }

  /** Returns the delay before the next attempt in milliseconds; undefined if the failure is final. */
  delayMs(failure: Failure, failures: number): number | undefined {
    if (this.signal?.aborted || failures >= this.maxAttempts || !isRetryable(failure)) return undefined;
    const base = failure.requestedDelayMs ?? Math.min(MAX_DELAY_MS, INITIAL_DELAY_MS * MULTIPLIER ** (failures - 1));
    const delay = base * (1 + Math.random() * MAX_JITTER);
    return delay < MAX_DELAY_SHARE * (this.timeLeftMs() ?? Infinity) ? delay : undefined;
  }

  /** Waits before the next attempt; resolves to false if there is none. */
  async wait(failure: Failure, failures: number): Promise<boolean> {
    const delay = this.delayMs(failure, failures);
    if (delay === undefined) return false;
    await new Promise((resolve) => setTimeout(resolve, delay));
    return !this.signal?.aborted;
  }
}

function delayMs(info: RetryInfo | undefined): number | undefined {
  if (info === undefined) return undefined;
  return Number(info.retryDelay?.seconds ?? 0n) * 1000 + (info.retryDelay?.nanos ?? 0) / 1e6;
}
