import type { SecureClientSessionOptions } from "node:http2";

import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client as RpcClient, Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";

import { type ItemInit, rejectInvalid, type SharedFields, unexpectedAnswers, withId } from "./items.js";
import { callFailure, type Failure, isRetryable, itemFailure, RetryPolicy } from "./retry.js";
import { streamAnswers } from "./stream.js";
import {
  type Answer,
  type EmbeddingOptionsSchema,
  InferenceService,
  type ItemOptionsSchema,
  type ModelInfo,
  type Task,
} from "./v1.js";

export interface ClientOptions {
  /** TLS, verified by the system's certificates, or by those in `ca`. Default: no TLS. */
  readonly tls?: boolean | SecureClientSessionOptions;
  /** API key, sent only over TLS, to this machine, or with `allowPlaintextKey`. */
  readonly apiKey?: string;
  readonly allowPlaintextKey?: boolean;
  /** Name of the model that answers, for a server with several; default: the server's first. */
  readonly model?: string;
  /** Limit on consecutive failed attempts of a call or an item, including the first; default 5, 1 disables retries. */
  readonly maxAttempts?: number;
  /** Limit on the items of a stream that were sent and not yet answered; default 256. */
  readonly maxInFlight?: number;
}

export interface RequestOptions {
  /** The requested tasks; default: every task of the model. */
  readonly tasks?: readonly Task[];
  readonly item?: MessageInitShape<typeof ItemOptionsSchema>;
  readonly embedding?: MessageInitShape<typeof EmbeddingOptionsSchema>;
  /** Deadline of the whole call or stream, retries included, in milliseconds. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
}

/** Calls a polyhead server over one HTTP/2 connection. */
export class Client {
  readonly #rpc: RpcClient<typeof InferenceService>;
  readonly #sessions: Http2SessionManager;
  readonly #maxAttempts: number;
  readonly #maxInFlight: number;

  /**
   * @param target HOST:PORT of the server.
   * @throws RangeError A limit is less than 1.
   * @throws TypeError The API key would cross a network unencrypted.
   */
  constructor(target: string, options: ClientOptions = {}) {
    const { tls, apiKey, model, maxAttempts = 5, maxInFlight = 256 } = options;
    if (!(maxAttempts >= 1)) throw new RangeError(`maxAttempts: ${maxAttempts} is less than 1`);
    if (!(maxInFlight >= 1)) throw new RangeError(`maxInFlight: ${maxInFlight} is less than 1`);
    const baseUrl = `${tls ? "https" : "http"}://${target}`;
    if (apiKey !== undefined && !tls && !options.allowPlaintextKey && !isLoopback(new URL(baseUrl).hostname)) {
      throw new TypeError(`apiKey: ${target} is not a loopback address, and the key would cross the network unencrypted`);
    }
    const withMetadata: Interceptor = (next) => (request) => {
      if (apiKey !== undefined) request.header.set("authorization", `Bearer ${apiKey}`);
      if (model !== undefined) request.header.set("x-polyhead-model", model);
      return next(request);
    };
    const interceptors = [withMetadata];
    this.#sessions = new Http2SessionManager(baseUrl, {}, typeof tls === "object" ? tls : undefined);
    const sessionManager = this.#sessions;
    const transport = createGrpcTransport({ baseUrl, interceptors, acceptCompression: [], sessionManager });
    this.#rpc = createClient(InferenceService, transport);
    this.#maxAttempts = maxAttempts;
    this.#maxInFlight = maxInFlight;
  }

  /** Closes the connection; calls that are running fail. An open connection keeps the process alive. */
  close(): void {
    this.#sessions.abort();
  }

  /** Describes the model that the server serves, and its limits. */
  async modelInfo(options: Pick<RequestOptions, "timeoutMs" | "signal"> = {}): Promise<ModelInfo> {
    const policy = new RetryPolicy(this.#maxAttempts, options.timeoutMs, options.signal);
    for (let attempt = 1; ; attempt++) {
      try {
        const { model } = await this.#rpc.getModelInfo({}, callOptions(policy));
        if (model === undefined) throw new ConnectError("the response has no model", Code.Internal);
        return model;
      } catch (error) {
        if (!(await policy.wait(callFailure(error), attempt))) throw error;
      }
    }
  }

  /**
   * Answers one batch of items, in their order. There may be at most `limits.maxItemsPerMessage` of them; use `stream`
   * for more.
   *
   * An answer holds either a result or an error. Items that the server rejects because it is overloaded are sent again
   * after the delay that it requests, as long as attempts and deadline permit.
   *
   * @throws ConnectError The call failed for a reason that concerns all items.
   */
  async analyze(items: Iterable<ItemInit>, options: RequestOptions = {}): Promise<Answer[]> {
    const policy = new RetryPolicy(this.#maxAttempts, options.timeoutMs, options.signal);
    const sent = Array.from(items, withId);
    const answers: (Answer | undefined)[] = sent.map(rejectInvalid);
    let pending = [...answers.keys()].filter((index) => answers[index] === undefined);
    let received = false;
    for (let attempt = 1; pending.length > 0; attempt++) {
      let failure: Failure | undefined;
      try {
        const request = { ...requestOptions(options), items: pending.map((index) => sent[index]!) };
        const response = await this.#rpc.analyze(request, callOptions(policy));
        if (response.answers.length !== pending.length) throw unexpectedAnswers(response.answers, pending.length);
        received = true;
        const rejected: number[] = [];
        for (const [position, answer] of response.answers.entries()) {
          const index = pending[position]!;
          answers[index] = answer;
          if (answer.outcome.case !== "error") continue;
          const rejection = itemFailure(answer.outcome.value);
          if (!isRetryable(rejection)) continue;
          rejected.push(index);
          // The longest delay, so that every item may be retried.
          if ((rejection.requestedDelayMs ?? 0) >= (failure?.requestedDelayMs ?? 0)) failure = rejection;
        }
        pending = rejected;
      } catch (error) {
        if (await policy.wait(callFailure(error), attempt)) continue;
        if (!received) throw error;
        break; // the rejections and the other answers are worth more than this error
      }
      if (failure !== undefined && !(await policy.wait(failure, attempt))) break;
    }
    return answers as Answer[];
  }

  /**
   * Answers items over a bidirectional stream, in the order of completion.
   *
   * Items are read from the input while there are fewer than `maxInFlight` without an answer, and answers are read only
   * as fast as they are consumed. An item that the server rejects because it is overloaded is sent again after the delay
   * that it requests. If the stream breaks, a new one is opened and exactly the unanswered items are sent again. Ids
   * need not be unique.
   *
   * @throws ConnectError The stream failed, and retries did not help.
   */
  stream(items: Iterable<ItemInit> | AsyncIterable<ItemInit>, options: RequestOptions = {}): AsyncGenerator<Answer> {
    const policy = new RetryPolicy(this.#maxAttempts, options.timeoutMs, options.signal);
    return streamAnswers(this.#rpc, items, requestOptions(options), policy, this.#maxInFlight);
  }
}

/** Returns the fields that the requests of all methods share. */
function requestOptions({ tasks, item, embedding }: RequestOptions): SharedFields {
  return { tasks: [...(tasks ?? [])], options: item, embeddingOptions: embedding };
}

function callOptions(policy: RetryPolicy): { timeoutMs?: number; signal?: AbortSignal } {
  return { timeoutMs: policy.timeLeftMs(), signal: policy.signal };
}

function isLoopback(hostname: string): boolean {
  return hostname === "localhost" || hostname === "[::1]" || /^127\.\d+\.\d+\.\d+$/.test(hostname);
}
