// The openai package for JavaScript: node openai_client.mjs ADDRESS; prints what it got as JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is the weather in Rome?" }];
const tool = JSON.parse(process.argv[3]);
const fields = { model: "poise-test", messages, max_tokens: 120, seed: 1 };
const plain = await client.chat.completions.create(fields);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...fields, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const held = { tools: [tool], tool_choice: "required", parallel_tool_calls: false };
const runner = client.chat.completions.stream({ ...fields, ...held });
const called = (await runner.finalChatCompletion()).choices[0];
const steered = await client.chat.completions.create({ ...fields, poise: { steer: "up=0.4", watch: ["up"] } });
let fault = null;
try {
  await client.chat.completions.create({ ...fields, messages: [{ role: "user", content: "word ".repeat(4000) }] });
} catch (error) {
  fault = error.code;
}
console.log(
  JSON.stringify({
    plain: plain.choices[0].message.content,
    streamed,
    finish: called.finish_reason,
    arguments: called.message.tool_calls[0].function.arguments,
    readings: steered.choices[0].poise.readings.up.length,
    fault,
  }),
);
