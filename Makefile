# Every target works from a fresh clone on Debian 12 and says what it does. `make` alone prints what there is.

SHELL := /bin/bash
# Where `cargo install` and rustup put programs, for shells that do not know it yet.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# Tests to run: make test TESTS='-p e2e linux_host'
TESTS ?= --workspace

.DEFAULT_GOAL := help
.PHONY: help
help: ## Print this
	@echo "Usage: make TARGET"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target text; do \
		printf '  %-15s %s\n' "$$target" "$$text"; done
	@echo
	@echo "The first run on a machine installs packages (as root, or with sudo) and says which and why."
	@echo "Downloads and the virtual machine's parts go to $${XDG_CACHE_HOME:-~/.cache}/mayastor-lab."

.PHONY: setup
setup: ## Install what building and testing need, where it is missing
	@e2e/setup/host-packages.sh

# Downloads and long builds come before the tests, whose time limits are for the tests.
.PHONY: lab
lab: setup ## Prepare the Linux host (qemu, kernel), Kubernetes, its nodes and Helm: once, ten minutes or more
	@e2e/setup/linux-host.sh bookworm >/dev/null
	@e2e/setup/linux-host.sh bookworm-backports >/dev/null
	@e2e/setup/kubernetes.sh kube-controller-manager kube-scheduler kubelet kube-proxy >/dev/null
	@e2e/setup/kubernetes-node.sh >/dev/null
	@e2e/setup/images.sh --prepare
	@e2e/setup/helm.sh >/dev/null

.PHONY: demo
demo: lab ## Show a volume that survives the loss of a replica and of its target; KEEP=1 leaves it running
	cargo build --release --bins -p e2e -p io-engine -p operator -p ha -p csi
	@cargo run --quiet --release -p e2e --bin demo -- $(if $(KEEP),--keep)

.PHONY: test
test: lab ## Run every test; some with TESTS='-p store' or TESTS='-p e2e linux_host'
	@# Tests run the programs of other crates, which building the tests alone would not build.
	cargo build --workspace --bins --examples --tests
	@# Without a backtrace through the libraries the last thing that a failed test prints is its cause.
	RUST_LIB_BACKTRACE=0 cargo nextest run $(TESTS)
	cargo test --workspace --doc --quiet
	@$(MAKE) --no-print-directory loom

.PHONY: test-failover
test-failover: lab ## Run all stories of failover, the long ones too that test leaves out (about 10 minutes)
	cargo build --bins -p e2e -p io-engine -p operator -p ha -p csi
	RUST_LIB_BACKTRACE=0 cargo nextest run --profile failover -p e2e

.PHONY: e2e
e2e: lab ## Run the stories of claims on Kubernetes nodes, the long ones too that test leaves out
	cargo build --bins -p e2e -p io-engine -p operator -p ha -p csi
	RUST_LIB_BACKTRACE=0 cargo nextest run --profile e2e -p e2e

# Where the images go, and their tag: make images IMAGES=/tmp/images TAG=mine
IMAGES ?= target/images
TAG ?=
.PHONY: images
images: setup ## Make the container images (IMAGES=target/images TAG=0.1.0) as archives, without a container engine
	cargo build --release --locked --bins -p operator -p io-engine -p ha -p csi
	@e2e/setup/images.sh --programs "$${CARGO_TARGET_DIR:-target}/release" --out $(IMAGES) $(if $(TAG),--tag $(TAG)) >/dev/null
	@ls -sh $(IMAGES)/*.tar
	@echo
	@echo "Load them on each node:   for i in $(IMAGES)/*.tar; do ctr -n k8s.io image import \$$i; done"
	@echo "or into a kind cluster:   for i in $(IMAGES)/*.tar; do kind load image-archive \$$i; done"

.PHONY: loom
loom: setup ## Try every interleaving of what threads share (loom); a part of test
	@# A build of its own beside the usual one: the flag is for every crate.
	RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR="$${CARGO_TARGET_DIR:-target}/loom" \
		cargo test --release --quiet -p runtime --test mailbox

# Seeds of each kind of simulation.
SEEDS ?= 0..1000
.PHONY: soak
soak: setup ## Simulated storms, SEEDS=0..1000 of each kind: one nexus, several, whole engines; prints what occurred
	cargo test --release --quiet -p io-engine --lib --no-run
	STORM_SEEDS=$(SEEDS) FAILOVER_SEEDS=$(SEEDS) SIM_SEEDS=$(SEEDS) \
		cargo test --release --quiet -p io-engine --lib -- --nocapture --exact \
		nexus::tests::storm::d1_acknowledged_writes_survive_a_storm \
		nexus::tests::failover::f1_never_two_nexuses_serve_in_a_storm_of_failovers \
		nexus::tests::engines::d1_three_engines_keep_what_they_acknowledged

# What to measure and for how long: make bench BENCH='--only "memory read" --rounds 5'
BENCH ?=
.PHONY: bench
bench: setup ## Measure the data path beside its limits: BENCH='--only memory --rounds 5', BENCH=--help
	cargo bench --quiet -p io-engine --bench data_path -- $(BENCH)

# How many and which: make bench-failover FAILOVER='--rounds 5 --only killed,silent --kernel 6.12'
FAILOVER ?=
.PHONY: bench-failover
bench-failover: lab ## Measure 50 failovers of each kind; a second start goes on where the first ended: FAILOVER=--help
	cargo build --release --bins -p e2e -p io-engine -p operator -p ha -p csi
	@cargo run --quiet --release -p e2e --bin bench-failover -- $(FAILOVER)

# How long each fuzz target runs.
SECONDS_EACH ?= 60
.PHONY: fuzz
fuzz: setup ## Feed random bytes to the parsers, SECONDS_EACH=60 for each target
	@e2e/setup/fuzz.sh $(SECONDS_EACH)

.PHONY: lint
lint: setup ## Check format, clippy, licences (with cargo-deny, where it is installed) and generated files
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo "lint: cargo-deny is not installed, licences are not checked (cargo install cargo-deny)"; fi
	cargo nextest run -p crds --test manifests

.PHONY: check-arm64
check-arm64: setup ## Check that everything compiles for arm64
	@e2e/setup/arm64.sh

.PHONY: generate
generate: ## Write the generated files anew (crds/yaml and the chart's copy)
	cargo run --quiet -p crds --bin crdgen
	@# Helm reads nothing outside of a chart.
	cp crds/yaml/*.yaml charts/mayastor/files/crds/
	cp crds/yaml/no-cel/*.yaml charts/mayastor/files/crds/no-cel/

.PHONY: clean-lab
clean-lab: ## Remove what lab and failed runs left in the cache and temporary folders
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/mayastor-lab" "$${TMPDIR:-/tmp}/mayastor-lab-$$(id -u)"
