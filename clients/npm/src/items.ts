import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";

import { statusError } from "./answers.js";
import {
  type Answer,
  AnswerSchema,
  type EmbeddingOptionsSchema,
  ErrorInfoSchema,
  type ItemOptionsSchema,
  type Task,
} from "./v1.js";

const LONE_SURROGATE = /\p{Surrogate}/u;

/** A text, or a text with an id of its own; the id of a text alone is its number, starting at "0". */
export type ItemInit = string | { readonly itemId: string; readonly text: string };

/** An item that can be sent. */
export interface Item {
  readonly itemId: string;
  readonly text: string;
}

/** The fields that the requests of all methods share. */
export interface SharedFields {
  tasks: Task[];
  options: MessageInitShape<typeof ItemOptionsSchema> | undefined;
  embeddingOptions: MessageInitShape<typeof EmbeddingOptionsSchema> | undefined;
}

export function withId(item: ItemInit, index: number): Item {
  return typeof item === "string" ? { itemId: String(index), text: item } : item;
}

/** Returns the answer of an item that cannot be sent: protobuf would replace its lone surrogates without a notice. */
export function rejectInvalid({ itemId, text }: Item): Answer | undefined {
  if (!LONE_SURROGATE.test(text) && !LONE_SURROGATE.test(itemId)) return undefined;
  const details = [anyPack(ErrorInfoSchema, create(ErrorInfoSchema, { reason: "TEXT_NOT_UTF8", domain: "polyhead" }))];
  const message = "the text or the id of the item contains a lone surrogate, which has no UTF-8 form";
  const value = { code: Code.InvalidArgument, message, details };
  return create(AnswerSchema, { itemId, outcome: { case: "error", value } });
}

/** Returns the error of a message that was rejected as a whole. */
export function unexpectedAnswers(answers: readonly Answer[], items: number): ConnectError {
  const [first] = answers;
  if (answers.length === 1 && first?.outcome.case === "error") return statusError(first.outcome.value);
  return new ConnectError(`${answers.length} answers to ${items} items`, Code.Internal);
}
