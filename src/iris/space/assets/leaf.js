// The leaf: one poem and what is told about it. Titles are a visitor's words and poems a model's: both become text
// nodes, whatever they hold.
//
// A poem is what the room knows of it so far, in JSON:
//   about, form, text    its title, its form's name, the lines that are written
//   busy                 it is being written; then `draft` is what is being tried for the next lines
//   note                 a sentence instead of a verdict: a place in the line, a refusal, "stopped"
//   marks                of each line [syllables, rhyme letter or "", whether the count breaks the form]
//   kept, why            whether it keeps its form (null: nothing to keep), and if not, why not
//   seed, by, seconds    how to get it again, who wrote it, how long that took
//   chance               its theme was drawn at random

import { isForeign } from "./english.js";

export const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};

export const called = (form) => (form === "free" ? "free verse" : `a ${form}`);

const lines = (stanza) => stanza.split("\n").map((line) => line.trim()).filter(Boolean);

export const stanzas = (text) => text.split(/\n\s*\n/).map(lines).filter((stanza) => stanza.length);

// So that no word ever jumps to the next line, the last one is left out until it is whole.
const whole = (text) => text.slice(0, text.search(/\S*$/));

const verdict = ({ form, kept, why }) => (kept ? make("b", {}, `${called(form)}, kept`) : `not quite ${called(form)}: ${why}`);

const mark = ([count, letter, off]) => {
  const told = `${count} syllable${count === 1 ? "" : "s"}${letter && `, rhyme ${letter}`}`;
  const names = { className: off ? "mark off" : "mark", title: told, ariaLabel: told, role: "img" };
  return make("span", names, `${count} ${letter}`.trim());
};

const line = (words, seen, draft) => {
  const names = { className: draft ? "line draft" : "line", ariaHidden: draft ? "true" : null };
  const shown = make("span", names, ...(seen ? [mark(seen)] : []), words);
  shown.dataset.text = words;
  return shown;
};

// One plain line on what stands beside the poem's lines.
const legend = (marks) => "The number beside a line counts its syllables"
  + (marks.some(([, letter]) => letter) ? "; lines with the same letter rhyme." : ".");

const asides = (poem) => [
  poem.marks?.length ? legend(poem.marks) : "",
  poem.chance ? `You named no theme; “${poem.about}” was drawn by chance.` : "",
  poem.text && !poem.busy && isForeign(poem.about) ? "This model knows English; it may not have understood the theme." : "",
].filter(Boolean);

export function draw(leaf, poem) {
  const { about = "", form = "", text = "", draft = "", busy = false, note = "", marks = [] } = poem;
  leaf.dataset.form = form;
  leaf.ariaBusy = String(busy);
  const title = leaf.querySelector("h2");
  title.textContent = about;
  title.ariaHidden = about ? null : "true";
  const written = busy ? whole(text) : text, count = stanzas(written).flat().length;
  let number = 0;
  const shown = stanzas(busy ? written + whole(draft) : written).map((stanza) => (
    make("p", {}, ...stanza.map((words) => line(words, marks[number], number++ >= count)))
  ));
  leaf.querySelector(".lines").replaceChildren(...shown);
  leaf.querySelector(".said").replaceChildren(note || busy || poem.kept == null ? note : verdict(poem));
  leaf.querySelector(".aside").replaceChildren(...asides(poem).map((told) => make("span", {}, told)));
  const small = [poem.by, poem.seed != null && text && !busy && `seed ${poem.seed}`].filter(Boolean).join(", ");
  leaf.querySelector(".small").textContent = text ? small : "";
  leaf.querySelector(".clock").textContent = text && !busy && poem.seconds ? `${poem.seconds.toFixed(1)} s` : "";
  const verse = leaf.querySelector(".verse");
  if (busy) verse.scrollTop = verse.scrollHeight;
  verse.tabIndex = verse.scrollHeight > verse.clientHeight ? 0 : -1;
}
