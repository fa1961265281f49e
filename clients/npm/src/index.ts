/**
 * Client of a polyhead server, which answers a text with an embedding and the answers of all heads from one forward pass.
 *
 * `@polyhead/client/v1` exports the generated messages and services.
 */

export { errorReason, float32s, result } from "./answers.js";
export { Client, type ClientOptions, type RequestOptions } from "./client.js";
export type { ItemInit } from "./items.js";
export {
  type Answer,
  type Classification,
  type Embedding,
  EmbeddingEncoding,
  type LabelScore,
  type LabelSet,
  type ModelInfo,
  type Result,
  type Score,
  type Sentiment,
  Task,
  TruncationPolicy,
} from "./v1.js";
