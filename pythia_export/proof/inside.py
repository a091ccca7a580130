"""Question C: does it still compute alike? Residual streams, attention patterns, induction heads, the logit lens, and
the features of sparse autoencoders where some are given.

A small loss does not say that a model computes as before: heads can die while others stand in for them. So the
artifact's weights run in step with the original's, on the passes that question B makes of the original anyway, and are
compared at every boundary between layers and in every head. Both run in torch. The original's activations are floats;
the artifact's are rounded as its graph rounds them (activations.py), so that what is compared is what ships. That ONNX
Runtime computes the same is question A's.

One layer of each side is in memory at a time. Residual streams are compared at every token; patterns, the lens and
features at `POSITIONS` places of each window, evenly spread and a little further on in each. Of all this only sums by
document are kept, and intervals are clustered as those of question B.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..base.compute import DEFAULT, Compute
from ..base.errors import NumericsError
from ..corpus import Windows
from ..model.block import Block, Rotary, final_norm, head
from ..model.neox import EMBEDDING, FINAL_NORM, HEAD, QKV, NeoXConfig, layer_tensors
from ..records import parity as records
from ..records.parity import Mean, Share
from .activations import IN_FLOAT, Activations, Watched
from .autoencoder import Autoencoder, Loaded
from .features import FeatureSums, needed, pooled, value_at
from .likeness import apart, induction, jensen_shannon, lens_apart, repeated_tokens
from .reference import Tensors
from .statistics import mean_of, mean_of_clusters, share_of_clusters

POSITIONS = 32
SEQUENCES, REPEATED = 16, 50  # random tokens for the induction scores
LENS_LOGITS = 1 << 24  # in work at a time, of each side

_GOLDEN = 0.6180339887498949  # its multiples are spread evenly over the circle, however many there are


class Inside:
    """`watch` of a `Reference`; afterwards `result` is the section `inside` of parity.json."""

    def __init__(
        self,
        original: Tensors,
        others: Mapping[str, Tensors],
        config: NeoXConfig,
        windows: Windows,
        compute: Compute = DEFAULT,
        *,
        activations: Activations = IN_FLOAT,
        autoencoders: Sequence[Autoencoder] = (),
    ) -> None:
        """`others` by name: `artifact`, and `rtn` where it is to be set beside. `activations` is how they round; the
        original does not."""
        self.sides = len(others)
        self._source, self._config, self._ids, self._device = original, config, windows.ids, compute.device
        self._labels, self._by = _clusters(windows)
        self._rows = _sampled(*windows.ids.shape)
        self._length = min(REPEATED, (config.max_positions - 1) // 2)
        self._random = repeated_tokens(config.vocab_size, config.eos_token_id, SEQUENCES, self._length)
        self._rotary = Rotary.of(config, windows.ids.shape[1], torch.float32, compute.device)
        self._turned = Rotary.of(config, self._random.shape[1], torch.float32, compute.device)
        self._original = np.zeros((config.num_layers, config.num_heads, SEQUENCES))
        clusters = int(self._labels.max()) + 1
        self._activations = activations
        self._sides = {name: _Side(source, config, clusters) for name, source in others.items()}
        self._features = [FeatureSums(one, list(others), clusters) for one in autoencoders]
        self._seconds = 0.0

    # What a `Reference` calls.

    def begin(self, first: int, chunks: Sequence[Tensor], ends: Mapping[str, Tensor]) -> None:
        began = time.perf_counter()
        self._ends = ends
        edges = first + np.cumsum([0, *(len(chunk) for chunk in chunks)])
        self._spans = [slice(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]
        self._repeats = first == 0  # the random tokens go with the first pass alone
        if self._repeats:
            self._x = self._embedded(self._source, self._random)
        for side in self._sides.values():
            names = [f"{HEAD}.weight", *(f"{FINAL_NORM}.{part}" for part in ("weight", "bias"))]
            side.ends = side.ends or self._read(side.source, names)
            side.chunks = [self._embedded(side.source, self._ids[span]) for span in self._spans]
            if self._repeats:
                side.x = self._embedded(side.source, self._random)
        for number, chunk in enumerate(chunks):
            self._boundary(0, number, chunk)
        self._seconds += time.perf_counter() - began

    def enter(self, block: Block) -> None:
        began, layer = time.perf_counter(), block.layer
        here = [(found, found.of.loaded(self._device)) for found in self._features if found.of.layer == layer]
        self._here: list[tuple[FeatureSums, Loaded]] = here
        keep = frozenset((QKV,)).union(*(needed(found.of) for found, _ in here))
        self._block = Watched(self._config, layer, block.weights, keep=keep)
        for side in self._sides.values():
            read = self._read(side.source, [spec.name for spec in layer_tensors(self._config, layer)])
            side.block = Watched(self._config, layer, read.__getitem__, self._activations, keep)
        if self._repeats:
            self._x, pattern = self._repeat(self._block, self._x)
            self._original[block.layer] = pattern
            for side in self._sides.values():
                side.x, side.induction[block.layer] = self._repeat(side.block, side.x)
        self._seconds += time.perf_counter() - began

    def step(self, number: int, chunk: Tensor) -> Tensor:
        out = self._block(chunk, self._rotary)
        began, layer, span = time.perf_counter(), self._block.layer, self._spans[number]
        rows, labels = self._places(span)
        pattern = self._block.pattern(self._rotary, rows)
        for side in self._sides.values():
            y = side.block(side.chunks[number], self._rotary)
            theirs = side.block.pattern(self._rotary, rows)
            side.patterns[layer].add(jensen_shannon(pattern, theirs).transpose(1, 2), labels)
            side.after = y
        for found, loaded in self._here:
            x = self._value(found.of, self._block, chunk, out, rows)
            others = {
                name: self._value(found.of, side.block, side.chunks[number], side.after, rows)
                for name, side in self._sides.items()
            }
            found.add(loaded, x, others, labels.flatten())
        for side in self._sides.values():
            side.chunks[number].copy_(side.after)
        self._boundary(layer + 1, number, out)
        self._seconds += time.perf_counter() - began
        return out

    # The figures.

    def result(self) -> records.Inside:
        """Return the figures of all passes.

        Raises:
            NumericsError: one side computes a NaN or an infinity.
        """
        clusters = int(self._labels.max()) + 1
        at = np.take_along_axis(self._labels, self._rows, 1)
        counts = [np.bincount(x.ravel(), minlength=clusters) for x in (self._labels, at)]
        found = {
            name: side.result(self._original, *counts).model_copy(
                update={
                    "features": [one.result(name) for one in self._features],
                    "feature_survival": pooled(self._features, name),
                }
            )
            for name, side in self._sides.items()
        }
        return records.Inside(
            tokens=int(self._ids.size),
            sampled=int(self._rows.size),
            clusters=records.Clusters.model_validate({"by": self._by, "count": clusters}),
            sequences=SEQUENCES,
            repeated=self._length,
            seconds=round(self._seconds, 2),
            activations="int8" if self._activations.blocks else "float",
            cache=self._activations.cache,
            artifact=found["artifact"],
            rtn=found.get("rtn"),
        )

    def _embedded(self, source: Tensors, ids: np.ndarray) -> Tensor:
        return source.tensor(f"{EMBEDDING}.weight")[torch.tensor(ids)].to(self._device).float()

    def _read(self, source: Tensors, names: Sequence[str]) -> dict[str, Tensor]:
        return {name: source.tensor(name).to(self._device).float() for name in names}

    def _places(self, span: slice) -> tuple[Tensor, Tensor]:
        """Return the sampled places of these windows, and the cluster of each; both [B, P]."""
        rows = torch.from_numpy(self._rows[span])
        labels = torch.from_numpy(self._labels[span]).gather(1, rows)
        return rows.to(self._device), labels

    def _boundary(self, at: int, number: int, x: Tensor) -> None:
        """Compare the residual streams of a chunk, x [B, S, hidden] the original's, and what the lens sees in them."""
        span = self._spans[number]
        rows, labels = self._places(span)
        every = torch.from_numpy(self._labels[span])
        for side in self._sides.values():
            side.streams[at].add(torch.stack(apart(x, side.chunks[number]), -1), every)
        some = max(1, LENS_LOGITS // (rows.shape[1] * self._config.vocab_size))
        for part in (slice(i, i + some) for i in range(0, len(x), some)):
            of = rows[part, :, None]
            expected = self._lens(x[part].take_along_dim(of, 1), self._ends, IN_FLOAT)
            for side in self._sides.values():
                got = self._lens(side.chunks[number][part].take_along_dim(of, 1), side.ends, self._activations)
                side.lenses[at].add(torch.stack(lens_apart(expected, got), -1), labels[part])

    def _lens(self, x: Tensor, ends: Mapping[str, Tensor], rounds: Activations) -> Tensor:
        return head(rounds.read(HEAD, final_norm(x, self._config, ends.__getitem__)), ends.__getitem__)

    def _repeat(self, block: Watched, x: Tensor) -> tuple[Tensor, np.ndarray]:
        """Return the block's output of the random tokens, and its heads' induction scores [heads, sequences]."""
        out, T = block(x, self._turned), x.shape[1]
        rows = torch.arange(T - self._length, T, device=x.device).expand(len(x), -1)
        return out, induction(block.pattern(self._turned, rows), self._length).T.cpu().numpy()

    def _value(self, of: Autoencoder, block: Watched, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        """Return what an autoencoder reads at the sampled places, [B * P, d_in]."""
        return value_at(of.hook, of.head, block, x, y).take_along_dim(rows[..., None], 1).flatten(0, 1)


class _Sums:
    """Sums by cluster [G, K] of K figures a token."""

    def __init__(self, clusters: int, figures: int) -> None:
        self.values = torch.zeros(clusters, figures, dtype=torch.float64)

    def add(self, found: Tensor, labels: Tensor) -> None:
        """Add found [B, T, K] of tokens whose clusters are labels [B, T]."""
        self.values.index_add_(0, labels.reshape(-1), found.reshape(labels.numel(), -1).double().cpu())


class _Side:
    """One set of weights beside the original's: its state on this pass, and what was found so far."""

    block: Watched
    chunks: list[Tensor]
    after: Tensor  # of the chunk that is being compared
    x: Tensor  # of the random tokens

    def __init__(self, source: Tensors, config: NeoXConfig, clusters: int) -> None:
        self.source = source
        self.ends: dict[str, Tensor] = {}
        self.streams = [_Sums(clusters, 2) for _ in range(config.num_layers + 1)]
        self.lenses = [_Sums(clusters, 2) for _ in range(config.num_layers + 1)]
        self.patterns = [_Sums(clusters, config.num_heads) for _ in range(config.num_layers)]
        self.induction = np.zeros((config.num_layers, config.num_heads, SEQUENCES))

    def result(self, original: np.ndarray, tokens: np.ndarray, sampled: np.ndarray) -> records.Alike:
        """Return the figures; `tokens` and `sampled` [G] are how many were compared of each cluster, `original` are
        the original's induction scores [layers, heads, sequences]."""
        streams, lenses = (np.stack([x.values.numpy() for x in sums]) for sums in (self.streams, self.lenses))
        patterns = np.stack([x.values.numpy() for x in self.patterns])
        if not all(np.isfinite(x).all() for x in (streams, lenses, patterns, self.induction, original)):
            raise NumericsError("inside the model a residual stream or an attention pattern holds a NaN or an infinity")
        error, cosine = streams[..., 0], streams[..., 1]  # [layers + 1, G]
        kld, same = lenses[..., 0], lenses[..., 1]
        depth = [
            records.Depth(
                layer=at - 1 if at else None,
                residual_error=_mean(tokens, error[at]),
                cosine=_mean(tokens, cosine[at]),
                lens_kld=_mean(sampled, kld[at]),
                lens_same_top=_share(sampled, same[at]),
            )
            for at in range(len(streams))
        ]
        return records.Alike(
            residual_error=_mean(tokens, error[1:].mean(0)),
            cosine=_mean(tokens, cosine[1:].mean(0)),
            lens_kld=_mean(sampled, kld[1:].mean(0)),
            lens_same_top=_share(sampled, same[1:].mean(0)),
            pattern_js=_mean(sampled, patterns.mean((0, 2))),
            induction_original=float(original.mean(2).max()),
            induction=float(self.induction.mean(2).max()),
            depth=depth,
            heads=list(self._heads(original, patterns, sampled)),
        )

    def _heads(self, original: np.ndarray, patterns: np.ndarray, sampled: np.ndarray) -> Iterator[records.Head]:
        sequences = np.ones(SEQUENCES)
        for layer, number in np.ndindex(original.shape[:2]):
            before, after = original[layer, number], self.induction[layer, number]
            yield records.Head(
                layer=layer,
                head=number,
                pattern_js=_mean(sampled, patterns[layer, :, number]),
                induction_original=float(before.mean()),
                induction=float(after.mean()),
                induction_lost=_mean(sequences, before - after),
            )


def _mean(n: np.ndarray, totals: np.ndarray) -> Mean:
    """Return the mean over the clusters in which any token was compared."""
    some = n > 0
    return mean_of(mean_of_clusters(n[some], totals[some]))


def _share(n: np.ndarray, hits: np.ndarray) -> Share:
    some = n > 0
    return share_of_clusters(n[some], hits[some])


def _clusters(windows: Windows) -> tuple[np.ndarray, str]:
    """Return each token's cluster [N, S], counted from 0, and what they are: documents, or the windows of one."""
    found, labels = np.unique(windows.documents, return_inverse=True)
    labels = labels.reshape(windows.documents.shape).astype(np.int64)
    if len(found) > 1:
        return labels, "document"
    return np.broadcast_to(np.arange(len(labels))[:, None], labels.shape).copy(), "window"


def _sampled(windows: int, length: int) -> np.ndarray:
    """Return the sampled places of each window [N, P]. The first token is none: it has but itself to look at."""
    count = min(POSITIONS, length - 1)
    shift = np.arange(windows)[:, None] * _GOLDEN % 1
    return 1 + ((np.arange(count) + shift) * (length - 1) / count).astype(np.int64)
