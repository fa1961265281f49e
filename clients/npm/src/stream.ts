import { type Client as RpcClient, Code, ConnectError } from "@connectrpc/connect";

import { type Item, type ItemInit, rejectInvalid, type SharedFields, unexpectedAnswers, withId } from "./items.js";
import { callFailure, itemFailure, type RetryPolicy } from "./retry.js";
import { type Answer, AnswerOrder, type InferenceService, type StreamAnalyzeResponse } from "./v1.js";

// A message of several items is much cheaper than a message for each item.
const MAX_MESSAGE_ITEMS = 64;
const MAX_MESSAGE_CHARACTERS = 1 << 20;

/** An item without a final answer; `delayed` until the delay before its next attempt has passed. */
interface Entry {
  readonly item: Item;
  failures: number;
  delayed: boolean;
}

type Event =
  | { kind: "input"; next: IteratorResult<ItemInit> }
  | { kind: "input-error"; error: unknown }
  | { kind: "due"; id: string }
  | { kind: "response"; call: Call; next: IteratorResult<StreamAnalyzeResponse> }
  | { kind: "failure"; call: Call; error: unknown };

/** One stream on the wire. */
interface Call {
  readonly outgoing: Outgoing;
  readonly responses: AsyncIterator<StreamAnalyzeResponse>;
  receiving: boolean;
  answered: boolean;
}

export async function* streamAnswers(
  rpc: RpcClient<typeof InferenceService>,
  items: Iterable<ItemInit> | AsyncIterable<ItemInit>,
  fields: SharedFields,
  policy: RetryPolicy,
  maxInFlight: number,
): AsyncGenerator<Answer> {
  const input = Symbol.asyncIterator in items ? items[Symbol.asyncIterator]() : items[Symbol.iterator]();
  const events = new Events();
  const timers = new Set<NodeJS.Timeout>();
  const stop = new AbortController();
  const signal = policy.signal === undefined ? stop.signal : AbortSignal.any([policy.signal, stop.signal]);
  const pending = new Map<string, Entry>(); // by the id on the wire, a sequence number
  let [sequence, failures, reading, exhausted] = [0, 0, false, false];
  let call: Call | undefined;
  try {
    for (;;) {
      call ??= open();
      const finished = exhausted && pending.size === 0;
      if (finished) call.outgoing.close();
      // At most one read of each side is under way, so that a slow consumer slows down both.
      if (!reading && !exhausted && pending.size < maxInFlight) read();
      if (!call.receiving) receive(call);
      const event = await events.next();
      if ("call" in event && event.call !== call) continue; // of a stream that broke
      switch (event.kind) {
        case "input": {
          reading = false;
          if (event.next.done) {
            exhausted = true;
            break;
          }
          const number = sequence++;
          const item = withId(event.next.value, number);
          const rejection = rejectInvalid(item);
          if (rejection !== undefined) {
            yield rejection;
            break;
          }
          pending.set(String(number), { item, failures: 0, delayed: false });
          call.outgoing.push({ itemId: String(number), text: item.text });
          break;
        }
        case "due": {
          const entry = pending.get(event.id)!;
          entry.delayed = false;
          call.outgoing.push({ itemId: event.id, text: entry.item.text });
          break;
        }
        case "response":
          call.receiving = false;
          if (event.next.done) {
            if (finished) return;
            // A server that drains may end the stream early.
            await reopen(new ConnectError("the stream ended before all items were answered", Code.Unavailable));
            break;
          }
          for (const answer of event.next.value.answers) {
            if (isFinal(answer)) yield answer;
          }
          break;
        case "failure":
          if (finished) return;
          await reopen(event.error);
          break;
        case "input-error":
          throw event.error;
      }
    }
  } finally {
    stop.abort();
    for (const timer of timers) clearTimeout(timer);
    if (!exhausted) {
      const closing = input.return?.();
      // An async generator that waits for its next item would close only after that item.
      if (reading) void Promise.resolve(closing).catch(() => {});
      else await closing;
    }
  }

  function open(): Call {
    const outgoing = new Outgoing(fields);
    const responses = rpc.streamAnalyze(outgoing.requests(), { timeoutMs: policy.timeLeftMs(), signal });
    for (const [itemId, { item, delayed }] of pending) {
      if (!delayed) outgoing.push({ itemId, text: item.text });
    }
    return { outgoing, responses: responses[Symbol.asyncIterator](), receiving: false, answered: false };
  }

  function read(): void {
    reading = true;
    Promise.resolve()
      .then(() => input.next())
      .then(
        (next) => events.push({ kind: "input", next }),
        (error: unknown) => events.push({ kind: "input-error", error }),
      );
  }

  function receive(on: Call): void {
    on.receiving = true;
    on.responses.next().then(
      (next) => events.push({ kind: "response", call: on, next }),
      (error: unknown) => events.push({ kind: "failure", call: on, error }),
    );
  }

  /** Ends the broken stream; every item that was on its way may be the cause. */
  async function reopen(error: unknown): Promise<void> {
    failures = call?.answered ? 1 : failures + 1;
    let most = failures;
    for (const entry of pending.values()) {
      if (!entry.delayed) most = Math.max(most, ++entry.failures);
    }
    call?.outgoing.close();
    call = undefined;
    if (!(await policy.wait(callFailure(error), most))) throw error;
  }

  /** Whether an answer is delivered: its item is neither delayed and sent again, nor unknown. */
  function isFinal(answer: Answer): boolean {
    const id = answer.itemId;
    const entry = pending.get(id);
    if (entry === undefined) throw unexpectedAnswers([answer], pending.size);
    call!.answered = true;
    if (answer.outcome.case === "error") {
      const delay = policy.delayMs(itemFailure(answer.outcome.value), ++entry.failures);
      if (delay !== undefined) {
        entry.delayed = true;
        const timer = setTimeout(() => {
          timers.delete(timer);
          events.push({ kind: "due", id });
        }, delay);
        timers.add(timer);
        return false;
      }
    }
    pending.delete(id);
    answer.itemId = entry.item.itemId;
    return true;
  }
}

/** The events of a stream, in the order in which they happen; one reader. */
class Events {
  readonly #events: Event[] = [];
  #wake: (() => void) | undefined;

  push(event: Event): void {
    this.#events.push(event);
    this.#wake?.();
  }

  async next(): Promise<Event> {
    while (this.#events.length === 0) await new Promise<void>((resolve) => (this.#wake = resolve));
    return this.#events.shift()!;
  }
}

/** The items to send on one stream; each message takes as many as are waiting. */
class Outgoing {
  readonly #items: Item[] = [];
  #closed = false;
  #wake: (() => void) | undefined;

  constructor(readonly fields: SharedFields) {}

  push(item: Item): void {
    this.#items.push(item);
    this.#wake?.();
  }

  close(): void {
    this.#closed = true;
    this.#wake?.();
  }

  async *requests() {
    for (;;) {
      while (this.#items.length === 0) {
        if (this.#closed) return;
        await new Promise<void>((resolve) => (this.#wake = resolve));
      }
      yield { ...this.fields, items: this.#take(), order: AnswerOrder.COMPLETION };
    }
  }

  #take(): Item[] {
    let [count, characters] = [0, 0];
    for (const { text } of this.#items.slice(0, MAX_MESSAGE_ITEMS)) {
      if (count > 0 && characters + text.length > MAX_MESSAGE_CHARACTERS) break;
      characters += text.length;
      count++;
    }
    return this.#items.splice(0, count);
  }
}
