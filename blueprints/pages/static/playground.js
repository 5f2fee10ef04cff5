"use strict";
// The playground: a conversation that is kept in this page alone. Each answer is one streamed request, and a model's
// words are text: the server makes the HTML of an answer that has ended.

const $ = (id) => document.getElementById(id);
const form = $("chat");
const log = $("log");
const prompt = $("prompt");

/** The messages of the next request. */
let talk = [];
/** What stops the answer that is being streamed; null between answers. */
let running = null;

function element(tag, name, text) {
  const made = document.createElement(tag);
  made.className = name || "";
  made.textContent = text || "";
  return made;
}

// The request

function requestOf(messages) {
  const body = { model: $("model").value, messages };
  if ($("system").value.trim()) body.messages = [{ role: "system", content: $("system").value }, ...messages];
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if ($(name).value !== "") body[name] = Number($(name).value);
  }
  const stops = $("stops").value.split("\n").filter(Boolean).map((stop) => stop.replaceAll("\\n", "\n"));
  if (stops.length) body.stop = stops;
  return body;
}

/** Show the request that the button would send, as a command and as a program. */
function showCode() {
  if (!$("curl")) return;
  const text = prompt.value.trim();
  const last = talk.at(-1);
  const messages = text ? [...talk, { role: "user", content: text }] : last?.role === "assistant" ? talk.slice(0, -1) : talk;
  const body = requestOf(messages.length ? messages : [{ role: "user", content: "Hello" }]);
  const base = location.origin + form.dataset.api;
  const json = JSON.stringify({ ...body, stream: true }, null, 2).replaceAll("'", "'\\''");
  $("curl").textContent =
    `curl -N ${base}/chat/completions \\\n  -H "Authorization: Bearer $MODELYARD_TOKEN" \\\n` +
    `  -H "Content-Type: application/json" -d '${json}'`;
  const lines = Object.entries(body).map(([name, value]) =>
    name === "messages"
      ? `    messages=[\n${value.map((message) => `        ${JSON.stringify(message)},\n`).join("")}    ],\n`
      : `    ${name}=${JSON.stringify(value)},\n`,
  );
  $("python").textContent =
    `import os\n\nfrom openai import OpenAI\n\n` +
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=os.environ.get("MODELYARD_TOKEN", "none"))\n` +
    `stream = client.chat.completions.create(\n${lines.join("")}    stream=True,\n)\n` +
    `for chunk in stream:\n    for choice in chunk.choices:\n` +
    `        print(choice.delta.content or "", end="", flush=True)\n`;
}

/** Yield the events of an answer; an answer without its last one has broken off. */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) throw new Error("The answer broke off.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.startsWith("data: ") ? event.slice(6) : "";
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
  }
}

// The conversation

function addMessage(role, label) {
  $("hint").hidden = true;
  const item = element("article", `message ${role}`);
  const words = element("div", "words");
  words.dir = "auto";
  item.append(element("h2", "", label), words);
  log.append(item);
  log.scrollTop = log.scrollHeight;
  return { item, words };
}

/** Keep the end of the log in view, unless somebody has scrolled up to read. */
function follow(change) {
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}

function setRunning(controller) {
  running = controller;
  $("stop").hidden = !controller;
  $("send").hidden = Boolean(controller);
  $("clear").disabled = Boolean(controller);
  $("again").disabled = Boolean(controller) || !talk.length;
  log.setAttribute("aria-busy", String(Boolean(controller)));
}

async function answer() {
  const body = requestOf(talk);
  const { item, words } = addMessage("assistant", body.model);
  const text = words.appendChild(document.createTextNode(""));
  const times = { began: performance.now(), first: 0, last: 0, pieces: 0 };
  let thoughts = null, usage = null, ending = "", failure = "";
  setRunning(new AbortController());
  item.classList.add("streams");
  try {
    const response = await fetch(form.action, {
      method: "POST",
      headers: { Accept: "text/event-stream", "Content-Type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal: running.signal,
    });
    if (!response.ok) throw new Error(await response.text());
    for await (const event of eventsOf(response.body)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage || usage;
      const choice = event.choices[0];
      if (!choice) continue;
      const { content, reasoning_content: thought } = choice.delta;
      ending = choice.finish_reason || ending;
      if (!content && !thought) continue;
      times.last = performance.now();
      times.first ||= times.last;
      times.pieces += 1;
      follow(() => {
        if (thought) {
          thoughts ||= addThoughts(words);
          thoughts.appendData(thought);
        }
        if (content) text.appendData(content);
      });
    }
  } catch (error) {
    if (error.name === "AbortError") ending = "stopped";
    else failure = error.message || "The service can't be reached.";
  }
  item.classList.remove("streams");
  if (text.data) talk.push({ role: "assistant", content: text.data });
  follow(() => {
    if (failure) item.append(notice(failure));
    item.append(element("p", "facts muted small", factsOf(times, usage, ending)));
  });
  setRunning(null);
  showCode();
  if (text.data && form.dataset.words) await format(text);
}

function addThoughts(words) {
  const details = element("details", "thoughts");
  details.append(element("summary", "", "Reasoning"), document.createTextNode(""));
  words.prepend(details);
  return details.lastChild;
}

function notice(text) {
  const made = element("p", "notice bad", text.trim());
  made.setAttribute("role", "alert");
  return made;
}

/** Replace the text of an answer by its HTML; it stays text if that does not come. */
async function format(text) {
  try {
    const response = await fetch(form.dataset.words, {
      method: "POST",
      headers: { Accept: "text/plain", "Content-Type": "text/plain" },
      body: text.data,
    });
    if (!response.ok) return;
    const holder = element("div", "formatted");
    holder.innerHTML = await response.text();
    follow(() => text.replaceWith(holder));
  } catch {
    // The words are there.
  }
}

function factsOf({ began, first, last, pieces }, usage, ending) {
  const facts = [];
  if (first) facts.push(`first token ${duration(first - began)}`);
  // An answer that was stopped has no usage: its pieces are tokens, or nearly.
  const tokens = usage ? usage.completion_tokens : pieces;
  if (tokens > 1 && last > first) {
    facts.push(`${usage ? "" : "about "}${(((tokens - 1) / (last - first)) * 1000).toFixed(1)} tokens/s`);
  }
  if (usage) facts.push(`${usage.prompt_tokens} + ${usage.completion_tokens} tokens`);
  facts.push(`${duration(performance.now() - began)} in all`);
  if (ending === "length") facts.push("ended by the limit of tokens");
  else if (ending === "stopped") facts.push("stopped by you");
  else if (ending && ending !== "stop") facts.push(ending);
  return facts.join(" · ");
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`;
}

