# make setup | demo | test | test-slow | check | format | figure | pictures | docs | release | label-setup | label-server
# make gpu-packages | gpu-check
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
LABEL_VENV ?= .venv-label
LABEL_BIN = $(LABEL_VENV)/bin
WEIGHTS_DIR ?= demo
TRAINED_ON ?= $(if $(filter demo,$(WEIGHTS_DIR)),synthetic,)
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: setup demo test test-slow check format figure pictures docs release label-setup label-server gpu-packages gpu-check

setup: $(VENV)/installed

# The pinned torch comes first, so that no other package pulls a torch of its own.
$(VENV)/runs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# What tests and packaging need beside.
$(VENV)/installed: $(VENV)/runs
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,release]'
	touch $@

demo: $(VENV)/runs
	$(BIN)/python examples/demo.py --output demo

# Two processes of one thread each: small tensors lose by more threads.
TWICE = --numprocesses 2 --dist worksteal
test: export OMP_NUM_THREADS = 1
test: setup
	$(BIN)/python -m pytest -m "not slow" $(TWICE)

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

figure: setup
	$(BIN)/python examples/figure.py

# The tutorial's, from what `make demo` leaves.
pictures: setup
	$(BIN)/python examples/pictures.py

# What of docs/ is made: the reference's tables from the YAML, the page of evidence from studies/results.
docs: setup
	$(BIN)/python -m sa_swin.reference
	$(BIN)/sa-swin study evidence

# From the weights of `make demo`, or WEIGHTS_DIR=... and TRAINED_ON="a sentence for the model cards"; into dist/.
release: setup
	$(BIN)/sa-swin release all --weights_dir '$(WEIGHTS_DIR)' --trained_on '$(TRAINED_ON)'

# What a machine with a GPU, torch and the usual scientific packages lacks; carried there in .gpu/ (26 MB).
gpu-packages: .gpu/site/installed

.gpu/site/installed: constraints.txt
	rm -rf .gpu/site
	$(PYTHON) -m pip install --quiet --no-deps --no-compile --only-binary=:all: --constraint constraints.txt --target .gpu/site \
		monai nibabel pytorch-ignite fire termcolor importlib_resources
	touch $@

# In under four minutes, on a machine with a GPU where nothing can be fetched: one table, and gpu_check_<device>.json in RESULTS.
DEVICE ?= cuda
RESULTS ?= benchmarks/results
gpu-check:
	PYTHONPATH="$(CURDIR):$(CURDIR)/.gpu/site" $(PYTHON) -m benchmarks.gpu_check --device '$(DEVICE)' --output '$(RESULTS)'

# MONAI Label has an environment of its own. It and pydicom-seg come without what they require: see label_app/requirements.txt.
label-setup: $(LABEL_VENV)/installed

$(LABEL_VENV)/installed: label_app/requirements.txt constraints.txt
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_BIN)/pip install --quiet torch==2.13.0
	$(LABEL_BIN)/pip install --quiet --constraint constraints.txt --requirement label_app/requirements.txt
	$(LABEL_BIN)/pip install --quiet --no-deps monailabel==0.8.5 pydicom-seg==0.4.1
	$(LABEL_BIN)/python -c "import torchvision" 2>/dev/null || \
		cp -r label_app/shim/torchvision "$$($(LABEL_BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	touch $@

# STUDIES: folder of NIfTI files, or a BIDS folder, of which IMAGES='*_FLAIR.nii.gz' takes some. WEIGHTS: packages of
# `make release`, or what `make demo` leaves. On 127.0.0.1 alone.
STUDIES ?=
WEIGHTS ?= demo
PORT ?= 8000
IMAGES ?= *
label-server: label-setup
	$(LABEL_BIN)/python -m label_app.serve --studies '$(STUDIES)' --weights '$(WEIGHTS)' --port '$(PORT)' --images '$(IMAGES)'
