/* Keeps the live region of a page up to date, and sends forms without leaving it. Pages work without it. */
"use strict";

(() => {
  const POLL = 5000;
  /* Without a stream, the number of polls until one is asked for again. */
  const POLLS = 12;
  const region = document.querySelector("[data-live]");
  const note = document.querySelector("[data-live-state]");

  /* Change `old` into `fresh` where they differ: what has the focus, and what is selected, stays. */
  function morph(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
      old.replaceWith(fresh.cloneNode(true));
      return;
    }
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
      return;
    }
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
    }
    for (const { name, value } of fresh.attributes) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
    const before = children(old);
    const after = children(fresh);
    after.forEach((child, number) => {
      if (number < before.length) morph(before[number], child);
      else old.append(child.cloneNode(true));
    });
    before.slice(after.length).forEach((child) => child.remove());
  }

  /* Blanks between elements do not count. */
  function children(element) {
    return [...element.childNodes].filter((node) => node.nodeType !== Node.TEXT_NODE || node.nodeValue.trim());
  }

  function show(html) {
    const fresh = region.cloneNode(false);
    const parsed = new DOMParser().parseFromString(html, "text/html").body;
    fresh.append(...parsed.childNodes);
    morph(region, fresh);
  }

  function tell(text) {
    note.textContent = text;
    note.hidden = false;
  }

  /* Read the region alone, where there is no stream, and return whether the service answers. */
  async function poll() {
    try {
      const answer = await fetch(region.dataset.live, { headers: { Accept: "text/plain" }, cache: "no-store" });
      if (answer.ok) {
        show(await answer.text());
        tell("Updated every five seconds");
      } else if (answer.status === 401) {
        location.reload();
      } else {
        tell("No answer, trying again");
      }
      return answer.ok;
    } catch {
      tell("No connection, trying again");
      return false;
    }
  }

  function follow() {
    let stream = null;
    let timer = null;

    /* Poll until there may be a stream again: the service is back, or some time has passed. */
    async function wait() {
      let polls = 0;
      let wasUp = await poll();
      if (stream || timer || document.hidden) return;
      timer = setInterval(async () => {
        const isUp = await poll();
        polls += 1;
        if (timer && ((isUp && !wasUp) || polls >= POLLS)) {
          close();
          open();
        }
        wasUp = isUp;
      }, POLL);
    }

    function open() {
      stream = new EventSource(region.dataset.live);
      stream.onmessage = (event) => {
        show(event.data);
        tell("Live");
      };
      stream.onerror = () => {
        if (stream && stream.readyState === EventSource.CLOSED) {
          stream = null;
          wait();
        } else {
          tell("Connecting");
        }
      };
    }

    function close() {
      if (stream) stream.close();
      clearInterval(timer);
      stream = timer = null;
    }

    /* A page in the background holds no stream. */
    document.addEventListener("visibilitychange", () => {
      close();
      if (!document.hidden) open();
    });
    addEventListener("pagehide", close);
    addEventListener("pageshow", (event) => {
      if (event.persisted) open();
    });
    if (!document.hidden) open();
  }

  /* Send a form, and show the page that follows in place: what takes long is seen in the live region meanwhile. */
  async function send(form, button) {
    const buttons = document.querySelectorAll("form[data-send] button");
    const label = button.textContent;
    const body = new URLSearchParams(new FormData(form, button));
    buttons.forEach((each) => { each.disabled = true; });
    button.textContent = `${label} …`;
    try {
      const answer = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { Accept: "text/html" } });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const outcome = page.querySelector("[data-outcome]");
      if (outcome && outcome.dataset.outcome === "good") form.reset();
      morph(document.querySelector("main"), page.querySelector("main"));
      document.querySelector("[data-outcome]")?.focus();
    } catch {
      tell("No connection: whether this was done is shown above");
    } finally {
      buttons.forEach((each) => { each.disabled = false; });
      button.textContent = label;
    }
  }

  document.addEventListener("submit", (event) => {
    if (event.target.matches("form[data-send]")) {
      event.preventDefault();
      send(event.target, event.submitter);
    }
  });

  if (region) follow();
})();
