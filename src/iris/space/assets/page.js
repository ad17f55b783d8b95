// The page: what it asks for, what it shows, what it remembers. It knows nothing of who writes the poems.
//
// open(page, { write, stop }) makes the markup under `page` work and gives show(poem), to be called with each newer state
// of the poem (leaf.js). write(wish) begins a poem, also while another is written, which then ends; stop() ends it. A wish
// has a `turn` that comes back in the poem: what is of an earlier one is late.

import { called, draw, make, stanzas } from "./leaf.js";
import { picture } from "./picture.js";

const KEPT = 12;  // earlier poems
// The browser keeps what the page remembers; where it may not (private windows, frames), the page forgets.
const remember = (name, value) => { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* may not */ } };
const recall = (name, otherwise) => {
  try { return JSON.parse(localStorage.getItem(name)) ?? otherwise; } catch { return otherwise; }
};

export async function open(page, { write, stop }) {
  const find = (selector) => page.querySelector(selector);
  const form = find("#controls"), leaf = find("#sheet .sheet"), earlier = find("#earlier");
  const tools = Object.fromEntries([...find("#tools").querySelectorAll("button")].map((tool) => [tool.id, tool]));
  const stored = () => recall("iris.poems", []).filter((poem) => poem?.text && poem.asked);
  let poems = stored(), turn = 0, began = 0;
  let shown = { note: leaf.querySelector(".said").textContent };  // the poem on the leaf

  // --- what is asked for ---
  const read = () => ({ ...Object.fromEntries(new FormData(form)), keep: find("#keep input").checked ? "on" : "off" });
  const blank = read();
  const fill = (fields) => {
    for (const [name, value] of Object.entries(fields)) {
      const field = form.elements.namedItem(name);  // elements.length is something else
      if (field?.type === "checkbox") field.checked = value === "on";
      else if (field) field.value = value;
      if (field?.selectedIndex === -1) field.value = "";
    }
  };
  const wish = ({ about, keep, seed, temperature, ...others }) => ({
    ...others, theme: about, keep_form: keep === "on", temperature: Number(temperature),
    seed: /^\s*\d+\s*$/.test(seed) ? Number(seed) : seed.trim() || Math.floor(Math.random() * 2 ** 31),
  });
  const ask = (fields) => {
    const tries = page.querySelectorAll("#tries button"), chance = !fields.about.trim();
    const asked = chance ? { ...fields, about: tries[Math.floor(Math.random() * tries.length)].dataset.about } : fields;
    remember("iris.wish", read());
    began = performance.now();
    turn += 1;
    show({ turn, about: asked.about.trim(), form: asked.form, busy: true, chance, asked });
    list();
    write({ turn, ...wish(asked) });
    const top = find("#desk").getBoundingClientRect().top;
    if (top < 0 || top > innerHeight / 2) {
      document.activeElement?.blur();  // puts away a phone's keyboard
      find("#desk").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    }
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); ask(read()); });
  form.addEventListener("input", () => remember("iris.wish", read()));
  find("#theme textarea").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  find("#tries").addEventListener("click", ({ target: { dataset } }) => {
    if (!dataset.about) return;
    fill({ ...dataset, seed: "" });
    ask(read());
  });

  // --- what is shown ---
  const show = (poem) => {
    if (poem.turn !== undefined && poem.turn !== turn) return;
    const { about, form, asked, chance } = shown;
    shown = { about, form, asked, chance, ...poem };
    render();
    if (!shown.text || shown.busy) return;
    poems = [shown, ...stored()].slice(0, KEPT + 1);  // another tab may have stored some
    remember("iris.poems", poems);
    list();
  };
  const render = () => {
    draw(leaf, shown);
    tick();
    for (const tool of Object.values(tools)) tool.disabled = tool.id === "stop" ? !shown.busy : shown.busy || !shown.text;
  };
  const list = () => {
    const others = poems.filter((poem) => poem !== shown);
    earlier.hidden = !others.length;
    earlier.querySelector("ol").replaceChildren(...others.map((poem) => {
      const row = make("button", { type: "button" }, make("span", {}, poem.about), make("i", {}, called(poem.form)));
      row.addEventListener("click", () => {
        if (shown.busy) stop();
        turn += 1;  // what may still come of that poem is late
        shown = poem;
        render();
        list();
        leaf.querySelector(".verse").scrollTop = 0;
        find("#desk").scrollIntoView({ block: "nearest" });
      });
      return make("li", {}, row);
    }));
  };
  const tick = () => shown.busy && find(".clock").replaceChildren(`${Math.round((performance.now() - began) / 1000)} s`);
  setInterval(tick, 1000);  // so that it never looks stuck
  find("#forget").addEventListener("click", () => { poems = []; remember("iris.poems", poems); list(); });

  // --- what can be done with a poem ---
  const plain = () => stanzas(shown.text).map((stanza) => stanza.join("\n")).join("\n\n");
  const link = () => {
    const asked = { ...shown.asked, about: shown.about, seed: String(shown.seed ?? "") };
    const words = Object.entries(asked).filter(([name, value]) => value !== blank[name] || name === "form");
    return `${location.origin}${location.pathname}?${new URLSearchParams(words)}`;
  };
  const save = (blob, ending) => {
    const name = shown.about.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "poem";
    const href = URL.createObjectURL(blob);
    make("a", { href, download: `${name}.${ending}` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  };
  const copy = (text) => {
    const byHand = () => {  // where the clipboard is closed to pages: in frames, without https
      const area = make("textarea", { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    };
    (navigator.clipboard?.writeText(text) ?? Promise.reject()).catch(byHand);
    find("#told").textContent = "Copied.";
    setTimeout(() => { find("#told").textContent = ""; }, 1500);
  };
  const work = {
    stop,
    another: () => ask({ ...blank, ...shown.asked, about: shown.about, seed: "" }),
    copy: () => copy(plain()),
    link: () => copy(link()),
    picture: async () => save(await picture(leaf, shown), "png"),
    download: () => save(new Blob([`${shown.about}\n\n${plain()}\n`], { type: "text/plain;charset=utf-8" }), "txt"),
  };
  for (const [name, tool] of Object.entries(tools)) tool.addEventListener("click", work[name]);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape" && shown.busy) stop(); });

  // --- as it was left, or as a link asks ---
  const letters = ["17px", "italic 17px"].map((size) => document.fonts.load(`${size} "Iris Garamond"`));
  await Promise.allSettled(letters);  // nothing stands anywhere before the letters are there, so nothing moves
  document.documentElement.classList.add("ready");
  const asked = Object.fromEntries(new URLSearchParams(location.search));
  fill(recall("iris.wish", {}));
  list();
  if (asked.about) {
    fill({ ...blank, ...asked });
    ask(read());
  }
  return show;
}
