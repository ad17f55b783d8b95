// The page without a server: what the Gradio room asks of its server is done in the visitor's own browser. The model
// writes in engine.js, Iris' own Python (verse.js) decides about verse, and this carries wishes, drafts and poems.

import { Engine } from "./engine.js";
import { open } from "./page.js";

const told = (error) => error.told ?? "Something went wrong here; reload the page and try again.";
const page = document.querySelector("#page");
const room = await (await fetch("room.json")).json();
let show = () => {}, writing = null, loaded = "", failed = false;

/** Iris' Python in a worker: each call is a message, and its answer another. */
const verse = () => {
  const worker = new Worker(new URL("verse.js", import.meta.url), { type: "module" }), waiting = [];
  worker.onmessage = ({ data: { answer, failed } }) => {
    const { resolve, reject } = waiting.shift();
    if (failed) reject(new Error(failed)); else resolve(answer);
  };
  return (name, ...values) => new Promise((resolve, reject) => {
    waiting.push({ resolve, reject });
    worker.postMessage([name, ...values.map((value) => JSON.stringify(value))]);
  });
};

const progress = (note) => {
  if (failed) return;  // other parts of the model may still come, but what went wrong has to stay
  loaded = note;
  if (writing) show({ ...writing.poem, note, busy: true });
  else if (page.querySelector("#sheet h2:empty")) show({ note: note || "Say what it should be about, and press Write." });
};

/** The poem of a wish, state by state as leaf.js draws it. */
async function* compose(wish, poem, { engine, python, signal }) {
  if (signal.aborted) return;
  let step = await python("begin", wish, engine.taught, engine.most), text = "";
  while (!step.poem) {
    if (step.refused) throw Object.assign(new Error("refused"), { told: step.refused });
    let answer = null;
    if (step.likely) answer = await engine.likely(step.likely);
    else if (step.text) text += step.text;
    else {
      for await (const drafts of engine.write(step.drafts, signal, (draft) => python("settled", draft))) {
        answer = drafts;
        const draft = drafts.at(-1).text, { scored, shown } = step.drafts;
        yield { ...poem, busy: true, ...(scored ? { text, draft: shown + draft } : { text: draft }) };
      }
    }
    if (signal.aborted) return;
    step = await python("go_on", answer);
  }
  yield { ...poem, ...step.poem };
}

async function write({ turn, ...wish }) {
  stop();
  const mine = new AbortController(), before = writing?.done;
  const poem = { turn, about: wish.theme, form: wish.form, seed: wish.seed, by: "" };
  let now = poem;
  const work = async () => {
    try {
      await before;
      if (loaded) progress(loaded);
      const [engine, python] = await ready;
      for await (now of compose(wish, poem, { engine, python, signal: mine.signal })) show(now);
      if (mine.signal.aborted) show({ ...poem, text: now.text, note: "stopped" });
    } catch (error) {
      console.warn(error);
      show({ ...poem, text: now.text, note: told(error) });
    } finally {
      if (writing?.mine === mine) writing = null;
    }
  };
  writing = { mine, poem, done: null };
  writing.done = work();
}

function stop() {
  writing?.mine.abort();
  if (!writing || !loaded) return;
  show({ ...writing.poem, note: "stopped" });  // before it has begun
  writing = null;
}

const load = async () => {
  if (!isSecureContext) throw Object.assign(new Error("insecure"), { told: "This page writes only over https, or on localhost." });
  const python = verse();
  const [engine, about] = await Promise.all([Engine.load(room, progress), python("ready")]);
  page.querySelector("#engine").textContent = `llama.cpp on ${engine.threads > 1 ? `${engine.threads} threads` : "one thread"}, ${about}`;
  progress("");
  return [engine, python];
};

if (navigator.serviceWorker) {
  // It gives the page what threads need and keeps it for when there is no network; the first time all has to come again.
  const registered = navigator.serviceWorker.register("sw.js").catch(() => null);
  if (!navigator.serviceWorker.controller && !sessionStorage.getItem("iris.again")) {
    sessionStorage.setItem("iris.again", "1");
    if (await registered) {
      await navigator.serviceWorker.ready;
      location.reload();
      await new Promise(() => {});
    }
  }
}
const ready = load();
ready.catch((error) => {
  progress(told(error));
  failed = true;
});
show = await open(page, { write, stop });
if (loaded) progress(loaded);
