"use strict";
// The browse page. It shows data files that are loaded as scripts, because a page that is opened from
// disk may load no other files. All text comes from models and is data: it only ever becomes a text
// node (`element` below), and never HTML.

const nonce = document.currentScript.nonce;
const $ = (id) => document.getElementById(id);
const PAGE_ROWS = 200;
const OPEN_CARDS = 4;
const BOUNDS = [-0.1, -0.5, -1, -2, -4];
const MAIN_SET = "problems.evaluation"; // also in report/links.py
const SPLITS = { evaluation: "held-out problems", train: "training problems" };
const KINDS = { file: "order of the file", hardest: "fewest correct first", easiest: "most correct first" };

// --- loading -----------------------------------------------------------------------------------------

const loaded = new Map(); // name of a data file -> promise of its content
const arrived = new Map();
const browse = { put: (name, content) => arrived.set(name, content) };
window.browse = browse;

function load(name) {
  if (!loaded.has(name)) {
    loaded.set(name, new Promise((resolve, reject) => {
      const script = document.createElement("script");
      script.nonce = nonce;
      script.src = `data/${name}.js`;
      script.onload = () => {
        const content = arrived.get(name);
        arrived.delete(name);
        script.remove();
        if (!content) reject(new Error(`data/${name}.js is damaged`));
        else if (content.error) reject(new Error(content.error));
        else resolve(content);
      };
      script.onerror = () => {
        loaded.delete(name); // so that a later attempt asks again
        reject(new Error(`data/${name}.js cannot be loaded: is the server of this page still running, or is the folder complete?`));
      };
      document.head.append(script);
    }));
  }
  return loaded.get(name);
}

// --- helpers -----------------------------------------------------------------------------------------

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const tag = (text, kind, title) => element("span", { class: `tag ${kind || ""}`, title }, text);
const number = (value) => (value > 0 ? "+" : "") + value.toFixed(2);

function chooser(label, name, options, value) {
  const select = element("select", { name, onchange: (event) => go({ [name]: event.target.value }) },
    options.map(([key, text]) => element("option", { value: key, selected: String(key) === String(value) }, text)));
  return element("label", {}, label, select);
}

// --- state: everything is in the address, so that every view has a link --------------------------------

let index = null;
let state = {};

function stateOf(hash) {
  const found = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
  const run = Math.max(0, index.runs.findIndex((r) => r.name === found.run));
  const own = index.blocks.filter((b) => b.run === run);
  const splits = [...new Set(own.map((b) => b.split))];
  const split = splits.includes(found.split) ? found.split : splits[0];
  const iterations = own.filter((b) => b.split === split).map((b) => b.iteration);
  const further = split === "evaluation" && index.runs[run] ? index.runs[run].sets : [];
  const sets = further.length ? [MAIN_SET, ...further] : [];
  const wanted = found.iteration === undefined || found.iteration === "" ? NaN : Number(found.iteration);
  return {
    run: index.runs[run] ? index.runs[run].name : "",
    number: run,
    splits, iterations, split, sets,
    set: sets.includes(found.set) ? found.set : "", // empty: all sets
    iteration: iterations.includes(wanted) ? wanted : iterations[iterations.length - 1],
    filter: (found.filter || "").split(",").filter(Boolean),
    model: found.model || "",
    q: found.q || "",
    order: found.order in KINDS ? found.order : "file",
    colour: found.colour === "1" ? "1" : "",
    problem: found.problem || "",
  };
}

function hashOf(values) {
  const kept = {};
  for (const key of ["run", "split", "iteration", "set", "filter", "model", "q", "order", "colour", "problem"]) {
    const value = Array.isArray(values[key]) ? values[key].join(",") : values[key];
    if (value !== "" && value !== undefined && !(key === "order" && value === "file")) kept[key] = value;
  }
  return "#" + new URLSearchParams(kept);
}

const go = (changes) => { location.hash = hashOf({ ...state, ...changes }); };

// --- the list ------------------------------------------------------------------------------------------

// A function that is true for the rows with a flag: of any model, or of the model in FLAG:MODEL.
function predicate(block, filter) {
  const [name, model] = filter.split(":");
  const flag = index.flags.find((f) => f.name === name);
  if (!flag) return () => true;
  const models = index.runs[state.number].models;
  const columns = block.flags.filter((_, i) => !model || models[i] === model);
  return (row) => columns.some((column) => (column[row] & flag.bit) !== 0);
}

