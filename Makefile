# `make help` lists the targets.

# rustup puts cargo here; a shell that was open before the installation does not look there yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

FUZZ_SECONDS ?= 30

# For bench-mount: a directory of the disk below the store, and further arguments (vexfs bench mount --help).
BACKING ?= /var/tmp
MOUNT_ARGS ?=

# For bench-ann: the directory with the data, NAME:METRIC of its sets, and the libraries beside which we are measured.
DATA ?=
SETS ?= minilm384:ip,glove100:ip,sift128:l2
PEERS ?= hnswlib,symqg
BENCH_VENV ?= target/bench-venv

# For install: where things go. mount(8) looks for its helpers in /sbin only.
DESTDIR ?=
PREFIX ?= /usr/local
SBINDIR ?= /sbin
UNITDIR ?= $(PREFIX)/lib/systemd/system
TARGET_DIR ?= target

.PHONY: help setup build install uninstall demo test check models crash stack fuzz posix bench-ann bench-mount bench-kernels clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: ## Install what building and testing need and the machine lacks
	@scripts/setup.sh

build: setup ## Build target/release/vexfs
	cargo build --release --locked

# Builds nothing, so that root does not: run `make build` first.
install: ## Install the program, the helper of mount(8) and the systemd unit below DESTDIR and PREFIX (/usr/local)
	@test -x $(TARGET_DIR)/release/vexfs || { echo "$(TARGET_DIR)/release/vexfs is missing: run make build first" >&2; exit 1; }
	install -D -m 755 $(TARGET_DIR)/release/vexfs $(DESTDIR)$(PREFIX)/bin/vexfs
	install -d $(DESTDIR)$(SBINDIR)
	ln -sf $(PREFIX)/bin/vexfs $(DESTDIR)$(SBINDIR)/mount.fuse.vexfs
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|@BINDIR@|$(PREFIX)/bin|' packaging/vexfs@.service > $(DESTDIR)$(UNITDIR)/vexfs@.service

uninstall: ## Remove what install has installed
	rm -f $(DESTDIR)$(PREFIX)/bin/vexfs $(DESTDIR)$(SBINDIR)/mount.fuse.vexfs $(DESTDIR)$(UNITDIR)/vexfs@.service

demo: ## Build, mount a fresh store, copy real vectors in, search through each door
	@scripts/demo.sh

# The runner comes last: its closing lines are the verdict.
test: setup ## Run every test; the tests mount for real
	@if cargo nextest --version >/dev/null 2>&1; then \
		set -ex; cargo test --locked --doc; cargo nextest run --locked; \
	else \
		set -ex; cargo test --locked; \
	fi

check: setup ## Formatting, lints, documentation, dependencies, then the tests
	cargo fmt --all --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	@if cargo deny --version >/dev/null 2>&1; then \
		set -ex; cargo deny --locked check bans licenses sources; \
	else \
		echo "cargo-deny is not installed: licences and sources of dependencies are not checked"; \
	fi
	@$(MAKE) --no-print-directory models
	@$(MAKE) --no-print-directory test

models: setup ## Try every order in which threads can meet where no lock is taken
	cd tests/models && cargo run --release --locked

# CRASH_CUTS, CRASH_KILLS and CRASH_SEED go to the tests by the environment: see docs/RELIABILITY.md.
crash: setup ## Cut the power CRASH_CUTS times, simulated and under a live mount, kill the daemon CRASH_KILLS times, as root
	CRASH_MEMORY=1 cargo test --release --locked --test crash -- --test-threads=1 --nocapture

# Debug builds are held to an eighth more, by `make test`.
stack: setup ## Measure the stack that each operation uses, and hold it to its budget, in a release build
	cargo test --release --locked --test mount stack:: -- --nocapture

fuzz: ## Feed hostile bytes to the parsers, FUZZ_SECONDS (30) for each
	@scripts/setup.sh --fuzz
	scripts/fuzz.sh $(FUZZ_SECONDS)

posix: setup ## Run other people's tests of filesystems, and programs that need one, on a mount (as root)
	scripts/posix.sh

bench-ann: build ## Measure the index beside PEERS on SETS of DATA (a directory; see scripts/bench_ann.py)
	@test -n "$(DATA)" || { echo "want DATA=DIR with NAME_base.npy, NAME_query.npy and NAME_gt.npy" >&2; exit 2; }
	@test -x $(BENCH_VENV)/bin/python || scripts/bench_ann.py --setup $(BENCH_VENV)
	$(BENCH_VENV)/bin/python scripts/bench_ann.py --data "$(DATA)" --sets "$(SETS)" --peers "$(PEERS)"

bench-mount: build ## Time operations on a mount beside a bare FUSE filesystem and the disk (BACKING, MOUNT_ARGS)
	target/release/vexfs bench mount --floor --backing "$(BACKING)" $(MOUNT_ARGS)

bench-kernels: ## Rates of the distance functions on this machine, beside a peer's
	cargo run --release --locked --manifest-path benches/kernels/Cargo.toml

clean: ## Remove what was built
	cargo clean
	rm -rf benches/kernels/target tests/models/target fuzz/target fuzz/corpus fuzz/artifacts
