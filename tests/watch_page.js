// Runs in the page from its first moment on: where things stand, what the leaf says, and when that changed.
window.seen = { boxes: {}, lines: [], drafts: [], changes: [], leaf: "" };
const place = (box) => [box.x + scrollX, box.y + scrollY, box.width, box.height];
const look = () => {
  for (const each of ["#controls", "#write", "#tries", "#tools", "#download", "#sheet .sheet", "#sheet footer"]) {
    const shown = document.querySelector(each);
    if (shown?.checkVisibility()) (seen.boxes[each] ??= []).push(place(shown.getBoundingClientRect()));
  }
  const sheet = document.querySelector("#sheet .sheet");
  if (sheet && sheet.innerHTML !== seen.leaf) {
    seen.leaf = sheet.innerHTML;
    seen.changes.push(performance.now());
    seen.lines.push([...sheet.querySelectorAll(".line:not(.draft)")].map((line) => {
      const range = document.createRange();
      range.selectNodeContents(line.lastChild);  // its words, without the mark
      return [line.dataset.text, place(range.getClientRects()[0]).slice(0, 2).map(Math.round).join()];
    }));
    seen.drafts.push(...[...sheet.querySelectorAll(".draft")].map((line) => line.dataset.text));
  }
  requestAnimationFrame(look);
};
look();