const shareCorrect = (block, row) => {
  let correct = 0;
  let all = 0;
  block.n.forEach((column, i) => { all += column[row]; correct += block.c[i][row]; });
  return all ? correct / all : 0;
};

// The rows of the block that belong to the chosen set of the evaluation.
function rowsOfSet(block, problems) {
  const further = state.sets.slice(1);
  const setOf = (id) => further.find((name) => id.startsWith(`${name}/`)) || MAIN_SET;
  const rows = block.problems.map((_, row) => row);
  return state.set ? rows.filter((row) => setOf(problems.problem_id[block.problems[row]]) === state.set) : rows;
}

function rowsOf(block, problems) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const filters = state.filter.map((filter) => predicate(block, filter));
  const matches = (row) => {
    if (!filters.every((holds) => holds(row))) return false;
    if (!words.length) return true;
    const p = block.problems[row];
    const text = `${problems.problem_id[p]} ${problems.question[p]}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  const rows = rowsOfSet(block, problems).filter(matches);
  const direction = { hardest: 1, easiest: -1 }[state.order];
  if (direction) rows.sort((a, b) => direction * (shareCorrect(block, a) - shareCorrect(block, b)) || a - b);
  return rows;
}

function chips(block, problems) {
  const rows = rowsOfSet(block, problems);
  const models = index.runs[state.number].models;
  const of = models.includes(state.model) ? `:${state.model}` : "";
  const shown = index.flags.map((flag) => {
    const filter = flag.name + of;
    const holds = predicate(block, filter);
    const num = rows.filter(holds).length;
    const pressed = state.filter.includes(filter);
    const toggled = pressed ? state.filter.filter((f) => f !== filter) : [...state.filter, filter];
    const label = of ? flag.short : flag.label;
    return element("button", {
      type: "button", class: "chip", title: flag.meaning, "aria-pressed": String(pressed), "data-filter": filter,
      disabled: !num && !pressed, onclick: () => go({ filter: toggled }),
    }, label, " ", element("small", {}, String(num)));
  });
  // Filters of another model stay visible while they are active.
  const others = state.filter.filter((f) => !index.flags.some((flag) => flag.name + of === f));
  return [...shown, ...others.map((f) => element("button", {
    type: "button", class: "chip", "aria-pressed": "true", onclick: () => go({ filter: state.filter.filter((x) => x !== f) }),
  }, labelOf(f)))];
}

function labelOf(filter) {
  const [name, model] = filter.split(":");
  const flag = index.flags.find((f) => f.name === name);
  if (!flag) return `unknown filter ${filter}`;
  return model ? flag.of_model.replace("{}", model) : flag.label;
}

function tagsOf(block, row) {
  const tags = index.runs[state.number].models.filter((_, i) => block.n[i][row]).map((model) => {
    const i = index.runs[state.number].models.indexOf(model);
    const hinted = block.hinted_n[i][row] ? ` → ${block.hinted_c[i][row]}/${block.hinted_n[i][row]}` : "";
    const kind = block.c[i][row] ? "good" : block.hinted_c[i][row] ? "warn" : "bad";
    const title = hinted ? "correct completions without help, then with the hint" : "correct completions";
    return tag(`${model} ${block.c[i][row]}/${block.n[i][row]}${hinted}`, kind, title);
  });
  const quiet = new Set(["all_fail", "fails", "only"]); // the numbers show these
  const flags = index.flags.filter((flag) => !quiet.has(flag.name) && predicate(block, flag.name)(row));
  return [...tags, ...flags.map((flag) => tag(flag.label, "", flag.meaning))];
}

function showRows(block, problems, rows) {
  const box = $("rows");
  const make = (row) => {
    const p = block.problems[row];
    const id = problems.problem_id[p];
    return element("a", {
      class: "row", href: hashOf({ ...state, problem: id }), "aria-current": String(id === state.problem),
    }, element("div", { class: "question" }, problems.question[p]), element("div", { class: "id" }, id),
    element("div", { class: "tags" }, tagsOf(block, row)));
  };
  const found = `${rows.length.toLocaleString("en")} of ${block.problems.length.toLocaleString("en")} problems`;
  const note = index.left_out ? `; ${index.left_out}` : "";
  box.replaceChildren(element("p", { class: "found" }, found + note));
  let shown = 0;
  const more = element("button", { type: "button", onclick: () => add() }, "show more");
  const add = () => {
    more.remove();
    box.append(...rows.slice(shown, shown + PAGE_ROWS).map(make));
    shown += PAGE_ROWS;
    if (shown < rows.length) box.append(more);
  };
  add();
  const current = box.querySelector('[aria-current="true"]');
  if (current && matchMedia("(min-width: 721px)").matches) current.scrollIntoView({ block: "nearest" });
}

// --- one problem ---------------------------------------------------------------------------------------

function classOf(logprob) {
  if (logprob === null) return "p5";
  const level = BOUNDS.filter((bound) => logprob < bound).length;
  return level ? `p${level}` : "";
}

function coloured(completion) {
  let position = 0;
  return completion.lengths.map((length, i) => {
    const piece = completion.text.slice(position, position + length);
    position += length;
    if (!piece) return null;
    const logprob = completion.logprobs[i];
    return element("span", { class: classOf(logprob), title: `log-probability ${logprob}` }, piece);
  });
}

function strip(completion) {
  const canvas = element("canvas", { width: String(Math.max(1, completion.logprobs.length)), height: "1" });
  const colours = getComputedStyle(document.documentElement);
  const paint = canvas.getContext("2d");
  completion.logprobs.forEach((logprob, i) => {
    const name = classOf(logprob);
    if (!name) return;
    paint.fillStyle = colours.getPropertyValue(`--${name}`);
    paint.fillRect(i, 0, 1, 1);
  });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "log-probability of each token, in the order of the tokens");
  return canvas;
}

function textOf(completion) {
  const text = completion.text || "(empty)";
  if (!state.colour || !completion.logprobs.length) return [element("pre", {}, text)];
  if (completion.lengths) return [element("pre", {}, coloured(completion))];
  return [strip(completion), element("pre", {}, text)];
}

function numbersOf(completion) {
  const parts = Object.entries(completion.parts).map(([name, value]) => [name.replace("_", " "), value.toFixed(2)]);
  const total = completion.reward === null ? [] : [["reward", completion.reward.toFixed(2)], ["advantage", number(completion.advantage)]];
  const sum = completion.logprobs.reduce((a, b) => a + (b === null ? 0 : b), 0);
  const mean = completion.logprobs.length ? [["mean log-prob", (sum / completion.logprobs.length).toFixed(2)]] : [];
  const facts = [...total, ...parts, ["tokens", completion.tokens ?? "–"], ...mean];
  return element("div", { class: "numbers" },
    facts.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, String(value)))),
    completion.zero_signal ? element("span", { title: "all compared completions have the same reward" }, "no training signal") : null);
}

function card(completion, open, prompts) {
  const kinds = { correct: "correct", wrong: "wrong" };
  const verdict = { correct: "correct", wrong: "wrong", no_answer: "no answer", timeout: "time-out" }[completion.verdict];
  const kind = { correct: "good", wrong: "bad" }[completion.verdict] || "warn";
  const advantage = completion.advantage === null ? null : tag(`A ${number(completion.advantage)}`, "", "advantage");
  const prompt = completion.prompt === null ? null : element("details", {},
    element("summary", { class: "prompt" }, "prompt"), element("pre", {}, prompts[completion.prompt]));
  return element("details", { class: `card ${kinds[completion.verdict] || "other"}`, open },
    element("summary", {}, `#${completion.sample} `, tag(verdict, kind),
      completion.hinted ? tag("with the hint", "") : null,
      completion.truncated ? tag("truncated", "warn") : null, advantage,
      completion.answer === null ? null : [" answer ", element("b", {}, completion.answer)]),
    textOf(completion), numbersOf(completion), prompt);
}

