// A model seen from the page: a worker that does one job at a time.

const LAST = new Set(["ready", "generated", "read"]);

export class Model {
  constructor(about) {
    this.about = about;
    this.worker = new Worker("/worker.js", { type: "module" });
  }

  // Do `message`; `hear` is told everything on the way; the promise is of the last word.
  job(message, hear, transfer = []) {
    return new Promise((resolve, reject) => {
      this.worker.onmessage = ({ data }) => {
        if (data.is === "failed") reject(new Error(data.why));
        else if (LAST.has(data.is)) resolve(data);
        else hear(data);
      };
      this.worker.onerror = (event) => reject(new Error(event.message || "The worker could not be started."));
      this.worker.postMessage(message, transfer);
    });
  }

  stop() {
    this.worker.postMessage({ do: "stop" });
  }
}
