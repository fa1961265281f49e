import type { DescMessage, MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";

import { type Answer, type Embedding, EmbeddingEncoding, ErrorInfoSchema, type Result, type Status } from "./v1.js";

/**
 * Returns the result of an answer.
 *
 * @throws ConnectError The item has an error.
 */
export function result(answer: Answer): Result {
  if (answer.outcome.case === "result") return answer.outcome.value;
  throw statusError(answer.outcome.value);
}

/** Returns the reason of an item's error, such as "OVERLOADED"; undefined if there is none. */
export function errorReason(status: Status): string | undefined {
  return detail(status, ErrorInfoSchema)?.reason;
}

/**
 * Returns the values of an embedding in the encoding FLOAT32_LE, the default, or INT8.
 *
 * @throws TypeError The result has no embedding, or one in another encoding.
 */
export function float32s(embedding: Embedding | undefined): Float32Array {
  if (embedding === undefined) throw new TypeError("the result has no embedding; request the task");
  const { values, dimensions, encoding, scale } = embedding;
  const view = new DataView(values.buffer, values.byteOffset, values.byteLength);
  if (encoding === EmbeddingEncoding.FLOAT32_LE && values.length === 4 * dimensions) {
    return Float32Array.from({ length: dimensions }, (_, index) => view.getFloat32(4 * index, true));
  }
  if (encoding === EmbeddingEncoding.INT8 && values.length === dimensions) {
    return Float32Array.from({ length: dimensions }, (_, index) => view.getInt8(index) * scale);
  }
  const name = EmbeddingEncoding[encoding] ?? String(encoding);
  throw new TypeError(`embedding: ${values.length} bytes of ${dimensions} dimensions in ${name} are not supported`);
}

/** Returns the first detail of a type; undefined if there is none. */
export function detail<Desc extends DescMessage>(status: Status, type: Desc): MessageShape<Desc> | undefined {
  for (const any of status.details) {
    const message = anyUnpack(any, type);
    if (message !== undefined) return message;
  }
  return undefined;
}

/** Converts the status of an item to an error. */
export function statusError(status: Status | undefined): ConnectError {
  return status === undefined
    ? new ConnectError("the answer has neither a result nor an error", Code.Internal)
    : new ConnectError(status.message, status.code as Code);
}
