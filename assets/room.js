// What the page does without asking the server: copy and download the poem, keep the earlier ones, say which buttons can
// be pressed; Escape stops, a phone scrolls to the poem.
(() => {
  const poem = () => [...document.querySelectorAll("#sheet .verse p")]
    .map((stanza) => [...stanza.querySelectorAll(".line")].map((line) => line.dataset.text).join("\n"))
    .join("\n\n");
  const copyByHand = (text) => {  // where the clipboard is closed to pages: in frames, without https
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };
  window.iris = {
    copy: () => {
      const write = navigator.clipboard?.writeText(poem());
      write ? write.catch(() => copyByHand(poem())) : copyByHand(poem());
      const button = document.querySelector("#copy");
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    },
    download: () => {
      const title = document.querySelector("#sheet h2").textContent;
      const url = URL.createObjectURL(new Blob([`${title}\n\n${poem()}\n`], { type: "text/plain;charset=utf-8" }));
      const name = title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "poem";
      Object.assign(document.createElement("a"), { href: url, download: `${name}.txt` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    },
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") document.querySelector("#stop:not(:disabled)")?.click();
  });
  const name = () => {  // what Gradio leaves out for screen readers and for the arrow keys
    for (const group of document.querySelectorAll("fieldset")) {
      if (!group.ariaLabel) group.ariaLabel = group.querySelector("[data-testid=block-info]").textContent;
      for (const radio of group.querySelectorAll("input")) if (radio.name !== group.id) radio.name = group.id;
    }
    for (const arrow of document.querySelectorAll("#more .icon:not([aria-hidden])")) arrow.ariaHidden = "true";
  };
  const KEPT = 12;
  const shelve = ({ title, form, text }) => {
    const shelf = document.querySelector("#earlier section");
    if (!shelf.children.length) shelf.append(Object.assign(document.createElement("h3"), { textContent: "Earlier in this visit" }));
    const row = document.createElement("details");
    row.innerHTML = "<summary><span></span><i></i></summary><p></p>";
    row.querySelector("span").textContent = title;
    row.querySelector("i").textContent = form === "free" ? "free verse" : form;
    row.querySelector("p").textContent = text;
    shelf.firstChild.after(row);
    shelf.children[KEPT + 1]?.remove();
  };
  let busy = false, shown = null;
  new MutationObserver(() => {
    const sheet = document.querySelector("#sheet .sheet"), desk = document.querySelector("#desk");
    if (!sheet || !document.querySelector("#tools #download")) return;  // the page is not built yet
    name();
    const was = busy, text = poem();
    busy = sheet.getAttribute("aria-busy") === "true";
    for (const tool of document.querySelectorAll("#tools button")) tool.disabled = tool.id === "stop" ? !busy : busy || !text;
    if (shown && (busy || text !== shown.text)) shelve(shown);
    shown = busy || !text ? null : { title: sheet.querySelector("h2").textContent, form: sheet.dataset.form, text };
    if (busy && !was && desk.getBoundingClientRect().top > innerHeight / 2) {
      document.activeElement?.blur();  // puts away a phone's keyboard
      desk.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    }
  }).observe(document, { subtree: true, childList: true, attributeFilter: ["name"] });
})();
