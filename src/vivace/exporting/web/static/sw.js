// Keeps this page for use without a network. What is asked for by the name of its contents (?v=) comes from here; all else
// from the server while there is one, so that a newer page, or another one at this address, is never hidden.
const VERSION = "VERSION_OF_THIS_PAGE";
const FILES = ["FILES_OF_THIS_PAGE"];

const PREFIX = `vivace ${self.registration.scope} `;
const NAME = PREFIX + VERSION;

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(FILES)));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(
    caches
      .keys()
      .then((names) => Promise.all(names.filter((name) => name.startsWith(PREFIX) && name !== NAME).map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || !event.request.url.startsWith(self.registration.scope)) return;
  event.respondWith(url.searchParams.has("v") ? keptFirst(event.request) : serverFirst(event.request));
});

async function keptFirst(request) {
  const kept = await (await caches.open(NAME)).match(request);
  return kept ?? fetch(request);
}

async function serverFirst(request) {
  try {
    // asked anew each time: of files that a browser kept by its own rules some might be older than others
    return await fetch(request.mode === "navigate" ? request.url : request, { cache: "no-cache" });
  } catch (error) {
    // ?lang=zh is the same page
    const kept = await (await caches.open(NAME)).match(request, { ignoreSearch: true });
    if (kept) return kept;
    throw error;
  }
}
