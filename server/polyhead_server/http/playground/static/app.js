// The playground: posts texts to /v1/analyze of this server and shows the answers. Texts are shown as text, never as HTML.

const $ = (id) => document.getElementById(id);
const MAX_SHOWN = 200; // answers and rows of the similarity table; a file may have more
const MAX_SIMILARITY = 24;
const labels = {}, kindOf = {}; // of each head, by its name
const served = {}; // what the server says about the model
const TASKS = { classification: ["softmax"], sentiment: ["sigmoid"], labels: ["multilabel"],
  score: ["ordinal", "regression"] };

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

async function call(path, options = {}) {
  const headers = { ...options.headers };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  // /?model=NAME tries one of several models.
  const model = new URLSearchParams(location.search).get("model");
  if (model) headers["x-polyhead-model"] = model;
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401 || response.status === 403) $("key-row").hidden = false;
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new Error(body.error?.message ?? `the server answered ${response.status}`);
  }
  return response;
}

async function analyze(texts) {
  const body = JSON.stringify({ texts, truncation: $("truncation").value, timings: true, ...doubts() });
  const response = await call("/v1/analyze", { method: "POST", body, headers: { "content-type": "application/json" } });
  return (await response.json()).answers;
}

// What the model can tell about how far to trust an answer.
function doubts() {
  const options = {};
  if (served.has_novelty) options.novelty = true;
  if (served.heads?.some((head) => head.prediction_sets)) options.prediction_sets = true;
  return options;
}

const number = (value) => String(Number(value.toPrecision(4)));
const percent = (value) => `${(100 * value).toFixed(1)} %`;

function headTable(caption, rows, answer) {
  const table = element("table", { class: "head" }, element("caption", {}, caption));
  for (const [label, probability] of rows) {
    const bar = element("meter", { min: 0, max: 1, value: probability, "aria-label": `${label}: ${percent(probability)}` });
    table.append(element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, bar),
      element("td", {}, percent(probability))));
  }
  const notes = [];
  if (answer.abstained) notes.push(element("strong", { class: "cut" }, "Abstains: "));
  if (answer.confidence !== undefined) {
    notes.push(`${answer.abstained ? "confidence" : "Confidence"} ${percent(answer.confidence)}. `);
  }
  if (answer.prediction_set) notes.push(`Prediction set: ${answer.prediction_set.join(", ")}.`);
  return notes.length ? element("div", {}, table, element("p", { class: "facts" }, ...notes)) : table;
}

function headsOf(answer) {
  const tables = [];
  for (const one of [answer.classification, ...(answer.additional_classifications ?? [])].filter(Boolean)) {
    const rows = one.scores.slice(0, 6).map((score) => [score.label, score.probability]);
    tables.push(headTable(one.head, rows, one));
  }
  for (const one of [answer.sentiment, ...(answer.additional_sentiments ?? [])].filter(Boolean)) {
    // The labels of the head are the negative one and the positive one.
    const [negative, positive] = labels[one.head] ?? ["negative", "positive"];
    const rows = [[positive, one.probability], [negative, 1 - one.probability]];
    tables.push(headTable(`${one.head}: ${one.label}`, one.label === positive ? rows : rows.reverse(), one));
  }
  for (const one of answer.label_sets ?? []) {
    // All that apply, and the most probable of the others.
    const rows = one.scores.slice(0, Math.max(6, one.labels.length)).map((score) => [score.label, score.probability]);
    tables.push(headTable(`${one.head}: ${one.labels.join(", ") || "none"}`, rows, one));
  }
  for (const one of answer.scores ?? []) {
    const rows = one.probabilities.map((score) => [score.label, score.probability]);
    tables.push(headTable(`${one.head}: ${number(one.value)}${one.label === null ? "" : `, ${one.label}`}`, rows, one));
  }
  return tables;
}

function factsOf(answer) {
  const { truncation, timings } = answer;
  const facts = element("p", { class: "facts" });
  const windows = truncation.windows > 1 ? ` in ${truncation.windows} windows` : "";
  facts.append(`${truncation.tokens_used} of ${truncation.tokens_seen} tokens read${windows}. `);
  if (truncation.truncated) {
    facts.append(element("strong", { class: "cut" }, `Truncated at character ${truncation.cut_at_code_point}. `));
  }
  if (answer.novelty !== undefined) {
    const rare = answer.novelty >= 0.99;
    const novelty = `Novelty ${answer.novelty.toFixed(2)}${rare ? ", unlike the training texts" : ""}. `;
    facts.append(rare ? element("strong", { class: "cut" }, novelty) : novelty);
  }
  if (timings) {
    const ms = (seconds) => `${(1000 * seconds).toFixed(1)} ms`;
    facts.append(`Queue ${ms(timings.queue_s)}, compute ${ms(timings.compute_s)}, total ${ms(timings.total_s)}.`);
  }
  return facts;
}

