# make demo      the whole mission on a CPU, offline, in minutes
# make test      every notebook, every test; fails when notebooks and modules differ
# make export    notebooks -> modules, README
# make run-nbs   run the notebooks and store their outputs, for readers
# make mutations breaks each guarantee on purpose and sees that a test notices
# make docs      the notebooks as a site, offline, every link checked
# make dist      a wheel
# make address OWNER=... REPO=...   the project's address, written into all that shows it
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
JOBS   ?= $(shell nproc 2>/dev/null || echo 2)
DEMO   ?= demo
WIDGETS7 ?= $(VENV)-widgets7
PIP     = $(BIN)/python -m pip --disable-pip-version-check -q
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test check test-nbs test-py test-browser widgets7 mutations address export run-nbs docs dist clean

$(VENV)/.run: settings.ini setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	HF_HUB_OFFLINE=0 $(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.run
	$(BIN)/cad-mllm demo --out $(DEMO) $(ARGS)

test: check test-nbs test-py test-browser

check: $(VENV)/.dev
	$(BIN)/python tools/check_notebooks.py
	$(BIN)/python tools/make_faces.py --check
	$(BIN)/python tools/make_readme.py --check
	$(BIN)/ruff check
	$(BIN)/biome check

# What failed beside other work is run once more, alone, before it counts. Its first failure stays in the output: a test that passes only alone is unsteady, and a fault to look at.
test-nbs: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tools/test_notebooks.py --jobs $(JOBS) --again

test-py: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "not browser" || OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not browser" --last-failed --last-failed-no-failures none

test-browser: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser || OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m browser --last-failed --last-failed-no-failures none

# A second environment with the ipywidgets that Colab has, for the browser tests that name it; everything else comes from the first.
$(WIDGETS7)/.ready: $(VENV)/.dev
	test -x $(WIDGETS7)/bin/python || $(BIN)/python -m venv $(WIDGETS7)
	$(WIDGETS7)/bin/python -m pip --disable-pip-version-check -q install ipywidgets==7.7.1 notebook==6.5.7 widgetsnbextension==3.6.6 "setuptools<81"
	$(BIN)/python -c "import site, sys; print(site.getsitepackages()[0])" > "$$($(WIDGETS7)/bin/python -c 'import site; print(site.getsitepackages()[0])')/zz_first_environment.pth"
	touch $@

widgets7: $(WIDGETS7)/.ready

# Breaks each guarantee on purpose and sees that a test notices; hours. ARGS="--sample 10" takes some.
mutations: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python tools/break_on_purpose.py --jobs $(JOBS) $(ARGS)

export: $(VENV)/.dev
	$(BIN)/python -c "from nbdev.doclinks import nbdev_export; nbdev_export()"
	$(BIN)/nbdev_clean
	$(BIN)/python tools/make_faces.py
	$(BIN)/python tools/make_readme.py

run-nbs: $(VENV)/.dev
	$(BIN)/python tools/run_notebooks.py $(NBS)

docs: $(VENV)/.dev
	$(BIN)/python tools/make_docs.py --out site

dist: $(VENV)/.dev
	$(BIN)/python -m build --wheel --no-isolation

address: $(VENV)/.dev
	$(BIN)/python tools/address.py "$(OWNER)/$(REPO)"
	$(MAKE) export

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis
