"""Which tests begin first, and which have which marker; pytest knows several files called conftest."""

# Markers by folder; pyproject.toml says what each means.
MARKERS = {"kernels": "native", "end_to_end": "end_to_end"}

# The longest first: a worker takes whole files, and one that begins with the longest at the end lets the others wait.
LONGEST = (
    "native", "consumers", "demo", "hub", "serve_browser", "packaging", "bench", "ci", "eval", "sweep_run",
    "gpu_script", "resume", "cuda", "mutations", "sweep_device", "engines", "checkpoint", "hub_text", "publish_steps",
    "graph", "rounding",
)  # fmt: skip
# Files that are `slow`: they build artifacts, fork commands, run sweeps or fuzz. Elsewhere it stands beside the test.
SLOW = {
    "adapter", "api", "artifact", "bench", "checkpoint", "correction", "dequantize", "device", "engines", "eval",
    "family", "generation", "gpu_script", "hub", "hub_text", "job", "kinds", "mutations", "numerics", "overlap",
    "parity", "publish_steps", "push", "rounding", "serve", "snapshot", "speeds", "store", "sweep_device", "sweep_hub",
    "sweep_report", "sweep_run", "trace", "two_products", "whereabouts",
}  # fmt: skip