function show(texts, answers) {
  const list = $("answers");
  list.replaceChildren(...answers.slice(0, MAX_SHOWN).map((answer, index) => {
    const item = element("li", {}, element("span", { class: "text" }, texts[index].slice(0, 300)));
    if (answer.error) item.append(element("p", { class: "cut" }, answer.error.message));
    else item.append(element("div", { class: "heads" }, ...headsOf(answer)), factsOf(answer));
    return item;
  }));
  showSimilarity(texts, answers);
  $("results").hidden = false;
}

function cosine(a, b) {
  let dot = 0, left = 0, right = 0;
  for (let i = 0; i < a.length; i++) { dot += a[i] * b[i]; left += a[i] * a[i]; right += b[i] * b[i]; }
  return dot / (Math.sqrt(left * right) || 1);
}

function showSimilarity(texts, answers) {
  const known = answers.map((answer, index) => [texts[index], answer.embedding])
    .filter(([, embedding]) => embedding).slice(0, MAX_SIMILARITY);
  $("similarity").hidden = known.length < 2;
  if (known.length < 2) return;
  const head = element("tr", {}, element("th", { scope: "col" }, "text"),
    ...known.map((_, index) => element("th", { scope: "col" }, String(index + 1))));
  const rows = known.map(([text, embedding], row) => {
    const values = known.map(([, other]) => cosine(embedding, other));
    const nearest = values.reduce((best, value, column) =>
      column !== row && (best === -1 || value > values[best]) ? column : best, -1);
    const cells = values.map((value, column) => {
      const step = Math.max(0, Math.min(5, Math.round(value * 5)));
      return element("td", { class: `h${step}${column === nearest ? " nearest" : ""}` }, value.toFixed(2));
    });
    return element("tr", {}, element("th", { scope: "row", title: text.slice(0, 300) }, `${row + 1}. ${text.slice(0, 60)}`),
      ...cells);
  });
  $("matrix").replaceChildren(element("thead", {}, head), element("tbody", {}, ...rows));
}

// RFC 4180: quoted cells may hold commas, quotes (doubled) and line breaks.
function parseCsv(source) {
  const rows = [[]];
  let cell = "", quoted = false;
  const text = source.replace(/^\ufeff/, "");
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (quoted) {
      if (character !== '"') cell += character;
      else if (text[i + 1] === '"') { cell += '"'; i++; } else quoted = false;
    } else if (character === '"' && cell === "") quoted = true;
    else if (character === ",") { rows.at(-1).push(cell); cell = ""; }
    else if (character === "\n") { rows.at(-1).push(cell.replace(/\r$/, "")); cell = ""; rows.push([]); }
    else cell += character;
  }
  if (quoted) throw new Error("the file ends inside a quoted cell");
  rows.at(-1).push(cell);
  return rows.filter((row) => row.length > 1 || row[0] !== "");
}

