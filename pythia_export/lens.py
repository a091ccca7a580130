"""An artifact as a driver of TransformerLens 4: its bridges run the quantised graph, in ONNX Runtime.

    from transformers import AutoTokenizer
    from transformer_lens.model_bridge import RemoteBridge
    from pythia_export.lens import driver

    lens = driver("build/demo")
    bridge = RemoteBridge(lens.adapter, AutoTokenizer.from_pretrained("build/demo"), driver=lens)
    logits, cache = bridge.run_with_cache("def main(")

The protocol is TransformerLens's `model_bridge/driver_protocol.py`. TransformerLens comes with the extra `lens`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .api import Artifact
from .base.errors import EnvironmentProblem, RecipeError
from .model.hooks import LOGITS, hooks_of, tap_of
from .model.neox import NeoXConfig
from .runtime import TapSession
from .runtime.change import CHOSEN
from .runtime.taps import tapped

if TYPE_CHECKING:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.driver_protocol import ForwardResult

_ARCHITECTURE = "GPTNeoXForCausalLM"
_IGNORED = {"output_attentions"}  # of run_with_cache; patterns are captured by name
_OPEN = 2  # sessions at most: one that reads, and one that changes as well


def driver(artifact: Artifact | Path | str, *, threads: int | None = None, native: bool = True) -> ArtifactDriver:
    """Return a driver of TransformerLens over an artifact with taps; `threads` and `native` are those of a session.

    Raises:
        EnvironmentProblem: TransformerLens 4 is not installed.
        SourceError: no artifact, or one without taps; the hint has the command that adds them.
    """
    try:
        import transformer_lens.model_bridge.driver_protocol  # noqa: F401
    except ImportError as e:
        raise EnvironmentProblem(
            f"a driver for TransformerLens 4.3 or newer: {e}", hint="pip install 'pythia-export[lens]'"
        ) from e
    return ArtifactDriver(artifact if isinstance(artifact, Artifact) else Artifact.open(artifact), threads, native)


class ArtifactDriver:
    """What TransformerLens's RemoteBridge asks of a model: see `driver`.

    `supported_hook_points` are the places that the artifact's taps give. Changes are specifications, not functions:
    ``{"op": "set" | "add" | "scale" | "suppress", ...}``, with `pos`, and with `heads` beside what TransformerLens has.
    """

    architecture = _ARCHITECTURE
    provides_sequence_logits = True
    tokenizer: Any = None  # the bridge has it

    def __init__(self, artifact: Artifact, threads: int | None, native: bool) -> None:
        given = tapped(artifact).outputs
        every = hooks_of(["all"], artifact.config)
        self.artifact = artifact
        self.bridge_config = bridge_config(artifact.config, artifact.folder.name)
        self.supported_hook_points = frozenset(hook for hook in every if hook in given)
        self.non_fireable_hook_points = frozenset(every) - self.supported_hook_points
        self._threads, self._native = threads, native
        self._sessions: dict[tuple[frozenset[str], frozenset[str]], TapSession] = {}

    @property
    def adapter(self) -> Any:
        """TransformerLens's adapter of the architecture, which a bridge wants beside its driver."""
        from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory

        return ArchitectureAdapterFactory.select_architecture_adapter(self.bridge_config)

    def forward(
        self,
        input_ids: Any = None,
        *,
        capture: tuple[str, ...] = (),
        intervene: Mapping[str, Any] | None = None,
        max_new_tokens: int = 1,
        return_logits: bool = True,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> ForwardResult:
        """Run `input_ids` [T] or [B, T]; return logits [B, T, vocab] and what is captured, in NumPy arrays.

        Shapes are TransformerLens's. A `pos` of `intervene` is a column of `input_ids`. attention_mask [B, T] is 0 at
        padding.

        Raises:
            NotImplementedError: a function as a change, more than one new token, or an argument that no driver knows.
            RecipeError: a place that this artifact does not give, or a change that does not fit.
            NumericsError: a value that is captured is NaN or infinite.
        """
        from transformer_lens.model_bridge.driver_protocol import ForwardResult

        unknown = set(kwargs) - _IGNORED
        if max_new_tokens != 1 or unknown:
            asked = f"max_new_tokens={max_new_tokens}" if max_new_tokens != 1 else ", ".join(sorted(unknown))
            raise NotImplementedError(
                f"{asked}: this driver makes one pass over input_ids; Artifact.generate continues"
            )
        changes = {hook: spec for hook, spec in (intervene or {}).items()}
        if functions := [hook for hook, spec in changes.items() if callable(spec)]:
            raise NotImplementedError(f"{functions[0]}: a function; this driver takes {{'op': 'set', 'value': ...}}")
        ids = np.atleast_2d(_numbers(input_ids))
        mask = np.ones_like(ids) if attention_mask is None else np.atleast_2d(_numbers(attention_mask))
        asked_for = [*capture, *([LOGITS] if return_logits else [])]
        if not asked_for:
            return ForwardResult()
        session = self._session(asked_for, changes)
        if mask.all() or not changes:
            found = session.read(ids, mask, changes=changes)
        else:  # a column is another token of each row
            rows = [
                session.read(row[None], real[None], changes={h: _shifted(h, s, real) for h, s in changes.items()})
                for row, real in zip(ids, mask, strict=True)
            ]
            found = {hook: np.concatenate([row[hook] for row in rows]) for hook in rows[0]}
        logits = found.pop(LOGITS, None)
        return ForwardResult(logits=logits, captured={hook: found[hook] for hook in capture})

    def close(self) -> None:
        """Let go of the graphs; the next pass opens them again."""
        self._sessions.clear()

    def supports(self, feature: str) -> bool:
        """No gradients, no parameters, no functions as changes."""
        return False

    def _session(self, asked: list[str], changes: Mapping[str, Any]) -> TapSession:
        """A session that can change all places of the kinds that are changed: so a loop over layers opens one."""
        config = self.artifact.config
        kinds = {tap_of(hook)[0].name for hook in hooks_of(changes, config)}
        changed = {h for h in self.supported_hook_points if tap_of(h)[0].name in kinds - set(CHOSEN)}
        changed |= {hook for hook in changes if tap_of(hook)[0].name in CHOSEN}
        if lacking := [hook for hook in changes if hook not in self.supported_hook_points]:
            raise RecipeError(f"{lacking[0]} is no hook that this artifact's taps give")
        key = frozenset(asked), frozenset(changed)
        if key not in self._sessions:
            while len(self._sessions) >= _OPEN:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[key] = TapSession(
                self.artifact, asked, sorted(changed), threads=self._threads, native=self._native
            )
        return self._sessions[key]


def bridge_config(config: NeoXConfig, name: str) -> TransformerBridgeConfig:
    """Return what TransformerLens says of a model with this architecture."""
    from transformer_lens.config import TransformerBridgeConfig

    return TransformerBridgeConfig(
        d_model=config.hidden_size, d_head=config.head_dim, n_heads=config.num_heads, n_layers=config.num_layers,
        d_mlp=config.intermediate_size, n_ctx=config.max_positions, d_vocab=config.vocab_size,
        architecture=_ARCHITECTURE, model_name=name, act_fn=config.hidden_act, eps=config.layer_norm_eps,
        positional_embedding_type="rotary", rotary_dim=config.rotary_dim, rotary_base=config.rotary_base,
        parallel_attn_mlp=config.parallel_residual, tokenizer_prepends_bos=False,
    )  # fmt: skip


def _numbers(given: Any) -> np.ndarray:
    """Whole numbers of a tensor on any device, an array or lists."""
    if given is None:
        raise ValueError("no input_ids")
    if hasattr(given, "detach"):
        given = given.detach().cpu()
    return np.asarray(given).astype(np.int64)


def _shifted(hook: str, spec: Any, real: np.ndarray) -> Any:
    """A change whose `pos` is a column, as one that counts from the row's first token."""
    several = [spec] if isinstance(spec, Mapping) else list(spec)
    first, length = int(np.flatnonzero(real)[0]), len(real)
    found = []
    for one in several:
        if (pos := one.get("pos")) is not None:
            columns = [c % length if -length <= c < length else c for c in np.atleast_1d(np.asarray(pos)).tolist()]
            if beyond := [column for column in columns if not first <= column < length]:
                raise RecipeError(f"{hook}: pos {beyond[0]} is padding, or beyond the {length:,} columns")
            one = {**one, "pos": [column - first for column in columns]}
        found.append(one)
    return found
