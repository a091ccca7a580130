# make demo   the main job on the embedded checkpoint, offline once the dependencies are installed
# make test   every test that needs no GPU and no hub
# make test-fuzz  a million damaged recipes, manifests, records, headers and operators' shapes; none may escape
# make test-consumers   artifacts in onnxruntime-genai, Optimum, transformers 5, transformers.js, Node, Chromium and C++; installs them first
# make sweep-demo   trains a small model, quantises its checkpoints at 2, 3, 4 and 8 bits, and plots what that costs it
# make test-slurm  sweeps on a real Slurm in build/slurm, killed at random; as root it installs Debian's packages first
# make test-kill  runs killed at 200 random moments, some twenty minutes: what is lost? docs/concepts/durability.md
# make lint   ruff, mypy, and the schemas of action.yml and the workflows
# make docs   the documentation as a static site, in build/docs; search works without a network
# make reference  fills the reference pages and the marked places of the others, from the code and committed files
# make kernels  the native operators, in build/kernels; needs a C++17 compiler, and nothing fails without one
# make cuda  the native operators for an NVIDIA GPU, in build/kernels-cuda; with nvcc from PyPI where none is installed (Linux)
# Needs Python >= 3.11 with pip and venv; another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NVCC := build/nvcc/nvidia/cu13/bin/nvcc

.PHONY: docs reference demo sweep-demo test test-fuzz test-consumers test-slurm test-kill consumers lint kernels cuda venv clean

demo: $(STAMP) kernels
	@HF_HUB_OFFLINE=1 $(BIN)/pythia-export run demo --out build/demo --overwrite

sweep-demo: $(STAMP)
	@mkdir -p build/sweep-demo/run && cp demo/main/tokenizer.json build/sweep-demo/run/
	@[ -d build/sweep-demo/run/main ] || { echo "sweep-demo  training (minutes)"; $(BIN)/python demo/train.py \
		--out build/sweep-demo/run --steps 1200 --batch 4 --suite 100 | sed -un '/step .*00 /p'; }
	@$(BIN)/pythia-export sweep run demo/sweep.toml --out build/sweep-demo/two-runs
	@$(BIN)/pythia-export sweep report build/sweep-demo/two-runs

test: $(STAMP) kernels
	@echo "test    everything that needs no GPU and no hub"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Sphinx and what it needs are in an environment of their own: nothing of ours is imported.
docs: build/docs-venv/.installed
	@echo "docs    writing the site into build/docs/index.html"
	@build/docs-venv/bin/sphinx-build -q -W --keep-going -b html -c docs -d build/docs-doctrees . build/docs

build/docs-venv/.installed: pyproject.toml
	@echo "docs    installing Sphinx into build/docs-venv"
	@$(PYTHON) -m venv build/docs-venv
	@build/docs-venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@build/docs-venv/bin/python -m pip install --quiet --disable-pip-version-check --group docs
	@touch $@

reference: $(STAMP)
	@$(BIN)/python docs/generate.py

lint: $(STAMP)
	@echo "lint    ruff, mypy, the action and its workflow"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-actions action.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml

test-consumers: consumers kernels
	@echo "test    one artifact in every consumer, and the page of serve"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/test_consumers.py tests/test_serve_browser.py

test-fuzz: $(STAMP) kernels
	@echo "test    a million damaged inputs (about ten minutes of one core)"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py

# Whatever happens, interruption included, it is taken down again.
test-slurm: $(STAMP)
	@echo "test    sweeps on Slurm, killed at random"
	@trap 'tests/slurm/down.sh build/slurm' EXIT && trap 'exit 130' INT TERM && \
		conf="$$(tests/slurm/up.sh build/slurm)" && eval "$$conf" && \
		OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/test_slurm.py

test-kill: $(STAMP) kernels
	@echo "test    runs killed at random moments"
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/kill_storm.py --folder build/kill-storm

consumers: $(STAMP) build/consumers/.installed

build/consumers/.installed: tests/consumers/install.sh tests/consumers/package.json $(wildcard tests/consumers/requirements*.txt)
	@echo "consumers  installing onnxruntime-genai, transformers 5, transformers.js, Chromium and headers for C++, for their tests"
	@tests/consumers/install.sh build/consumers $(PYTHON)

kernels: $(STAMP)
	@if command -v "$${CXX:-c++}" >/dev/null; then \
		echo "kernels building the native operators into build/kernels"; \
		$(BIN)/cmake -S kernels -B build/kernels -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja >/dev/null \
			&& $(BIN)/cmake --build build/kernels -- --quiet; \
	else \
		echo "kernels no C++ compiler ($${CXX:-c++}): artifacts run by the function in their graph, slower" >&2; \
	fi

cuda: $(STAMP)
	@command -v nvcc >/dev/null || [ -x $(NVCC) ] || { echo "cuda    installing nvcc into build/nvcc"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --target build/nvcc \
		--requirement kernels/cuda/requirements.txt; }
	@echo "cuda    building the operators for a GPU into build/kernels-cuda (a minute or two)"
	@export CUDACXX="$$(command -v nvcc || echo $(abspath $(NVCC)))" && CUDAFLAGS="-L$$(dirname "$$CUDACXX")/../lib" \
		$(BIN)/cmake -S kernels -B build/kernels-cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPYTHIA_CUDA=ON >/dev/null && $(BIN)/cmake --build build/kernels-cuda --target pythia_cuda -- --quiet

venv: $(STAMP)

# The stamp comes last, so that an installation that was interrupted is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "venv    installing the project and its dependencies into $(VENV) (minutes, the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	@echo "clean   removing $(VENV), build and caches"
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