const REASONS = {
  solved: "no hint: the model solved the problem cold",
  no_teacher: "no hint: no other model solved the problem",
  no_hint: "no hint: nothing was left of the teacher's completion without answers",
  leak: "no hint: nothing was left before the gold answer",
};

function hintCard(hint) {
  if (hint.text === null) return element("p", { class: "quiet" }, REASONS[hint.reason] || `no hint: ${hint.reason}`);
  const leak = { anywhere: "contains the gold answer as a value", result: "contains the gold answer as a result" }[hint.leak];
  const other = hint.other_problem;
  const made = other === null ? null : ["made from problem ", element("a", { href: hashOf({ ...state, problem: other }) }, other), " "];
  const names = { kept: "span", cut: "del", changed: "ins" };
  const compared = hint.segments.map(([kind, text]) => element(names[kind], { class: kind }, text));
  const key = element("div", { class: "key" }, element("span", {}, element("span", { class: "kept" }, "abc"), "in the hint"),
    element("span", {}, element("del", {}, "abc"), "cut from the teacher's completion"));
  return element("details", { class: "card hint", open: true },
    element("summary", {}, `hint from ${hint.teacher} #${hint.sample} `, made, tag(`${hint.tokens} tokens`), leak ? tag(leak, "warn") : null),
    compared.length ? [element("pre", {}, compared), key] : element("pre", {}, hint.text));
}

