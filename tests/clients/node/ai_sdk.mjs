// The AI SDK: node ai_sdk.mjs ADDRESS; prints what it got as JSON.
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, jsonSchema, Output, streamText, tool } from "ai";

const provider = createOpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none" });
const definition = JSON.parse(process.argv[3]).function;
const model = provider.chat("poise-test");
const fields = { model, prompt: "What is the weather in Rome?", maxOutputTokens: 120, seed: 1, maxRetries: 0 };
const plain = await generateText(fields);
let streamed = "";
for await (const piece of streamText(fields).textStream) streamed += piece;
const tools = {
  get_weather: tool({ description: definition.description, inputSchema: jsonSchema(definition.parameters) }),
};
const once = { openai: { parallelToolCalls: false } };
const called = await generateText({ ...fields, tools, toolChoice: "required", providerOptions: once });
const held = await generateText({
  ...fields,
  output: Output.object({ schema: jsonSchema(definition.parameters) }),
});
console.log(
  JSON.stringify({ plain: plain.text, streamed, call: called.toolCalls[0], finish: called.finishReason, held: held.output }),
);
