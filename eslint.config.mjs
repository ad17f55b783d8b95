// How tests/test_page.py has the page's own JavaScript (src/iris/space/assets) checked.
const names = "AbortController AbortSignal Blob FormData Headers ReadableStream Request Response URL URLSearchParams WebAssembly Worker caches console "
  + "crossOriginIsolated crypto document fetch getComputedStyle innerHeight isSecureContext localStorage location matchMedia navigator "
  + "onmessage performance postMessage self sessionStorage setInterval setTimeout";

export default [{
  files: ["**/*.js"],
  ignores: ["**/gradio.js"],  // the inside of a function that Gradio makes of it
  languageOptions: { globals: Object.fromEntries(names.split(" ").map((name) => [name, "writable"])) },
  linterOptions: { reportUnusedDisableDirectives: "error" },
  rules: {
    "array-callback-return": "error", "consistent-return": "off", "eqeqeq": ["error", "always", { null: "ignore" }],
    "no-const-assign": "error", "no-dupe-keys": "error", "no-fallthrough": "error", "no-implicit-globals": "error",
    "no-undef": "error", "no-unreachable": "error", "no-unsafe-finally": "error", "no-unused-vars": "error",
    "no-use-before-define": ["error", { functions: false, variables: false }], "no-var": "error", "object-shorthand": "error",
    "prefer-const": ["error", { destructuring: "all" }], "require-yield": "error", "semi": "error", "use-isnan": "error",
    "max-len": ["error", 160], "quotes": ["error", "double", { avoidEscape: true, allowTemplateLiterals: true }],
  },
}];
