// One graph in ONNX Runtime Web, and a cache of keys and values that grows: one step's `present` is the next one's past.

import * as ort from "/modules/onnxruntime-web/ort.wasm.min.mjs";


ort.env.wasm.wasmPaths = new URL("/modules/onnxruntime-web/", location.href).href;
ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, Math.ceil(navigator.hardwareConcurrency / 2)) : 1;
ort.env.logLevel = "error";

export class Session {
  // `tell(bytes)` hears how many bytes of the weights are here.
  static async open(about, tell) {
    const graph = new Uint8Array(await (await asked(`${about.at}/model.onnx`)).arrayBuffer());
    const weights = await read(`${about.at}/model.onnx_data`, about.weights.bytes, tell);
    const session = await ort.InferenceSession.create(graph, {
      executionProviders: ["wasm"],
      extra: { session: { disable_quant_qdq: "1" } }, // unpack weights once, now: pythia_export/graph/browser.py
      externalData: [{ path: about.weights.path, data: weights }],
    });
    return new Session(about, session);
  }

  constructor(about, session) {
    this.about = about;
    this.session = session;
    this.parts = Array.from({ length: about.layers }, (_, i) => [`${i}.key`, `${i}.value`]).flat();
    this.start();
  }

  // Forget what was read.
  start() {
    const { heads, head_dim } = this.about;
    this.length = 0;
    this.past = Object.fromEntries(
      this.parts.map((part) => [part, new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, head_dim])]),
    );
  }

  // Read `ids`; the logits of the last `keep` of them, a Float32Array each.
  async step(ids, keep) {
    const total = this.length + ids.length;
    const int64 = (values, dims = [1, values.length]) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
    const feeds = {
      input_ids: int64(ids),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
      position_ids: int64(ids.map((_, i) => this.length + i)),
      num_logits_to_keep: int64([keep], []),
    };
    for (const part of this.parts) feeds[`past_key_values.${part}`] = this.past[part];
    const found = await this.session.run(feeds);
    for (const part of this.parts) this.past[part] = found[`present.${part}`];
    this.length = total;
    const width = this.about.vocabulary;
    return Array.from({ length: keep }, (_, i) => found.logits.data.slice(i * width, (i + 1) * width));
  }
}

export async function asked(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: the server answers ${answer.status}: ${await answer.text()}`);
  return answer;
}

async function read(address, size, tell) {
  const bytes = new Uint8Array(size);
  let at = 0;
  for (const reader = (await asked(address)).body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    bytes.set(value, at);
    tell((at += value.length));
  }
  if (at !== size) throw new Error(`${address}: ${at} bytes came of ${size}`);
  return bytes;
}
