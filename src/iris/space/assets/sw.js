// The page's service worker. It answers with the two headers without which a browser gives no threads, wherever the page
// lies, and with what it kept when there is no network. The model's parts are kept by engine.js.

const KEPT = "iris-page";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

const isolated = (request, response) => {
  if (!["document", "iframe", "worker"].includes(request.destination)) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
};

const version = (response) => response?.headers.get("ETag") ?? response?.headers.get("Last-Modified") ?? NaN;

const answer = async (event) => {
  const { request } = event, cache = await caches.open(KEPT), kept = await cache.match(request, { ignoreSearch: true });
  if (kept && request.url.includes("/engine-")) {
    // Named by what it holds, it never changes. The browser's own copy comes first: with it lies the code compiled of it,
    // which the browser throws away as soon as it asks a host whether that copy is still good.
    const same = await fetch(new Request(request, { cache: "only-if-cached", mode: "same-origin" })).catch(() => null);
    return isolated(request, same?.ok ? same : kept);
  }
  try {
    const response = await fetch(request), isNew = version(response) !== version(kept);
    if (response.status === 200 && isNew) event.waitUntil(cache.put(request, response.clone()));
    return isolated(request, response);
  } catch (error) {
    if (!kept) throw error;
    return isolated(request, kept);
  }
};

self.addEventListener("fetch", (event) => {
  const { url, method } = event.request, { origin, pathname } = new URL(url);
  if (method === "GET" && origin === self.location.origin && !pathname.includes("/model/")) event.respondWith(answer(event));
});