function group(title, completions, prompts) {
  if (!completions.length) return [];
  const correct = completions.filter((c) => c.verdict === "correct").length;
  return [element("div", { class: "group" }, `${title}: ${correct} of ${completions.length} correct`),
    ...completions.map((completion, i) => card(completion, i < OPEN_CARDS, prompts))];
}

function modelColumn(model, detail) {
  const hinted = model.rescues.filter((c) => c.hinted);
  const control = model.rescues.filter((c) => !c.hinted);
  const first = state.split === "train" ? "without help (cold)" : "completions";
  const missing = index.runs[state.number].tokenizers[model.model];
  const uncoloured = model.completions.concat(model.rescues).some((c) => !c.lengths && c.logprobs.length);
  const reason = missing || "the tokenizer that was found does not give these texts";
  return element("section", { class: "model" }, element("h3", {}, model.model),
    state.colour && uncoloured
      ? element("p", { class: "note" }, `The strips show log-probabilities by token position, because ${reason}.`) : null,
    group(first, model.completions, detail.prompts), model.hint ? hintCard(model.hint) : null,
    group("with the hint", hinted, detail.prompts), group("sampled again without the hint (control)", control, detail.prompts));
}

function showDetail(detail, row, rows, ids) {
  const at = rows.indexOf(row);
  const step = (by) => { if (rows[at + by] !== undefined) go({ problem: ids(rows[at + by]) }); };
  const key = state.colour ? element("div", { class: "key" }, "log-probability of a token:",
    ["≥ −0.1", "< −0.1", "< −0.5", "< −1", "< −2", "< −4"].map((text, i) =>
      element("span", {}, element("span", { class: i ? `p${i}` : "" }, "abc"), text))) : null;
  const attributes = Object.entries(detail.attributes).map(([name, value]) => `${name.replace("_", " ")}: ${value}`);
  const cards = (open) => $("detail").querySelectorAll(".card").forEach((c) => { c.open = open; });
  $("detail").replaceChildren(
    element("div", { class: "top" }, element("h2", {}, state.problem),
      element("div", { class: "buttons" },
        element("a", { class: "back", href: hashOf({ ...state, problem: "" }) }, "← list"),
        element("button", { type: "button", disabled: at <= 0, onclick: () => step(-1) }, "previous"),
        element("button", { type: "button", disabled: at < 0 || at === rows.length - 1, onclick: () => step(1) }, "next"),
        element("span", { class: "quiet" }, at < 0 ? "" : `${at + 1} of ${rows.length}`))),
    element("p", { class: "facts" }, "gold answer: ", element("b", {}, detail.gold || "–"),
      attributes.length ? `; ${attributes.join("; ")}` : ""),
    element("pre", { class: "question-text" }, detail.question || "(the question is not stored)"),
    element("div", { class: "key" },
      element("label", {}, element("input", { type: "checkbox", id: "colour", checked: Boolean(state.colour),
        onchange: (event) => go({ colour: event.target.checked ? "1" : "" }) }), "colour tokens by log-probability"),
      element("button", { type: "button", onclick: () => cards(true) }, "open all"),
      element("button", { type: "button", onclick: () => cards(false) }, "close all")),
    key, element("div", { class: "models" }, detail.models.map((model) => modelColumn(model, detail))));
}

