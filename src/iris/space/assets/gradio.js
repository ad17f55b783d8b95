// Run by Gradio over the page's markup: a wish goes to the server as an event, the poem comes back as a new value.
import(new URL("room/page.js", document.baseURI)).then(async ({ open }) => {
  const show = await open(element, { write: (wish) => trigger("submit", wish), stop: () => trigger("stop") });
  watch("value", () => show(props.value));
});
