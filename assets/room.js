// What the page does without asking the server: copy and download the poem, Escape stops, a phone scrolls to the poem.
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
  let busy = false;
  new MutationObserver(() => {
    name();
    const was = busy;
    busy = Boolean(document.querySelector("#sheet [aria-busy=true]"));
    const desk = document.querySelector("#desk");
    if (busy && !was && desk.getBoundingClientRect().top > innerHeight / 2) {
      document.activeElement?.blur();  // puts away a phone's keyboard
      desk.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    }
  }).observe(document, { subtree: true, childList: true, attributeFilter: ["name"] });
})();
