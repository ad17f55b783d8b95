// The engine: llama.cpp as WebAssembly (wllama), and the model's file, which comes in parts.
//
// A part is known by its SHA-256: it is checked as it comes, and kept by the browser under that name. So a download that
// broke off goes on where it was, a damaged part comes again alone, and two models that share a file share its parts.

import { Wllama } from "./wllama.js";

const TRIES = 3, LANES = 3;  // of a part; at a time
const TEMPLATE = { date_string: "26 Jul 2024" };  // as in poet.py
const said = (told) => Object.assign(new Error(told), { told });
const megabytes = (bytes) => (bytes / 1e6).toFixed(0);
const hex = (bytes) => [...new Uint8Array(bytes)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

/** One part {url, from, bytes, sha256} as bytes; from: where it begins in its file, null where it is a file itself. */
async function fetchPart({ url, from, bytes, sha256 }, came) {
  const headers = from === null ? {} : { Range: `bytes=${from}-${from + bytes - 1}` };
  for (let left = TRIES; left > 0; left -= 1) {
    const response = await fetch(url, { headers, cache: "no-store" }).catch(() => null);
    if (response && !response.ok) {
      throw said(`The model is not where it should be (${url.split("/").at(-1)}: ${response.status}); tell whoever keeps this page.`);
    }
    const whole = new Uint8Array(bytes);
    let got = 0;
    try {
      for (const reader = response.body.getReader(); ;) {
        const { done, value } = await reader.read();
        if (done) break;
        whole.set(value.subarray(0, bytes - got), got);  // a host without ranges sends more
        came(value.length);
        got += value.length;
      }
      if (got === bytes && hex(await crypto.subtle.digest("SHA-256", whole)) === sha256) return whole;
      if (left === 1) throw said("The model's file is damaged on its way here; reload the page, or tell whoever keeps it.");
    } catch (error) {
      if (error.told) throw error;
      if (left === 1) throw said("The download of the model broke off; reload the page, it goes on from there.");
    }
    came(-got);
    await new Promise((resolve) => { setTimeout(resolve, 1000 / left); });
  }
}

/** The model's file while it comes, as much of a Blob as the engine asks of one. */
class Model {
  constructor(parts) {
    this.parts = parts;
    this.size = parts.reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Begin to get the parts, those that the browser keeps and the others from where they lie; resolves with the last. */
  fetch(progress) {
    const opened = caches.open("iris-model");
    let got = 0;
    const came = (bytes) => {
      got += bytes;
      progress(got < this.size ? `The model is on its way: ${megabytes(got)} of ${megabytes(this.size)} MB.` : "The model wakes up.");
    };
    const get = async (part) => {
      const cache = await opened, name = new URL(`/iris-model/${part.sha256}`, location).href;
      const kept = await cache.match(name);
      if (kept) {
        came(part.bytes);
        return new Uint8Array(await kept.arrayBuffer());
      }
      const whole = await fetchPart(part, came);
      cache.put(name, new Response(whole)).catch(() => null);  // a full disk: it comes again the next time
      return whole;
    };
    for (const [number, part] of this.parts.entries()) {
      part.whole = number < LANES ? get(part) : this.parts[number - LANES].whole.then(() => get(part));
    }
    return Promise.all(this.parts.map(({ whole }) => whole));
  }

  slice() {
    return new Blob();  // wllama only looks here whether it is a projector of pictures, and need not wait for that
  }

  /** The parts one after the other; the engine takes each away. */
  stream() {
    const parts = this.parts.values();
    return new ReadableStream({ async pull(controller) {
      const { done, value } = parts.next();
      if (done) controller.close(); else controller.enqueue(await value.whole);
    } });
  }
}

const cores = () => (navigator.hardwareConcurrency > 2 ? navigator.hardwareConcurrency / 2 : navigator.hardwareConcurrency ?? 1);

export class Engine {
  /** The engine with a room's model. progress(sentence) is called on the way. */
  static async load({ parts, known }, progress) {
    const quiet = { debug() {}, log() {}, warn() {}, error() {} };
    const llama = new Wllama({ default: new URL("wllama.wasm", import.meta.url).href }, { logger: quiet });
    llama.setCompat(null);  // else an old browser would ask a CDN
    // Where wllama finds this here, not in its worker, it asks for the file piece by piece, each copied four times. Without
    // it the file goes into the engine's memory part by part while the engine starts, and its weights are used where they lie.
    delete WebAssembly.Suspending;
    const model = new Model(parts), threads = crossOriginIsolated ? Math.ceil(cores()) : 1;
    // WebAssembly has no SIMD code for 16-bit floats: attention over them costs a tenth of the time, and the fused one more.
    const memory = { n_ctx: 1024, cache_type_k: "f32", cache_type_v: "f32", flash_attn: false };
    const options = { ...memory, n_batch: 32, n_ubatch: 32, n_parallel: 2, n_threads: threads, n_gpu_layers: 0, warmup: false };
    await navigator.locks.request("iris-model", async () => {  // a second tab waits for the first, and finds it all
      const coming = model.fetch(progress);
      const loading = llama.loadModel([model], options).catch(async (error) => {
        await coming;  // if it is that which failed, that is what went wrong
        console.warn(error);
        throw said("This browser cannot run the model: it needs WebAssembly with SIMD, and enough memory.");
      });
      await Promise.all([coming, loading]);
    });
    model.parts = [];  // the engine has its own copy
    return Object.assign(new Engine(), { llama, known, threads: llama.getNumThreads() });
  }

  /** Have what all prompts begin with read: the first poem then begins sooner. */
  async warmUp() {
    const messages = [{ role: "user", content: "Write a" }];
    await this.llama.createChatCompletion({ messages, chat_template_kwargs: TEMPLATE, max_tokens: 1 });
  }

  /** Log-likelihoods of the words that may follow a text. */
  async likely(prompt) {
    if (this.known[prompt]) return this.known[prompt];
    const { choices: [{ logprobs }] } = await this.llama.createCompletion({ prompt, max_tokens: 1, n_probs: 4000, temperature: 0 });
    const words = logprobs.content[0].top_logprobs.filter(({ token }) => token.startsWith(" "));
    return Object.fromEntries(words.map(({ token, logprob }) => [token.slice(1), logprob]));
  }

  /** Drafts as keep_form.py wants them, up to the first that keeps the form; yields those there are whenever the last
   * has grown. One after the other: WebAssembly gains nothing by several at a time, and their prompt is read once.
   * settled(text): how many lines a draft has given for good, null while more of it may add to them. */
  async* write(asked, signal, settled) {
    const before = asked.before ? [{ role: "assistant", content: asked.before }] : [];
    const options = {
      messages: [{ role: "user", content: asked.message }, ...before],
      chat_template_kwargs: TEMPLATE,
      temperature: asked.temperature,
      max_tokens: asked.max_tokens,
      stop: asked.stop,
      ignore_eos: !asked.may_end,
      logit_bias: Object.entries(asked.bias).map(([word, value]) => [` ${word}`, value]),
      repeat_penalty: 1.1,
      repeat_last_n: 256,
      stream: true,
      ...(asked.scored ? { logprobs: true, top_logprobs: 1 } : {}),
    };
    const drafts = [];
    while (drafts.length < asked.count) {
      const draft = { text: "", tokens: 0, ended: null, likely: [] }, enough = new AbortController();
      let lines = null;
      drafts.push(draft);
      const seed = (asked.seed + drafts.length) % 2 ** 31, abortSignal = AbortSignal.any([signal, enough.signal]);
      try {
        for await (const { choices: [choice] } of await this.llama.createChatCompletion({ ...options, seed, abortSignal })) {
          const piece = choice?.delta.content ?? "", scores = choice?.logprobs?.content ?? [];
          if (piece) {
            draft.text += piece;
            draft.tokens += 1;
            draft.likely.push([draft.text.length, scores.reduce((sum, { logprob }) => sum + logprob, 0), scores.length]);
            yield drafts;
          }
          if (choice?.finish_reason) draft.ended = choice.finish_reason === "stop";
          else if (asked.scored && piece.includes("\n")) {
            lines = await settled(draft.text);
            if (lines !== null) enough.abort();
          }
        }
      } catch (error) {
        if (!abortSignal.aborted) throw error;
      }
      if (signal.aborted) return;
      if (draft.ended && asked.scored) lines = await settled(`${draft.text}\n`) ?? Infinity;
      if (lines) break;
    }
    yield drafts;
  }
}