// What people do

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = prompt.value.trim();
  if (running || !content) return;
  if (talk.at(-1)?.role === "user") {
    // It got no answer: some chat templates refuse two messages of one role.
    talk.pop();
    [...log.querySelectorAll(".user")].at(-1).classList.add("unanswered");
  }
  talk.push({ role: "user", content });
  addMessage("user", "You").words.textContent = content;
  prompt.value = "";
  answer();
});

$("again").addEventListener("click", () => {
  if (running) return;
  if (talk.at(-1)?.role === "assistant") talk.pop();
  while (log.lastElementChild.classList.contains("assistant")) log.lastElementChild.remove();
  answer();
});

$("clear").addEventListener("click", () => {
  talk = [];
  log.replaceChildren($("hint"));
  $("hint").hidden = false;
  setRunning(null);
  showCode();
  prompt.focus();
});

$("stop").addEventListener("click", () => running?.abort());

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});

prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    form.requestSubmit();
  }
});

// The settings belong to the form, wherever they stand.
for (const field of form.elements) field.addEventListener("input", showCode);

if (navigator.clipboard) {
  for (const button of document.querySelectorAll("[data-copies]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText($(button.dataset.copies).textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }
}

// What can't be seen can't be corrected.
$("settings").addEventListener("invalid", () => ($("settings").open = true), true);
if (matchMedia("(max-width: 60rem)").matches) $("settings").open = false;
showCode();
