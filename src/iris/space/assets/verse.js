// What decides about verse: Iris' own Python (src/iris/poetry), as it is, run by Pyodide in a worker of its own.

import { loadPyodide } from "./pyodide.mjs";

const load = async () => {
  const iris = fetch(new URL("iris.zip", import.meta.url)).then((response) => response.arrayBuffer());
  const python = await loadPyodide({ indexURL: new URL(".", import.meta.url).href });
  python.unpackArchive(await iris, "zip", { extractDir: "/iris" });
  python.runPython("import sys; sys.path.insert(0, '/iris')");
  return python.pyimport("iris.space.browser");
};

let turn = load();
onmessage = ({ data: [name, ...values] }) => {
  turn = turn.then((iris) => {  // one after the other, as they came
    try {
      postMessage({ answer: JSON.parse(iris[name](...values)) });
    } catch (error) {
      postMessage({ failed: String(error) });
    }
    return iris;
  });
  turn.catch((error) => postMessage({ failed: String(error) }));
};