// A cell that a spreadsheet would run as a formula gets an apostrophe in front.
const csvCell = (value) => {
  const text = /^[=+\-@\t\r]/.test(value) && Number.isNaN(Number(value)) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

// The columns of a head that abstains, or that has prediction sets.
function doubtColumns({ head, confidence, abstained, prediction_set: set }) {
  const columns = {};
  if (confidence !== undefined) [columns[`${head}_confidence`], columns[`${head}_abstained`]] = [confidence, abstained];
  if (set) columns[`${head}_prediction_set`] = JSON.stringify(set);
  return columns;
}

function columnsOf(answer) {
  const columns = { truncated: answer.truncation ? String(answer.truncation.truncated) : "" };
  for (const one of [answer.classification, ...(answer.additional_classifications ?? [])].filter(Boolean)) {
    columns[`${one.head}_label`] = one.scores[0].label;
    columns[`${one.head}_probability`] = one.scores[0].probability;
    Object.assign(columns, doubtColumns(one));
  }
  for (const one of [answer.sentiment, ...(answer.additional_sentiments ?? [])].filter(Boolean)) {
    columns[`${one.head}_label`] = one.label;
    columns[`${one.head}_probability`] = one.probability;
    Object.assign(columns, doubtColumns(one));
  }
  for (const one of answer.label_sets ?? []) columns[`${one.head}_labels`] = JSON.stringify(one.labels);
  for (const one of answer.scores ?? []) {
    columns[`${one.head}_value`] = one.value;
    if (one.label !== null) columns[`${one.head}_label`] = one.label;
    Object.assign(columns, doubtColumns(one));
  }
  if (answer.novelty !== undefined) columns.novelty = answer.novelty;
  columns.error = answer.error?.message ?? "";
  return columns;
}

async function convert(file) {
  const [header, ...rows] = parseCsv(await file.text());
  const column = header.indexOf("text");
  if (column === -1) throw new Error(`the file has no column "text"; its columns are ${header.join(", ")}`);
  const answers = [], size = 256;
  const kinds = new Set(Object.values(kindOf));
  const tasks = Object.entries(TASKS).filter(([, of]) => of.some((kind) => kinds.has(kind))).map(([task]) => task);
  for (let begin = 0; begin < rows.length; begin += size) {
    const texts = rows.slice(begin, begin + size).map((row) => row[column] ?? "");
    const body = JSON.stringify({ texts, truncation: $("truncation").value, tasks, ...doubts() });
    const response = await call("/v1/analyze", { method: "POST", body, headers: { "content-type": "application/json" } });
    answers.push(...(await response.json()).answers);
    $("status").textContent = `${answers.length} of ${rows.length} rows analyzed`;
  }
  const columns = answers.map(columnsOf);
  const names = [...new Set(columns.flatMap(Object.keys))];
  const lines = [[...header, ...names], ...rows.map((row, index) =>
    [...header.map((_, i) => row[i] ?? ""), ...names.map((name) => columns[index][name] ?? "")])];
  const csv = lines.map((line) => line.map(csvCell).join(",")).join("\r\n");
  const link = $("download");
  URL.revokeObjectURL(link.href);
  link.href = URL.createObjectURL(new Blob([csv, "\r\n"], { type: "text/csv" }));
  link.hidden = false;
  link.textContent = `Download answers.csv (${rows.length} rows)`;
  return rows.length;
}

async function busy(work) {
  const buttons = [$("analyze"), $("convert")], states = buttons.map((button) => button.disabled);
  $("problem").textContent = "";
  $("status").textContent = "Working …";
  buttons.forEach((button) => { button.disabled = true; });
  try {
    $("status").textContent = await work();
  } catch (error) {
    $("status").textContent = "";
    $("problem").textContent = `Not analyzed: ${error.message}`;
  } finally {
    buttons.forEach((button, index) => { button.disabled = states[index]; });
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const texts = $("texts").value.split("\n").map((line) => line.trim()).filter(Boolean);
  busy(async () => {
    if (!texts.length) throw new Error("enter at least one text");
    const answers = await analyze(texts);
    show(texts, answers);
    return `${answers.length} ${answers.length === 1 ? "text" : "texts"} analyzed.`;
  });
});
$("texts").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("file").addEventListener("change", () => { $("convert").disabled = !$("file").files.length; $("download").hidden = true; });
$("convert").addEventListener("click", () => busy(async () => `${await convert($("file").files[0])} rows analyzed.`));
$("key").addEventListener("change", () => card());

async function card() {
  try {
    const info = await (await call("/v1/info")).json();
    Object.assign(served, info);
    $("model-name").textContent = info.name;
    for (const head of info.heads) [labels[head.name], kindOf[head.name]] = [head.labels, head.kind];
    const heads = info.heads.map((head) => `${head.name} (${head.labels.join(", ") || "a number"})`);
    const rows = [["Model", info.model_id], ["Heads", heads.join("; ")],
      ["Embedding", `${info.embedding.dimensions} dimensions, ${info.embedding.pooling} pooling`],
      ["Engine", `${info.runtime.engine} on ${info.runtime.device}, variant ${info.runtime.variant}`],
      ["Token limit", `${info.limits.max_tokens} tokens per text`],
      ["Texts per request", String(info.limits.max_items_per_message)], ["Server", `polyhead ${info.server_version}`]];
    $("card").replaceChildren(...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
    $("problem").textContent = "";
  } catch (error) {
    $("problem").textContent = `The model's description is not available: ${error.message}`;
  }
}

card();
