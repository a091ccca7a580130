// Greedy continuations by transformers.js in Node: FOLDER PROMPTS(json) NEW -> JSON lists of token ids a prompt.
import path from "node:path";
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";

const [folder, prompts, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder)) + "/";
const name = path.basename(path.resolve(folder));
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name);
tokenizer.padding_side = "left";

async function run(batch) {
  const inputs = tokenizer(batch, { padding: true });
  const out = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
  const start = inputs.input_ids.dims[1];
  return out.tolist().map((row) => row.slice(start).map(Number));
}

const texts = JSON.parse(prompts);
const alone = [];
for (const text of texts) alone.push((await run([text]))[0]);
console.log(JSON.stringify({ alone, together: await run(texts) }));
