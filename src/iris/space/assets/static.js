// The page without a server: what the Gradio room asks of its server is done in the visitor's own browser. The model
// writes in engine.js, Iris' own Python (verse.js) decides about verse, and this carries wishes, drafts and poems.

import { open } from "./page.js";

const told = (error) => error.told ?? "Something went wrong here; reload the page and try again.";
const page = document.querySelector("#page");
const room = await (await fetch("room.json")).json();
const { Engine } = await import(`./${room.engine}/engine.js`);
let show = () => {}, writing = null, last = null;  // the poem in work; when the last of them has ended
let loaded = "", failed = false;  // how far the model is; "" once it is there

/** Iris' Python in a worker: each call is a message, and its answer another. */
const verse = () => {
  const worker = new Worker(new URL(`${room.engine}/verse.js`, import.meta.url), { type: "module" }), waiting = [];
  worker.onmessage = ({ data: { answer, failed } }) => {
    const { resolve, reject } = waiting.shift();
    if (failed) reject(new Error(failed)); else resolve(answer);
  };
  return (name, ...values) => new Promise((resolve, reject) => {
    waiting.push({ resolve, reject });
    worker.postMessage([name, ...values.map((value) => JSON.stringify(value))]);
  });
};

const tell = () => {
  if (writing) show({ ...writing.now, note: loaded, busy: true });
  else if (page.querySelector("#sheet h2:empty")) show({ note: loaded || "Say what it should be about, and press Write." });
};

const progress = (note) => {
  if (failed) return;  // other parts of the model may still come, but what went wrong has to stay
  loaded = note;
  tell();
};

/** The poem of a wish, state by state as leaf.js draws it. */
async function* compose(wish, poem, signal) {
  let step = await python("begin", wish, room.taught, room.drafts), text = "";
  const engine = step.refused ? null : await ready, began = performance.now();
  while (!step.poem) {
    if (signal.aborted) return;
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
    if (!signal.aborted) step = await python("go_on", answer);
  }
  yield { ...poem, ...step.poem, seconds: (performance.now() - began) / 1000 };
}

function write({ turn, ...wish }) {
  stop();
  const mine = new AbortController(), before = last;
  const poem = { turn, about: wish.theme, form: wish.form, seed: wish.seed, by: "" };
  const work = { mine, now: poem };
  const go = async () => {
    try {
      await before;
      for await (const state of compose(wish, poem, mine.signal)) {
        if (mine.signal.aborted) continue;  // up to the engine's own end: what it gives up later would be an error of nobody's
        work.now = state;
        show(state);
      }
    } catch (error) {
      console.warn(error);
      if (!mine.signal.aborted) show({ ...poem, text: work.now.text, note: told(error) });
    } finally {
      if (writing === work) writing = null;
      python("read").catch(() => null);  // if no poem has needed it yet, the next may
    }
  };
  writing = work;
  if (loaded) tell();
  last = go();
}

/** What is written so far stays at once; the engine ends after the token in work. */
function stop() {
  if (!writing) return;
  const { mine, now } = writing;
  mine.abort();
  writing = null;
  show({ ...now, draft: "", busy: false, note: "stopped" });
}

const load = async () => {
  if (!isSecureContext) throw Object.assign(new Error("insecure"), { told: "This page writes only over https, or on localhost." });
  const [engine, about] = await Promise.all([Engine.load(room, progress), python("ready")]);
  if (!writing) await Promise.all([engine.warmUp(), python("read")]);
  page.querySelector("#engine").textContent = `llama.cpp on ${engine.threads > 1 ? `${engine.threads} threads` : "one thread"}, ${about}`;
  progress("");
  return engine;
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
const python = verse(), ready = load();
ready.catch((error) => {
  progress(told(error));
  failed = true;
});
show = await open(page, { write, stop });
if (loaded) tell();
