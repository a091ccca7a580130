// Token ids by transformers.js in Node: TEXTS(json file) FOLDER... -> JSON, an object a folder.
import fs from "node:fs";
import path from "node:path";
import { AutoTokenizer, env } from "@huggingface/transformers";

const [texts, ...folders] = process.argv.slice(2);
env.allowRemoteModels = false;
const found = [];
for (const folder of folders) {
  env.localModelPath = path.dirname(path.resolve(folder)) + "/";
  const tokenizer = await AutoTokenizer.from_pretrained(path.basename(path.resolve(folder)));
  const ids = JSON.parse(fs.readFileSync(texts)).map((text) => tokenizer.encode(text));
  found.push({ ids, chat: tokenizer.chat_template ?? null, names: Object.keys(tokenizer("a")).sort() });
}
console.log(JSON.stringify(found));
