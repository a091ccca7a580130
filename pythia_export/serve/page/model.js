// A model seen from the page: a worker that does one job at a time, by WebGPU or by WebAssembly.
//
// A WebGPU that fails spoils ONNX Runtime for the whole thread, so each way of computing has a worker of its own, and the
// one that is not taken ends.

const LAST = new Set(["ready", "measured", "generated", "read"]);
const APART = 0.02; // of the largest logit: two ways in float32 differ by a thousandth of that
const NAMES = { webgpu: "WebGPU", webassembly: "WebAssembly" };

// Why WebGPU is not to be tried here, or "" where there is a GPU for it. The adapter is asked before anything is loaded.
export async function without() {
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return "this browser finds no GPU";
  return adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false ? "WebGPU would be computed by the CPU here" : "";
}

export class Model {
  constructor(about) {
    this.about = about;
    this.by = "webassembly";
    this.why = "";
  }

  // Load it, by "webgpu" or "webassembly". Where WebGPU fails, by WebAssembly; `why` says so.
  async load(by, why, hear) {
    this.why = why;
    if (by === "webgpu")
      try {
        return this.#take(by, await this.#open(by, hear));
      } catch (error) {
        this.why = `WebGPU failed: ${error.message}`;
      }
    this.#take("webassembly", await this.#open("webassembly", hear));
  }

  // Load it both ways, and keep the faster one; WebGPU only where it computes the same.
  async loadFaster(hear) {
    let gpu, a;
    try {
      gpu = await this.#open("webgpu", hear);
      a = await this.#asked(gpu, { do: "measure" });
    } catch (error) {
      gpu?.terminate();
      return this.load("webassembly", `WebGPU failed: ${error.message}`, hear);
    }
    let cpu, b;
    try {
      cpu = await this.#open("webassembly", hear);
      b = await this.#asked(cpu, { do: "measure" });
    } catch (error) {
      cpu?.terminate();
      this.why = `by WebAssembly it cannot be computed: ${error.message}`;
      return this.#take("webgpu", gpu);
    }
    const largest = b.logits.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
    const same = a.logits.every((x, i) => Math.abs(x - b.logits[i]) <= APART * largest);
    const speed = ({ seconds }) => `${(1 / seconds).toFixed(1)} tokens/s`;
    this.why = same ? `measured here: WebGPU ${speed(a)}, WebAssembly ${speed(b)}` : "WebGPU computes something else here";
    if (same && a.seconds < b.seconds) {
      cpu.terminate();
      return this.#take("webgpu", gpu);
    }
    gpu.terminate();
    this.#take("webassembly", cpu);
  }

  // What a person is told of it.
  get told() {
    return `Computed by ${NAMES[this.by]}${this.why ? ` (${this.why})` : ""}.`;
  }

  // Do `message`; `hear` is told everything on the way; the promise is of the last word. Where WebGPU fails, the model is
  // loaded anew, by WebAssembly, and the error says so.
  async job(message, hear, transfer = []) {
    try {
      return await this.#asked(this.worker, message, hear, transfer);
    } catch (error) {
      if (this.by !== "webgpu" || !error.broken) throw error;
      this.worker.terminate();
      await this.load("webassembly", `WebGPU failed: ${error.message}`, () => {});
      throw Object.assign(new Error(`WebGPU failed: ${error.message} It goes on by WebAssembly: ask again.`), { fell: true });
    }
  }

  stop() {
    this.worker.postMessage({ do: "stop" });
  }

  async #open(by, hear) {
    const worker = new Worker("/worker.js", { type: "module" });
    try {
      await this.#asked(worker, { do: "load", about: this.about, by }, hear);
      return worker;
    } catch (error) {
      worker.terminate();
      throw error;
    }
  }

  #take(by, worker) {
    this.by = by;
    this.worker = worker;
  }

  #asked(worker, message, hear = () => {}, transfer = []) {
    return new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => {
        if (data.is === "failed") reject(Object.assign(new Error(data.why), { broken: data.broken }));
        else if (LAST.has(data.is)) resolve(data);
        else hear(data);
      };
      worker.onerror = (event) => reject(new Error(event.message || "The worker could not be started."));
      worker.postMessage(message, transfer);
    });
  }
}
