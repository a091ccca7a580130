"""The library of native operators, where it is built."""

from __future__ import annotations

import pytest

from pythia_export.base.native_library import kernels_path

LIBRARY = kernels_path()
needs_library = pytest.mark.skipif(LIBRARY is None, reason="the kernels are not built; `make kernels` builds them")
