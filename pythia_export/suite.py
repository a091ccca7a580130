"""The Pythia suite: its sizes, its revisions, and hub revisions that are known to hold wrong weights.

Geometry is that of the published configurations; the table is what `plan` and the graph tests read, so that nothing has
to be pulled to know a model's size.
"""

from __future__ import annotations

import re

from .neox import NeoXConfig

# hidden, layers, heads, vocabulary (padded to the training setup's multiple)
_SIZES = {
    "14m": (128, 6, 4, 50304),
    "31m": (256, 6, 8, 50304),
    "70m": (512, 6, 8, 50304),
    "160m": (768, 12, 12, 50304),
    "410m": (1024, 24, 16, 50304),
    "1b": (2048, 16, 8, 50304),
    "1.4b": (2048, 24, 16, 50304),
    "2.8b": (2560, 32, 32, 50304),
    "6.9b": (4096, 32, 32, 50432),
    "12b": (5120, 36, 40, 50688),
}
SIZES = tuple(_SIZES)

# Trained on the Pile as it is, and on the Pile without its near-duplicates.
MODELS = (*(f"EleutherAI/pythia-{size}" for size in SIZES), *(f"EleutherAI/pythia-{size}-deduped" for size in SIZES))

# 154 of them: powers of two to 512, then every thousand; `main` is step143000.
REVISIONS = ("step0", *(f"step{2**i}" for i in range(10)), *(f"step{1000 * i}" for i in range(1, 144)))

_THOUSANDS_OF_2_8B = (*range(1, 54), 55, 60, 65, 70, 80, 90, 100, 103, 110, 120, 130, 140)
_SECOND_OF_2_8B = (54, 56, 57, 58, 59, 61, 62, 63, 64, 143)

# repository -> revision -> what is wrong; reported in the issues of github.com/EleutherAI/pythia.
# Not here: pythia-12b-deduped at step32000 (issue 108, uploaded anew since), and that every model's step0 and step1 are
# the same weights (issue 83), which may be what training did.
_KNOWN_BAD = {
    "EleutherAI/pythia-2.8b": {
        **{r: "serves the weights of main (issue 205)" for r in REVISIONS[:11]},
        **{f"step{n}000": "serves the weights of main (issue 205)" for n in _THOUSANDS_OF_2_8B},
        **{f"step{n}000": "shares one file with nine other steps (issue 205)" for n in _SECOND_OF_2_8B},
    },
    "EleutherAI/pythia-12b": {
        f"step{n}000": "its first shard is that of the final checkpoint (issue 206)" for n in (50, 58)
    },
    "EleutherAI/pythia-410m-seed9": {"step40000": "has no weights (issue 202)"},
    "EleutherAI/pythia-410m-seed6": {"step88000": "has no weights (issue 202)"},
    "EleutherAI/pythia-410m-seed2": {"step111000": "has no weights (issue 202)"},
}

_NAME = re.compile(r"^EleutherAI/pythia-(?:intervention-)?(\d+(?:\.\d+)?[mb])(?:-|$)")


def geometry(model_id: str | None) -> NeoXConfig | None:
    """Configuration of a hub model by its id, `EleutherAI/pythia-410m-deduped` say; None when it is no Pythia's."""
    match = _NAME.match(model_id or "")
    if match is None or match[1] not in _SIZES:
        return None
    hidden, layers, heads, vocab = _SIZES[match[1]]
    return NeoXConfig(vocab, hidden, layers, heads, 4 * hidden)


def known_bad(model_id: str, revision: str) -> str | None:
    """What is wrong with a hub revision, or None when nothing is known."""
    return _KNOWN_BAD.get(model_id, {}).get(revision)
