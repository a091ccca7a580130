// One graph in ONNX Runtime Web, and a cache of keys and values that grows: one step's `present` is the next one's past.

let ort;

// By "webassembly" weights are unpacked once, now (pythia_export/graph/browser.py). By "webgpu" they stay packed, and the
// cache stays on the GPU.
const WAYS = {
  webassembly: {
    module: "ort.wasm.min.mjs",
    graph: "model.onnx",
    options: { executionProviders: ["wasm"], extra: { session: { disable_quant_qdq: "1" } } },
  },
  webgpu: { module: "ort.webgpu.min.mjs", graph: "model.packed.onnx", options: { executionProviders: ["webgpu"] } },
};

async function engine(way) {
  const at = new URL("/modules/onnxruntime-web/", location.href).href;
  try {
    ort = await import(at + way.module);
  } catch (error) {
    throw new Error(`ONNX Runtime Web cannot be loaded: ${error.message}`);
  }
  ort.env.wasm.wasmPaths = at;
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(4, Math.ceil(navigator.hardwareConcurrency / 2)) : 1;
  ort.env.logLevel = "error";
}

// A promise that is rejected when the GPU is taken away: a run may wait for it for ever.
function lostOf(device) {
  const told = device.lost.then(({ message, reason }) => Promise.reject(new Error(`the GPU was lost: ${message || reason}`)));
  told.catch(() => {}); // nobody may be waiting
  return told;
}

export class Session {
  // `tell(bytes)` hears how many bytes of the weights are here.
  static async open(about, by, tell) {
    const way = WAYS[by];
    await engine(way);
    const graph = new Uint8Array(await (await asked(`${about.at}/${way.graph}`)).arrayBuffer());
    const weights = await read(`${about.at}/model.onnx_data`, about.weights.bytes, tell);
    const kept = Array.from({ length: about.layers }, (_, i) => [`present.${i}.key`, `present.${i}.value`]).flat();
    const session = await ort.InferenceSession.create(graph, {
      ...way.options,
      ...(by === "webgpu" ? { preferredOutputLocation: Object.fromEntries(kept.map((name) => [name, "gpu-buffer"])) } : {}),
      externalData: [{ path: about.weights.path, data: weights }],
      logSeverityLevel: 3, // not that shapes are computed by the CPU
    });
    return new Session(about, session, by === "webgpu" ? lostOf(await ort.env.webgpu.device) : null);
  }

  constructor(about, session, lost) {
    this.about = about;
    this.session = session;
    this.lost = lost;
    this.past = {};
    this.parts = Array.from({ length: about.layers }, (_, i) => [`${i}.key`, `${i}.value`]).flat();
    this.start();
  }

  // Forget what was read.
  start() {
    const { heads, head_dim } = this.about;
    this.length = 0;
    this.#free();
    this.past = Object.fromEntries(
      this.parts.map((part) => [part, new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, head_dim])]),
    );
  }

  // What is on a GPU is not collected as garbage.
  #free() {
    for (const tensor of Object.values(this.past)) if (tensor.location === "gpu-buffer") tensor.dispose();
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
    const run = this.session.run(feeds);
    const found = await (this.lost ? Promise.race([run, this.lost]) : run);
    this.#free();
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
