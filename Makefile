# Labline: from a fresh clone to a champion. `make help` lists the targets.

.DEFAULT_GOAL := line
.PHONY: line setup data test lab serve bench replay readme notebooks export clean-notebooks lock clean distclean help
MAKEFLAGS += --no-print-directory

# Programs of the environment come first, for make itself and for the stages that DVC starts.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONHASHSEED := 0
export TF_CPP_MIN_LOG_LEVEL := 2
export OMP_NUM_THREADS := 2
export OMP_WAIT_POLICY := PASSIVE
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME

heading = @printf '\n\033[1m== %s\033[0m\n' '$(1)'
browser := $(if $(or $(DISPLAY),$(WAYLAND_DISPLAY),$(filter Darwin,$(shell uname -s))),,--no-browser)
root_user := $(if $(filter 0,$(shell id -u)),--allow-root)

line: setup data  ## Set up, fetch the data, run what changed, and show the champion (the default).
	@labline repro
	@echo
	@labline champion

setup:  ## Make .venv, the Jupyter kernel and the hooks; nothing when nothing changed. PYTHON=… names another Python.
	@python="$$(scripts/find_python.sh $(if $(PYTHON),"$(PYTHON)"))" && "$$python" scripts/setup.py

# DVC is asked only when there are no data, or when data.dvc is not the one that they were fetched for.
data: setup  ## Fetch the data version that data.dvc pins.
	@if [ ! -d data ] || ! cmp -s data.dvc .dvc/tmp/data.fetched; then \
		echo "==> Fetching the data version of data.dvc"; \
		dvc pull data.dvc && mkdir -p .dvc/tmp && cp data.dvc .dvc/tmp/data.fetched; \
	fi

test: setup data  ## Check notebooks, package, README, style, types; run the notebooks' cells and the tests.
	$(call heading,Notebooks are clean - labline/ and README.md are made from them)
	@labline check --notebooks
	$(call heading,Parameters agree)
	@labline check
	$(call heading,Style)
	@ruff check --output-format concise .
	$(call heading,Types)
	@mypy
	$(call heading,Notebook cells)
	@nbdev_test --n_workers 2 --do_print
	$(call heading,Tests)
	@pytest

lab: setup  ## Open JupyterLab here, with its kernel, git and notebook differences.
	@jupyter lab --notebook-dir . $(browser) $(root_user)

# ARGUMENTS="--port 9000 --workers 2" goes to the command as it is.
serve: setup  ## Serve the champion on http://127.0.0.1:8501 until Ctrl-C; ARGUMENTS=… for options.
	@labline serve $(ARGUMENTS)

bench: setup data  ## Run the benchmarks; each prints a table and what it ran on.
	@for script in benchmarks/[a-z]*.py; do \
		grep -q '__main__' "$$script" || continue; \
		printf '\n\033[1m== %s\033[0m\n' "$$script"; \
		python "$$script" || exit 1; \
	done

# Half an hour for the simulator; two hours more with the taxi records. ARGUMENTS="--only staged" leaves those out.
replay: setup data  ## Prove the loop: staged changes, then a year of taxi trips where their records are; ARGUMENTS=… for options.
	@python scripts/replay.py $(ARGUMENTS)

readme: setup  ## Make README.md from nbs/index.ipynb.
	@labline readme

notebooks: setup  ## Execute the notebooks of nbs/ and keep their outputs.
	@jupyter execute --inplace --kernel_name=labline nbs/*.ipynb
	@nbdev_clean

export: setup  ## Export labline/ from nbs/.
	@nbdev_export

clean-notebooks: setup  ## Take out of the notebooks what must not be committed.
	@nbdev_clean
	@jupyter nbconvert --clear-output --inplace --log-level=WARN pipelines/*.ipynb
	@for notebook in pipelines/*.ipynb; do nbdev_clean --fname "$$notebook"; done

lock:  ## Resolve the versions of requirements.lock anew; needs uv on the path.
	@uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 \
		--extra lab --extra test pyproject.toml -o requirements.lock

clean:  ## Remove results and caches; the environment, the data and the cache of DVC stay.
	@rm -rf build runs .mypy_cache .pytest_cache .ruff_cache _proc
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## Remove the environment too.
	@rm -rf .venv

help:  ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "\033[1m%-16s\033[0m %s\n", "make " $$1, $$2}' Makefile
