// Puts the answer into the page as it comes: as text, never as markup.
const form = document.querySelector("#ask");
const answer = document.querySelector("#answer");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  answer.textContent = "";
  try {
    const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
    if (response.redirected) {
      location.assign(response.url); // no longer logged in
      return;
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      answer.append(part.value);
    }
  } catch (error) {
    answer.append(`\n[${error.message}]`);
  } finally {
    button.disabled = false;
  }
});
