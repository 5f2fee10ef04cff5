// The AI SDK against a service: text, streams, tools, objects, embeddings and errors, by each of its two providers.

import assert from "node:assert/strict";
import { suite, test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.env.INTEROP_URL;
const openai = createOpenAI({ baseURL, apiKey: "none" });
const compatible = createOpenAICompatible({
  name: "modelyard",
  baseURL,
  apiKey: "none",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const models = {
  "openai, responses": openai("gpt-4o-mini"),
  "openai, chat": openai.chat("gpt-4o-mini"),
  "openai-compatible": compatible("gpt-4o-mini"),
};
const weather = tool({
  description: "The weather of a place",
  inputSchema: z.object({ location: z.string() }),
  execute: async ({ location }) => `sunny in ${location}`,
});
const question = "What is the weather in San Francisco?";
const joke = z.object({ setup: z.string(), punchline: z.string() });

for (const [name, model] of Object.entries(models)) {
  suite(name, () => {
    test("text", async () => {
      const answer = await generateText({ model, prompt: "one two three", system: "Repeat." });
      assert.equal(answer.text, "one two three");
      assert.equal(answer.finishReason, "stop");
      assert.ok(answer.usage.inputTokens > 0 && answer.usage.outputTokens > 0);
    });

    test("a stream", async () => {
      const answer = streamText({ model, prompt: "one two three" });
      const pieces = [];
      for await (const piece of answer.textStream) pieces.push(piece);
      assert.equal(pieces.join(""), "one two three");
      assert.equal(await answer.finishReason, "stop");
      assert.ok((await answer.usage).outputTokens > 0);
    });

    test("a limit", async () => {
      const answer = await generateText({ model, prompt: "one two three", maxOutputTokens: 2 });
      assert.equal(answer.text, "one two");
      assert.equal(answer.finishReason, "length");
    });

    test("tools", async () => {
      const answer = await generateText({ model, prompt: question, tools: { get_weather: weather }, stopWhen: stepCountIs(3) });
      assert.deepEqual(answer.steps[0].toolCalls[0].input, { location: "San Francisco, CA" });
      assert.equal(answer.steps[0].finishReason, "tool-calls");
      assert.equal(answer.text, "The tool has the answer.");
    });

    test("tools in a stream", async () => {
      const answer = streamText({ model, prompt: question, tools: { get_weather: weather }, stopWhen: stepCountIs(3) });
      const kinds = new Set();
      for await (const part of answer.fullStream) {
        assert.notEqual(part.type, "error", String(part.error));
        kinds.add(part.type);
      }
      for (const kind of ["tool-input-start", "tool-input-delta", "tool-call", "tool-result", "text-delta"]) assert.ok(kinds.has(kind), kind);
      assert.equal(await answer.text, "The tool has the answer.");
    });

    test("an object", async () => {
      const answer = await generateObject({ model, prompt: "Tell me a joke.", schema: joke });
      assert.equal(answer.object.punchline, "They like the mouse.");
    });

    test("an object in a stream", async () => {
      const answer = streamObject({ model, prompt: "Tell me a joke.", schema: joke });
      let last;
      for await (const partial of answer.partialObjectStream) last = partial;
      assert.equal(last.punchline, "They like the mouse.");
    });

    test("reasoning", async () => {
      const answer = streamText({ model, prompt: "a riddle" });
      let text = "";
      for await (const part of answer.fullStream) if (part.type === "text-delta") text += part.text;
      assert.equal(text, "What has keys and no locks?");
      if (name === "openai-compatible") assert.equal(await answer.reasoningText, "An old one.");
    });

    test("an error before the answer", async () => {
      const wrong = name === "openai-compatible" ? compatible("none") : name === "openai, chat" ? openai.chat("none") : openai("none");
      await assert.rejects(generateText({ model: wrong, prompt: "x", maxRetries: 0 }), (error) => {
        assert.ok(APICallError.isInstance(error));
        assert.equal(error.statusCode, 404);
        assert.match(error.message, /there is no model 'none'/);
        return true;
      });
    });

    test("an error in the middle of a stream", async () => {
      const errors = [];
      const answer = streamText({ model, prompt: "break off", onError: ({ error }) => errors.push(error) });
      const pieces = [];
      for await (const part of answer.fullStream) if (part.type === "text-delta") pieces.push(part.text);
      assert.equal(pieces.join(""), "one two");
      assert.equal(errors.length, 1);
      assert.match(JSON.stringify(errors[0]) + String(errors[0].message), /engine/);
    });
  });
}

test("embeddings", async () => {
  for (const model of [openai.embedding("text-embedding-3-small"), compatible.embeddingModel("text-embedding-3-small")]) {
    const { embeddings, usage } = await embedMany({ model, values: ["one", "two words"] });
    assert.equal(embeddings.length, 2);
    assert.ok(embeddings[0].length > 100);
    assert.equal(usage.tokens, 3);
  }
});

test("completions", async () => {
  for (const model of [openai.completion("gpt-3.5-turbo-instruct"), compatible.completionModel("gpt-3.5-turbo-instruct")]) {
    const { text } = await generateText({ model, prompt: "one two" });
    assert.match(text, /one two/);
  }
});
