"""`run`: the whole job, from a recipe to an artifact with its proof."""

from __future__ import annotations

from pathlib import Path

import onnx

from ..base.device import memory_of
from ..base.progress import SILENT, Progress
from ..corpus import verify_windows
from ..proof.autoencoder import autoencoders
from ..proof.prove import prove
from ..proof.subject import Subject
from ..recipe import Recipe
from ..runtime import require_provider
from .contents import write_reports
from .conversion import conversion
from .options import AS_USUAL, Options
from .publication import Outcome, finish_interrupted, publish
from .verify import tell_of_another_models_text


def run(recipe: Recipe, out: Path, options: Options = AS_USUAL, progress: Progress = SILENT) -> Outcome:
    """Recipe in, verified artifact out: published whether its gates pass or not, with the verdict in it."""
    finished = finish_interrupted(recipe, out, options.resume, progress)
    if finished is not None:
        return finished
    with conversion(recipe, out, options, progress) as (job, publisher):
        if recipe.export.target == "cuda":
            require_provider("cuda", _probe())  # hours of quantisation would end in this error
        with job.stage("text"):
            # Before the long part: text that is too short is found now, and an autoencoder of another model.
            held_out = verify_windows(recipe.verify, job.tokenizer, job.config, progress)
            features = (
                ()
                if recipe.verify.sae is None
                else autoencoders(recipe.verify.sae, job.config, recipe.quantize.products)
            )
        with job.journal(out, options.resume, held_out) as journal:
            quantization = job.quantize_into(journal)
            model = job.export_into(journal.output, recipe.export)
            with job.stage("verify"):
                subject = Subject(
                    job.source, job.checkpoint, job.reader(journal.output), job.config, model, journal.output,
                    job.recipe.quantize, recipe.export,
                )  # fmt: skip
                with memory_of(job.device):
                    parity = prove(
                        subject, held_out, recipe.verify.gates, job.compute, inside=recipe.verify.inside,
                        autoencoders=features,
                    ).parity  # fmt: skip
            tell_of_another_models_text(parity, job.config, progress)
            origin = job.origin(recipe.export)
            write_reports(journal.output, origin, quantization, parity)
            publish(publisher, journal, recipe, origin)
    return Outcome(publisher.out, quantization, parity, job.seconds)


def _probe() -> bytes:
    """The smallest graph that a session opens."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())
