// The leaf as a picture, drawn here in the browser.

import { called, stanzas } from "./leaf.js";

const WIDTH = 1200, LEAST = 630, EDGE = 120, SIZE = 46;  // pixels

/** Words broken into rows no wider than `width`; as in a book, all but the first are indented. */
const rows = (brush, words, width) => {
  const broken = [""];
  for (const word of words.split(" ")) {
    const longer = `${broken.at(-1)} ${word}`.trim();
    if (broken.at(-1) && brush.measureText(longer).width > width - SIZE) broken.push(word);
    else broken[broken.length - 1] = longer;
  }
  return broken;
};

/** A PNG of the poem, in the paper, ink and letters of the leaf. */
export async function picture(leaf, { about, form, text, kept }) {
  const { backgroundColor, color, fontFamily } = getComputedStyle(leaf);
  const soft = getComputedStyle(leaf.querySelector("h2")).color;
  const canvas = document.createElement("canvas"), brush = canvas.getContext("2d");
  const placed = [];  // [words, x, middle, font, colour]: the height is known when all of them are
  let y = EDGE;
  const place = (words, slant, size, colour) => {
    brush.font = `${slant} ${size}px ${fontFamily}`;
    for (const [number, row] of rows(brush, words, WIDTH - 2 * EDGE).entries()) {
      placed.push([row, EDGE + (number ? SIZE : 0), y, brush.font, colour]);
      y += size * 1.5;
    }
  };
  place(about, "italic", SIZE * 0.72, soft);
  for (const stanza of stanzas(text)) {
    y += SIZE * 0.8;
    for (const words of stanza) place(words, "normal", SIZE, color);
  }
  y = Math.max(y + EDGE, LEAST) - EDGE * 0.6;
  place(`${kept ? `${called(form)}, ` : ""}written by a small language model, with Iris`, "italic", SIZE * 0.55, soft);
  Object.assign(canvas, { width: WIDTH, height: y + EDGE * 0.2 });
  brush.fillStyle = backgroundColor;
  brush.fillRect(0, 0, canvas.width, canvas.height);
  for (const [words, x, middle, font, fillStyle] of placed) {
    Object.assign(brush, { font, fillStyle, textBaseline: "middle" });
    brush.fillText(words, x, middle);
  }
  return new Promise((done) => { canvas.toBlob(done, "image/png"); });
}
