# Needs Python 3.11 or newer with pip and venv. `make` lists what there is: every target whose line has two hashes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NVCC := build/nvcc/nvidia/cu13/bin/nvcc

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q
PARALLEL := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

comma := ,

.DEFAULT_GOAL := help
.PHONY: help demo sweep-demo check lint test test-fast test-long test-import test-fuzz test-lens test-ranges test-wheels test-arm test-windows test-consumers test-tools test-slurm test-kill consumers hooks docs reference kernels \
	cuda wheels venv clean

help: ## list these targets
	@awk -F ':.*## ' '/^##@ /{ printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## /{ printf "  make %-15s %s\n", $$1, $$2 }' Makefile
	@printf '\n%s\n%s\n' "Some tests:           make test T=tests/test_house.py    make test T='-k beam'" \
		"Another interpreter:  make demo PYTHON=python3.12"

##@ To try it
demo: $(STAMP) kernels ## the whole job on the embedded checkpoint, offline
	@HF_HUB_OFFLINE=1 $(BIN)/pythia-export run demo --out build/demo --overwrite

sweep-demo: $(STAMP) kernels ## train a little, sweep over checkpoints and means, plot
	@[ -d build/sweep-demo/decayed/step2300 ] || { echo "sweep-demo  training (minutes)"; \
		$(BIN)/python demo/branches.py --out build/sweep-demo; }
	@$(BIN)/pythia-export sweep run demo/sweep.toml --out build/sweep-demo/decay-and-means
	@$(BIN)/pythia-export sweep report build/sweep-demo/decay-and-means

##@ Before a commit
check: $(STAMP) ## lint and types: ruff, mypy, schemas of GitHub's files
	@echo "check   ruff, mypy, schemas"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-actions action.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.citation-file-format CITATION.cff
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml

lint: check

# What is not fast has a marker; pyproject.toml says what each marker means.
test-fast: $(STAMP) kernels ## the tests that are quick: a minute
	@echo "test    all but those marked slow, native, browser, end_to_end or long"
	@$(PYTEST) $(PARALLEL) -m "not (slow or native or browser or end_to_end or long)"

test: $(STAMP) kernels ## every test that needs no GPU and no hub; some with T=...
ifeq ($(origin T),command line)
	@$(PYTEST) $(T)
else
	@echo "test    everything that needs no GPU and no hub, but for what make test-long waits for"
	@$(PYTEST) $(PARALLEL) -m "not long"
endif

hooks: $(STAMP) ## let git run ruff and mypy before a commit (pre-commit)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pre-commit>=4,<5'
	@$(BIN)/pre-commit install

##@ The documentation
# Sphinx and what it needs are in an environment of their own: nothing of ours is imported.
docs: build/docs-venv/.installed ## a static site, in build/docs; its search needs no network
	@echo "docs    writing the site into build/docs/index.html"
	@build/docs-venv/bin/sphinx-build -q -W --keep-going -E -b html -c docs -d build/docs-doctrees . build/docs

build/docs-venv/.installed: pyproject.toml
	@echo "docs    installing Sphinx into build/docs-venv"
	@$(PYTHON) -m venv build/docs-venv
	@build/docs-venv/bin/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@build/docs-venv/bin/python -m pip install --quiet --disable-pip-version-check --group docs
	@touch $@

reference: $(STAMP) ## fill its pages from the code and committed files
	@$(BIN)/python docs/generate.py

##@ Longer tests
test-long: $(STAMP) kernels ## sanitizers, WebGPU, what else waits long; in CI
	@echo "test    sanitizers, registers of CUDA kernels, WebGPU without a GPU: some five minutes"
	@$(PYTEST) -rs $(PARALLEL) -m long

test-consumers: consumers kernels ## artifacts in every program that runs them
	@echo "test    one artifact in every consumer, and the page of serve"
	@$(PYTEST) -rs tests/end_to_end/test_consumers.py tests/end_to_end/test_serve_browser.py \
		tests/end_to_end/test_serve_webgpu.py

test-import: $(STAMP) kernels ## quantise with three other tools, import each
	@echo "test    checkpoints of three quantisers, each run for real (minutes)"
	@tests/importers/make.sh build/importers $(PYTHON) $(BIN)/python
	@$(PYTEST) -rs tests/end_to_end/test_import_libraries.py

test-lens: build/lens/.installed build/saelens/.installed kernels ## an artifact in TransformerLens 4, and in SAELens
	@echo "test    every place and change against TransformerLens, in build/lens and build/saelens"
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 build/lens/bin/python -m pytest -q tests/lens/test_lens.py
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 build/saelens/bin/python -m pytest -q tests/lens/test_saelens.py

build/lens/.installed build/saelens/.installed: pyproject.toml
	@echo "lens    installing what $(@D) needs"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check 'pytest>=8.3,<10' 'torch<2.14' \
		$(if $(findstring sae,$@),--editable . 'sae-lens>=6.54$(comma)<7' 'transformer-lens>=3.9$(comma)<4',--editable '.[lens]')
	@touch $@

test-ranges: $(STAMP) build/ranges/uv/.installed kernels ## oldest and newest dependencies, and neighbours
	@echo "test    both ends of every range, in environments of their own (an hour, and up to 8 GB of disk)"
	@$(BIN)/python tests/ranges/table.py build/ranges/uv/bin/uv

