#!/usr/bin/env node
/**
 * Prints the embedding of texts and the answers of all heads as JSON lines.
 *
 * It reads the texts from its arguments, or one per line from standard input. The API key, if the server requires one,
 * is read from POLYHEAD_API_KEY and sent only over TLS or to this machine. Exit status: 0 success, 1 an item has an error
 * or the call failed, 2 wrong command line.
 */

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";

import { Code } from "@connectrpc/connect";

import { errorReason, float32s } from "./answers.js";
import { Client, type RequestOptions } from "./client.js";
import type { Answer, Classification, LabelScore, Score, Sentiment } from "./v1.js";

const USAGE =
  "usage: polyhead-analyze [--target HOST:PORT] [--tls] [--ca FILE] [--model NAME] [--timeout-ms N] [--max-attempts N] " +
  "[--unary] [--novelty] [--prediction-sets] [TEXT...]";

async function main(): Promise<number> {
  const options = {
    target: { type: "string", default: "127.0.0.1:50051" },
    tls: { type: "boolean", default: false },
    ca: { type: "string" },
    model: { type: "string" },
    "timeout-ms": { type: "string" },
    "max-attempts": { type: "string", default: "5" },
    unary: { type: "boolean", default: false },
    novelty: { type: "boolean", default: false },
    "prediction-sets": { type: "boolean", default: false },
  } as const;
  let client: Client;
  let parsed;
  let request: RequestOptions = {};
  try {
    parsed = parseArgs({ options, allowPositionals: true });
    const { target, tls, ca, model, "max-attempts": maxAttempts, "timeout-ms": timeout } = parsed.values;
    request = {
      item: { includeNovelty: parsed.values.novelty, includePredictionSets: parsed.values["prediction-sets"] },
      ...(timeout === undefined ? {} : { timeoutMs: positive("--timeout-ms", timeout) }),
    };
    client = new Client(target, {
      tls: ca === undefined ? tls : { ca: readFileSync(ca) },
      apiKey: process.env["POLYHEAD_API_KEY"],
      model,
      maxAttempts: positive("--max-attempts", maxAttempts),
    });
  } catch (error) {
    console.error(`polyhead-analyze: ${(error as Error).message}\n${USAGE}`);
    return 2;
  }
  const { values, positionals } = parsed;
  const lines = positionals.length > 0 ? positionals : createInterface({ input: process.stdin, crlfDelay: Infinity });
  let failed = false;
  try {
    const answers = values.unary ? await client.analyze(await collect(lines), request) : client.stream(lines, request);
    for await (const answer of answers) {
      failed ||= answer.outcome.case === "error";
      console.log(JSON.stringify(record(answer)));
    }
  } catch (error) {
    console.error(`polyhead-analyze: ${(error as Error).message}`);
    failed = true;
  } finally {
    client.close();
  }
  return failed ? 1 : 0;
}

function positive(flag: string, value: string): number {
  const number = Number(value);
  if (Number.isInteger(number) && number >= 1) return number;
  throw new RangeError(`${flag}: ${value} is not a positive integer`);
}

async function collect(lines: Iterable<string> | AsyncIterable<string>): Promise<string[]> {
  const texts = [];
  for await (const line of lines) texts.push(line);
  return texts;
}

function record({ itemId: id, outcome }: Answer): object {
  if (outcome.case !== "result") {
    const status = outcome.value;
    const error = status && { code: Code[status.code], reason: errorReason(status), message: status.message };
    return { id, error };
  }
  const { embedding, classification, sentiment, labelSets, scores, novelty, truncation } = outcome.value;
  return {
    id,
    embedding: embedding && Array.from(float32s(embedding)),
    classification: classification && {
      head: classification.head,
      scores: labelScores(classification.scores),
      ...confidence(classification),
      prediction_set: nonEmpty(classification.predictionSet),
    },
    sentiment: sentiment && {
      head: sentiment.head,
      probability: sentiment.probability,
      label: sentiment.label,
      ...confidence(sentiment),
    },
    label_sets: nonEmpty(labelSets.map(({ head, scores, labels }) => ({ head, scores: labelScores(scores), labels }))),
    scores: nonEmpty(
      scores.map((score) => ({
        head: score.head,
        value: score.value,
        label: score.label || null,
        probabilities: labelScores(score.probabilities),
        ...confidence(score),
      })),
    ),
    novelty,
    truncated: truncation?.truncated,
  };
}

function nonEmpty<T>(list: T[]): T[] | undefined {
  return list.length > 0 ? list : undefined;
}

/** What a head that abstains adds to its answer; undefined fields are not printed. */
function confidence({ confidence, abstained }: Classification | Sentiment | Score): object {
  return { confidence, abstained };
}

function labelScores(scores: readonly LabelScore[]): object[] {
  return scores.map(({ label, probability }) => ({ label, probability }));
}

process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code === "EPIPE") process.exit(0); // the reader has read enough
  console.error(`polyhead-analyze: ${error.message}`);
  process.exit(1);
});
process.exitCode = await main();
