// The page fetches itself and exchanges what has changed; a measurement is fetched the same way.  Nothing is rendered
// here, so with JavaScript off the page shows the same.
"use strict";

const { path, every } = document.body.dataset;
const state = document.getElementById("live-state");

function exchange(page) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(old.id);
    if (fresh === null || fresh.innerHTML === old.innerHTML) continue;
    if (old !== document.activeElement && old.contains(document.activeElement)) continue;
    const { scrollLeft, scrollTop } = old;
    old.innerHTML = fresh.innerHTML;
    old.scrollTo(scrollLeft, scrollTop);
  }
}

const find = document.getElementById("find");

// the page of a list stays the same while it is renewed; another search begins with the first one
function shown() {
  if (!find) return path;
  const asked = new URLSearchParams(new FormData(find));
  const now = new URLSearchParams(location.search);
  if (now.has("page") && (now.get("find") ?? "") === asked.get("find")) asked.set("page", now.get("page"));
  return path + "?" + asked;
}

async function load(address, options) {
  const answer = await fetch(address, { headers: { accept: "text/html" }, ...options });
  return new DOMParser().parseFromString(await answer.text(), "text/html");
}

async function refresh() {
  if (!document.hidden) {
    try {
      exchange(await load(shown()));
      state.textContent = `Live, renewed every ${every} seconds.`;
    } catch {
      state.textContent = "The node does not answer; what is shown is the last that it said.";
    }
  }
  setTimeout(refresh, every * 1000);
}

const form = document.querySelector("#measure form");
form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  const measured = document.getElementById("measured");
  const asked = new URLSearchParams(new FormData(form));
  button.disabled = true;
  measured.textContent = "Measuring…";
  try {
    const page = await load(form.action, { method: "POST", body: asked });
    measured.replaceChildren(...page.getElementById("measured").childNodes);
    exchange(page);
    history.replaceState(null, "", form.action + "?" + asked);
  } catch {
    measured.textContent = "The node did not answer.";
  }
  button.disabled = false;
});

if (find) {
  let typed;
  find.addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => load(shown()).then(exchange, () => {}), 250);
  });
  find.addEventListener("submit", (event) => event.preventDefault());
}

setTimeout(refresh, every * 1000);