build/ranges/uv/.installed:
	@echo "ranges  installing uv into build/ranges/uv"
	@$(PYTHON) -m venv build/ranges/uv
	@build/ranges/uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	@touch $@

test-tools: $(STAMP) build/tools/.installed ## what onnxslim and its like do to an artifact
	@echo "test    every tool over every form of artifact (some four minutes)"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/survival/table.py build/tools/bin/python 2>/dev/null

build/tools/.installed: tests/survival/requirements.txt
	@echo "tools   installing onnxslim, onnxsim, onnxscript and others into build/tools"
	@$(PYTHON) -m venv build/tools
	@build/tools/bin/python -m pip install --quiet --disable-pip-version-check -r tests/survival/requirements.txt
	@touch $@

test-fuzz: $(STAMP) kernels ## a million damaged inputs; no other error may escape
	@echo "test    a million damaged inputs (about ten minutes of one core)"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/support/fuzz.py

# Whatever happens, interruption included, it is taken down again.
test-slurm: $(STAMP) ## sweeps on a real Slurm, killed at random
	@echo "test    sweeps on Slurm, killed at random"
	@trap 'tests/slurm/down.sh build/slurm' EXIT && trap 'exit 130' INT TERM && \
		conf="$$(tests/slurm/up.sh build/slurm)" && eval "$$conf" && \
		$(PYTEST) -rs tests/end_to_end/test_slurm.py

test-kill: $(STAMP) kernels ## runs killed at 200 random moments: what is lost?
	@echo "test    runs killed at random moments"
	@OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python tests/support/kill_storm.py --folder build/kill-storm

consumers: $(STAMP) build/consumers/.installed ## what test-consumers needs, and what test skips without

build/consumers/.installed: tests/consumers/install.sh tests/consumers/package.json $(wildcard tests/consumers/requirements*.txt)
	@echo "consumers  installing onnxruntime-genai, transformers 5, lm-eval, OpenVINO, transformers.js, Chromium and headers for C++, for their tests"
	@tests/consumers/install.sh build/consumers $(PYTHON)

##@ To build
kernels: $(STAMP) ## the native operators, where there is a C++17 compiler
	@if command -v "$${CXX:-c++}" >/dev/null; then \
		echo "kernels building the native operators into build/kernels"; \
		$(BIN)/cmake -S kernels -B build/kernels -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja >/dev/null \
			&& $(BIN)/cmake --build build/kernels -- --quiet; \
	else \
		echo "kernels no C++ compiler ($${CXX:-c++}): artifacts run by the function in their graph, slower" >&2; \
	fi

cuda: $(STAMP) ## those for an NVIDIA GPU; installs nvcc if need be
	@command -v nvcc >/dev/null || [ -x $(NVCC) ] || { echo "cuda    installing nvcc into build/nvcc"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --target build/nvcc \
		--requirement kernels/cuda/requirements.txt; }
	@echo "cuda    building the operators for a GPU into build/kernels-cuda (a minute or two)"
	@export CUDACXX="$$(command -v nvcc || echo $(abspath $(NVCC)))" && CUDAFLAGS="-L$$(dirname "$$CUDACXX")/../lib" \
		$(BIN)/cmake -S kernels -B build/kernels-cuda -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
		-DPYTHIA_CUDA=ON >/dev/null && $(BIN)/cmake --build build/kernels-cuda --target pythia_cuda -- --quiet

wheels: build/wheels-venv/.installed ## wheels of all five platforms, in dist
	@echo "wheels  building for five platforms (minutes; C++'s own library is built for each, the first time)"
	@PATH="$(abspath build/wheels-venv/bin):$$PATH" build/wheels-venv/bin/python packaging/wheels.py --out dist

test-wheels: build/wheels-venv/.installed ## load the libraries of dist, under emulators
	@echo "wheels  loading what is in dist (a host for each platform is compiled first)"
	@build/wheels-venv/bin/python tests/platforms/load_wheels.py dist

test-arm: $(STAMP) kernels ## artifacts in ONNX Runtime for arm64, emulated
	@echo "arm64   products and decoders in ONNX Runtime's arm64 build (Debian's Python for arm64 is fetched first)"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/platforms/arm64.py dist

test-windows: $(STAMP) build/wheels-venv/.installed consumers ## artifacts in ONNX Runtime for Windows, by wine
	@echo "windows decoders in ONNX Runtime's Windows build, under wine"
	@OMP_NUM_THREADS=1 $(BIN)/python tests/platforms/windows.py dist build/wheels-venv/lib/python3*/site-packages/ziglang/zig

build/wheels-venv/.installed: packaging/requirements.txt
	@$(PYTHON) -m venv build/wheels-venv
	@build/wheels-venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

venv: $(STAMP) ## the project and its dependencies, in .venv

# The stamp comes last, so that an installation that was interrupted is taken up again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than Python 3.11; name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "venv    installing the project and its dependencies into $(VENV) (minutes, the first time)"
	@$(PYTHON) -m venv $(VENV)
	@ls -d $(VENV)/lib/python*/site-packages/onnxruntime_gpu-*.dist-info >/dev/null 2>&1 \
		&& echo "venv    onnxruntime takes the place of onnxruntime-gpu (docs/guides/gpu.md puts it back)" \
		&& $(BIN)/python -m pip uninstall --quiet --yes onnxruntime-gpu || true
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean: ## remove .venv, build and caches
	@echo "clean   removing $(VENV), build and caches"
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
