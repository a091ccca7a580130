"""`serve`: artifacts in a browser on this machine."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from .shared import ArtifactFolder, app, artifact_called, examples, progress_bars, say, show


@app.command(
    epilog=examples(
        "pythia-export serve build/demo",
        "pythia-export serve models/160m-int4 models/160m-int8",
        "pythia-export serve build/demo --port 8000 --no-open",
    )
)
def serve(
    artifact: ArtifactFolder,
    other: Annotated[
        Path | None, typer.Argument(
            metavar="OTHER", callback=artifact_called, help="A second one, of the same vocabulary, to set beside it."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="On 127.0.0.1; 0 takes any that is free.")] = 0,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
    modules: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", exists=True, file_okay=False,
            help="A node_modules folder to take ONNX Runtime Web from; fetched once, and kept, if not given.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Open a page that runs the artifact in the browser itself, by WebGPU or WebAssembly.

    Text as it comes, its speed, and what else each token might have been; inside, the logit lens by layer and what each
    head looks at. With two artifacts, what quantisation changed, of all this. Nothing leaves this machine. The first
    time 33 MB of ONNX Runtime Web are fetched from the npm registry.
    """
    from .. import serve as room

    with progress_bars() as progress:
        models = [room.ready(folder) for folder in (artifact, other) if folder is not None]
        if len(models) == 2:
            room.require_comparable(*models)
        found = room.fetch_modules(modules, progress=progress)
    with room.Server(room.routes(models, found), port) as server:
        try:
            show(server.url)
            say("Ctrl-C ends it. Only this machine can reach it.")
            if open_browser and not webbrowser.open(server.url):
                say("No browser could be opened here; open the address yourself.")
            server.serve_forever()
        except KeyboardInterrupt:
            say("Ended.")