function showMessage(...text) {
  const back = element("a", { class: "back", href: hashOf({ ...state, problem: "" }) }, "← list");
  $("detail").replaceChildren(back, element("p", { class: "note" }, ...text));
}

// --- the whole page ------------------------------------------------------------------------------------

let latest = 0;
let navigate = () => {};

async function render() {
  const mine = (latest += 1);
  const before = state;
  state = stateOf(location.hash);
  const block = await load(`b${state.number}-${state.split}-${state.iteration}`);
  const problems = await load(`p${state.number}-${state.split}`);
  if (mine !== latest) return; // the reader has moved on
  document.body.classList.toggle("reading", Boolean(state.problem));
  const own = index.runs[state.number];
  const sets = [["", "all"], ...state.sets.map((s) => [s, s])];
  $("choice").replaceChildren(
    index.runs.length > 1 ? chooser("run", "run", index.runs.map((r) => [r.name, r.name]), state.run) : "",
    state.splits.length > 1 ? chooser("", "split", state.splits.map((s) => [s, SPLITS[s]]), state.split) : SPLITS[state.split],
    state.sets.length ? chooser("set", "set", sets, state.set) : "",
    chooser("iteration", "iteration", state.iterations.map((i) => [i, String(i)]), state.iteration));
  const models = [["", "any model"], ...own.models.map((m) => [m, m])];
  const typing = document.activeElement && document.activeElement.name === "q";
  const search = element("input", { type: "search", name: "q", value: state.q, placeholder: "search id and question",
    "aria-label": "search id and question", onchange: (event) => go({ q: event.target.value }) });
  $("filters").replaceChildren(
    element("div", { class: "line" }, search),
    element("div", { class: "line" }, chooser("filters for", "model", models, state.model),
      chooser("", "order", Object.entries(KINDS), state.order)),
    element("div", { class: "chips" }, chips(block, problems)));
  if (typing) search.focus();
  const rows = rowsOf(block, problems);
  showRows(block, problems, rows);
  const ids = (row) => problems.problem_id[block.problems[row]];
  await showProblem(mine, before, block, rows, ids, problems);
}

async function showProblem(mine, before, block, rows, ids, problems) {
  const row = state.problem ? block.problems.findIndex((p) => problems.problem_id[p] === state.problem) : -1;
  const at = rows.indexOf(row);
  navigate = (by) => {
    const next = rows[at < 0 ? 0 : at + by];
    if (next !== undefined) go({ problem: ids(next) });
  };
  if (!state.problem) {
    $("detail").replaceChildren(element("p", { class: "quiet" }, "Choose a problem. ",
      element("span", { class: "keys" }, element("kbd", {}, "j"), " and ", element("kbd", {}, "k"), " move through the list, ",
        element("kbd", {}, "/"), " searches.")));
  } else if (row < 0) {
    showMessage(`Iteration ${state.iteration} of this run did not use the problem ${state.problem}.`);
  } else if (block.details && block.details[row] < 0) {
    showMessage("This folder has no texts of this problem, to keep it small. Export more with a larger --completions, ",
      "or read all problems with: python -m analysis browse RUN (without --out).");
  } else {
    const key = block.details ? block.details[row] : block.problems[row];
    const details = await load(`d${state.number}-${state.split}-${state.iteration}-${key}`);
    if (mine !== latest) return;
    showDetail(details[state.problem], row, rows, ids);
    if (before.problem !== state.problem) {
      $("detail").scrollTop = 0;
      if (document.body.classList.contains("reading") && matchMedia("(max-width: 720px)").matches) scrollTo(0, 0);
    }
  }
  document.body.dataset.ready = location.hash || "#";
}

function update() {
  render().catch((error) => {
    showMessage(error.message);
    document.body.classList.add("reading");
    document.body.dataset.ready = location.hash || "#";
  });
}

$("choice").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", update);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || /^(input|select|textarea)$/i.test(event.target.tagName)) return;
  if (event.key === "j") navigate(1);
  else if (event.key === "k") navigate(-1);
  else if (event.key === "/") { event.preventDefault(); document.querySelector("input[name=q]").focus(); }
});
load("index").then((content) => { index = content; update(); }, (error) => {
  $("detail").replaceChildren(element("p", { class: "note" }, error.message));
  document.body.classList.add("reading");
});
